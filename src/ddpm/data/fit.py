"""Fitting a decoded picture to the size and channels asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.data.decode import Unreadable
from ddpm.data.settings import Channels, Crop

Box = tuple[float, float, float, float]


class Misfit(Exception):
    """A picture of another shape than the size asked for, and no word on what to cut away."""


def fit(pixels: NDArray[Any], size: tuple[int, int] | None, crop: Crop, channels: Channels, max_pixels: int) -> NDArray[Any]:
    """Pixels (H, W) or (H, W, 3) -> (C, h, w) of the same type, resized by Pillow's antialiased Lanczos filter where they must be.

    size None: as they are. crop "centre": the largest centred part of the size's shape, resized to it. "random": resized so that the
    picture just covers the size; the part is cut when a batch is made. "none": resized whole; other shapes are refused, never squashed.
    16-bit pictures are filtered in float and rounded. Lanczos is what the dataset tool of
    Karras et al. 2022 (arXiv 2206.00364) uses.

    Raises:
        Misfit: crop is "none" and the shape differs by more than rounding.
        Unreadable: so long and thin that covering the size would pass `max_pixels`.
    """
    pixels = _to_channels(pixels, channels)
    if size is not None and pixels.shape[:2] != size:
        pixels = _resize(pixels, *_plan(pixels.shape[0], pixels.shape[1], size, crop, max_pixels))
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return np.ascontiguousarray(planes)


def _plan(height: int, width: int, size: tuple[int, int], crop: Crop, max_pixels: int) -> tuple[tuple[int, int], Box]:
    """Size (h, w) to resize to, and the box (left, upper, right, lower) of the picture that is resized."""
    scale = max(size[0] / height, size[1] / width)
    cover = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    if crop == "centre":
        (left, right), (upper, lower) = _middle(width, size[1] / scale), _middle(height, size[0] / scale)
        return size, (left, upper, right, lower)
    if crop == "random":
        if math.prod(cover) > max_pixels:
            raise Unreadable(f"{width}x{height} is too long and thin: it would take {cover[1]}x{cover[0]} to cover {size[1]}x{size[0]}")
        return cover, (0, 0, width, height)
    if abs(cover[0] - size[0]) > 1 or abs(cover[1] - size[1]) > 1:
        raise Misfit(f"{width}x{height} has another shape than {size[1]}x{size[0]}")
    return size, (0, 0, width, height)


def _middle(length: int, part: float) -> tuple[float, float]:
    """Where the middle part of a length begins and ends: of whole pixels, where the part is whole."""
    if abs(part - round(part)) < 1e-6:
        begin = (length - round(part)) // 2
        return begin, begin + round(part)
    begin = max((length - part) / 2, 0.0)
    return begin, min(begin + part, length)


def _resize(pixels: NDArray[Any], size: tuple[int, int], box: Box) -> NDArray[Any]:
    target, lanczos = (size[1], size[0]), Image.Resampling.LANCZOS
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(target, lanczos, box=box))
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(np.atleast_3d(pixels), -1, 0)]
    smooth = np.stack([np.asarray(plane.resize(target, lanczos, box=box)) for plane in planes], axis=-1)
    whole = np.clip(np.rint(smooth), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return whole if pixels.ndim == 3 else whole[..., 0]


def shrunk(samples: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Samples (B, C, *axes) -> (B, C, *size) of the same type, axes being whole multiples of size: pictures as `fit` resizes them,
    everything else by the mean over each block.
    """
    if samples.dtype.kind == "u" and len(size) == 2 and samples.shape[1] in (1, 3):
        flat = [np.moveaxis(picture, 0, -1) if len(picture) == 3 else picture[0] for picture in samples]
        small = [_resize(picture, (size[0], size[1]), (0, 0, picture.shape[1], picture.shape[0])) for picture in flat]
        return np.stack([np.moveaxis(picture, -1, 0) if picture.ndim == 3 else picture[None] for picture in small])
    split = [part for long, short in zip(samples.shape[2:], size, strict=True) for part in (short, long // short)]
    mean = samples.reshape(*samples.shape[:2], *split).mean(axis=tuple(range(3, 3 + 2 * len(size), 2)), dtype=np.float64)
    return (np.rint(mean) if samples.dtype.kind in "iu" else mean).astype(samples.dtype)


def _to_channels(pixels: NDArray[Any], channels: Channels) -> NDArray[Any]:
    if channels == "rgb" and pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=-1)
    if channels == "grey" and pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return pixels
