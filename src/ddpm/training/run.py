"""`train()`: from settings to a finished run folder; the same call again resumes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ddpm.config import to_dict
from ddpm.data import open_data, require
from ddpm.data.checks import check_image
from ddpm.data.dataset import Dataset
from ddpm.denoiser import NetworkDenoiser
from ddpm.errors import ConfigError, DataError, NonFiniteError
from ddpm.networks import UNetConfig, fused
from ddpm.networks.blocks import checkpointable
from ddpm.training.averaging.ema import PowerEMA
from ddpm.training.averaging.snapshots import drop_after
from ddpm.training.build import build_denoiser, describe, measured, refuse_autoencoder
from ddpm.training.cascade import check_base, load_base, with_low
from ddpm.training.checkpoints import checkpoint
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.config import TrainConfig
from ddpm.training.distributed.parallel import filled, is_part, mixed, shard, template, uneven
from ddpm.training.distributed.world import World
from ddpm.training.folder import check_room, take, turned_back
from ddpm.training.given import with_given
from ddpm.training.initial import start_from
from ddpm.training.latents import in_latents, load_through
from ddpm.training.leftovers import last_checkpoint
from ddpm.training.logbook import Logbook, Unlogged
from ddpm.training.machine import Machine, check_compiler, choose, device_of
from ddpm.training.optimizers import build_optimizer
from ddpm.training.origin import Origin, keep_origin
from ddpm.training.preview import loss_figure, model_card
from ddpm.training.resumed_parts import carry_on
from ddpm.training.same_data import check_data
from ddpm.training.state import RunState, compare, versions, write_request
from ddpm.training.stop import Stop
from ddpm.training.tokens import tokenised
from ddpm.training.trackers import Tracker, chosen
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


def _state(config: TrainConfig, dataset: Dataset, machine: Machine, denoiser: NetworkDenoiser, world: World | None = None) -> RunState:
    loss = config.loss.build().to(machine.device)
    if config.parallel == "fsdp" and world is not None and world.size > 1:
        if machine.precision == "fp16":
            raise ConfigError("precision: fp16 scales gradients by a factor that shards cannot agree on; use bf16 or fp32 with fsdp")
        shard(denoiser, world)
    denoiser.to(machine.device)
    optimizer = build_optimizer(config.optimizer, denoiser, loss, machine.device)
    mixed(optimizer)
    scaler = torch.amp.GradScaler(machine.device.type) if machine.precision == "fp16" else None
    return RunState(denoiser, loss, optimizer, [PowerEMA(denoiser, width) for width in config.widths], scaler)


def _newest(run: Path, world: World, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest good checkpoint; of many ranks the main one looks for it, and all open the same."""
    found: list[Checkpoint | None] = []

    def find() -> Path | None:
        found.append(checkpoint.newest(run, notice=say))
        return found[0].path if found[0] else None

    path = world.on_main(find)
    saved = found[0] if found else checkpoint.open_checkpoint(path) if path else None
    if saved is not None:
        refuse_autoencoder(saved.document("config"), str(run))
    return saved


def logical_shards(config: TrainConfig, saved: int | None, size: int, say: Callable[[str], None]) -> int:
    """In how many shards every pass is computed: what is asked for, else as the run has it, else one for each process.

    ConfigError where there are fewer than processes, more than samples in a pass, or for fsdp not as many on each process.
    """
    shards = config.logical_shards or max(saved or 0, size)
    if shards < size:
        raise ConfigError(f"logical_shards: got {shards} for {size} processes; each process needs one, so at least {size}")
    if shards > config.batch:
        raise ConfigError(f"batch: got {config.batch} for {shards} logical shards; each needs a sample, so at least {shards}")
    if config.parallel == "fsdp" and shards % size:
        raise ConfigError(uneven(shards, size, config.batch, asked=bool(config.logical_shards)))
    if saved is not None and shards != saved:
        say(f"{saved} logical shards -> {shards}: from here on the noise is another than with {saved}, the order of the data is the same")
    if shards != size:
        exact = " (the same to the last bit as on 2)" if (shards, size) == (2, 1) else " (the last bits may differ from one on each)"
        say(f"{shards} logical shards on {size} process{'es' if size > 1 else ''}{exact if saved is not None else ''}")
    return shards


def _resume(
    run: Path,
    config: TrainConfig,
    dataset: Dataset,
    state: RunState,
    saved: Checkpoint | None,
    origin: Origin | None,
    world: World,
    say: Callable[[str], None],
) -> None:
    """Continue from a checkpoint of the run, or start from `init`, or from nothing; settings and data are compared first."""
    if saved is not None:
        carry_on(saved, config, state.denoiser, say)
    changed = compare(saved, config) if saved else []
    world.on_main(lambda: check_data(run, dataset.card, config.accept_data_change, dataset.keys, say))
    if saved is None:
        if config.init:
            start_from(config.init, state, describe(state.denoiser, config, dataset.card, None), say)
        return
    for line in changed:
        say(f"changed since the last checkpoint: {line}")
    world.everywhere(lambda: state.load(saved))
    before = saved.document("state")
    turned = turned_back(config, int(before["config"]["steps"]), state.step)
    if turned:
        say(turned)
    for name, version in versions().items():
        if before["versions"].get(name, version) != version:
            say(f"written with {name} {before['versions'].get(name)}, now {version}: the result may differ in the last bits")
    threads = before["threads"]
    if threads != torch.get_num_threads():
        say(
            f"the run used {threads} CPU threads, now {torch.get_num_threads()}: the result may differ in the last bits "
            f"(--threads {threads} repeats it exactly)"
        )
    attempt, allowed = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    again = f"restart {attempt}/{allowed}: " if attempt != "0" else ""
    say(f"{again}Resumed from step {state.step} (verified)")
    if state.step >= config.steps:
        flag = "--steps" if origin is None else "--updates"  # of ddpm train, and of ddpm distill
        say(f"{run} has {state.step} steps already; a larger {flag} continues it")


def _main_first(world: World, make: Callable[[], Dataset]) -> Dataset:
    """Data, made by the main rank first: what it finds out about large data, or encodes, the others read from the cache."""
    found: list[Dataset] = []
    world.on_main(lambda: found.append(make()))
    return world.everywhere(lambda: found[0] if found else make())


def _introduce(config: TrainConfig, dataset: Dataset, machine: Machine, state: RunState, world: World, say: Callable[[str], None]) -> None:
    """What a person reads before the first step."""
    card, count = dataset.card, sum(p.numel() for p in state.denoiser.parameters())
    held = f", {card.held_out} held out" if card.held_out else ""
    many = f"{world.size} processes, " if world.size > 1 else ""
    say(f"{card.name}: {card.count} samples {card.shape}{held}; {count:,} parameters; seed {config.seed}")
    for notice in card.notices:
        say(f"  {notice}")
    say(f"{many}{machine.device}, {torch.get_num_threads()} threads, {machine.precision} ({machine.why}); run folder {config.out}")
    if machine.device.type == "cpu" and sys.platform == "linux" and fused.library() is None and isinstance(config.network, UNetConfig):
        say("no C++ compiler, by $CXX or as g++, or it failed: group norm goes by torch's operators, which is slower")


def _logbook(run: Path, config: TrainConfig, state: RunState, world: World, quiet: bool, trackers: Sequence[Tracker]) -> Logbook | Unlogged:
    if not world.main:
        return Unlogged()
    return Logbook(run, config.steps, state.step, quiet=quiet, trackers=trackers, config=to_dict(config))


def _finish(trainer: Trainer) -> None:
    loss_figure(trainer.run)
    model_card(trainer)


def _trainer(
    config: TrainConfig,
    network: nn.Module | None,
    data: Dataset | None,
    origin: Origin | None,
    run: Path,
    world: World,
    stack: ExitStack,
    say: Callable[[str], None],
) -> tuple[Trainer, NetworkDenoiser | None]:
    """Everything up to the first step: data opened, the folder taken, what it holds compared and resumed; and `template`'s copy of the
    denoiser, where its weights will be spread over the ranks and one process can hold the whole.
    """
    dataset = data if data is not None else _main_first(world, partial(open_data, config.data))
    require(dataset, config.batch)
    dataset = with_given(dataset, config.given)
    dataset = tokenised(dataset, config.text, config.conditional, say, world, device_of(config.device))
    if config.conditional:
        check_image(dataset)
    through = origin.through if origin is not None else None
    if through is None and config.autoencoder is not None:
        through = load_through(config.autoencoder, dataset)
    if through is not None:
        through.autoencoder.to(device_of(config.device))  # data are encoded where there is an accelerator
        dataset = in_latents(dataset, through, say, world=world)
    config = measured(replace(config, out=str(run)), dataset.card, own=network is not None)
    if (base := load_base(config.cascade) if origin is None else origin.denoiser.base) is not None:
        check_base(base, dataset.card)
    denoiser = build_denoiser(config, dataset.card, network, through, base)
    if origin is not None:
        denoiser.recode(origin.denoiser.codec)  # whatever the data at hand would ask for: the weights know that space
    dataset = with_low(dataset, denoiser)
    machine = choose(config.device, config.precision, config.threads, sum(p.numel() for p in denoiser.parameters()))
    world.device = machine.device
    check_compiler(config.compile, machine.device)
    if config.gradient_checkpointing:
        checkpointable(denoiser.network)
    world.on_main(lambda: take(run, stack, say))
    saved = _newest(run, world, say)
    if origin is not None:
        world.on_main(lambda: keep_origin(run, origin))
    shards = logical_shards(config, saved.document("state").get("shards", 1) if saved else None, world.size, say)
    plain = template(denoiser) if config.parallel == "fsdp" and world.size > 1 and not config.sharded_save else None
    state = _state(config, dataset, machine, denoiser, world)
    state.shards = shards
    _resume(run, config, dataset, state, saved, origin, world, say)
    world.on_main(lambda: check_room(run, config, state, say))
    world.on_main(lambda: drop_after(run, state.step, say))
    if state.step < config.steps:
        world.on_main(lambda: write_request(run, config))
    _introduce(config, dataset, machine, state, world, say)
    own = type(network).__name__ if network is not None else None
    return Trainer(config, dataset, state, machine, run, own, world=world, shards=shards), plain


def _averaged(state: RunState, plain: NetworkDenoiser | None) -> NetworkDenoiser:
    """The denoiser with the averaged weights: `plain`, filled, or where there is none the trained one itself."""
    if plain is not None:
        return filled(plain, state.denoiser, state.ema.weights)
    with torch.no_grad():
        for name, parameter in state.denoiser.named_parameters():
            if is_part(parameter):
                parameter.copy_(state.ema.weights[name])
            else:
                parameter.data = state.ema.weights[name]
    return state.denoiser


def train(
    config: TrainConfig | None = None,
    *,
    network: nn.Module | None = None,
    data: Dataset | None = None,
    quiet: bool = False,
    command: str | None = None,
    trackers: Sequence[Tracker] = (),
    origin: Origin | None = None,
) -> Finished:
    """Train, or resume, the run that the settings describe, and leave everything about it in its folder.

    network: your own module, called as network(x, c_noise, cond), instead of config.network. data: a `Dataset` (see
    `ddpm.data.from_arrays`) instead of config.data. command: what a person types to resume, for messages. trackers: your own, beside
    those of config.track. origin: what the run is distilled from, whose autoencoder, base and codec it has. Returns the run folder and the
    trained denoiser.

    After parallel = "fsdp" the denoiser is a whole one on the host of every process, while your own module stays in parts; with
    sharded_save the denoiser stays so too, and all processes must call it together.

    Raises ConfigError, DataError, CheckpointError, DiskError, NonFiniteError or LockedError, each saying what to do.
    """
    config = config or TrainConfig()
    problems = config.problems()
    if problems:
        raise ConfigError.of(problems)
    tracked = [*chosen(config.track), *trackers]
    run = run_folder(config)

    world = World.join(config.timeout, cuda=device_of(config.device) == "cuda")

    def say(message: str) -> None:
        if world.main and not quiet:
            print(message, file=sys.stderr, flush=True)

    with world.guard(lambda: last_checkpoint(run)), ExitStack() as stack:
        trainer, plain = _trainer(config, network, data, origin, run, world, stack, say)
        config, state = trainer.config, trainer.state
        began = state.step
        with Stop(echo=2.0 if world.size > 1 else 0.0) as stop, _logbook(run, config, state, world, quiet, tracked) as log:
            try:
                trainer.fit(log, stop)
            except DataError as error:
                raise trainer.without_data(error, log.say) from error
        if not state.good_steps and not stop.asked:
            raise NonFiniteError(f"none of the {state.step} steps was finite, nothing was learned; try a smaller --lr, or look at the data")
        if stop.asked:
            say(f"stopping after step {state.step}; it is saved. Resume: {command or f'the same call with out={str(run)!r}'}")
        elif state.step > began:
            world.on_main(lambda: _finish(trainer))
        denoiser = _averaged(state, plain)
        world.gather(None)  # no rank leaves while another still needs it
    return Finished(run, denoiser.eval(), stop.code)
