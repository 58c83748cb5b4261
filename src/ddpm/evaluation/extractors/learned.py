"""An extractor trained on the data themselves: for grey pictures, signals, fields and tables, and without anything to download.

A small encoder into `DIM` numbers, trained on the training rows: to tell the classes apart where there are classes, else to give the
sample back (shrunk to at most `SIDE` an axis) after noise was added to it. Of large samples blocks of entries become channels first: its
body sees about as many places as 32x32 has. It is trained once for each data set and split, and kept in the folder for caches, keyed by
the data's fingerprint and the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.cache import folder
from ddpm.data.dataset import Dataset
from ddpm.denoiser import Codec
from ddpm.errors import ConfigError
from ddpm.evaluation.cached import cached
from ddpm.evaluation.extractors.extractor import Extractor, digest
from ddpm.networks.classifier import build_classifier
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.random import generator, torch_seed

DIM = 64
SIDE = 16
LONGEST = 32  # entries of an axis that the encoder sees as they are
STEPS, BATCH, LR, WARM = 1500, 128, 2e-3, 100
NOISE = 0.3  # standard deviation, of data of unit range
VERSION = "1"


class Encoder(nn.Module):
    """Samples as diffused, to `DIM` features, and from those to class scores or to a shrunk sample."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.blocks = blocks_of(shape[1:])
        seen = tuple(folded(torch.zeros(1, *shape), self.blocks).shape[1:])
        self.body = build_classifier(network_for(seen), seen, DIM)
        nn.init.xavier_uniform_(self.body.head.weight)
        self.classes, self.shape = classes, shape
        goal = classes or math.prod(shrunk(torch.zeros(1, *shape)).shape)
        self.head = nn.Linear(DIM, goal) if classes else nn.Sequential(nn.Linear(DIM, 256), nn.SiLU(), nn.Linear(256, goal))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, DIM)."""
        return self.body(folded(x, self.blocks), x.new_zeros(len(x)))

    def loss(self, x: Tensor, classes: Tensor | None, noise: Tensor) -> Tensor:
        """Cross entropy, or the squared error of what is given back."""
        out = self.head(self(x + NOISE * noise))
        return F.cross_entropy(out, classes) if classes is not None else F.mse_loss(out, shrunk(x).flatten(1))


def network_for(shape: tuple[int, ...]) -> UNetConfig | MLPConfig:
    """Small: three levels where the sizes allow it."""
    if len(shape) == 1:
        return MLPConfig(width=128, depth=2, dropout=0.0)
    levels = 1
    while levels < 3 and all(size % 2**levels == 0 and size // 2**levels >= 4 for size in shape[1:]):
        levels += 1
    return UNetConfig(channels=32, mults=(1, 2, 2)[:levels], blocks=1, attention=(), dropout=0.0)


def blocks_of(axes: tuple[int, ...]) -> tuple[int, ...]:
    """How long the blocks are along each axis, a power of two: as short as leaves no axis longer than `LONGEST` and at most `LONGEST`^2
    places, as pictures of that size have; for signals the latter only. 1 where no axis is longer.
    """
    blocks, left = [1] * len(axes), list(axes)
    while max(axes, default=0) > LONGEST and (math.prod(left) > LONGEST**2 or (len(axes) > 1 and max(left) > LONGEST)):
        longest = left.index(max(left))
        blocks[longest] *= 2
        left[longest] = -(-axes[longest] // blocks[longest])
    return tuple(blocks)


def folded(x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """(B, C, *axes) -> (B, C prod(blocks), *axes / blocks): the entries of a block become channels, as in `pixel_unshuffle`.

    Before that an axis in blocks is made whole by repeating its last entry, to a number of blocks that can be halved twice.
    """
    short = [-size % (4 * block) if block > 1 else 0 for size, block in zip(x.shape[2:], blocks, strict=True)]
    if any(short):
        x = F.pad(x, [end for count in reversed(short) for end in (0, count)], mode="replicate")
    for axis, block in enumerate(blocks, start=2):
        x = x.unflatten(axis, (-1, block)).movedim(axis + 1, 2).flatten(1, 2)
    return x


def shrunk(x: Tensor) -> Tensor:
    """(B, C, *axes) with at most `SIDE` entries an axis, by means."""
    if x.ndim < 3:
        return x
    sizes = [min(SIDE, size) for size in x.shape[2:]]
    pools: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    return pools[x.ndim - 3](x, sizes)


class Learned(Extractor):
    """The encoder of a data set: read from the cache, or trained now."""

    name, dim = "own", DIM

    def __init__(self, encoder: Encoder, codec: Codec, identity: str) -> None:
        self.encoder, self.codec, self.identity = encoder.eval(), codec, identity
        self.device = next(encoder.parameters()).device

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        steps: int = STEPS,
        *,
        device: torch.device | None = None,
        cache: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Learned:
        """The extractor of this data set, on a device: the CPU where none is named. It is trained there where the cache has none."""
        card, device = dataset.card, device or torch.device("cpu")
        if not card.fingerprint:
            raise ConfigError("extractor own: the data have no fingerprint to keep it under; open them by ddpm.data")
        torch.manual_seed(torch_seed(0, "network"))
        encoder, codec = Encoder(card.shape, len(card.classes)).to(device), Codec.of(card)
        named = digest("own", VERSION, card.fingerprint, str(codec), str(steps), dataset.train_rows.tobytes())

        def trained() -> dict[str, Tensor]:
            say(f"training the encoder that distances are measured on, {steps} steps, once for these data")
            fit(encoder, dataset, codec, steps)
            return {name: value.cpu() for name, value in encoder.state_dict().items()}

        shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
        encoder.load_state_dict(cached((cache or folder()) / "extractors" / f"{named}.safetensors", shapes, trained, say))
        return cls(encoder, codec, digest("own", VERSION, str(codec), *encoder.state_dict().values()))

    def embed(self, samples: Tensor) -> Tensor:
        """The encoder's features."""
        with torch.inference_mode():
            return self.encoder(self.codec.encode(samples).to(torch.float32).to(self.device)).cpu()

    def logits(self, features: Tensor) -> Tensor | None:
        """Of the classifier, where the data have classes."""
        if not self.encoder.classes:
            return None
        with torch.inference_mode():
            return self.encoder.head(features.to(self.device)).cpu()


def fit(encoder: Encoder, dataset: Dataset, codec: Codec, steps: int) -> None:
    """Train on the training rows, where the encoder is: AdamW, warm-up and cosine; the same weights every time on the same CPU."""
    device = next(encoder.parameters()).device
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LR, weight_decay=0.01)
    encoder.train()
    rows = dataset.train_rows
    for step in range(steps):
        draw = generator(0, "evaluate", 1, step)
        raw, cond = dataset.batch(rows[draw.integers(0, len(rows), BATCH)])
        x = codec.encode(torch.from_numpy(raw)).to(torch.float32).to(device)
        noise = torch.from_numpy(draw.standard_normal(tuple(x.shape), dtype="float32")).to(device)
        rate = min(1.0, (step + 1) / WARM) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LR * rate
        loss = encoder.loss(x, torch.from_numpy(cond["class"]).to(device) if encoder.classes else None, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    encoder.eval()
