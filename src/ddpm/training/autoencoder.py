"""`train_autoencoder()`: from data to an autoencoder whose latents can be diffused; the same call again resumes it, bit for bit."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.config import to_dict
from ddpm.data import open_data, require
from ddpm.data.dataset import Dataset
from ddpm.denoiser import Card, Codec
from ddpm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from ddpm.networks.autoencoder import Autoencoder, ConvolutionalAutoencoder
from ddpm.objective import AutoencodingLoss, Critic
from ddpm.random import generator, torch_seed
from ddpm.training.averaging.ema import PowerEMA
from ddpm.training.build import described_autoencoder
from ddpm.training.checkpoints import checkpoint
from ddpm.training.checkpoints.checkpoint import Checkpoint, RunLock
from ddpm.training.config import AutoencodeConfig
from ddpm.training.feed import encoded, rows_of
from ddpm.training.logbook import Logbook
from ddpm.training.machine import Machine, choose
from ddpm.training.optimizers import build_optimizer
from ddpm.training.state import versions
from ddpm.training.stop import Stop
from ddpm.training.trackers import chosen

KIND = "autoencoder"
CARD = "data_card.json"
MAY_CHANGE = {"steps", "out", "checkpoint_every", "log_every", "device", "precision", "threads"}  # between sessions of one training


class TrainedAutoencoder(NamedTuple):
    """What `train_autoencoder` returns: the folder, the autoencoder with averaged weights, its codec, and the exit code of a stop."""

    folder: Path
    autoencoder: ConvolutionalAutoencoder
    codec: Codec
    code: int


class Through(NamedTuple):
    """An autoencoder, in evaluation mode, and the codec of the data it takes."""

    autoencoder: Autoencoder
    codec: Codec


class _Fit:
    """All that changes while an autoencoder is trained."""

    def __init__(self, config: AutoencodeConfig, dataset: Dataset, machine: Machine) -> None:
        self.config, self.dataset, self.machine, self.step = config, dataset, machine, 0
        self.codec = Codec.of(dataset.card)
        torch.manual_seed(torch_seed(config.seed, "network"))
        self.model = config.network.build(dataset.card.shape).to(machine.device)
        self.loss = AutoencodingLoss(config.kl).to(machine.device)
        self.optimizer = build_optimizer(config.optimizer, self.model, self.loss, machine.device)
        self.ema = PowerEMA(self.model, config.ema)
        self.critic = None
        if config.perceptual or config.adversarial:
            self.critic = Critic(dataset.card.shape, config.perceptual, config.adversarial).to(machine.device)
            self.critic_optimizer = build_optimizer(config.optimizer, self.critic, nn.Module(), machine.device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Samples (B, C, *axes) as encoded, and unit normals for their latents: functions of (seed, step)."""
        config = self.config
        rows = rows_of(self.dataset, config.seed, step * config.batch, config.batch)
        raw, _ = self.dataset.batch(rows, generator(config.seed, "augment", 0, step))
        eps = generator(config.seed, "noise", 0, step).standard_normal((len(rows), *self.model.latent_shape), dtype=np.float32)
        return encoded(self.codec, raw, self.machine.device), torch.from_numpy(eps).to(self.machine.device)

    @torch.no_grad()
    def begin(self) -> None:
        """A codebook starts with latents of the data, drawn from the first batch; random ones would hardly ever be nearest."""
        if self.model.codebook is None:
            return
        z = self.model.posterior(self.batch(0)[0]).mean.movedim(1, -1).flatten(0, -2)
        picked = generator(self.config.seed, "start").choice(len(z), len(self.model.codebook), replace=len(z) < len(self.model.codebook))
        self.model.codebook.copy_(z[torch.from_numpy(picked).to(z.device)])

    def advance(self) -> Tensor:
        """One optimizer step; its mean loss."""
        x, eps = self.batch(self.step)
        critic = self.critic if self.step >= self.config.critic_from * self.config.steps else None
        cast = partial(torch.autocast, self.machine.device.type, self.machine.autocast, enabled=self.machine.autocast is not None)
        with cast():
            losses, copy = self.loss.with_copy(self.model, x, eps)
            loss = total = losses.mean()
            if critic is not None:
                total = total + critic.terms(x, copy, loss, self.model.last)
        self._take(self.optimizer, total, [*self.model.parameters(), *self.loss.parameters()])
        if critic is not None:
            with cast():
                own = critic.own(x, copy).mean()
            self._take(self.critic_optimizer, own, list(critic.parameters()))
        self.step += 1
        self.ema.update(self.model, self.step)
        return loss.detach()

    def _take(self, optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """A step of an optimizer down a loss."""
        settings = self.config.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(self.step, self.config.steps) * group.get("lr_scale", 1.0)
        optimizer.step()

    def save(self, folder: Path) -> None:
        """Commit a checkpoint of this step; the two newest are kept."""
        tensors, optimizer = checkpoint.flatten(self.optimizer.state_dict())
        groups = {
            "model": dict(self.model.state_dict()), "loss": dict(self.loss.state_dict()), "optimizer": tensors,
            "ema": {**self.model.state_dict(), **self.ema.weights},
        }  # fmt: skip
        critic: dict[str, Any] = {}
        if self.critic is not None:
            moments, critic = checkpoint.flatten(self.critic_optimizer.state_dict())
            groups |= {"critic": dict(self.critic.state_dict()), "critic-optimizer": moments}
        card = self.dataset.card
        about = {"kind": KIND, "network": to_dict(self.config.network), "codec": to_dict(self.codec), "shape": list(card.shape)}
        state = {
            "step": self.step,
            "config": to_dict(self.config),
            "optimizer": optimizer,
            "fingerprint": card.fingerprint,
            "critic": critic,
        }
        checkpoint.save(folder, self.step, groups, {"config": about, "state": {**state, "versions": versions()}}, keep=2)

    def load(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint."""
        state, averaged = saved.document("state"), saved.tensors("ema")
        checkpoint.load_into(self.model, averaged, "ema")
        self.ema.load(averaged)
        checkpoint.load_into(self.model, saved.tensors("model"), "model")
        checkpoint.load_into(self.loss, saved.tensors("loss"), "loss")
        self.optimizer.load_state_dict(checkpoint.unflatten(saved.tensors("optimizer"), state["optimizer"]))
        if self.critic is not None:
            checkpoint.load_into(self.critic, saved.tensors("critic"), "critic")
            self.critic_optimizer.load_state_dict(checkpoint.unflatten(saved.tensors("critic-optimizer"), state["critic"]))
        self.step = int(state["step"])


def _same(saved: Checkpoint, config: AutoencodeConfig, card: Card) -> None:
    """ConfigError or DataError where a checkpoint is of other settings or other data than are asked for now."""
    then, now = {**to_dict(AutoencodeConfig()), **saved.document("state")["config"]}, to_dict(config)  # settings may be younger
    differ = [f"{key}: {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key] and key not in MAY_CHANGE | {"data"}]
    parts = [(key, then["data"].get(key), now["data"][key]) for key in ("holdout", "flip")]  # neither is in the fingerprint
    differ += [f"data.{key}: {old} -> {new}" for key, old, new in parts if old != new]
    if differ:
        raise ConfigError("\n".join([f"{saved.path.parent} was begun with other settings (saved -> now); use another --out:", *differ]))
    if saved.document("state")["fingerprint"] != card.fingerprint:
        raise DataError(f"{card.name}: not the data {saved.path.parent} was begun with; use another --out")


def train_autoencoder(config: AutoencodeConfig, *, data: Dataset | None = None, quiet: bool = False) -> TrainedAutoencoder:
    """Train an autoencoder, or resume its training, and leave it in `config.out`.

    data: a `Dataset` instead of config.data. On a CPU a training that is stopped and resumed ends with the same bits as one that is not.

    Raises ConfigError, DataError, CheckpointError, DiskError, NonFiniteError or LockedError, each saying what to do.
    """
    if problems := config.problems():
        raise ConfigError.of(problems)
    dataset = data if data is not None else open_data(config.data)
    if problems := config.network.problems(dataset.card.shape):
        raise ConfigError.of([f"network.{line}" for line in problems])
    require(dataset, config.batch)
    folder = Path(config.out)
    machine = choose(
        config.device, config.precision, config.threads, sum(p.numel() for p in config.network.build(dataset.card.shape).parameters())
    )
    fit = _Fit(config, dataset, machine)

    def say(message: str) -> None:
        if not quiet:
            print(message, file=sys.stderr, flush=True)

    with ExitStack() as stack:
        stack.enter_context(RunLock(folder))
        checkpoint.clean(folder)
        saved = checkpoint.newest(folder, notice=say)
        if saved is not None:
            check_kind(saved)
            _same(saved, config, dataset.card)
            fit.load(saved)
            say(f"Resumed from step {fit.step} (verified)")
        else:
            fit.begin()
        checkpoint.storage.write_text(folder / CARD, json.dumps(to_dict(dataset.card), indent=1))
        count, small = sum(p.numel() for p in fit.model.parameters()), "x".join(map(str, fit.model.latent_shape))
        say(f"{dataset.card.name}: {dataset.card.count} samples {dataset.card.shape} <-> latents {small}; {count:,} parameters; {folder}")
        stop = stack.enter_context(Stop())
        log = stack.enter_context(Logbook(folder, config.steps, fit.step, quiet=quiet, trackers=chosen(("auto",)), config=to_dict(config)))
        _loop(fit, folder, log, stop)
    checkpoint.load_into(fit.model, {**fit.model.state_dict(), **fit.ema.weights}, "the averaged weights")
    fit.model.scale = fit.loss.scale
    return TrainedAutoencoder(folder, fit.model.eval(), fit.codec, stop.code)


def _loop(fit: _Fit, folder: Path, log: Logbook, stop: Stop) -> None:
    config, window = fit.config, list[Tensor]()
    while fit.step < config.steps and not stop.asked:
        window.append(fit.advance())
        last = fit.step == config.steps
        if fit.step % config.log_every == 0 or last:
            mean = torch.stack(window).mean().item()
            if not np.isfinite(mean):
                raise NonFiniteError(
                    f"loss not finite between steps {fit.step + 1 - len(window)} and {fit.step}; nothing of them is saved; try a "
                    "smaller --lr in another --out"
                )
            log.write(fit.step, {"loss": mean, "lr": config.optimizer.lr_at(fit.step - 1, config.steps)})
            log.progress(fit.step, mean)
            window.clear()
        if fit.step % config.checkpoint_every == 0 or last or stop.asked:
            fit.save(folder)
    if stop.asked and fit.step < config.steps:
        log.say(f"stopping after step {fit.step}; it is saved, the same command resumes")


def check_kind(saved: Checkpoint) -> None:
    """CheckpointError for a checkpoint of something else than an autoencoder."""
    if saved.document("config").get("kind") != KIND:
        raise CheckpointError(f"{saved.path}: no autoencoder; train one with ddpm autoencode --out FOLDER")


def load_autoencoder(folder: str | Path) -> Through:
    """The verified autoencoder of a folder, with averaged weights; CheckpointError where it is missing, damaged or something else."""
    path = Path(folder)
    saved = checkpoint.open_checkpoint(path) if (path / "manifest.json").is_file() else checkpoint.newest(path) if path.is_dir() else None
    if saved is None:
        raise CheckpointError(
            f"{folder}: there is no autoencoder; train one with ddpm autoencode --out {folder}, or name a folder of diffusers' "
            "AutoencoderKL (of a pipeline its vae)"
        )
    check_kind(saved)
    about = saved.document("config")
    try:
        model, codec = described_autoencoder(about)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{saved.path}: config.json does not describe an autoencoder: {type(error).__name__} {error}") from error
    checkpoint.load_into(model, saved.tensors("ema"), f"{saved.path.name}/ema.safetensors")
    loss = AutoencodingLoss(0.0)  # where the decoder's scale is learned, and kept
    checkpoint.load_into(loss, saved.tensors("loss"), f"{saved.path.name}/loss.safetensors")
    model.scale = loss.scale
    return Through(model.eval(), codec)
