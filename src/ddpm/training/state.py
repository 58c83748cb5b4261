"""A run on disk: what a checkpoint holds, how it is saved, and how a run finds its way back into it."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import ddpm
from ddpm.config import dump_toml, from_dict, to_dict
from ddpm.denoiser import Card, Codec, NetworkDenoiser
from ddpm.errors import CheckpointError, ConfigError
from ddpm.networks import fused
from ddpm.objective import Loss
from ddpm.training.averaging.ema import PowerEMA
from ddpm.training.averaging.weights import weight_set
from ddpm.training.build import described_vector, rebuild, refuse_autoencoder, saved_residuals
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.checkpoints.retention import ENTRY, Score
from ddpm.training.config import TrainConfig
from ddpm.training.distributed import sharded
from ddpm.training.distributed.parallel import is_sharded, mixed
from ddpm.training.distributed.world import World
from ddpm.training.health.spikes import Spikes
from ddpm.training.machine import device_of

FREE = {
    "out",
    "steps",
    "checkpoint_every",
    "keep",
    "keep_best",
    "log_every",
    "evaluate_every",
    "preview",
    "snapshots",
    "rollback",
    "monitor",
    "track",
    "accept_data_change",
    "device",
    "threads",
    "prefetch",
    "workers",
    "data.memory_share",
    "parallel",
    "sharded_save",
    "logical_shards",
    "timeout",
    "init",
    "data.data",  # data may move: their fingerprint is compared
    "autoencoder",  # likewise: its weights are in the latents' fingerprint
    "cascade.base",  # likewise: its weights are in the checkpoint
    "text",  # likewise: what its tokens depend on is in config.json
    "loss.teacher",  # likewise: the run's folder has a copy, which is compared
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
    "tricks.self_condition",
    "tricks.augment",
    "given",
    "ema",
    "optimizer.kind",
    "data.size",
    "data.channels",
    "data.layout",
    "data.normalise",
    "data.classes",
}


def versions() -> dict[str, str]:
    """What a checkpoint was written with, as far as the last bits depend on it."""
    norm = "torch's" if fused.library() is None else "this package's"
    return {"ddpm": ddpm.__version__, "torch": torch.__version__.split("+")[0], "group norm": norm}


def digest_of(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """32 hexadecimal digits of SHA-256 over tensors with their names, types and shapes, and a text."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def model_tensors(denoiser: NetworkDenoiser) -> dict[str, torch.Tensor]:
    """Weights and buffers of the denoiser."""
    return dict(denoiser.state_dict())


def ema_tensors(denoiser: NetworkDenoiser, ema: PowerEMA) -> dict[str, torch.Tensor]:
    """The same with the averaged weights in place of the raw ones."""
    return {**denoiser.state_dict(), **ema.weights}


class RunState:
    """Everything of a run that changes: weights, their average, the optimizer, the loss's own state, the step."""

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        averages: Sequence[PowerEMA],
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self.denoiser, self.loss, self.optimizer, self.averages, self.scaler = denoiser, loss, optimizer, tuple(averages), scaler
        self.step = 0
        self.good_steps = 0  # that changed the weights: what the average counts
        self.shards = 1  # logical ones, see `Feed`
        self.skipped = 0  # batches passed over so far: step k takes batch k + skipped
        self.spikes = Spikes()
        self.identity = secrets.token_hex(8)  # of the run, from its first checkpoint on
        self.measured: tuple[int, Score] | None = None  # the last held-out loss, and the step it is of

    def scored(self, loss: float, card: Card) -> None:
        """Note the held-out loss of the present step; a checkpoint saved at this step records it."""
        self.measured = (self.step, Score(loss, f"{card.held_out} of {card.fingerprint[:16]}")) if math.isfinite(loss) else None

    @property
    def ema(self) -> PowerEMA:
        """The average that is measured and shown: the first."""
        return self.averages[0]

    def nbytes(self) -> int:
        """About how many bytes a checkpoint takes: weights, averages, and what the optimizer keeps of every parameter it trains."""
        model = sum(tensor.numel() * tensor.element_size() for tensor in (*self.denoiser.parameters(), *self.denoiser.buffers()))
        kept = sum(
            (1 if group.get("matrices") else 2) * parameter.numel() * parameter.element_size()
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        )
        return model * (1 + len(self.averages)) + kept

    def save(
        self, run: Path, config: TrainConfig, document: Mapping[str, Any], keep: int, notice: Callable[[str], None], world: World
    ) -> Path:
        """Commit a checkpoint of this step: what is sharded is put together, the main rank writes, all ranks meet the same error."""
        tensors, optimizer = checkpoint.flatten(self.optimizer.state_dict())
        state = {
            "step": self.step,
            "good_steps": self.good_steps,
            "config": to_dict(config),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "shards": self.shards,
            "skipped": self.skipped,
            "spikes": self.spikes.state(),
            "run": self.identity,
            ENTRY: self.measured[1]._asdict() if self.measured and self.measured[0] == self.step else None,
        }
        groups = {"model": model_tensors(self.denoiser), "optimizer": tensors}
        groups |= {average.name: ema_tensors(self.denoiser, average) for average in self.averages}
        if self.loss.state_dict():
            groups["loss"] = dict(self.loss.state_dict())
        documents = {"config": document, "state": state}
        parts = config.sharded_save and is_sharded(self.denoiser)
        return sharded.save(
            run, self.step, groups, documents, world=world, parts=parts, keep=keep, keep_best=config.keep_best, notice=notice
        )

    def load(self, saved: Checkpoint) -> None:
        """Take over a checkpoint; CheckpointError where a tensor does not fit, with nothing changed."""
        state = saved.document("state")
        if ("loss" in saved.tensor_names) != bool(self.loss.state_dict()):
            raise CheckpointError(f"{saved.path}: was trained with a loss that had other weights of its own; begin again in another folder")
        if is_sharded(self.denoiser):
            for average in self.averages:
                sharded.restore(saved, average.name, ema_tensors(self.denoiser, average))
            sharded.restore(saved, "model", model_tensors(self.denoiser))
            if self.loss.state_dict():
                sharded.restore(saved, "loss", dict(self.loss.state_dict()))
            sharded.restore_optimizer(saved, state["optimizer"], self.optimizer)
            mixed(self.optimizer)
        else:
            for average in self.averages:
                averaged = saved.tensors(average.name)
                checkpoint.load_into(self.denoiser, averaged, average.name)  # checks names and shapes before anything is copied
                average.load(averaged)
            checkpoint.load_into(self.denoiser, saved.tensors("model"), "model")
            if self.loss.state_dict():
                checkpoint.load_into(self.loss, saved.tensors("loss"), "loss")
            self.optimizer.load_state_dict(checkpoint.unflatten(saved.tensors("optimizer"), state["optimizer"]))
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        document = saved.document("config")
        # new data that were accepted go into the space already learned
        self.denoiser.recode(from_dict(Codec, document["codec"], where="config.json"))
        self.denoiser.vector_codec = described_vector(document)
        self.denoiser.residuals = saved_residuals(document)
        self.step, self.good_steps = int(state["step"]), int(state["good_steps"])
        self.skipped = int(state.get("skipped", 0))
        self.spikes.load(state.get("spikes"))
        self.identity = str(state.get("run", self.identity))
        self.measured = None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def _among(key: str, names: set[str]) -> bool:
    return key in names or key.split(".")[0] in names


def compare(saved: Checkpoint, config: TrainConfig) -> list[str]:
    """Settings that differ from the checkpoint's and still resume, as `key: saved -> now`; ConfigError where they make it another model."""
    then, now, usual = (_flat(values) for values in (saved.document("state")["config"], to_dict(config), to_dict(TrainConfig())))
    if config.network is not None:
        usual |= _flat({"network": to_dict(type(config.network)())})
    usual |= _flat({"loss": to_dict(type(config.loss)())})
    then |= {key: value for key, value in usual.items() if key in now and key not in then}  # settings younger than the checkpoint
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and not _among(key, FREE)]
    table = {key: f"{key}: {then.get(key)} -> {now.get(key)}" for key in changed}
    fatal = [line for key, line in table.items() if _among(key, SHAPE) and key != "network.dropout"]
    if fatal:
        raise ConfigError(
            "\n".join([f"{saved.path.parent} holds another model (saved -> now); use another --out, or the saved settings:", *fatal])
        )
    return list(table.values())


def write_request(run: Path, config: TrainConfig) -> None:
    """config.toml: the request, resolved. For people; never read when a model is loaded."""
    storage.write_text(run / "config.toml", dump_toml(config))


def open_run(
    run: str | Path, step: int | Literal["best"] | None = None, notice: Callable[[str], None] = checkpoint.to_stderr
) -> Checkpoint:
    """The newest good checkpoint of a run folder, or a given step's, or the one of lowest held-out loss; also takes a step folder itself.

    CheckpointError where there is none.
    """
    path = Path(run)
    if (path / "manifest.json").is_file():
        saved = checkpoint.open_checkpoint(path)
        if step is not None and step != saved.step:
            raise ConfigError(f"step: got {step}, but {path} is step {saved.step}; name the run folder, or leave the step out")
        refuse_autoencoder(saved.document("config"), str(path))
        return saved
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such run folder; train one with ddpm train --out {path}")
    saved = checkpoint.best(path, notice) if step == "best" else checkpoint.newest(path, step, notice)
    if saved is None:
        raise CheckpointError(f"{path} holds no checkpoint; is it a run folder? ddpm train --out {path} makes one")
    refuse_autoencoder(saved.document("config"), str(path))
    return saved


def load_with_card(
    run: str | Path, *, step: int | Literal["best"] | None = None, weights: str = "ema", network: nn.Module | None = None
) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """`load`, with what config.json says of the model besides, such as the names of its classes; under "weights" which were loaded, under
    "sha256" their hash and under "step" the step they are of.
    """
    saved = open_run(run, step)
    chosen = weight_set(saved, weights, checkpoint.to_stderr)
    document = saved.document("config")
    tensors = chosen.tensors()
    denoiser = rebuild(document, network, entries=sum(tensor.numel() for tensor in tensors.values()))
    checkpoint.load_into(denoiser, tensors, f"{chosen.folder.path.name}/{chosen.name}.safetensors")
    return denoiser.eval(), {**document, "weights": chosen.told, "sha256": chosen.sha256, "step": saved.step}


def load(
    run: str | Path,
    *,
    step: int | Literal["best"] | None = None,
    weights: str = "ema",
    network: nn.Module | None = None,
    device: str | torch.device = "cpu",
) -> NetworkDenoiser:
    """A trained denoiser from a run folder, verified, in evaluation mode.

    step: a certain checkpoint instead of the newest, "best" for that of lowest held-out loss.
    weights: "ema" (what is sampled: the average `ddpm ema` chose, else the first tracked), "ema-0.100" (a certain one) or "raw".
    network: your own module, where the run was trained with one. device: where it goes; "auto" is the accelerator where there is one.
    Raises: CheckpointError for anything missing or damaged.
    """
    place = device_of("auto") if device == "auto" else device
    return load_with_card(run, step=step, weights=weights, network=network)[0].to(place)
