"""The process q: every formula of the forward Gaussian chain, in one place. x_t = alpha_t x0 + sigma_t eps, eps ~ N(0, I).

Losses, samplers, bounds and guidance ask here; nobody else writes alpha and sigma into a formula of q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float

from ddpm.process.schedule import Schedule

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch


class At(NamedTuple):
    """An instant: its time t and the levels alpha(t), sigma(t), all of one shape that broadcasts over the data."""

    t: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor

    @property
    def log_snr(self) -> torch.Tensor:
        """log(alpha^2 / sigma^2); +inf at sigma = 0, -inf at alpha = 0."""
        return 2.0 * (self.alpha.log() - self.sigma.log())

    @property
    def ratio(self) -> torch.Tensor:
        """sigma / alpha, noise over signal: the sigma of Karras et al.; 0 at the data, +inf at alpha = 0."""
        return self.sigma / self.alpha

    @property
    def level(self) -> torch.Tensor:
        """u = sigma / (alpha + sigma), from 0 at the data to 1 where alpha = 0."""
        return self.sigma / (self.alpha + self.sigma)

    def take(self, which: int | slice | torch.Tensor) -> At:
        """Some of the instants."""
        return At(*(value[which] for value in self))

    def like(self, x: torch.Tensor) -> At:
        """Cast to x's dtype and device, shaped (B, 1, ..., 1) or () to broadcast over x (B, *D)."""

        def fit(value: torch.Tensor) -> torch.Tensor:
            value = value.to(dtype=x.dtype) if x.is_floating_point() else value  # cast on the host first: not every device has float64
            value = value.to(device=x.device)
            return value.reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else value

        return At(*(fit(value) for value in self))


@dataclass(frozen=True)
class Process:
    """q of a schedule: q(x_t | x0) = N(alpha_t x0, sigma_t^2 I), Markov in t.

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, eqs. 2-7; in alpha, sigma: Kingma et al., 2021, arXiv:2107.00630, section 3.1 and
    appendix A.
    """

    schedule: Schedule

    @cached_property
    def clean(self) -> At:
        """The instant alpha = 1, sigma = 0 where every plan ends, float64 on the host."""
        one = torch.ones((), dtype=torch.float64)
        return At(0.0 * one, one, 0.0 * one)

    def at(self, t: float | torch.Tensor, like: torch.Tensor | None = None) -> At:
        """The instant(s) at t in [0, 1], () or (B,): computed in float64 on the host, then cast to broadcast over `like` where given.

        Raises ValueError for t outside [0, 1].
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t: got values from {t.min().item():g} to {t.max().item():g}; time runs from 0 (data) to 1 (noise)")
        at = At(t, self.schedule.alpha(t), self.schedule.sigma(t))
        return at if like is None else at.like(like)

    def perturb(self, x0: torch.Tensor, eps: torch.Tensor, at: At) -> torch.Tensor:
        """x_t = alpha_t x0 + sigma_t eps: a draw of q(x_t | x0), shape (B, *D). Reference: Ho et al., 2020, eq. 4."""
        return at.alpha * x0 + at.sigma * eps

    def noise(self, x: torch.Tensor, x0: torch.Tensor, at: At) -> torch.Tensor:
        """eps = (x_t - alpha_t x0) / sigma_t: `perturb` read the other way, sigma > 0."""
        return (x - at.alpha * x0) / at.sigma

    def transition(self, s: At, t: At) -> tuple[torch.Tensor, torch.Tensor]:
        """q(x_t | x_s) = N(scale x_s, std^2) for s < t: scale = alpha_t / alpha_s, std^2 = sigma_t^2 - scale^2 sigma_s^2.

        Reference: Kingma et al., 2021, arXiv:2107.00630, eq. 23.
        """
        return t.alpha / s.alpha, t.sigma * self._kept(s, t).sqrt()

    def _kept(self, s: At, t: At) -> torch.Tensor:
        """1 - SNR(t)/SNR(s), in (0, 1]: by expm1, so that near instants do not cancel."""
        return -(t.log_snr - s.log_snr).expm1()

    def posterior(self, s: At, t: At, v: float | torch.Tensor = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q(x_s | x_t, x0) = N(c_x0 x0 + c_xt x_t, std^2) for s < t.

        c_x0 = alpha_s (1 - SNR_t/SNR_s), c_xt = (alpha_t/alpha_s) sigma_s^2/sigma_t^2; std interpolates in the logarithm between the
        posterior's own (v = 0, "small": sigma_s^2 (1 - SNR_t/SNR_s)) and the transition's (v = 1, "large").

        Reference: Ho et al., 2020, arXiv:2006.11239, eqs. 6-7; v: Nichol, Dhariwal, 2021, arXiv:2102.09672, eq. 15.
        """
        kept = self._kept(s, t)
        small = s.sigma * kept.sqrt()
        c_xt = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2
        if isinstance(v, float) and v == 0.0:
            return s.alpha * kept, c_xt, small
        return s.alpha * kept, c_xt, small ** (1.0 - v) * (t.sigma * kept.sqrt()) ** v

    def implicit(self, s: At, t: At, eta: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The non-Markov family with the same marginals: x_s = alpha_s x0 + c_eps eps + std z, std = eta times the posterior's, c_eps^2 =
        sigma_s^2 - std^2.

        eta = 1 is `posterior`, eta = 0 deterministic. Returns alpha_s, c_eps, std. Reference: Song, Meng, Ermon, 2020, arXiv:2010.02502,
        eqs. 12 and 16.
        """
        kept = self._kept(s, t)
        return s.alpha.clone(), s.sigma * (1.0 - eta**2 * kept).sqrt(), eta * s.sigma * kept.sqrt()

    def landing(self, s: At, t: At, x_s: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """The x0 whose deterministic step from x_t lands on x_s: (x_s - r x_t)/(alpha_s - r alpha_t), r = sigma_s/sigma_t, s < t.

        `implicit` with eta = 0 read the other way. Reference: Salimans, Ho, 2022, arXiv:2202.00512, algorithm 2.
        """
        r = s.sigma / t.sigma
        return (x_s - r * x_t) / (s.alpha - r * t.alpha)

    def residual_variance(self, s: At, t: At, residual: torch.Tensor) -> torch.Tensor:
        """Variance of x_s given x_t when x0 is known to within E|x0 - E[x0|x_t]|^2 = residual per entry: std^2 + c_x0^2 residual.

        Reference: Bao et al., 2022, arXiv:2201.06503, theorem 1 (with residual = sigma_t^2/alpha_t^2 (1 - E|eps_hat|^2/D)).
        """
        c_x0, _, std = self.posterior(s, t)
        return std**2 + c_x0**2 * residual

    def remaining(self, at: At, variance: float) -> torch.Tensor:
        """Var[x0|x_t] per entry of isotropic Gaussian data of this variance c: sigma^2 c / (alpha^2 c + sigma^2).

        Reference: c = 1, alpha = 1: Song et al., 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR, section 3.
        """
        return at.sigma**2 * variance / (at.alpha**2 * variance + at.sigma**2)

    def tweedie(self, at: At) -> torch.Tensor:
        """sigma^2 / alpha, by which E[x0|x_t] = (x_t + sigma^2 score) / alpha moves for a change of the score; inf at alpha = 0.

        Differentiated once more: Cov[x0|x_t] = sigma^2/alpha dE[x0|x_t]/dx_t. Reference: Boys et al., 2023, arXiv:2310.06721, section 3.
        """
        return at.sigma**2 / at.alpha

    def tilted(self, x0: torch.Tensor, eps: torch.Tensor, gradient: torch.Tensor, at: At) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, eps) under the density p(x_t) p(y|x_t), from those under p(x_t) and gradient = grad log p(y|x_t): x0 + sigma^2/alpha
        gradient, eps - sigma gradient.

        Unchanged at alpha = 0, where x_t holds nothing of y. Reference: Dhariwal, Nichol, 2021, arXiv:2105.05233, eq. 14; Song et al.,
        2021, arXiv:2011.13456, appendix I.
        """
        gradient = gradient.where(at.alpha > 0, 0.0)
        lever = self.tweedie(at).where(at.alpha > 0, 0.0)
        return x0 + lever * gradient, eps - at.sigma * gradient

    def rates(self, at: At) -> tuple[torch.Tensor, torch.Tensor]:
        """d alpha/dt and d sigma/dt, by forward-mode differentiation of the schedule (one-sided at knots of a table)."""
        t = at.t.to(device="cpu", dtype=torch.float64)
        ones = torch.ones_like(t)
        rates = (torch.func.jvp(level, (t,), (ones,))[1] for level in (self.schedule.alpha, self.schedule.sigma))
        d_alpha, d_sigma = (rate.to(dtype=at.t.dtype).to(device=at.t.device) for rate in rates)
        return d_alpha, d_sigma

    def velocity(self, x0: torch.Tensor, eps: torch.Tensor, at: At) -> torch.Tensor:
        """dx/dt = alpha' x0 + sigma' eps: the probability flow at a prediction (x0, eps).

        Reference: Lipman et al., 2022, arXiv:2210.02747, eq. 15.
        """
        d_alpha, d_sigma = self.rates(at)
        return d_alpha * x0 + d_sigma * eps

    def straightened(self, at: At) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates in which the probability flow is regular at both ends, alpha = 0 and sigma = 0 included: y = x / scale against u.

        scale = alpha + sigma, u = sigma / scale from 0 (data) to 1 (noise); y = (1 - u) x0 + u eps, so dy/du = eps - x0.
        Returns scale, u. Reference: the straight path of Lipman et al., 2022, arXiv:2210.02747, eq. 20 with sigma_min = 0, which every
        schedule becomes when x is rescaled (Kingma et al., 2021, arXiv:2107.00630, section 5.1).
        """
        return at.alpha + at.sigma, at.level

    def sde(self, at: At) -> tuple[torch.Tensor, torch.Tensor]:
        """(f, g) of the forward SDE dx = f x dt + g dw with these marginals: f = alpha'/alpha, g^2 = 2 sigma (sigma' - f sigma).

        f is -inf at alpha = 0. Reference: Kingma et al., 2021, arXiv:2107.00630, appendix A; Song et al., 2021, arXiv:2011.13456, eq. 5.
        """
        d_alpha, d_sigma = self.rates(at)
        f = d_alpha / at.alpha
        return f, (2.0 * at.sigma * (d_sigma - f * at.sigma)).clamp(min=0.0).sqrt()

    def wronskian(self, at: At) -> torch.Tensor:
        """alpha sigma' - sigma alpha' >= 0, so that |d log_snr/dt| = 2 wronskian / (alpha sigma); finite where the log-SNR is not."""
        d_alpha, d_sigma = self.rates(at)
        return at.alpha * d_sigma - at.sigma * d_alpha

    def circle_rates(self, at: At) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dt/dphi, d alpha/dphi = -sigma, d sigma/dphi = alpha with phi = arctan(sigma/alpha), where alpha^2 + sigma^2 = 1; dphi/dt is then
        the Wronskian.

        So v = alpha eps - sigma x0 is dx/dphi. Reference: Salimans, Ho, 2022, arXiv:2202.00512, appendix D.
        """
        return 1.0 / self.wronskian(at), -at.sigma, at.alpha

    def at_ratio(self, ratio: torch.Tensor) -> At:
        """The instants with sigma/alpha = ratio, of any shape, float64 on the host: log_snr = -2 log ratio."""
        return self.at(self.time_of(-2.0 * ratio.to(dtype=torch.float64, device="cpu").log()))

    def at_level(self, u: torch.Tensor) -> At:
        """The instants with sigma/(alpha + sigma) = u (`straightened`), of any shape, float64 on the host: log_snr = 2 log((1 - u)/u)."""
        u = u.to(dtype=torch.float64, device="cpu")
        return self.at(self.time_of(2.0 * ((-u).log1p() - u.log())))

    def information(self, at: At) -> torch.Tensor:
        """c = log(1 + SNR), falling from +inf at t = 0 to a finite value (0 where alpha = 0): d log_snr = (1 + 1/SNR) dc, so that
        |eps - eps_hat|^2 d log_snr = (|eps - eps_hat|^2 + |x0 - x0_hat|^2) dc is finite at both ends.
        """
        return ((at.alpha / at.sigma) ** 2).log1p()

    def at_information(self, c: torch.Tensor) -> At:
        """The instants whose `information` is c > 0, of any shape, float64 on the host."""
        c = c.to(dtype=torch.float64, device="cpu")
        return self.at(self.time_of(c + torch.log(-torch.expm1(-c))))

    def log_evidence(self, x: torch.Tensor, x0: torch.Tensor, at: At) -> torch.Tensor:
        """log q(x_t | x0) of the whole sample, in nats, (B,), sigma > 0."""
        return _normal(self.noise(x, x0, at), at.sigma)

    def log_prior(self, x: torch.Tensor, at: At) -> torch.Tensor:
        """log N(x; 0, prior_std^2) of the whole sample, in nats, (B,): the density of what `prior` draws."""
        std = self.prior_std(at)
        return _normal(x / std, std)

    def log_snr_rate(self, at: At) -> torch.Tensor:
        """|d log_snr/dt| = 2 wronskian / (alpha sigma)."""
        return 2.0 * self.wronskian(at) / (at.alpha * at.sigma)

    def log_snr(self, t: float | Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """log(alpha^2/sigma^2) at t, float64: strictly decreasing from +inf at t = 0."""
        return self.at(t).log_snr

    def time_of(self, log_snr: float | Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """The t with log_snr(t) = log_snr, by sections to the last bit; values beyond the schedule's ends give 0 or 1."""
        wanted = torch.as_tensor(log_snr, dtype=torch.float64, device="cpu")
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        digits = 5 if wanted.numel() <= 256 else 3 if wanted.numel() <= 4096 else 1  # few values: many places at once, in fewer rounds
        parts = torch.arange(1, 2**digits, dtype=torch.float64) / 2**digits
        for _ in range(-(-64 // digits)):
            width = high - low
            cleaner = (self.log_snr(low[..., None] + width[..., None] * parts) > wanted[..., None]).sum(-1)
            low, high = low + width * cleaner / 2**digits, torch.where(cleaner < len(parts), low + width * (cleaner + 1) / 2**digits, high)
        return torch.where(wanted <= self.log_snr(1.0), torch.ones_like(high), high)

    def prior_std(self, at: At) -> torch.Tensor:
        """sqrt(alpha^2 + sigma^2): the standard deviation of x_t for data of unit variance; 1 when variance is preserved."""
        return at.alpha.hypot(at.sigma)

    def signal_share(self, at: At, std: float = 1.0) -> torch.Tensor:
        """How much of x_t's deviation is signal, for data of this deviation: alpha std / sqrt(alpha^2 std^2 + sigma^2), from 1 at the data
        down to 0 at alpha = 0.
        """
        return std * at.alpha / (std * at.alpha).hypot(at.sigma)

    def prior(self, noise: torch.Tensor, at: At) -> torch.Tensor:
        """Where sampling starts, N(0, prior_std^2) at the first instant of a plan: N(0, I) as in Ho et al., 2020, section 2, when variance
        is preserved.
        """
        return self.prior_std(at.like(noise)) * noise


def _normal(z: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log N(std z; 0, std^2), summed over all but the first axis: (B, *D) -> (B,)."""
    return -(0.5 * z**2 + 0.5 * math.log(2.0 * math.pi) + std.log()).reshape(len(z), -1).sum(1)
