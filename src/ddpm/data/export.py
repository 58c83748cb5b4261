"""Samples on their way out: picture grids, single pictures, films and `.npz`, in the data's own units wherever the format can hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.errors import ConfigError

Range = tuple[float, float]


def to_pixels(samples: NDArray[Any], limits: Range) -> NDArray[np.uint8]:
    """(N, C, H, W) in the data's units -> (N, H, W, 3) 8-bit, limits mapped to black and white; one channel grey, two or more than three:
    the first.
    """
    low, high = limits
    scaled = np.clip((samples.astype(np.float64) - low) / max(high - low, 1e-12), 0.0, 1.0)
    pixels = np.round(scaled * 255.0).astype(np.uint8)
    if pixels.shape[1] != 3:
        pixels = np.repeat(pixels[:, :1], 3, axis=1)
    return pixels.transpose(0, 2, 3, 1)


def as_pictures(samples: NDArray[Any]) -> NDArray[Any] | None:
    """Samples seen as (N, C, H, W): pictures as they are, the middle frame of a video; None for signals and tables."""
    if samples.ndim == 5:
        return samples[:, :, samples.shape[2] // 2]
    return samples if samples.ndim == 4 else None


def grid(samples: NDArray[Any], limits: Range, *, columns: int | None = None, width: int = 640) -> Image.Image:
    """One picture of all samples (N, C, H, W), each enlarged by the largest whole factor that keeps a row within `width` pixels."""
    pixels = to_pixels(samples, limits)
    count, tall, wide = pixels.shape[:3]
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    factor = max(1, width // (columns * (wide + 1)))
    border = max(1, factor // 4)
    sheet = np.full((rows * (tall * factor + border) + border, columns * (wide * factor + border) + border, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pixels):
        top, left = (border + place * (side * factor + border) for place, side in zip(divmod(i, columns), (tall, wide), strict=True))
        sheet[top : top + tall * factor, left : left + wide * factor] = picture.repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(sheet)


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture whole: beside its name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    picture.save(aside, format="PNG")
    aside.replace(path)
    return path


def save_npz(samples: NDArray[Any], labels: NDArray[Any] | None, path: Path) -> Path:
    """`arr_0`: samples channels last (NHWC pictures) in the data's units and dtype; `arr_1`: labels where there are any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"arr_0": np.moveaxis(samples, 1, -1)} | ({} if labels is None else {"arr_1": labels})
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    aside.replace(path)
    return path


def save_pngs(samples: NDArray[Any], limits: Range, folder: Path, labels: Sequence[str] | None = None, first: int = 0) -> list[Path]:
    """One 8-bit PNG a sample, `000000.png` or `CLASS/000000.png`; 16-bit where the levels need it and there is one channel.

    Raises ConfigError for data that are no pictures.
    """
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ConfigError(f"format: png takes pictures of 1 or 3 channels, these samples are {samples.shape[1:]}; use --format npz")
    paths: list[Path] = []
    for i, picture in enumerate(samples):
        place = folder / labels[i] if labels is not None else folder
        paths.append(save_picture(picture_of(picture, limits), place / f"{first + i:06d}.png"))
    return paths


def picture_of(sample: NDArray[Any], limits: Range) -> Image.Image:
    """One sample (C, H, W) of 1 or 3 channels, as `save_pngs` writes it."""
    low, high = limits
    if high - low > 255 and sample.shape[0] == 1 and np.issubdtype(sample.dtype, np.integer):
        return Image.fromarray(sample[0].astype(np.uint16))
    pixels = to_pixels(sample[None], limits)[0]
    return Image.fromarray(pixels[..., 0] if sample.shape[0] == 1 else pixels)


def save_film(frames: Sequence[Image.Image], folder: Path, *, seconds: float = 4.0) -> list[Path]:
    """The denoising as an animated GIF and WebP that rest on the last frame, and as one strip of up to ten frames."""
    folder.mkdir(parents=True, exist_ok=True)
    pause = max(20, int(1000 * seconds / len(frames)))
    pauses = [pause] * (len(frames) - 1) + [1500]
    paths = [folder / "film.gif", folder / "film.webp"]
    for path in paths:
        aside = path.with_name(f".{path.name}.tmp")
        kind = path.suffix[1:].upper()
        frames[0].save(aside, format=kind, save_all=True, append_images=list(frames[1:]), duration=pauses, loop=0)
        aside.replace(path)
    picked = [frames[round(i * (len(frames) - 1) / (min(10, len(frames)) - 1 or 1))] for i in range(min(10, len(frames)))]
    strip = Image.new("RGB", (sum(frame.width for frame in picked), picked[0].height), "white")
    left = 0
    for frame in picked:
        strip.paste(frame, (left, 0))
        left += frame.width
    return [save_picture(strip, folder / "strip.png"), *paths]
