"""`train()`: from settings to a finished run folder; the same call again resumes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ddpm.data import open_data, require
from ddpm.data.dataset import Dataset
from ddpm.denoiser import Card, NetworkDenoiser
from ddpm.errors import ConfigError, DiskError, NonFiniteError
from ddpm.training import checkpoint
from ddpm.training.build import build_denoiser, describe, measured
from ddpm.training.checkpoint import RunLock
from ddpm.training.config import TrainConfig
from ddpm.training.ema import PowerEMA
from ddpm.training.initial import start_from
from ddpm.training.logbook import Logbook
from ddpm.training.machine import Machine, choose
from ddpm.training.preview import loss_figure, model_card
from ddpm.training.state import RunState, check_data, compare, versions, write_request
from ddpm.training.stop import Stop
from ddpm.training.trainer import Trainer


class Finished(NamedTuple):
    """What `train` returns: the run folder, the denoiser with the averaged weights, and the exit code of a stop (0: went to the end)."""

    run: Path
    denoiser: NetworkDenoiser
    code: int


def run_folder(config: TrainConfig) -> Path:
    """`config.out`, or runs/ and the name of the data without its endings."""
    if config.out is not None:
        return Path(config.out)
    name = Path(config.data.data.removeprefix("hf:").rstrip("/")).name
    for ending in (".xz", ".gz", ".tar", ".zip", ".npz", ".npy", ".safetensors"):
        name = name.removesuffix(ending)
    return Path("runs") / (name or "data")


OURS = (
    "README.md",
    "config.toml",
    "metrics.jsonl",
    "loss.png",
    "samples",
    "tensorboard",
    "latest",
)  # what a run writes, beside checkpoints


def _check_folder(run: Path) -> None:
    """ConfigError for a folder that is no run but holds files a run would replace."""
    if (run / "data_card.json").is_file() or any(run.glob("step-*")):
        return
    foreign = [name for name in OURS if (run / name).exists()]
    if foreign:
        raise ConfigError(
            f"out: {run} is not a run folder and holds {', '.join(foreign)}, which training would replace; name another folder, "
            "nothing was changed"
        )


def _state(config: TrainConfig, dataset: Dataset, machine: Machine, denoiser: NetworkDenoiser) -> RunState:
    loss = config.loss.build().to(machine.device)
    denoiser.to(machine.device)
    settings = config.optimizer
    parameters = [*denoiser.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=machine.device.type in ("cpu", "cuda"),
    )
    scaler = torch.amp.GradScaler(machine.device.type) if machine.precision == "fp16" else None
    return RunState(denoiser, loss, optimizer, PowerEMA(denoiser, config.ema), scaler)


def _resume(run: Path, config: TrainConfig, card: Card, state: RunState, say: Callable[[str], None]) -> None:
    """Continue from the newest good checkpoint of the run, or start from `init`, or from nothing; settings and data are compared first."""
    saved = checkpoint.newest(run, notice=say)
    changed = compare(saved, config) if saved else []
    check_data(run, card, config.accept_data_change)
    if saved is None:
        if config.init:
            start_from(config.init, state, describe(state.denoiser, config, card, None), say)
        return
    for line in changed:
        say(f"changed since the last checkpoint: {line}")
    state.load(saved)
    before = saved.document("state")
    for name, version in versions().items():
        if before["versions"].get(name) != version:
            say(f"written with {name} {before['versions'].get(name)}, now {version}: the result may differ in the last bits")
    threads = before["threads"]
    if threads != torch.get_num_threads():
        say(
            f"the run used {threads} CPU threads, now {torch.get_num_threads()}: the result may differ in the last bits "
            f"(--threads {threads} repeats it exactly)"
        )
    say(f"Resumed from step {state.step} (verified)")
    if state.step >= config.steps:
        say(f"{run} has {state.step} steps already; a larger --steps continues it")


def train(
    config: TrainConfig | None = None,
    *,
    network: nn.Module | None = None,
    data: Dataset | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Finished:
    """Train, or resume, the run that the settings describe, and leave everything about it in its folder.

    network: your own module, called as network(x, c_noise, cond), instead of config.network. data: a `Dataset` (see
    `ddpm.data.from_arrays`) instead of config.data. command: what a person types to resume, for messages. Returns the run folder and the
    trained denoiser.

    Raises ConfigError, DataError, CheckpointError, DiskError, NonFiniteError or LockedError, each saying what to do.
    """
    config = config or TrainConfig()
    problems = config.problems()
    if problems:
        raise ConfigError.of(problems)
    run = run_folder(config)

    def say(message: str) -> None:
        if not quiet:
            print(message, file=sys.stderr, flush=True)

    dataset = data if data is not None else open_data(config.data)
    require(dataset, config.batch)
    config = measured(replace(config, out=str(run)), dataset.card, own=network is not None)
    denoiser = build_denoiser(config, dataset.card, network)
    count = sum(p.numel() for p in denoiser.parameters())
    machine = choose(config.device, config.precision, config.threads, count)
    _check_folder(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the run folder {run}: {error.strerror}") from error
    with RunLock(run):
        checkpoint.clean(run, say)
        state = _state(config, dataset, machine, denoiser)
        _resume(run, config, dataset.card, state, say)
        if state.step < config.steps:
            write_request(run, config)
        held = f", {dataset.card.held_out} held out" if dataset.card.held_out else ""
        say(f"{dataset.card.name}: {dataset.card.count} samples {dataset.card.shape}{held}; {count:,} parameters; seed {config.seed}")
        say(f"{machine.device}, {torch.get_num_threads()} threads, {machine.precision} ({machine.why}); run folder {run}")
        trainer = Trainer(config, dataset, state, machine, run, type(network).__name__ if network is not None else None)
        began = state.step
        with Stop() as stop, Logbook(run, config.steps, state.step, quiet=quiet) as log:
            trainer.fit(log, stop)
        if not state.good_steps and not stop.asked:
            raise NonFiniteError(f"none of the {state.step} steps was finite, nothing was learned; try a smaller --lr, or look at the data")
        if stop.asked:
            say(f"stopping after step {state.step}; it is saved. Resume: {command or f'the same call with out={str(run)!r}'}")
        elif state.step > began:
            loss_figure(run)
            model_card(trainer)
    for name, parameter in denoiser.named_parameters():
        parameter.data = state.ema.weights[name]
    return Finished(run, denoiser.eval(), stop.code)
