"""A run on disk: what a checkpoint holds, how it is saved, and how a run finds its way back into it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ddpm
from ddpm.config import dump_toml, from_dict, to_dict
from ddpm.denoiser import Card, Codec, NetworkDenoiser
from ddpm.errors import CheckpointError, ConfigError, DataError, DiskError
from ddpm.objective import Loss
from ddpm.training import checkpoint
from ddpm.training.build import rebuild, saved_residuals
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.config import TrainConfig
from ddpm.training.ema import PowerEMA

FREE = {
    "out",
    "steps",
    "checkpoint_every",
    "keep",
    "log_every",
    "evaluate_every",
    "preview",
    "accept_data_change",
    "device",
    "threads",
    "init",
    "data.data",  # data may move: their fingerprint is compared
    "data.labels",
    "data.max_pixels",
    "data.on_bad_image",
}
SHAPE = {  # another value makes another model
    "network",
    "schedule",
    "parameterization",
    "clock",
    "loss",
    "conditional",
    "ema",
    "data.size",
    "data.channels",
    "data.layout",
    "data.normalise",
    "data.classes",
}


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    try:
        aside = path.with_name(path.name + ".tmp")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from error


def versions() -> dict[str, str]:
    """What a checkpoint was written with."""
    return {"ddpm": ddpm.__version__, "torch": torch.__version__.split("+")[0]}


def model_tensors(denoiser: NetworkDenoiser) -> dict[str, torch.Tensor]:
    """Weights and buffers of the denoiser."""
    return dict(denoiser.state_dict())


def ema_tensors(denoiser: NetworkDenoiser, ema: PowerEMA) -> dict[str, torch.Tensor]:
    """The same with the averaged weights in place of the raw ones."""
    return {**denoiser.state_dict(), **ema.weights}


class RunState:
    """Everything of a run that changes: weights, their average, the optimizer, the loss's own state, the step."""

    def __init__(
        self, denoiser: NetworkDenoiser, loss: Loss, optimizer: torch.optim.Optimizer, ema: PowerEMA, scaler: torch.amp.GradScaler | None
    ) -> None:
        self.denoiser, self.loss, self.optimizer, self.ema, self.scaler = denoiser, loss, optimizer, ema, scaler
        self.step = 0
        self.good_steps = 0  # that changed the weights: what the average counts

    def save(self, run: Path, config: TrainConfig, document: Mapping[str, Any], keep: int, notice: Callable[[str], None]) -> Path:
        """Commit a checkpoint of this step."""
        tensors, optimizer = checkpoint.flatten(self.optimizer.state_dict())
        state = {
            "step": self.step,
            "good_steps": self.good_steps,
            "config": to_dict(config),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }
        groups = {"model": model_tensors(self.denoiser), self.ema.name: ema_tensors(self.denoiser, self.ema), "optimizer": tensors}
        if self.loss.state_dict():
            groups["loss"] = dict(self.loss.state_dict())
        return checkpoint.save(run, self.step, groups, {"config": document, "state": state}, keep=keep, notice=notice)

    def load(self, saved: Checkpoint) -> None:
        """Take over a checkpoint; CheckpointError where a tensor does not fit, with nothing changed."""
        state = saved.document("state")
        averaged = saved.tensors(self.ema.name)
        checkpoint.load_into(self.denoiser, averaged, self.ema.name)  # checks names and shapes before anything is copied
        self.ema.load(averaged)
        checkpoint.load_into(self.denoiser, saved.tensors("model"), "model")
        if self.loss.state_dict():
            checkpoint.load_into(self.loss, saved.tensors("loss"), "loss")
        self.optimizer.load_state_dict(checkpoint.unflatten(saved.tensors("optimizer"), state["optimizer"]))
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        document = saved.document("config")
        # new data that were accepted go into the space already learned
        self.denoiser.codec = from_dict(Codec, document["codec"], where="config.json")
        self.denoiser.residuals = saved_residuals(document)
        self.step, self.good_steps = int(state["step"]), int(state["good_steps"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def _among(key: str, names: set[str]) -> bool:
    return key in names or key.split(".")[0] in names


def compare(saved: Checkpoint, config: TrainConfig) -> list[str]:
    """Settings that differ from the checkpoint's and still resume, as `key: saved -> now`; ConfigError where they make it another model."""
    then, now = _flat(saved.document("state")["config"]), _flat(to_dict(config))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and not _among(key, FREE)]
    table = {key: f"{key}: {then.get(key)} -> {now.get(key)}" for key in changed}
    fatal = [line for key, line in table.items() if _among(key, SHAPE) and key != "network.dropout"]
    if fatal:
        raise ConfigError(
            "\n".join([f"{saved.path.parent} holds another model (saved -> now); use another --out, or the saved settings:", *fatal])
        )
    return list(table.values())


def check_data(run: Path, card: Card, accept_change: bool) -> None:
    """Write data_card.json, or refuse data that are not those the run began with."""
    path = run / "data_card.json"
    if path.is_file():
        try:
            before = from_dict(Card, json.loads(path.read_text(encoding="utf-8")), where=str(path))
        except (json.JSONDecodeError, ConfigError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if before.fingerprint != card.fingerprint and not accept_change:
            raise DataError(
                f"{card.name}: not the data this run began with: {before.count} samples of shape {before.shape} then, "
                f"{card.count} of {card.shape} now, and another fingerprint. "
                "Give the same data (they may move), another --out, or --accept-data-change"
            )
    write_text(path, json.dumps(to_dict(card), indent=1) + "\n")


def write_request(run: Path, config: TrainConfig) -> None:
    """config.toml: the request, resolved. For people; never read when a model is loaded."""
    write_text(run / "config.toml", dump_toml(config))


def open_run(run: str | Path, step: int | None = None, notice: Callable[[str], None] = checkpoint.to_stderr) -> Checkpoint:
    """The newest good checkpoint of a run folder, or a given step's; also takes a step folder itself.

    CheckpointError where there is none.
    """
    path = Path(run)
    if (path / "manifest.json").is_file():
        saved = checkpoint.open_checkpoint(path)
        if step is not None and step != saved.step:
            raise ConfigError(f"step: got {step}, but {path} is step {saved.step}; name the run folder, or leave the step out")
        return saved
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such run folder; train one with ddpm train --out {path}")
    saved = checkpoint.newest(path, step, notice)
    if saved is None:
        raise CheckpointError(f"{path} holds no checkpoint; is it a run folder? ddpm train --out {path} makes one")
    return saved


def load_with_card(
    run: str | Path, *, step: int | None = None, weights: str = "ema", network: nn.Module | None = None
) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """`load`, with what config.json says of the model besides: the names of its classes and of its vector's entries."""
    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights: got {weights!r}; allowed: ema, raw")
    saved = open_run(run, step)
    document = saved.document("config")
    denoiser = rebuild(document, network)
    name = next((name for name in saved.tensor_names if name.startswith("ema-")), "model") if weights == "ema" else "model"
    checkpoint.load_into(denoiser, saved.tensors(name), f"{saved.path.name}/{name}.safetensors")
    return denoiser.eval(), document


def load(
    run: str | Path, *, step: int | None = None, weights: str = "ema", network: nn.Module | None = None, device: str | torch.device = "cpu"
) -> NetworkDenoiser:
    """A trained denoiser from a run folder, verified, in evaluation mode.

    step: a certain checkpoint instead of the newest. weights: "ema" (the average, what samples are drawn from) or "raw".
    network: your own module, where the run was trained with one. Raises CheckpointError for anything missing or damaged.
    """
    return load_with_card(run, step=step, weights=weights, network=network)[0].to(device)
