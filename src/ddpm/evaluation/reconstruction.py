"""What an autoencoder loses: reconstructions beside their originals, and what its latents are like."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data.dataset import Dataset, Rows
from ddpm.denoiser import Codec
from ddpm.evaluation.extractors.extractor import Extractor
from ddpm.metrics import Moments, frechet, mean_psnr, psnr, ssim
from ddpm.networks.autoencoder import Autoencoder
from ddpm.training.latents import at_once

BATCH = 64
MOST = 2048  # samples that are reconstructed


def shown_rows(dataset: Dataset) -> tuple[str, Rows]:
    """The rows that are reconstructed, and their kind: held-out ones where there are any."""
    rows = dataset.held_rows if len(dataset.held_rows) else dataset.train_rows
    kind = "held out" if len(dataset.held_rows) else "trained on"
    return kind, rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(np.int64)]


@torch.inference_mode()
def reconstructed(autoencoder: Autoencoder, codec: Codec, raw: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """(reconstructions in the data's units, latents) of raw samples (B, *shape), through the mean of q(z | x)."""
    device = next(autoencoder.parameters()).device
    reconstructions, latents = list[Tensor](), list[Tensor]()
    for some in torch.from_numpy(raw).split(at_once(raw.shape[1:])):
        z = autoencoder.posterior(codec.encode(some).to(torch.float32).to(device)).mean
        reconstructions.append(codec.decode(autoencoder.decode(z)).cpu())
        latents.append(z.cpu())
    return torch.cat(reconstructions), torch.cat(latents)


def reach_of(codec: Codec) -> float:
    """The highest possible value less the lowest, in the data's units: of the bins, or of the data."""
    assert codec.low is not None and codec.high is not None
    low, high = codec.bins or (min(codec.low), max(codec.high))
    return float(high - low) or 1.0


def reconstruction(
    autoencoder: Autoencoder, codec: Codec, dataset: Dataset, extractor: Extractor | None, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """PSNR and SSIM of reconstructions, their Frechet distance from the originals where there is an extractor, and the latents' channels.

    They are compared with their own originals: the distance of exact ones is 0, and nothing is to be corrected for. "frechet_halves",
    between two halves of the originals, says how far apart equally good samples of others lie.
    """
    kind, rows = shown_rows(dataset)
    reach, latents, quality = reach_of(codec), list[Tensor](), list[tuple[Tensor, Tensor]]()
    made: list[Tensor] = []
    real: list[Tensor] = []
    for first in range(0, len(rows), BATCH):
        raw, _ = dataset.batch(rows[first : first + BATCH])
        reconstructions, z = reconstructed(autoencoder, codec, raw)
        originals = torch.from_numpy(raw)
        quality.append((psnr(reconstructions, originals, reach), ssim(reconstructions, originals, reach)))
        latents.append(z)
        if extractor is not None:
            made.append(extractor.features(reconstructions))
            real.append(extractor.features(originals))
    z = torch.cat(latents).transpose(0, 1).flatten(1)
    loud, alike = (torch.cat(values) for values in zip(*quality, strict=True))
    found: dict[str, Any] = {
        "samples": len(rows), "rows": kind, "psnr": mean_psnr(loud), "ssim": float(alike.mean()),
        "latent_shape": list(autoencoder.latent_shape),
        "smaller": math.prod(autoencoder.shape) / math.prod(autoencoder.latent_shape),
        "latents": {"mean": z.mean(1).tolist(), "std": z.std(1).tolist()},
    }  # fmt: skip
    if autoencoder.codebook is not None:
        used = torch.cat([autoencoder.codes(part.to(autoencoder.codebook.device)).flatten().cpu() for part in latents])
        found |= {"codes": len(autoencoder.codebook), "codes_used": len(used.unique())}
    if extractor is not None and len(rows) >= 80:
        truth = torch.cat(real)
        found["frechet"] = frechet(Moments.of(torch.cat(made)), Moments.of(truth))
        found["frechet_halves"] = frechet(Moments.of(truth[::2]), Moments.of(truth[1::2]))
        found["extractor"] = extractor.name
    elif extractor is not None:
        say(f"{len(rows)} samples are too few for a Frechet distance; 80 or more are needed")
    return found
