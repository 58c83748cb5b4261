"""Inception-v3 as the Frechet Inception distance means it: the graph of 2015-12-05, its resize, its rounding.

What differs from the network of the paper, and from torchvision's: averages over 3x3 do not count the border, the last block takes a
maximum where the one before takes an average, 1008 classes, pictures as (level - 128) / 128, resized by TensorFlow 1's bilinear rule. The
weights are a file that its user names (`pt_inception-2015-12-05-6726825d.pth`, or torch-fidelity's of the same network); parameters have
the names they have there.

Reference: Szegedy et al. 2016, arXiv 1512.00567, figures 5 to 7; Heusel et al. 2017, arXiv 1706.08500, section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.denoiser.card import Card
from ddpm.errors import ConfigError
from ddpm.evaluation.extractors.extractor import Extractor, as_levels, digest

SIZE = 299
FEATURES = 2048
CLASSES = 1008


class Step(NamedTuple):
    """A convolution of a branch: its name, channels, kernel (height, width), stride and padding (height, width)."""

    name: str
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)


Branch = tuple["Step | str | tuple[Step, ...]", ...]  # "mean", "max" and "half" are poolings; steps in a tuple run side by side


def square(name: str, out: int, size: int, stride: int = 1, padding: int = 0) -> Step:
    """With a square kernel."""
    return Step(name, out, (size, size), stride, (padding, padding))


def wide(name: str, out: int, size: int) -> Step:
    """1 x size."""
    return Step(name, out, (1, size), 1, (0, size // 2))


def tall(name: str, out: int, size: int) -> Step:
    """Size x 1."""
    return Step(name, out, (size, 1), 1, (size // 2, 0))


def mixed_a(pool: int) -> tuple[Branch, ...]:
    """35 x 35."""
    triple = (Step("branch3x3dbl_1", 64), square("branch3x3dbl_2", 96, 3, padding=1), square("branch3x3dbl_3", 96, 3, padding=1))
    fives = (Step("branch5x5_1", 48), square("branch5x5_2", 64, 5, padding=2))
    return (Step("branch1x1", 64),), fives, triple, ("mean", Step("branch_pool", pool))


def mixed_b() -> tuple[Branch, ...]:
    """35 x 35 to 17 x 17."""
    triple = (Step("branch3x3dbl_1", 64), square("branch3x3dbl_2", 96, 3, padding=1), square("branch3x3dbl_3", 96, 3, stride=2))
    return (square("branch3x3", 384, 3, stride=2),), triple, ("half",)


def mixed_c(inner: int) -> tuple[Branch, ...]:
    """17 x 17."""
    once = (Step("branch7x7_1", inner), wide("branch7x7_2", inner, 7), tall("branch7x7_3", 192, 7))
    twice = (
        Step("branch7x7dbl_1", inner), tall("branch7x7dbl_2", inner, 7), wide("branch7x7dbl_3", inner, 7),
        tall("branch7x7dbl_4", inner, 7), wide("branch7x7dbl_5", 192, 7),
    )  # fmt: skip
    return (Step("branch1x1", 192),), once, twice, ("mean", Step("branch_pool", 192))


def mixed_d() -> tuple[Branch, ...]:
    """17 x 17 to 8 x 8."""
    sevens = (Step("branch7x7x3_1", 192), wide("branch7x7x3_2", 192, 7), tall("branch7x7x3_3", 192, 7))
    threes = (Step("branch3x3_1", 192), square("branch3x3_2", 320, 3, stride=2))
    return threes, (*sevens, square("branch7x7x3_4", 192, 3, stride=2)), ("half",)


def mixed_e(pool: str) -> tuple[Branch, ...]:
    """8 x 8; its pooling is a mean in the first of the two, a maximum in the second."""
    once = (Step("branch3x3_1", 384), (wide("branch3x3_2a", 384, 3), tall("branch3x3_2b", 384, 3)))
    twice = (
        Step("branch3x3dbl_1", 448), square("branch3x3dbl_2", 384, 3, padding=1),
        (wide("branch3x3dbl_3a", 384, 3), tall("branch3x3dbl_3b", 384, 3)),
    )  # fmt: skip
    return (Step("branch1x1", 320),), once, twice, (pool, Step("branch_pool", 192))


STEM: Branch = (
    square("Conv2d_1a_3x3", 32, 3, stride=2), square("Conv2d_2a_3x3", 32, 3), square("Conv2d_2b_3x3", 64, 3, padding=1), "half",
    Step("Conv2d_3b_1x1", 80), square("Conv2d_4a_3x3", 192, 3), "half",
)  # fmt: skip
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": mixed_a(32), "Mixed_5c": mixed_a(64), "Mixed_5d": mixed_a(64), "Mixed_6a": mixed_b(),
    "Mixed_6b": mixed_c(128), "Mixed_6c": mixed_c(160), "Mixed_6d": mixed_c(160), "Mixed_6e": mixed_c(192), "Mixed_7a": mixed_d(),
    "Mixed_7b": mixed_e("mean"), "Mixed_7c": mixed_e("max"),
}  # fmt: skip


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, step: Step) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, step.out, step.kernel, stride=step.stride, padding=step.padding, bias=False)
        self.bn = nn.BatchNorm2d(step.out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, H, W)."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


POOLS = {
    "mean": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "half": lambda x: F.max_pool2d(x, 3, stride=2),
}


class Branches(nn.Module):
    """Branches side by side, their outputs joined; the convolutions are attributes of their own names."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches, self.out = branches, 0
        for branch in branches:
            here = inputs
            for step in branch:
                if isinstance(step, str):
                    continue
                beside = (step,) if isinstance(step, Step) else step
                for one in beside:
                    self.add_module(one.name, ConvNorm(here, one))
                here = sum(one.out for one in beside)
            self.out += here

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, H, W) to (B, out, H', W')."""
        return torch.cat([self._follow(branch, x) for branch in self.branches], dim=1)

    def _follow(self, branch: Branch, h: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                h = POOLS[step](h)
            elif isinstance(step, Step):
                h = self.get_submodule(step.name)(h)
            else:
                h = torch.cat([self.get_submodule(one.name)(h) for one in step], dim=1)
        return h


class InceptionV3(Branches):
    """Pictures (B, 3, H, W) of levels 0..255 to features (B, 2048) and class logits (B, 1008), without the bias for the Inception score."""

    def __init__(self) -> None:
        super().__init__(3, (STEM,))
        width = self.out
        for name, branches in BLOCKS.items():
            block = Branches(width, branches)
            self.add_module(name, block)
            width = block.out
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Resized to 299 x 299 as TensorFlow 1 does it; the features are means over the last 8 x 8."""
        h = super().forward((resized(x.to(self.fc.weight)) - 128.0) / 128.0)
        for name in BLOCKS:
            h = self.get_submodule(name)(h)
        features = h.mean((2, 3))
        return features, F.linear(features, self.fc.weight)


def resized(x: Tensor, size: int = SIZE) -> Tensor:
    """(B, C, H, W) to (B, C, size, size): output i reads at i H / size, between the two entries there, the last one repeated.

    Without half a pixel of shift and without averaging when it shrinks: TensorFlow 1's bilinear rule, which is part of the protocol.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        if length == size:
            continue
        place = torch.arange(size, device=x.device, dtype=x.dtype) * (length / size)
        left = place.floor().long().clamp(max=length - 1)
        right = (left + 1).clamp(max=length - 1)
        part = (place - left).view([-1 if k == axis else 1 for k in range(4)])
        low = x.index_select(axis, left)
        x = low + (x.index_select(axis, right) - low) * part
    return x


class Inception(Extractor):
    """The extractor of FID and of the Inception score, with weights from a file."""

    name, dim = "inception", FEATURES

    def __init__(self, weights: Path, card: Card, device: torch.device | None = None) -> None:
        self.network, self.card = InceptionV3(), card
        self.network.load_state_dict(_read(weights))
        self.identity = digest(
            "inception-2015-12-05", str(card.bins or (min(card.low), max(card.high))), *self.network.state_dict().values()
        )
        self.network.to(device)

    def embed(self, samples: Tensor) -> Tensor:
        """Features of pictures rounded to 8 bits, as they would be saved."""
        with torch.inference_mode():
            return self.network(as_levels(samples, self.card))[0].cpu()

    def logits(self, features: Tensor) -> Tensor | None:
        """Class scores without their bias, as the Inception score takes them."""
        weight = self.network.fc.weight
        with torch.inference_mode():
            return torch.cat([F.linear(part.to(weight), weight).cpu() for part in features.split(4096)])


def _read(path: Path) -> dict[str, Tensor]:
    """The weights; ConfigError for a file that is missing or is not of this network, with where to get it and what works without."""
    get = (
        "pt_inception-2015-12-05-6726825d.pth is on the releases page of github.com/mseitzer/pytorch-fid; give its path with "
        "--weights-file, or use --extractor own, which needs no download"
    )
    if not path.is_file():
        raise ConfigError(f"extractor inception: no weights at {path}; {get}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch passes on whatever its restricted reader met
        raise ConfigError(f"extractor inception: {path} cannot be read as weights ({str(error).splitlines()[0][:120]}); {get}") from error
    wanted = InceptionV3().state_dict()
    named = found if isinstance(found, dict) else {}
    shapes = {name: getattr(value, "shape", None) for name, value in named.items()}
    wrong = [name for name, value in wanted.items() if not name.endswith("tracked") and shapes.get(name) != value.shape]
    if wrong:
        raise ConfigError(f"extractor inception: {path} lacks {len(wrong)} of its {len(wanted)} tensors, the first is {wrong[0]}; {get}")
    return {name: named.get(name, value) for name, value in wanted.items()}
