"""What a person asks for in words, or shows, as the condition of a model that is told by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpm.denoiser.denoiser import Denoiser
from ddpm.errors import ConfigError
from ddpm.networks.encoders import EncoderSettings
from ddpm.networks.encoders.encoder import Tokens, open_encoder, padded, refuse


def prompts(denoiser: Denoiser, texts: str | Sequence[str], *, folder: str | Path | None = None) -> dict[str, Tensor]:
    """The condition of one sample for each text: `ddpm.sample(denoiser, 2, cond=ddpm.prompts(denoiser, ["a cat", "a dog"]))`.

    "tokens" (n, L, E) float32 of the encoder the model was trained with, on the host; a blank text asks for nothing. folder: where that
    encoder's files are now, if not where they were. May be joined with other conditions of the model, {**prompts(...), "class": ids}.

    Raises: ConfigError for a model that is not told in words, for an encoder that is missing or another one, and for every text with
    unknown words or too many of them; MissingLibraryError where the encoder needs `transformers`.
    """
    about = _about(denoiser, "text")
    texts = [texts] if isinstance(texts, str) else list(texts)
    encoder = open_encoder(about, None if folder is None else str(folder))
    refuse(encoder, texts, "prompt")
    return _told(encoder.encode(texts), about)


def references(denoiser: Denoiser, pictures: Tensor, *, folder: str | Path | None = None) -> dict[str, Tensor]:
    """The condition of one sample for each reference picture (n, C, H, W), in the data's units; else as `prompts`."""
    about = _about(denoiser, "picture")
    encoder = open_encoder(about, None if folder is None else str(folder))
    return _told(encoder.encode(pictures.cpu().numpy()), about)


def nothing(about: EncoderSettings, n: int) -> Tensor:
    """Tokens (n, 1, E) of samples that nothing is said of."""
    return torch.zeros(n, 1, about.size)


def _told(tokens: Sequence[Tokens], about: EncoderSettings) -> dict[str, Tensor]:
    return {"tokens": torch.from_numpy(padded(tokens, about.size))}  # pyright: ignore[reportUnknownMemberType]


def _about(denoiser: Denoiser, by: str) -> EncoderSettings:
    about = denoiser.text
    if about is None:
        raise ConfigError("prompt: this model is not told by text or pictures; train one with --text or --reference")
    if (about.kind == "picture") != (by == "picture"):
        said = "a picture; use references, --like" if about.kind == "picture" else "text; use prompts, --prompt"
        raise ConfigError(f"prompt: this model is told by {said}")
    return about
