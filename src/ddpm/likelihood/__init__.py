"""How probable data are under a model: two bounds and the probability flow, per sample, in bits per dimension or nats; and
the bound that a model in an autoencoder's latents gives data.
"""

from __future__ import annotations

from ddpm.likelihood.bound import Terms, continuous, discrete
from ddpm.likelihood.dequantise import Uniform, Variational, fit
from ddpm.likelihood.flow import flow, log_density, transport
from ddpm.likelihood.latents import LatentTerms, latent_bound
from ddpm.likelihood.scores import Scores

__all__ = [
    "LatentTerms", "Scores", "Terms", "Uniform", "Variational", "continuous", "discrete", "fit", "flow", "latent_bound", "log_density",
    "transport",
]  # fmt: skip
