"""The noisy classifier of a run, p(y | x_t): trained on the run's process, codec and data, and kept beside it in `run/classifier/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ddpm.config import from_dict, to_dict
from ddpm.data import check_fits, open_data, require
from ddpm.data.dataset import Dataset, evenly
from ddpm.data.settings import DataSettings
from ddpm.denoiser import Card, Clock, Codec
from ddpm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from ddpm.guidance.classifier import NetworkClassifier
from ddpm.networks.classifier import build_classifier
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.objective import noisy_cross_entropy
from ddpm.process import Process, Schedule
from ddpm.random import generator, torch_seed
from ddpm.training.averaging.ema import PowerEMA
from ddpm.training.build import default_network
from ddpm.training.checkpoints import checkpoint
from ddpm.training.checkpoints.checkpoint import Checkpoint, RunLock
from ddpm.training.config import FAMILIES, ClassifierConfig
from ddpm.training.feed import Feed, encoded
from ddpm.training.latents import diffused
from ddpm.training.logbook import Logbook
from ddpm.training.machine import choose
from ddpm.training.optimizers import build_optimizer
from ddpm.training.same_data import read_card
from ddpm.training.state import load, open_run, versions
from ddpm.training.trackers import chosen

FOLDER = "classifier"
OTHER = "name data with --data, or hand them in from Python: data=..."
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # t at which the held-out accuracy is measured


class TrainedClassifier(NamedTuple):
    """What `train_classifier` returns: the folder, the classifier with averaged weights, and its held-out accuracy by sigma/alpha."""

    folder: Path
    classifier: NetworkClassifier
    accuracy: dict[float, float]


def home_of(run: str | Path) -> Path:
    """The run folder of a run folder or of one of its step folders."""
    path = Path(run)
    return path.resolve().parent if (path / "manifest.json").is_file() else path


def small_network(shape: tuple[int, ...]) -> UNetConfig | MLPConfig:
    """What a classifier of samples of this shape is made of unless settings say otherwise."""
    network = default_network(shape)
    return MLPConfig(width=128, depth=2, dropout=0.1) if isinstance(network, MLPConfig) else replace(network, channels=32, blocks=1)


def run_data(saved: Checkpoint) -> DataSettings:
    """The settings of the data a run was trained on."""
    return from_dict(DataSettings, saved.document("state")["config"]["data"], where="state.json")


def check_run_data(card: Card, before: Card | None, own: bool, advice: str = OTHER) -> None:
    """DataError for data that do not fit those of a run, or are not its own although they should be, as when those were given in Python."""
    if before is None:
        return
    check_fits(card, before)
    if own and card.fingerprint != before.fingerprint:
        raise DataError(f"{card.name}: not the data this run was trained on ({before.name}, {before.count} samples); {advice}")


def _build(document: Mapping[str, Any]) -> NetworkClassifier:
    """The classifier that config.json describes, with fresh weights; CheckpointError where it cannot be read."""
    try:
        network: UNetConfig | MLPConfig = from_dict(UNetConfig | MLPConfig, document["network"], where="config.json")  # type: ignore[arg-type]
        shape, names = tuple(document["shape"]), tuple(document["classes"])
        return NetworkClassifier(
            build_classifier(network, shape, len(names)),
            Process(from_dict(Schedule, document["schedule"], FAMILIES, "config.json")),
            from_dict(Clock, document["clock"], FAMILIES, "config.json"),
            from_dict(Codec, document["codec"], where="config.json"),
            shape,
            names,
        )
    except (KeyError, AttributeError, TypeError, ConfigError) as error:
        raise CheckpointError(f"config.json does not describe a classifier: {type(error).__name__} {error}") from error


def load_classifier(run: str | Path) -> NetworkClassifier:
    """The verified classifier of a run (or of a step folder's run), in evaluation mode; CheckpointError where missing or damaged."""
    folder = home_of(run) / FOLDER
    name = checkpoint.latest_name(folder)
    if name is None:
        raise CheckpointError(f"{folder}: this run has no classifier; train it with ddpm classifier {run}")
    try:
        saved = checkpoint.open_checkpoint(folder / name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; train it anew with ddpm classifier {run}") from error
    classifier = _build(saved.document("config"))
    checkpoint.load_into(classifier, saved.tensors("model"), f"{FOLDER}/{name}/model.safetensors")
    return classifier.eval()


@torch.no_grad()
def held_out_accuracy(classifier: NetworkClassifier, dataset: Dataset, *, samples: int = 1024, batch: int = 256) -> dict[float, float]:
    """Share of held-out samples whose class is found, by sigma/alpha at t of `LEVELS`; empty where nothing is held out."""
    rows, out = evenly(dataset.held_rows, samples), {}
    assert classifier.codec is not None
    device = next(classifier.parameters()).device
    for t in LEVELS if len(rows) else ():
        right = 0
        for begin in range(0, len(rows), batch):
            raw, values = dataset.batch(rows[begin : begin + batch])
            x0 = encoded(classifier.codec, raw, device)
            eps = torch.from_numpy(generator(0, "evaluate", begin).standard_normal(tuple(x0.shape), dtype=np.float32)).to(device)
            at = classifier.process.at(t, like=x0)
            found = classifier(classifier.process.perturb(x0, eps, at), at).argmax(1).cpu().numpy()
            right += int((found == values["class"]).sum())
        out[classifier.process.at(t).ratio.item()] = right / len(rows)
    return out


def _fit(
    classifier: NetworkClassifier, dataset: Dataset, config: ClassifierConfig, folder: Path, device: torch.device, quiet: bool
) -> PowerEMA:
    """The optimizer on the noisy cross-entropy; NonFiniteError where the loss ends up not finite."""
    assert classifier.codec is not None
    feed = Feed(dataset, classifier.codec, frozenset({"class"}), config.seed, config.batch, 1, 0.0, device)
    settings, parameters = config.optimizer, list(classifier.parameters())
    optimizer = build_optimizer(settings, classifier, nn.Identity(), device)
    ema = PowerEMA(classifier, config.ema)
    window: list[torch.Tensor] = []
    with Logbook(folder, config.steps, 0, quiet=quiet, trackers=chosen(("auto",)), config=to_dict(config)) as log:
        for step in range(config.steps):
            batch = feed.batch(step, 0)
            assert batch.cond is not None  # there are classes
            torch.manual_seed(torch_seed(config.seed, "network", step))  # dropout masks
            loss = noisy_cross_entropy(classifier, classifier.process, batch.x0, batch.cond["class"], batch.draws).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr_at(step, config.steps) * group.get("lr_scale", 1.0)
            optimizer.step()
            ema.update(classifier, step + 1)
            window.append(loss.detach())
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                mean = torch.stack(window).mean().item()
                if not np.isfinite(mean):
                    raise NonFiniteError(f"loss not finite between steps {step + 1 - len(window)} and {step + 1}; try a smaller --lr")
                log.write(step + 1, {"loss": mean, "lr": settings.lr_at(step, config.steps)})
                log.progress(step + 1, mean)
                window.clear()
    return ema


def _described(about: Mapping[str, Any], card: Card, network: UNetConfig | MLPConfig | None) -> dict[str, Any]:
    """config.json of a classifier for the run that `about` describes; DataError for data that do not fit it."""
    shape = tuple(about["shape"])
    if tuple(card.shape) != shape:
        raise DataError(f"{card.name}: samples of shape {tuple(card.shape)}, but the run's are {shape}; give the run's data")
    if len(card.classes) < 2:
        raise DataError(f"{card.name}: a classifier needs samples of two classes or more; sub-folders are classes, or give --labels")
    if about["classes"] and list(card.classes) != about["classes"]:
        raise DataError(
            f"{card.name}: classes {', '.join(card.classes)}, but the run knows {', '.join(about['classes'])}; give the run's data"
        )
    return {
        **{key: about[key] for key in ("schedule", "clock", "codec", "shape")},
        "network": to_dict(network or small_network(shape), named=True),
        "classes": list(card.classes),
    }


def train_classifier(
    run: str | Path, config: ClassifierConfig | None = None, *, data: Dataset | None = None, quiet: bool = False
) -> TrainedClassifier:
    """Train p(y | x_t) for a run and save it, verified, in `run/classifier/`, in place of an earlier one.

    config: by default the run's own data and a small network. data: a `Dataset` instead of config.data. Nothing is written before the end,
    so an interrupted training leaves the former classifier as it was; there is no resume, it takes minutes.

    Raises ConfigError, DataError, CheckpointError, DiskError, NonFiniteError or LockedError, each saying what to do.
    """
    saved, home = open_run(run), home_of(run)
    config = config or ClassifierConfig(data=run_data(saved))
    if problems := config.problems():
        raise ConfigError.of(problems)
    dataset = data if data is not None else open_data(config.data)
    if saved.document("config").get("autoencoder"):
        dataset = diffused(dataset, load(run))
    check_run_data(dataset.card, read_card(home), own=data is None and config.data == run_data(saved))
    document = _described(saved.document("config"), dataset.card, config.network)
    require(dataset, config.batch)
    torch.manual_seed(torch_seed(config.seed, "network"))
    classifier = _build(document)
    machine = choose(config.device, "fp32", config.threads, sum(p.numel() for p in classifier.parameters()))
    classifier.to(machine.device).train()
    folder = home / FOLDER
    with RunLock(folder):
        checkpoint.clean(folder)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        ema = _fit(classifier, dataset, config, folder, machine.device, quiet)
        checkpoint.load_into(classifier, {**classifier.state_dict(), **ema.weights}, "the averaged weights")
        accuracy = held_out_accuracy(classifier.eval(), dataset)
        state = {"step": config.steps, "config": to_dict(config), "fingerprint": dataset.card.fingerprint, "versions": versions()}
        state["accuracy"] = [[ratio, share] for ratio, share in accuracy.items()]
        checkpoint.save(folder, config.steps, {"model": dict(classifier.state_dict())}, {"config": document, "state": state}, keep=1)
    return TrainedClassifier(folder, classifier, accuracy)
