"""Inverse problems: samples of p(x0 | y) for y = A(x0) + noise z, by turning E[x0 | x_t] into (an estimate of) E[x0 | x_t, y].

Four denoisers round a denoiser, to be walked by any sampler. The linear ones are one formula, with x0_hat = E[x0|x_t] and r^2 and V two
estimates of Cov[x0|x_t], `Process.remaining` (isotropic data) and the exact (sigma^2/alpha) d x0_hat/d x_t:

    Projection       x0_hat + r^2 A^T (r^2 A A^T + noise^2 I)^-1 (y - A x0_hat)
    PiGDM            x0_hat +  V  A^T (r^2 A A^T + noise^2 I)^-1 (y - A x0_hat)
    MomentMatching   x0_hat +  V  A^T (  A V A^T + noise^2 I)^-1 (y - A x0_hat)
    DPS              x0_hat +  V  dA^T (noise^2 I)^-1 (y - A(x0_hat))                     (any A; for noise = 0 see there)

`RePaint` (sampling) is for masks, by another way. What each promises, with its known bias: docs/inverse.md.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, Prediction
from ddpm.denoiser.student import refusal
from ddpm.errors import ConfigError
from ddpm.guidance.operators import Operator
from ddpm.process import At

Covariance = Callable[[Tensor], Tensor]


class Posterior(Denoiser):
    """What the four share: denoiser, operator, y (M or (1 or B, *M), in the space diffused in) and the standard deviation of y's noise.

    sigma_data: standard deviation of the data as diffused, for r^2. Raises ConfigError for a y that does not fit the operator, values that
    are not finite, a negative noise, and a denoiser that does not predict a mean.
    """

    y: Tensor

    def __init__(
        self, denoiser: Denoiser, operator: Callable[[Tensor], Tensor], y: Tensor, *, noise: float = 0.0, sigma_data: float = 1.0
    ) -> None:
        super().__init__()
        if denoiser.meaning != "mean":
            raise ConfigError(f"{type(self).__name__}: {refusal(denoiser.meaning)}")
        for name, value, least in (("noise", noise, "must be 0 or more"), ("sigma_data", sigma_data, "must be more than 0")):
            if not math.isfinite(value) or value < 0 or (value == 0 and name == "sigma_data"):
                raise ConfigError(f"{name}: got {value}, {least}")
        try:
            expected = tuple(operator(y.new_zeros(1, *denoiser.shape)).shape[1:])
        except (RuntimeError, IndexError) as error:  # torch's own, for sizes that do not meet
            raise ConfigError(f"operator: cannot be applied to data of shape {denoiser.shape} ({str(error).splitlines()[0]})") from error
        y = y[None] if y.ndim == len(expected) else y
        if tuple(y.shape[1:]) != expected:
            raise ConfigError(f"y: got shape {tuple(y.shape)}, the operator makes {expected} of each sample")
        y = operator.seen(y) if isinstance(operator, Operator) else y
        if not bool(y.isfinite().all()):
            raise ConfigError("y: holds values that are not finite; leave entries that are missing to a Mask")
        self.denoiser, self.operator, self.noise, self.sigma_data = denoiser, operator, noise, sigma_data
        self.take_after(denoiser)
        self.register_buffer("y", y)

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """The estimate of E[x0 | x_t, y], with eps read from it; without gradients. ConfigError where y has other than 1 or B rows."""
        if len(self.y) not in (1, len(x)):
            raise ConfigError(f"y: got {len(self.y)} rows for {len(x)} samples; give one row for all, or draw all in one batch")
        x0, variance = self.estimate(x, at, cond)
        return Prediction(x0, self.process.noise(x, x0, at), variance)

    @abstractmethod
    def estimate(self, x: Tensor, at: At, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The estimate of E[x0 | x_t, y], and the wrapped denoiser's variance output."""

    def residual(self, at: At) -> Tensor:
        """The wrapped denoiser's moment, which is more than is left once y is known too."""
        return self.denoiser.residual(at)


class LinearPosterior(Posterior):
    """The ones that need a linear operator."""

    operator: Operator

    def __init__(self, denoiser: Denoiser, operator: Operator, y: Tensor, *, noise: float = 0.0, sigma_data: float = 1.0) -> None:
        if not isinstance(operator, Operator):
            raise ConfigError(f"operator: {type(self).__name__} needs a linear one (Mask, Separable, Convolution, Dense); use DPS")
        super().__init__(denoiser, operator, y, noise=noise, sigma_data=sigma_data)

    def mismatch(self, x0: Tensor) -> Tensor:
        """y - A x0."""
        return self.y.to(x0) - self.operator(x0)

    def projected(self, x0: Tensor) -> Tensor:
        """x0 moved the least so that A x0 = y."""
        return x0 + self.operator.pinv(self.mismatch(x0))


class Projection(LinearPosterior):
    """Data consistency of x0_hat: replaces what y determines, A^+ y + (I - A^+ A) x0_hat, and keeps the rest of x0_hat. No gradient.

    noise > 0: x0_hat and y are weighed by r^2 and noise^2. Promises A x0 = y for noise = 0, and the exact posterior for isotropic Gaussian
    data of sigma_data. Known bias: x0_hat's own guess of what was not measured is not told of y but through later steps, so it stays too
    near to what x_t says, and parts that ought to agree with the measured ones agree too little.

    Deviation: eps is re-read from x_t (as ancestral sampling does anyway); the published code's DDIM step keeps the old eps.
    Reference: Wang, Yu, Zhang, 2022, arXiv:2212.00490, eq. 13; noise > 0: Zhu et al., 2023, arXiv:2305.08995, section 3.3, with the weight
    noise^2 / r^2.
    """

    def estimate(self, x: Tensor, at: At, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """x0_hat + r^2 A^T (r^2 A A^T + noise^2 I)^-1 (y - A x0_hat)."""
        x0, _, variance = self.denoiser(x, at, cond)
        if self.noise == 0.0:
            return self.projected(x0), variance
        remaining = self.process.remaining(at, self.sigma_data**2)
        return x0 + remaining * self.operator.adjoint(self.operator.solve(self.mismatch(x0), remaining, self.noise)), variance


def differentiated(wrapper: Posterior, floor: float, x: Tensor, at: At, cond: Cond) -> tuple[Tensor, Covariance, Tensor | None]:
    """x0_hat, the map v -> Cov[x0|x_t] v by one backward pass of the denoiser, and its variance output.

    Below the log-SNR `floor` the covariance is taken as isotropic: there (sigma^2/alpha) d x0_hat/dx is a small derivative times a huge
    factor, and that of a trained network is all error (the digits model: eigenvalues from -12,000 to 34,000 at log-SNR -20).
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        prediction = wrapper.denoiser(x, at, cond)
    lever, isotropic = wrapper.process.tweedie(at), wrapper.process.remaining(at, wrapper.sigma_data**2)
    low = at.log_snr < floor

    def covariance(v: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(prediction.x0, x, v.to(x), retain_graph=True)
        return torch.where(low, isotropic * v, lever * pulled)

    variance = prediction.variance
    return prediction.x0.detach(), covariance, None if variance is None else variance.detach()


class PiGDM(LinearPosterior):
    """Pseudo-inverse guidance: the covariance in the solve is isotropic, the one in front is exact, by one backward pass.

    Exact for isotropic Gaussian data of sigma_data. Known bias: where data vary less than sigma_data along what was measured, r^2 is too
    large and y is trusted too little; where more, too much. noise = 0 uses the pseudo-inverse; A x0 = y holds in the limit only.

    Deviations: r^2 = sigma^2 c/(alpha^2 c + sigma^2), c = sigma_data^2: the paper's sigma^2/(sigma^2 + 1) for alpha = 1, and what its
    derivation gives for other alpha; no further weight on the guidance, as the paper's DDIM step has.
    Reference: Song, Vahdat, Mardani, Kautz, 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR, section 3.
    """

    needs_grad: ClassVar[bool] = True

    def __init__(
        self, denoiser: Denoiser, operator: Operator, y: Tensor, *, noise: float = 0.0, sigma_data: float = 1.0, floor: float = -4.0
    ) -> None:
        super().__init__(denoiser, operator, y, noise=noise, sigma_data=sigma_data)
        self.floor = floor

    def estimate(self, x: Tensor, at: At, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """x0_hat + V A^T (r^2 A A^T + noise^2 I)^-1 (y - A x0_hat)."""
        x0, covariance, variance = differentiated(self, self.floor, x, at, cond)
        remaining = self.process.remaining(at, self.sigma_data**2)
        return x0 + covariance(self.operator.adjoint(self.operator.solve(self.mismatch(x0), remaining, self.noise))), variance


class MomentMatching(LinearPosterior):
    """p(x0|x_t) taken as the Gaussian of its own mean and covariance V: exact E[x0|x_t, y] for any Gaussian data and linear operator.

    V A^T u costs one backward pass; the solve takes `iterations` of conjugate gradients, exact after as many as there are measurements, and
    a regulariser before. For noise = 0 the result is projected onto A x0 = y, which changes nothing once the solve is exact.
    Known bias: data with several modes are taken as one Gaussian at each x_t, so a mode that y excludes still pulls while it is likely
    given x_t alone. floor: see `differentiated`; -inf for exact denoisers.

    Reference: Boys et al., 2023, arXiv:2310.06721, section 3 (with its full Jacobian); Rozet et al., 2024, arXiv:2405.13712, section 4.2.
    """

    needs_grad: ClassVar[bool] = True

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        *,
        noise: float = 0.0,
        sigma_data: float = 1.0,
        floor: float = -4.0,
        iterations: int = 3,
    ) -> None:
        super().__init__(denoiser, operator, y, noise=noise, sigma_data=sigma_data)
        if iterations < 1:
            raise ConfigError(f"iterations: got {iterations}, must be at least 1")
        self.floor, self.iterations = floor, iterations

    def estimate(self, x: Tensor, at: At, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """x0_hat + V A^T (A V A^T + noise^2 I)^-1 (y - A x0_hat)."""
        x0, covariance, variance = differentiated(self, self.floor, x, at, cond)
        left = self.mismatch(x0)  # of the solve
        direction, size = left, dot(left, left)
        moved = torch.zeros_like(x0)
        for _ in range(self.iterations):
            pulled = covariance(self.operator.adjoint(direction))
            image = self.operator(pulled) + self.noise**2 * direction
            curvature = dot(direction, image)
            uphill = curvature > 0  # a trained network's V need not be positive: such a direction is left out
            step = torch.where(uphill, size / torch.where(uphill, curvature, 1.0), 0.0)
            moved, left = moved + along(step, x0) * pulled, left - along(step, left) * image
            before, size = size, dot(left, left)
            direction = left + along(torch.where(uphill & (before > 0), size / torch.where(before > 0, before, 1.0), 0.0), left) * direction
        x0 = x0 + moved
        return (self.projected(x0) if self.noise == 0.0 else x0), variance


class DPS(Posterior):
    """Diffusion posterior sampling: p(y|x_t) taken as p(y | x0 = x0_hat), differentiated through the denoiser; any differentiable operator.

    noise > 0: the score of that, -scale/(2 noise^2) d|y - A(x0_hat)|^2/dx_t. noise = 0: -scale sqrt(m) d|y - A(x0_hat)|/dx_t, m the number
    of measurements. Promises nothing but that direction. Known bias: forgetting that x0 is uncertain given x_t, it trusts y too much (for
    scale = 1 the posterior's spread comes out too small, and few steps are unstable unless noise is large); `scale` has to be tuned.

    Deviation: the paper subtracts zeta d|y - A(x0_hat)|/dx_t from x after every ancestral step, whatever its size; here the same direction
    is a score, so the strength does not depend on the number of steps; in a step of beta it is zeta = scale sqrt(m) beta.
    Reference: Chung et al., 2022, arXiv:2209.14687, eq. 16 and algorithm 1.
    """

    needs_grad: ClassVar[bool] = True

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        *,
        noise: float = 0.0,
        scale: float = 1.0,
        sigma_data: float = 1.0,
        floor: float = -4.0,
    ) -> None:
        super().__init__(denoiser, operator, y, noise=noise, sigma_data=sigma_data)
        if not math.isfinite(scale) or scale <= 0:
            raise ConfigError(f"scale: got {scale}, must be a finite number above 0")
        self.scale, self.floor = scale, floor

    def estimate(self, x: Tensor, at: At, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """x0_hat + V times the gradient, at x0_hat, of the log-likelihood."""
        x0, covariance, variance = differentiated(self, self.floor, x, at, cond)
        with torch.enable_grad():
            guess = x0.clone().requires_grad_()
            off = (self.y.to(x0) - self.operator(guess)).flatten(1)
            squared = (off**2).sum(1)
            count = self.operator.count(self.y) if isinstance(self.operator, Operator) else off.shape[1]
            fit = squared / (2 * self.noise**2) if self.noise > 0 else count**0.5 * squared.clamp(min=1e-20).sqrt()
            (slope,) = torch.autograd.grad(fit.sum(), guess)
        return x0 - self.scale * covariance(slope), variance


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, (B,)."""
    return (a * b).flatten(1).sum(1)


def along(factors: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast over x."""
    return factors.reshape(-1, *[1] * (x.ndim - 1))
