"""Denoisers with exact answers: mixtures of Gaussians, of which a Gaussian and a finite data set are the ends.

For tests, studies and the docs.
"""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.denoiser.denoiser import Cond, Denoiser
from ddpm.denoiser.parameterization import Prediction
from ddpm.errors import ConfigError
from ddpm.process import At, Process


class Mixture(Denoiser):
    """The exact E[x0 | x_t] when x0 ~ sum_k w_k N(m_k, C_k).

    Per component x_t ~ N(alpha m_k, S_k), S_k = alpha^2 C_k + sigma^2 I; then eps_k = sigma S_k^-1 (x - alpha m_k) and
    x0_k = m_k + alpha C_k S_k^-1 (x - alpha m_k), averaged with weights w_k N(x; alpha m_k, S_k).

    means: (K, *D). covariances: (K,) variances of isotropic components, or (K, n, n) with n the size of D. weights: (K,), default equal.
    float64. Raises ConfigError for shapes that do not fit or covariances with negative eigenvalues.
    """

    means: Tensor  # (K, n)
    variances: Tensor  # (K, n) in the basis, or (K, 1) isotropic
    basis: Tensor | None  # (K, n, n), columns eigenvectors
    log_weights: Tensor  # (K,)

    def __init__(self, process: Process, means: Tensor, covariances: Tensor, weights: Tensor | None = None) -> None:
        super().__init__()
        count, size = len(means), means[0].numel()
        self.process, self.shape = process, tuple(means.shape[1:])
        covariances = covariances.to(torch.float64)
        if covariances.shape not in {(count,), (count, size, size)}:
            raise ConfigError(f"covariances: got shape {tuple(covariances.shape)}, must be ({count},) or ({count}, {size}, {size})")
        variances: Tensor = covariances[:, None]
        basis: Tensor | None = None
        if covariances.ndim == 3:
            variances, basis = torch.linalg.eigh(covariances)
        if variances.min() < -1e-12:
            raise ConfigError(f"covariances: lowest eigenvalue {variances.min().item():g}, must not be negative")
        weights = torch.ones(count) if weights is None else weights
        self.register_buffer("means", means.reshape(count, size).to(torch.float64))
        self.register_buffer("variances", variances.clamp(min=0.0))
        self.register_buffer("basis", basis)
        self.register_buffer("log_weights", (weights.to(torch.float64) / weights.sum()).log())

    def _components(self, x: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, K) log joint densities, and per component whitened offsets S^-1 (x - alpha m) in the basis, with alpha and sigma as (B or 1,
        1, 1).
        """
        flat = x.reshape(len(x), 1, -1).to(torch.float64)
        alpha, sigma = (level.to(torch.float64).reshape(-1, 1, 1) for level in (at.alpha, at.sigma))
        offset = flat - alpha * self.means  # (B, K, n)
        if self.basis is not None:
            offset = torch.einsum("bkn,knm->bkm", offset, self.basis)
        total = alpha**2 * self.variances + sigma**2  # (B or 1, K, n or 1)
        solved = offset / total
        size = offset.shape[-1]
        log_det = total.log().expand(*total.shape[:2], size).sum(-1)
        log_joint = self.log_weights - 0.5 * ((offset * solved).sum(-1) + log_det + size * math.log(2 * math.pi))
        return log_joint, solved, alpha, sigma

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """Exact to rounding at every instant with sigma > 0; unconditional."""
        log_joint, solved, alpha, sigma = self._components(x, at)
        share = log_joint.softmax(-1).unsqueeze(-1)
        gain = alpha * self.variances * solved
        if self.basis is not None:
            solved, gain = (torch.einsum("bkm,knm->bkn", part, self.basis) for part in (solved, gain))
        eps, x0 = (share * sigma * solved).sum(1), (share * (self.means + gain)).sum(1)
        return Prediction(x0.reshape(x.shape).to(x.dtype), eps.reshape(x.shape).to(x.dtype))

    def log_density(self, x: Tensor, at: At) -> Tensor:
        """log p_t(x) in nats, (B,)."""
        return self._components(x, at)[0].logsumexp(-1)

    def residual(self, at: At) -> Tensor:
        """For one Gaussian sigma^2 C S^-1 averaged over entries; ConfigError for several, where it has no closed form."""
        if len(self.means) > 1:
            raise ConfigError("residual: a mixture's mean squared residual has no closed form; measure it, or use one Gaussian")
        alpha, sigma = at.alpha.to(torch.float64)[..., None], at.sigma.to(torch.float64)[..., None]
        return (sigma**2 * self.variances[0] / (alpha**2 * self.variances[0] + sigma**2)).mean(-1)

    def draw(self, noise: Tensor, choice: Tensor) -> Tensor:
        """Data from unit normals (B, *D) and component indices (B,)."""
        flat = noise.reshape(len(noise), -1).to(torch.float64) * self.variances[choice].sqrt()
        if self.basis is not None:
            flat = torch.einsum("bm,bnm->bn", flat, self.basis[choice])
        return (self.means[choice] + flat).reshape(noise.shape)


def gaussian(process: Process, mean: Tensor, covariance: Tensor) -> Mixture:
    """The exact denoiser of N(mean, covariance); covariance () for isotropic, or (n, n)."""
    return Mixture(process, mean[None], covariance[None])


def finite(process: Process, data: Tensor) -> Mixture:
    """The exact denoiser of a finite data set (N, *D): what a network that memorised it would say.

    Reference: Karras et al., 2022, arXiv:2206.00364, eq. 57 (appendix B.3).
    """
    return Mixture(process, data, torch.zeros(len(data), dtype=torch.float64))
