"""Data as latents of an autoencoder: encoded once, kept in the folder for caches, and read from there by every later run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.cache import folder
from ddpm.config import to_dict
from ddpm.data.dataset import Dataset, Rows
from ddpm.denoiser import Codec, LatentCodec, NetworkDenoiser
from ddpm.errors import ConfigError
from ddpm.networks import pretrained
from ddpm.random import normals
from ddpm.training.autoencoder import Through, load_autoencoder
from ddpm.training.cascade import other_data, with_low
from ddpm.training.distributed.world import World
from ddpm.training.given import with_given
from ddpm.training.row_cache import fill, place
from ddpm.training.state import digest_of
from ddpm.training.tokens import told_by

BATCH, ENTRIES = 32, 2**22  # samples encoded at once, and the numbers they may have in all
SHARD = 1024  # rows of a file
MIRRORED = "-mirrored"
SUMMED = 1024  # rows of a partial sum
VERSION = 2  # of what the cache holds


class Shards:
    """One of the two things that is kept of every row, (N, *latent_shape), in files of `SHARD` rows that are mapped."""

    def __init__(self, files: Sequence[Path], which: int) -> None:
        self.parts = [np.load(file, mmap_mode="r")[which] for file in files]
        self.shape: tuple[int, ...] = (sum(len(part) for part in self.parts), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        wanted = np.arange(len(self))[rows]
        flat, size = np.atleast_1d(wanted), len(self.parts[0])
        out = np.empty((len(flat), *self.shape[1:]), np.float32)
        for shard in np.unique(flat // size):
            here = flat // size == shard
            out[here] = self.parts[shard][flat[here] - shard * size]
        return out if wanted.ndim else out[0]


class Latents:
    """The store of a latent data set: q(z | x) of every sample, and of its mirror image where the data are flipped.

    A row read by number is drawn from q with noise of its own, always the same: what measures a model sees what it was trained on, and sees
    it again. A batch for training (`crops`) is drawn from q, of the mirrored sample with chance 1/2 where there is
    one. In place of an array: see `ddpm.data.dataset.Samples`.
    """

    def __init__(self, path: Path, maker: Mapping[str, Any]) -> None:
        self.maker = maker  # which autoencoder: see `_maker`
        groups = [sorted(path.glob(pattern)) for pattern in (f"{'[0-9]' * 6}.npy", f"{'[0-9]' * 6}{MIRRORED}.npy")]
        self.kinds = [(Shards(files, 0), Shards(files, 1)) for files in groups if files]  # (mean, std)
        self.shape = self.kinds[0][0].shape
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        numbers = np.arange(len(self))[rows]
        mean, std = (part[numbers] for part in self.kinds[0])
        eps = normals(0, np.atleast_1d(numbers).tolist(), self.shape[1:], "evaluate").numpy()
        return mean + std * eps.reshape(mean.shape)

    def crops(self, rows: Rows, generator: np.random.Generator) -> NDArray[np.float32]:
        """z ~ q(z | x) of the rows (B,), (B, *latent_shape): a pure function of them and of the generator's state."""
        which = generator.random(len(rows)) < 0.5 if len(self.kinds) == 2 else np.zeros(len(rows), bool)
        out = np.empty((len(rows), *self.shape[1:]), np.float32)
        for (mean, std), chosen in zip(self.kinds, (~which, which), strict=False):
            eps = generator.standard_normal((int(chosen.sum()), *self.shape[1:]), dtype=np.float32)
            out[chosen] = mean[rows[chosen]] + std[rows[chosen]] * eps
        return out


def diffused(dataset: Dataset, denoiser: NetworkDenoiser) -> Dataset:
    """The data as a model is told of them and diffuses them: with tokens of their captions, where it reads them; in latents, where it has
    an autoencoder; with smaller samples beside, where it enlarges, or what else is given of them.
    """
    codec, dataset = denoiser.codec, told_by(with_given(dataset, denoiser.given), denoiser)
    return in_latents(dataset, Through(codec.autoencoder, codec.pixels)) if isinstance(codec, LatentCodec) else with_low(dataset, denoiser)


def card_fingerprint(dataset: Dataset, denoiser: NetworkDenoiser) -> str:
    """What the card of a run of this model on these data says their fingerprint is; nothing is encoded for it."""
    codec = denoiser.codec
    if not isinstance(codec, LatentCodec):
        return dataset.card.fingerprint
    return _keyed(dataset, Through(codec.autoencoder, codec.pixels))[0]


def load_through(folder: str | Path, dataset: Dataset) -> Through:
    """The autoencoder of a folder: our own, with the codec it was trained with, or an AutoencoderKL of diffusers, for these data.

    Raises: ConfigError for data that do not fit the latter, or without diffusers; CheckpointError where there is none, or it is damaged.
    """
    settings = pretrained.settings_of(folder)
    if settings is None:
        return load_autoencoder(folder)
    card = dataset.card
    if found := [*pretrained.problems(settings, card.shape), *refusals(dataset)]:
        raise ConfigError.of(found)
    lowest, highest = card.bins or (min(card.low), max(card.high))  # to [-1, 1], by one scale for all channels: the colours it knows
    many = len(card.low)
    codec = replace(Codec.of(card), shift=((lowest + highest) / 2,) * many, scale=((highest - lowest) / 2 or 1.0,) * many)
    return Through(pretrained.load(folder, card.shape), codec)


def refusals(dataset: Dataset) -> list[str]:
    """Why data cannot be encoded once for all, whatever the autoencoder, one sentence each; empty when all is well."""
    found: list[str] = []
    if getattr(dataset.samples, "crops", None) is not None:
        found.append("crop: random parts of pictures cannot be encoded once for all; use --crop centre")
    if dataset.card.image_channels:
        found.append("autoencoder: data with an image condition are not supported in latents")
    if dataset.card.mask_channels:
        found.append("autoencoder: samples of which entries are missing are not supported in latents")
    if not dataset.card.fingerprint:
        found.append("autoencoder: the data have no fingerprint to keep their latents under; open them by ddpm.data")
    return found


def at_once(shape: Sequence[int]) -> int:
    """How many samples of a shape go through an autoencoder at once."""
    return max(1, min(BATCH, ENTRIES // math.prod(shape)))


def in_latents(
    dataset: Dataset,
    through: Through,
    say: Callable[[str], None] = lambda _: None,
    *,
    cache: Path | None = None,
    world: World | None = None,
) -> Dataset:
    """The data set with latents for samples, all else as it was; encoded now unless the cache has them, by every process of the world its
    share. What was stopped goes on where it was.

    Keyed by the data's fingerprint, by the weights and settings of the autoencoder, and by whether mirror images are wanted. The card's
    mean and deviation are those of the latents of the training rows, per channel, so that what is diffused has mean 0 and deviation 1.

    Raises: ConfigError for data that cannot be encoded once for all, or are latents of another autoencoder; DataError where they cannot be
    read, DiskError where the cache cannot be written.
    """
    card = dataset.card
    if isinstance(dataset.samples, Latents):
        if dataset.samples.maker != _maker(through):
            raise ConfigError(f"autoencoder: {card.name} were encoded by another one; give the data themselves, or that autoencoder")
        return dataset
    problems = [*other_data("autoencoder", through.codec, card), *refusals(dataset)]
    if tuple(card.shape) != through.autoencoder.shape:
        problems.append(
            f"autoencoder: takes samples of {through.autoencoder.shape}, {card.name} has {tuple(card.shape)}; give its own data"
        )
    if problems:
        raise ConfigError.of(problems)
    key, about = _keyed(dataset, through)
    path = (cache or folder()) / "latents" / key
    _fill(dataset, through, path, about, say, world or World())
    store = Latents(path, {name: about[name] for name in ("autoencoder", "codec")})
    mean, std, low, high = _statistics(store, dataset.train_rows)
    latent = replace(
        card, name=f"{card.name} in latents", kind="array", shape=store.shape[1:], dtype="float32", low=low, high=high, mean=mean, std=std,
        sigma_data=1.0, bins=None, fingerprint=key, normalise="standard",
    )  # fmt: skip
    return replace(dataset, card=latent, samples=store, flip=False)


def _maker(through: Through) -> dict[str, Any]:
    """Which autoencoder it is, by its weights, its settings and the codec of its data."""
    weights = {name: tensor.cpu() for name, tensor in through.autoencoder.state_dict().items()}
    settings = json.dumps(through.autoencoder.described(), sort_keys=True)
    return {"autoencoder": digest_of(weights, settings), "codec": to_dict(through.codec)}


def _keyed(dataset: Dataset, through: Through) -> tuple[str, dict[str, Any]]:
    """The latents' fingerprint, and what it is of."""
    about = {"version": VERSION, "data": dataset.card.fingerprint, **_maker(through), "flip": dataset.flip, "count": len(dataset)}
    return digest_of({}, json.dumps(about, sort_keys=True)), about


def _fill(dataset: Dataset, through: Through, path: Path, about: dict[str, Any], say: Callable[[str], None], world: World) -> None:
    """Encode the shards that are missing."""
    name, count = dataset.card.name, len(dataset)
    fill(
        path, about, -(-count // SHARD), partial(_shard, dataset, through, path), f"latents of {name}",
        lambda number: f"encoding {name}: {min((number + 1) * SHARD, count):,} of {count:,}", say, world,
    )  # fmt: skip


def _shard(dataset: Dataset, through: Through, path: Path, number: int) -> None:
    """Encode rows number SHARD and on into a file that takes its name when it is whole; nothing to do where it is there."""
    rows, size = np.arange(number * SHARD, min((number + 1) * SHARD, len(dataset))), at_once(dataset.card.shape)
    for end in ("", MIRRORED) if dataset.flip else ("",):
        file = path / f"{number:06d}{end}.npy"
        if file.is_file():
            continue
        out = np.empty((2, len(rows), *through.autoencoder.latent_shape), np.float32)
        for first in range(0, len(rows), size):
            raw, _ = dataset.batch(rows[first : first + size])
            out[:, first : first + len(raw)] = encode(through, raw[..., ::-1].copy() if end else raw)
        place(file, partial(np.save, arr=out))


@torch.inference_mode()
def encode(through: Through, raw: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of q(z | x) for samples (B, *shape) in the data's units, in float32."""
    model = through.autoencoder
    device = next(iter((*model.buffers(), *model.parameters()))).device
    posterior = model.posterior(through.codec.encode(torch.from_numpy(raw)).to(torch.float32).to(device))
    return posterior.mean.cpu().numpy(), posterior.log_std.exp().cpu().numpy()


def _statistics(store: Latents, rows: Rows) -> tuple[tuple[float, ...], ...]:
    """(mean, std, low, high) of z ~ q over the rows, mirrored or not, per channel: E z = E mean, Var z = Var mean + E std^2."""
    axes, channels, count = tuple(range(2, len(store.shape))), store.shape[1], len(rows) * len(store.kinds)
    total, square, low, high = np.zeros(channels), np.zeros(channels), np.inf, -np.inf
    for mean, std in store.kinds:
        for first in range(0, len(rows), SUMMED):
            some = np.sort(rows[first : first + SUMMED])
            m, s = mean[some].astype(np.float64), std[some].astype(np.float64)
            total += m.mean(axes).sum(0)
            square += (m**2 + s**2).mean(axes).sum(0)
            low, high = np.minimum(low, m.min((0, *axes))), np.maximum(high, m.max((0, *axes)))
    middle = total / count
    spread = np.sqrt(np.maximum(square / count - middle**2, 0.0))
    return tuple(tuple(float(value) for value in column) for column in (middle, spread, low, high))  # type: ignore[arg-type]
