"""Image towers of the library `transformers`: DINOv2 and CLIP, from a local folder, and pictures as they take them.

Reference: Oquab et al. 2023, arXiv 2304.07193 (DINOv2); Radford et al. 2021, arXiv 2103.00020 (CLIP).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ddpm.errors import ConfigError
from ddpm.networks.encoders.files import described, first_line, hashed, library
from ddpm.networks.encoders.settings import EncoderSettings

BATCH = 32
MEAN = {"dinov2": (0.485, 0.456, 0.406), "clip": (0.48145466, 0.4578275, 0.40821073)}  # of the levels over 255
STD = {"dinov2": (0.229, 0.224, 0.225), "clip": (0.26862954, 0.26130258, 0.27577711)}
SIDE = 224  # of the pictures DINOv2 is shown
MODELS = {"dinov2": "Dinov2Model", "clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel"}


def levels_of(samples: Tensor, low: float, high: float) -> Tensor:
    """Pictures (N, C, H, W) as three channels of 8-bit levels, `low`..`high` spread over 0..255 and rounded; grey ones get three equal
    channels. ConfigError for what is no picture.
    """
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ConfigError(f"extractor: takes pictures of 1 or 3 channels, these samples are {tuple(samples.shape[1:])}; use own or raw")
    levels = samples if (low, high) == (0, 255) else (samples.double() - low) * (255.0 / (high - low))
    levels = levels.double().round().clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, 3, -1, -1) if levels.shape[1] == 1 else levels


def pixel_values(levels: Tensor, kind: str, side: int) -> Tensor:
    """Levels (N, 3, H, W) as a tower takes them, (N, 3, side, side): resized by antialiased bicubic interpolation, rounded to 8 bits as
    they would be saved, then by mean and deviation of the kind.
    """
    x = F.interpolate(levels.to(torch.float32), size=(side, side), mode="bicubic", antialias=True).round().clamp(0, 255) / 255
    mean, std = (torch.tensor(values[kind], device=levels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def _kind(model: str) -> str:
    return "dinov2" if model == "Dinov2Model" else "clip"


def _vision(config: Any) -> Any:
    """The settings of the image half, of CLIP as a whole."""
    return getattr(config, "vision_config", config)


def _side(config: Any, kind: str) -> int:
    return min(SIDE, int(_vision(config).image_size)) if kind == "dinov2" else int(_vision(config).image_size)


def picture_settings(folder: str | Path, levels: tuple[float, float]) -> EncoderSettings:
    """What the image tower in a folder is; levels: black and white of the pictures. ConfigError where there is none that can be used."""
    place = Path(folder).expanduser()
    config = described(place, "reference")
    model = MODELS.get(config.model_type)
    if model is None:
        raise ConfigError(f"reference: {place} is a {config.model_type}; allowed are {', '.join(MODELS)}")
    vision, side = _vision(config), _side(config, _kind(model))
    count = 1 + (side // int(vision.patch_size)) ** 2
    return EncoderSettings(
        kind="picture", size=int(vision.hidden_size), length=count, folder=str(place), model=model, sha256=hashed(place), levels=levels
    )


class PictureTower:
    """The last hidden states of an image tower: the class token, then one for each patch."""

    def __init__(self, about: EncoderSettings, folder: Path, device: torch.device) -> None:
        self.about, self.device, self.kind = about, device, _kind(about.model)
        try:
            self.network = getattr(library(about.flag), about.model).from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except Exception as error:  # likewise
            raise ConfigError(f"{about.flag}: {folder} cannot be loaded as {about.model} ({first_line(error)})") from error
        self.network.eval().requires_grad_(False).to(device)
        self.side = _side(self.network.config, self.kind)

    @torch.inference_mode()
    def encode(self, inputs: NDArray[Any]) -> list[NDArray[np.float16]]:
        """(L, E) of each picture (N, C, H, W), in the data's units."""
        made: list[NDArray[np.float16]] = []
        assert self.about.levels is not None  # `picture_settings` took them
        for first in range(0, len(inputs), BATCH):
            levels = levels_of(torch.from_numpy(np.ascontiguousarray(inputs[first : first + BATCH])), *self.about.levels)
            states = self.network(pixel_values=pixel_values(levels.to(self.device), self.kind, self.side)).last_hidden_state
            made += list(states.half().cpu().numpy())
        return made

    def faults(self, text: str) -> list[str]:
        """A text is no picture."""
        return ["this model is told by a picture, not in words; use --like"]
