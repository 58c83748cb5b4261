"""Laws of dequantisation: filling a bin bounds its mass, a fitted density bounds it no worse, and is a density."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from worlds import close, unit

from ddpm.denoiser import Codec, Mixture
from ddpm.errors import ConfigError
from ddpm.likelihood import Uniform, Variational, fit, flow
from ddpm.process import Process, Straight
from ddpm.sampling import Adaptive

codec = Codec(shift=(2.0,), scale=(2.0,), dtype="uint8", bins=(0.0, 4.0))  # five levels, a half apart
levels = torch.arange(5, dtype=torch.float64)[:, None] / 2 - 1


def world() -> Mixture:
    """One entry: narrow bumps off the middle of their bins, on a broad one."""
    means = torch.tensor([[-0.88], [0.1], [0.4], [0.0]], dtype=torch.float64)
    variances = torch.tensor([0.04, 0.05, 0.03, 0.6], dtype=torch.float64) ** 2
    mixture = Mixture(Process(Straight()), means, variances, torch.tensor([0.3, 0.3, 0.2, 0.2]))
    mixture.codec = codec
    return mixture


def masses(mixture: Mixture) -> Tensor:
    """The probability of each level's bin, (5,)."""
    p = torch.distributions.Normal(mixture.means[:, 0], mixture.variances[:, 0].sqrt())
    return ((p.cdf(levels + 0.25) - p.cdf(levels - 0.25)) * mixture.log_weights.exp()).sum(1)


def filled(mixture: Mixture, filler: Uniform | Variational, x0: Tensor) -> Tensor:
    """log q - log p of one filling of each sample, with the exact density: no flow to solve, (B,)."""
    z, log_q = filler.fill(x0, codec.bin_width(x0), 0, 0, 0)
    return log_q - mixture.log_density(z, mixture.process.clean)


def test_filling_evenly_bounds_the_mass_of_every_bin_and_fitting_tightens_it() -> None:
    mixture, n = world(), 400
    wanted = -masses(mixture).log()
    shares = masses(mixture) / masses(mixture).sum()
    fitted = fit(mixture, levels, steps=200, batch=5, lr=0.03, hidden=16)
    gaps = torch.zeros(2, dtype=torch.float64)
    for i in range(5):
        x0 = levels[i : i + 1].expand(n, 1).contiguous()
        for k, filler in enumerate((Uniform(), fitted)):
            gap = filled(mixture, filler, x0) - wanted[i]
            assert float(gap.mean()) > -4.5 * float(gap.std()) / n**0.5
            gaps[k] += shares[i] * gap.mean()
    assert float(gaps[0]) > 0.5 and float(gaps[1]) < 0.8 * float(gaps[0]), gaps


def test_the_flow_is_the_exact_density_where_the_bin_is_filled() -> None:
    mixture = world()
    for filler in (Uniform(), Variational((1,), hidden=8)):
        chosen = "uniform" if isinstance(filler, Uniform) else filler
        scores = flow(mixture, levels, dequantise=chosen, solver=Adaptive(rtol=1e-6, atol=1e-6))
        close(scores.nats, filled(mixture, filler, levels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(3,), (2, 6), (1, 4, 3), (2, 3, 4, 2)], ids=str)
def test_the_fitted_density_is_uniform_at_first_and_a_density_ever_after(shape: tuple[int, ...]) -> None:
    """log q(v) = -log dv/dw, entry by entry."""
    filler, x0 = Variational(shape, hidden=8).double(), unit(3, *shape)
    w = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    v, log_q = filler.place(x0, w)
    close(v, w, rtol=1e-9)
    close(log_q, torch.zeros(3), atol=1e-9)
    last = list(filler.network.parameters())[-1]
    last.data += unit(*last.shape, seed=2)
    v, log_q = filler.place(x0, w)
    (slope,) = torch.autograd.grad(v.sum(), w)
    close(log_q, -slope.log().reshape(3, -1).sum(1), rtol=1e-5, atol=1e-7)
    v = v.detach()
    assert float((v - w.detach()).abs().max()) > 0.05 and bool(((v > 0) & (v < 1)).all())


def test_fitting_is_repeatable_leaves_the_model_alone_and_needs_bins() -> None:
    mixture = world()
    one, two = (fit(mixture, levels, steps=3, batch=4, hidden=8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in one.parameters()) and mixture.training
    mixture.codec = None
    with pytest.raises(ConfigError, match="bins"):
        fit(mixture, levels)
    with pytest.raises(ConfigError, match="1 to 4 axes"):
        Variational((1, 2, 2, 2, 2))
