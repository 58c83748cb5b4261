"""How probable data are under a model: two bounds and the probability flow, per sample, in bits per dimension or nats."""

from __future__ import annotations

from ddpm.likelihood.bound import Terms, continuous, discrete
from ddpm.likelihood.dequantise import Uniform, Variational, fit
from ddpm.likelihood.flow import flow, log_density, transport
from ddpm.likelihood.scores import Scores

__all__ = ["Scores", "Terms", "Uniform", "Variational", "continuous", "discrete", "fit", "flow", "log_density", "transport"]
