"""Data with captions, and small settings for them; shared by the tests of being told in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ddpm
from ddpm.data import Dataset, from_arrays
from ddpm.training.text import TextSettings

UNET, WORDS = ddpm.UNetConfig(channels=8, mults=(1,), blocks=1, attention=(0,)), TextSettings(encoder="words", size=16)
TEXTS = ("a zero above a one", "a one left of a two", "Two zeros, alone!", "")


def captioned(count: int = 40, **options: Any) -> Dataset:
    """Random 8x8 pictures in 17 levels with captions in turn."""
    x = np.random.default_rng(0).integers(0, 17, (count, 1, 8, 8)).astype(np.uint8)
    return from_arrays(x, {"text": [TEXTS[i % 4] for i in range(count)]}, name="captioned", bins=(0, 16), **options)


def folder_of_pictures(root: Path, count: int = 24) -> Path:
    """Pictures with metadata.jsonl, as Hugging Face writes it."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / f"{i:03d}.png")
    rows = [{"file_name": f"{i:03d}.png", "text": TEXTS[i % 4]} for i in range(count)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root
