"""How near samples are to data: distances between sets of vectors or of pictures, each saying how far it can be believed."""

from __future__ import annotations

from ddpm.metrics.ensemble import Ensemble, Scores, latitude_weights
from ddpm.metrics.estimate import Estimate, scattered
from ddpm.metrics.fields import channel_distances, spectrum, spectrum_distance
from ddpm.metrics.frechet import Frechet, frechet
from ddpm.metrics.inception import inception_score
from ddpm.metrics.kernel import kernel_distance
from ddpm.metrics.memorisation import Memorisation, memorisation
from ddpm.metrics.moments import Moments
from ddpm.metrics.neighbours import Manifold, manifold
from ddpm.metrics.reconstruction import mean_psnr, psnr, ssim
from ddpm.metrics.sliced import energy_distance, sliced_wasserstein

__all__ = [
    "Ensemble",
    "Estimate",
    "Frechet",
    "Manifold",
    "Memorisation",
    "Moments",
    "Scores",
    "channel_distances",
    "energy_distance",
    "frechet",
    "inception_score",
    "kernel_distance",
    "latitude_weights",
    "manifold",
    "mean_psnr",
    "memorisation",
    "psnr",
    "scattered",
    "sliced_wasserstein",
    "spectrum",
    "spectrum_distance",
    "ssim",
]
