"""Denoising Diffusion Probabilistic Models in one file: Algorithms 1 and 2 of Ho, Jain and Abbeel (2020, arXiv 2006.11239).

Symbols are the paper's: beta_t, alpha_t = 1 - beta_t, alpha_bar_t = alpha_1 ... alpha_t, eps, and t = 1 ... T, so that alpha_bar_0 = 1.
(The library itself writes alpha for sqrt(alpha_bar); see docs/notation.md.) Only torch is needed:

    python examples/ddpm_in_150_lines.py            # learns eight Gaussians in the plane, about 20 seconds on one CPU core

Data x_0 is a tensor (B, ...) of any shape, of size about 1; a network is called as eps_theta(x_t, t) with t (B,) in 1 ... T.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Network = Callable[[Tensor, Tensor], Tensor]


class Chain:
    """The forward process, eq. 2: q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), with beta linear from 1e-4 to 0.02."""

    def __init__(self, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, dtype: torch.dtype = torch.float32) -> None:
        self.T = T
        beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
        beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])  # beta[0] = 0, so that index t is the paper's t
        self.beta = beta.to(dtype)
        self.alpha = (1 - beta).to(dtype)
        self.alpha_bar = (1 - beta).cumprod(0).to(dtype)  # products in float64: a thousand factors

    def at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """table[t] (B,) shaped (B, 1, ..., 1) to multiply x (B, ...)."""
        return table.to(like.device)[t].reshape(-1, *[1] * (like.ndim - 1))


def q_sample(chain: Chain, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Eq. 4: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps."""
    alpha_bar = chain.at(chain.alpha_bar, t, x_0)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps


def L_simple(chain: Chain, eps_theta: Network, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Eq. 14: |eps - eps_theta(x_t, t)|^2, averaged over the batch and over dimensions."""
    return (eps - eps_theta(q_sample(chain, x_0, t, eps), t)).square().mean()


def train_step(chain: Chain, eps_theta: Network, optimizer: torch.optim.Optimizer, x_0: Tensor) -> float:
    """Algorithm 1, lines 2 to 5."""
    t = torch.randint(1, chain.T + 1, (len(x_0),), device=x_0.device)  # t ~ Uniform({1, ..., T})
    eps = torch.randn_like(x_0)  # eps ~ N(0, I)
    loss = L_simple(chain, eps_theta, x_0, t, eps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def p_sample_step(chain: Chain, eps_theta: Network, x_t: Tensor, t: int, z: Tensor) -> Tensor:
    """Algorithm 2, line 4: x_{t-1} = (x_t - (1 - alpha_t) / sqrt(1 - alpha_bar_t) eps_theta) / sqrt(alpha_t) + sigma_t z.

    sigma_t^2 = beta_t, the larger of the paper's two choices (section 3.2); z ~ N(0, I), and 0 at t = 1.
    """
    alpha, alpha_bar, sigma = chain.alpha[t], chain.alpha_bar[t], chain.beta[t].sqrt()
    eps = eps_theta(x_t, torch.full((len(x_t),), t, device=x_t.device))
    return (x_t - (1 - alpha) / (1 - alpha_bar).sqrt() * eps) / alpha.sqrt() + sigma * z


@torch.no_grad()
def sample(chain: Chain, eps_theta: Network, x_T: Tensor, noise: Callable[[int], Tensor] | None = None) -> Tensor:
    """Algorithm 2, from x_T ~ N(0, I) to x_0. `noise(t)` gives z of step t (default: fresh); z = 0 at t = 1."""
    x = x_T
    for t in range(chain.T, 0, -1):
        z = torch.zeros_like(x) if t == 1 else torch.randn_like(x) if noise is None else noise(t)
        x = p_sample_step(chain, eps_theta, x, t, z)
    return x


class EpsMLP(nn.Module):
    """A small eps_theta for points (B, F): sines and cosines of t enter every layer, as in the paper's network."""

    frequency: Tensor

    def __init__(self, features: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.inlet = nn.Linear(features, width)
        self.time = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.outlet = nn.Linear(width, features)
        half = width // 2
        self.register_buffer("frequency", torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequency
        embedding = torch.cat([phase.sin(), phase.cos()], dim=1)
        h = self.inlet(x)
        for hidden, time in zip(self.hidden, self.time, strict=True):
            h = nn.functional.silu(hidden(h) + time(embedding))
        return self.outlet(h)


def centres() -> Tensor:
    """Eight points (8, 2) on a circle of radius 1.2."""
    angle = torch.arange(8) * (math.pi / 4)
    return 1.2 * torch.stack([angle.cos(), angle.sin()], dim=1)


def eight_gaussians(n: int) -> Tensor:
    """The data of this demonstration: points (n, 2), normal about a centre drawn at random, standard deviation 0.1."""
    return centres()[torch.randint(8, (n,))] + 0.1 * torch.randn(n, 2)


def main(steps: int = 3000, batch: int = 256, n: int = 2000) -> None:
    """Train eps_theta on eight Gaussians, draw points, and say how far they lie from the nearest centre."""
    torch.manual_seed(0)
    chain, eps_theta = Chain(), EpsMLP(features=2)
    optimizer = torch.optim.Adam(eps_theta.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = 0.0
    for step in range(1, steps + 1):
        average = 0.99 * average + 0.01 * train_step(chain, eps_theta, optimizer, eight_gaussians(batch))
        schedule.step()
        if step % 500 == 0:
            print(f"step {step:5d}  L_simple {average / (1 - 0.99**step):.4f}")
    x = sample(chain, eps_theta, torch.randn(n, 2))
    distance, nearest = torch.cdist(x, centres()).min(dim=1)
    print(f"{n} samples: median distance to the nearest centre {distance.median():.3f} (data: 0.118)")
    print(f"points at each centre: {torch.bincount(nearest, minlength=8).tolist()} (data: about {n // 8} each)")


if __name__ == "__main__":
    main()
