"""Data as latents of an autoencoder: encoded once, kept in the folder for caches, and read from there by every later run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.cache import folder
from ddpm.config import to_dict
from ddpm.data.dataset import Dataset, Rows
from ddpm.denoiser import LatentCodec, NetworkDenoiser
from ddpm.errors import ConfigError, DiskError
from ddpm.training.autoencoder import Through
from ddpm.training.cascade import with_low
from ddpm.training.checkpoints import storage
from ddpm.training.state import digest_of

BATCH = 32
VERSION = 1  # of what the cache holds
SAID = 10.0  # seconds between lines of progress


class Latents:
    """The store of a latent data set: q(z | x) of every sample, and of its mirror image where the data are flipped.

    A row read by number is E[z | x]. A batch for training (`crops`) is drawn from q, of the mirrored sample with chance 1/2 where there is
    one. In place of an array: see `ddpm.data.dataset.Samples`.
    """

    def __init__(self, path: Path) -> None:
        self.kinds = [tuple(np.load(path / f"{name}{end}.npy", mmap_mode="r") for name in ("mean", "std")) for end in ("", "-mirrored")
                      if (path / f"mean{end}.npy").is_file()]  # fmt: skip
        self.shape: tuple[int, ...] = self.kinds[0][0].shape
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return np.array(self.kinds[0][0][rows])

    def crops(self, rows: Rows, generator: np.random.Generator) -> NDArray[np.float32]:
        """z ~ q(z | x) of the rows (B,), (B, *latent_shape): a pure function of them and of the generator's state."""
        which = generator.random(len(rows)) < 0.5 if len(self.kinds) == 2 else np.zeros(len(rows), bool)
        out = np.empty((len(rows), *self.shape[1:]), np.float32)
        for (mean, std), chosen in zip(self.kinds, (~which, which), strict=False):
            eps = generator.standard_normal((int(chosen.sum()), *self.shape[1:]), dtype=np.float32)
            out[chosen] = mean[rows[chosen]] + std[rows[chosen]] * eps
        return out


def diffused(dataset: Dataset, denoiser: NetworkDenoiser) -> Dataset:
    """The data as a model diffuses them: in latents, where it has an autoencoder; with smaller samples beside, where it enlarges."""
    codec = denoiser.codec
    return in_latents(dataset, Through(codec.autoencoder, codec.pixels)) if isinstance(codec, LatentCodec) else with_low(dataset, denoiser)


def card_fingerprint(dataset: Dataset, denoiser: NetworkDenoiser) -> str:
    """What the card of a run of this model on these data says their fingerprint is; nothing is encoded for it."""
    codec = denoiser.codec
    if not isinstance(codec, LatentCodec):
        return dataset.card.fingerprint
    return _keyed(dataset, Through(codec.autoencoder, codec.pixels))[0]


def in_latents(dataset: Dataset, through: Through, say: Callable[[str], None] = lambda _: None, *, cache: Path | None = None) -> Dataset:
    """The data set with latents for samples, all else as it was; encoded now unless the cache has them.

    Keyed by the data's fingerprint, by the weights and settings of the autoencoder, and by whether mirror images are wanted. The card's
    mean and deviation are those of the latents of the training rows, per channel, so that what is diffused has mean 0 and deviation 1.

    Raises: ConfigError for data that cannot be encoded once for all, DataError where they cannot be read, DiskError where the cache cannot
    be written.
    """
    if isinstance(dataset.samples, Latents):
        return dataset
    card = dataset.card
    problems: list[str] = []
    if tuple(card.shape) != through.autoencoder.shape:
        problems.append(
            f"autoencoder: takes samples of {through.autoencoder.shape}, {card.name} has {tuple(card.shape)}; give its own data"
        )
    if getattr(dataset.samples, "crops", None) is not None:
        problems.append("crop: random parts of pictures cannot be encoded once for all; use --crop centre")
    if card.image_channels:
        problems.append("autoencoder: data with an image condition are not supported in latents")
    if not card.fingerprint:
        problems.append("autoencoder: the data have no fingerprint to keep their latents under; open them by ddpm.data")
    if problems:
        raise ConfigError.of(problems)
    key, about = _keyed(dataset, through)
    path = (cache or folder()) / "latents" / key
    if not (path / "about.json").is_file():
        try:
            _write(dataset, through, path, about, say)
        except OSError as error:
            raise DiskError(
                f"latents of {card.name}: {path} cannot be written ({error.strerror}); DDPM_CACHE names another folder"
            ) from error
    store = Latents(path)
    mean, std, low, high = _statistics(store, dataset.train_rows)
    latent = replace(
        card, name=f"{card.name} in latents", kind="array", shape=store.shape[1:], dtype="float32", low=low, high=high, mean=mean, std=std,
        sigma_data=1.0, bins=None, fingerprint=key, normalise="standard",
    )  # fmt: skip
    return replace(dataset, card=latent, samples=store, flip=False)


def _keyed(dataset: Dataset, through: Through) -> tuple[str, dict[str, Any]]:
    """The latents' fingerprint, and what it is of."""
    weights = {name: tensor.cpu() for name, tensor in through.autoencoder.state_dict().items()}
    about = {
        "version": VERSION, "data": dataset.card.fingerprint, "autoencoder": digest_of(weights), "codec": to_dict(through.codec),
        "flip": dataset.flip, "count": len(dataset),
    }  # fmt: skip
    return digest_of({}, json.dumps(about, sort_keys=True)), about


def _write(dataset: Dataset, through: Through, path: Path, about: dict[str, Any], say: Callable[[str], None]) -> None:
    """Encode all rows into a folder that takes its name when it is whole."""
    staged, shape = storage.aside(path), (len(dataset), *through.autoencoder.latent_shape)
    staged.mkdir(parents=True)
    said = time.monotonic()
    try:
        for end in ("", "-mirrored") if dataset.flip else ("",):
            files = [np.lib.format.open_memmap(staged / f"{name}{end}.npy", "w+", np.float32, shape) for name in ("mean", "std")]
            for first in range(0, len(dataset), BATCH):
                raw, _ = dataset.batch(np.arange(first, min(first + BATCH, len(dataset))))
                for file, values in zip(files, encode(through, raw[..., ::-1].copy() if end else raw), strict=True):
                    file[first : first + BATCH] = values
                if time.monotonic() - said > SAID:
                    said = time.monotonic()
                    say(f"encoding {dataset.card.name}{' mirrored' if end else ''}: {first + len(raw):,} of {len(dataset):,}")
            for file in files:
                file.flush()
        (staged / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        if not path.exists():  # else another process was quicker, with the same numbers
            staged.rename(path)
    finally:
        if staged.exists():
            storage.remove(staged)


@torch.inference_mode()
def encode(through: Through, raw: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of q(z | x) for samples (B, *shape) in the data's units, in float32."""
    model = through.autoencoder
    device = next(iter((*model.buffers(), *model.parameters()))).device
    posterior = model.posterior(through.codec.encode(torch.from_numpy(raw)).to(torch.float32).to(device))
    return posterior.mean.cpu().numpy(), posterior.log_std.exp().cpu().numpy()


def _statistics(store: Latents, rows: Rows) -> tuple[tuple[float, ...], ...]:
    """(mean, std, low, high) of z ~ q over the rows, per channel: E z = E mean, Var z = Var mean + E std^2."""
    mean, std = store.kinds[0]
    axes = tuple(range(2, mean.ndim))
    total, square, low, high = np.zeros(mean.shape[1]), np.zeros(mean.shape[1]), np.inf, -np.inf
    for first in range(0, len(rows), 1024):
        some = np.sort(rows[first : first + 1024])
        m, s = mean[some].astype(np.float64), std[some].astype(np.float64)
        total += m.mean(axes).sum(0)
        square += (m**2 + s**2).mean(axes).sum(0)
        low, high = np.minimum(low, m.min((0, *axes))), np.maximum(high, m.max((0, *axes)))
    middle = total / len(rows)
    spread = np.sqrt(np.maximum(square / len(rows) - middle**2, 0.0))
    return tuple(tuple(float(value) for value in column) for column in (middle, spread, low, high))  # type: ignore[arg-type]
