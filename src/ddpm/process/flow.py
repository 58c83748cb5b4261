"""The probability flow and its SDEs between two instants, solved exactly for a prediction that is a known function of the noise level.

With m one of x0, eps and flow = eps - x0, s < t and noise tau >= 0 (0: the flow; 1: the reverse SDE of the process),

    x_s = keep x_t + scale int_t^s m dW + std z,            W a function of the log-SNR alone,

    x0:    keep = sigma_s/sigma_t q,              scale = sigma_s rho_s^(tau^2),   W = rho^-(1 + tau^2)
    eps:   keep = alpha_s/alpha_t,                scale = alpha_s,                 W = rho
    flow:  keep = (alpha + sigma)_s/(...)_t,      scale = (alpha + sigma)_s,       W = u

rho = sigma/alpha, u = sigma/(alpha + sigma), q = (rho_s/rho_t)^(tau^2), std = sigma_s sqrt(1 - q^2). Every x_s here has the marginals of q.

Reference: Lu et al., 2022, arXiv:2206.00927, proposition 3.1 (eps) and arXiv:2211.01095, proposition 4.1 (x0); Xue et al., 2023,
arXiv:2309.05019, proposition 4.2 (tau); flow: the same in y = x/(alpha + sigma), where dy/du = eps - x0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ddpm.process.process import At

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch

Kind = Literal["x0", "eps", "flow"]
Variable = Literal["log_snr", "ratio", "level", "time", "index"]

SHARES: dict[Kind, tuple[float, float]] = {"x0": (1.0, 0.0), "eps": (0.0, 1.0), "flow": (-1.0, 1.0)}  # m = share x0 + share eps


def coordinate(at: At, variable: Variable) -> torch.Tensor:
    """The quantity that is read off the instants: "log_snr" (half of it, log(alpha/sigma)), "ratio", "level" or "time"."""
    if variable == "log_snr":
        return at.log_snr / 2.0
    return at.t if variable == "time" else at.ratio if variable == "ratio" else at.level


def keep(s: At, t: At, kind: Kind, tau: float = 0.0) -> torch.Tensor:
    """The factor of x_t in x_s while m is held: what a small change of x_t becomes."""
    if kind == "eps":
        return s.alpha / t.alpha
    if kind == "flow":
        return (s.alpha + s.sigma) / (t.alpha + t.sigma)
    return s.sigma / t.sigma * decay(s, t, tau)


def decay(s: At, t: At, tau: float) -> torch.Tensor:
    """q = (rho_s/rho_t)^(tau^2): how much of eps survives to s; 1 on the flow."""
    return torch.ones_like(s.alpha) if tau == 0.0 else (0.5 * tau**2 * (t.log_snr - s.log_snr)).exp()


def held(s: At, t: At, tau: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The step when the prediction is held: x_s = alpha_s x0 + c_eps eps + std z; returns alpha_s, c_eps = sigma_s q, std.

    tau = 0 is DDIM, tau = 1 the posterior of q: Ancestral with the small variance.
    """
    q = decay(s, t, tau)
    return s.alpha.clone(), s.sigma * q, s.sigma * (1.0 - q * q).sqrt()


def scale(s: At, kind: Kind, tau: float = 0.0) -> torch.Tensor:
    """The factor of the integral; not for x0 at `clean`, where sigma = 0."""
    if kind == "eps":
        return s.alpha
    if kind == "flow":
        return s.alpha + s.sigma
    return s.sigma if tau == 0.0 else s.sigma * s.ratio**tau**2


def measure(at: At, kind: Kind, tau: float = 0.0) -> torch.Tensor:
    """W at an instant."""
    if kind == "eps":
        return at.ratio
    return at.level if kind == "flow" else at.ratio ** -(1.0 + tau**2)


def density(at: At, kind: Kind, tau: float = 0.0) -> torch.Tensor:
    """dW/dlambda with lambda = log(alpha/sigma) = -log rho."""
    if kind == "eps":
        return -at.ratio
    u = at.level
    return -u * (1.0 - u) if kind == "flow" else (1.0 + tau**2) * at.ratio ** -(1.0 + tau**2)


def total(s: At, t: At, kind: Kind, tau: float = 0.0) -> torch.Tensor:
    """scale int dW from t to s, (R,): the sum of all weights. At `clean` it is 1 for x0."""
    if kind != "x0":
        return scale(s, kind) * (measure(s, kind) - measure(t, kind))
    sigma = s.sigma.clamp(min=1e-300)
    whole = s.alpha - sigma * (t.alpha / t.sigma) * ((s.sigma / s.alpha) / (t.sigma / t.alpha)) ** tau**2
    return torch.where(s.sigma == 0, s.alpha, whole)


def at_lambda(half_log_snr: torch.Tensor) -> At:
    """Levels of the variance-preserving instant at lambda = log(alpha/sigma); t is not known here and is NaN."""
    return At(torch.full_like(half_log_snr, torch.nan), (2 * half_log_snr).sigmoid().sqrt(), (-2 * half_log_snr).sigmoid().sqrt())
