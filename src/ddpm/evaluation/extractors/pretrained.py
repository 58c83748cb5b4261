"""DINOv2 and CLIP by the library `transformers`: features that see what a picture shows, where Inception's see textures.

The weights are a folder as `save_pretrained` writes it, or a name in the library's own cache; nothing is downloaded unless the library is
allowed to (HF_HUB_OFFLINE unset) and the name is one it knows.

Reference: Oquab et al. 2023, arXiv 2304.07193 (DINOv2); Radford et al. 2021, arXiv 2103.00020 (CLIP); Stein et al. 2023, arXiv 2306.04675,
section 4 (Frechet distance of DINOv2: its class token, pictures resized to 224 by bicubic interpolation).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm.denoiser.card import Card
from ddpm.errors import ConfigError
from ddpm.evaluation.extractors.extractor import Extractor, as_levels, digest
from ddpm.networks.encoders.pictures import SIDE, pixel_values

USUAL = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14"}


class Pretrained(Extractor):
    """The class token of DINOv2 after its last norm, or CLIP's picture embedding."""

    def __init__(
        self, kind: Literal["dinov2", "clip"], card: Card, weights: str | Path | None = None, device: torch.device | None = None
    ) -> None:
        self.name, self.card, self.device = kind, card, device or torch.device("cpu")
        self.network = loaded(kind, str(weights or USUAL[kind])).eval().to(self.device)
        config = self.network.config
        self.dim: int = config.hidden_size if kind == "dinov2" else config.projection_dim
        self.side: int = SIDE if kind == "dinov2" else config.image_size
        levels = str(card.bins or (min(card.low), max(card.high)))
        self.identity = digest(kind, levels, str(self.side), *self.network.state_dict().values())

    def embed(self, samples: Tensor) -> Tensor:
        """Features of pictures rounded to 8 bits, as they would be saved, resized by antialiased bicubic interpolation."""
        with torch.inference_mode():
            found = self.network(pixel_values=pixel_values(as_levels(samples, self.card).to(self.device), self.name, self.side))
            features = found.pooler_output if self.name == "dinov2" else found.image_embeds
            return features.float().cpu()


def loaded(kind: str, weights: str) -> Any:
    """The network; ConfigError where the library, the weights, or the right kind of weights are missing."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        advice = "pip install 'ddpm[diffusers]'; --extractor own needs none"
        raise ConfigError(f"extractor {kind}: needs the library transformers: {advice}") from error
    if weights != USUAL[kind] and not Path(weights).is_dir():  # no name is looked up that may be a mistyped folder
        raise ConfigError(f"extractor {kind}: there is no folder {weights}; --weights-file takes one as save_pretrained writes it")
    wanted = transformers.Dinov2Model if kind == "dinov2" else transformers.CLIPVisionModelWithProjection
    try:
        network, report = wanted.from_pretrained(weights, output_loading_info=True)
    except Exception as error:  # a missing name, no network, a damaged file: the library has an error for each
        first = str(error).splitlines()[0][:160]
        raise ConfigError(
            f"extractor {kind}: no weights at {weights} ({first}); name a folder as save_pretrained writes it by --weights-file, or fetch "
            f"{USUAL[kind]} into the library's cache; --extractor own needs no download"
        ) from error
    if missing := list(report["missing_keys"]):
        raise ConfigError(f"extractor {kind}: {weights} lacks {len(missing)} of its tensors, the first is {missing[0]}")
    return network
