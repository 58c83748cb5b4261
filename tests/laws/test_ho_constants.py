"""Ho's chain, T = 1000, beta from 1e-4 to 0.02: the constants of the paper's setting, as printed and by recursion.

Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, sections 2-4; cosine: Nichol, Dhariwal, 2021, arXiv:2102.09672, section 3.2.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from worlds import close, printed

from ddpm.objective import prior_term
from ddpm.process import VPSDE, At, Cosine, Linear, Process

T = 1000
BETA = np.linspace(1e-4, 0.02, T, dtype=np.float64)  # beta_1 .. beta_T
BAR = np.cumprod(1.0 - BETA)
BEFORE = np.concatenate([[1.0], BAR[:-1]])
TILDE = BETA * (1.0 - BEFORE) / (1.0 - BAR)

process = Process(Linear())
knots = process.at(torch.arange(T + 1, dtype=torch.float64) / T)
s, t = At(*(level[:-1] for level in knots)), At(*(level[1:] for level in knots))


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def test_alpha_bar_is_the_recursions_at_every_step() -> None:
    close(t.alpha**2, tensor(BAR))
    close(t.sigma**2, tensor(1.0 - BAR))


@pytest.mark.parametrize(
    ("step", "figure"),
    [
        *((1, ".9999"), (10, ".9981052"), (100, ".8970181"), (200, ".6590385"), (250, ".5240854"), (300, ".3964198"), (500, ".07858724")),
        *((750, ".003350550"), (900, ".0002752059"), (999, "4.118194e-05"), (1000, "4.0358297653756754e-05")),
    ],
)
def test_alpha_bar_as_printed(step: int, figure: str) -> None:
    if step < T:
        printed(knots.alpha[step] ** 2, figure)
    else:
        close(knots.alpha[step] ** 2, float(figure))
        printed(knots.alpha[step], "6.352818087570e-03")


def test_betas_and_their_sum() -> None:
    beta = process.transition(s, t)[1] ** 2
    close(beta, tensor(BETA))
    close(beta.sum(), 10.05)
    close(process.transition(s, t)[0], tensor(np.sqrt(1.0 - BETA)))


def test_the_limit_of_many_steps() -> None:
    close(Process(VPSDE()).at(1.0).alpha ** 2, math.exp(-10.05))
    printed(Process(VPSDE()).at(1.0).alpha ** 2, "4.3185749e-05")


def test_log_snr_and_the_sigma_a_variance_exploding_process_would_have() -> None:
    close(t.log_snr, tensor(np.log(BAR) - np.log1p(-BAR)), rtol=1e-10, atol=1e-10)
    printed(t.log_snr[0], "9.2102404")
    printed(t.log_snr[-1], "-10.1176732")
    printed(t.sigma[0] / t.alpha[0], ".0100005")
    printed(t.sigma[-1] / t.alpha[-1], "157.4073")


@pytest.mark.parametrize(("second_moment", "figure"), [(0.25599, "7.4529e-06"), (1.0, "2.9113e-05")])
def test_the_prior_term_in_bits(second_moment: float, figure: str) -> None:
    x0 = torch.full((1, 4), math.sqrt(second_moment), dtype=torch.float64)
    bits = prior_term(process, x0).item() / math.log(2)
    printed(bits, figure, units=2.0)  # the second moment is itself rounded
    by_hand = 0.5 * (BAR[-1] * second_moment - BAR[-1] - math.log1p(-BAR[-1])) / math.log(2)
    close(bits, by_hand, rtol=1e-9)


def test_posterior_variance_over_beta() -> None:
    small, large = process.posterior(s, t)[2] ** 2, process.posterior(s, t, 1.0)[2] ** 2
    close(small, tensor(TILDE), atol=1e-25)
    close(large, tensor(BETA))
    ratio = small / large
    for step, figure in ((2, ".454736"), (10, ".852845"), (100, ".981914"), (1000, ".99999918")):
        printed(ratio[step - 1], figure)
    bits = -0.5 * ratio[1:].log2().sum()
    printed(bits, "6.643827")
    close(bits, 0.5 * np.log2(BETA[1:] / TILDE[1:]).sum())


def test_posterior_means_are_equation_7() -> None:
    c_x0, c_xt, _ = process.posterior(s, t)
    close(c_x0, tensor(np.sqrt(BEFORE) * BETA / (1.0 - BAR)))
    close(c_xt, tensor(np.sqrt(1.0 - BETA) * (1.0 - BEFORE) / (1.0 - BAR)))


def test_the_bounds_weight_on_the_noise() -> None:
    """beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) with sigma^2 = beta: what |eps - eps_hat|^2 costs in L_{t-1}."""
    c_x0, _, large = process.posterior(s, t, 1.0)
    weight = (c_x0 * t.sigma / t.alpha / large) ** 2 / 2
    close(weight, tensor(BETA / (2 * (1.0 - BETA) * (1.0 - BAR))))
    for step, figure in ((1, ".50005"), (2, ".272692"), (10, ".073717"), (100, ".0100813"), (500, ".00550343"), (1000, ".0102045")):
        printed(weight[step - 1], figure)


def test_the_cosine_table() -> None:
    cosine = Process(Cosine())
    at = cosine.at(torch.arange(T + 1, dtype=torch.float64) / T)
    curve = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    got = cosine.transition(At(*(level[:-1] for level in at)), At(*(level[1:] for level in at)))[1] ** 2
    close(got, tensor(beta), rtol=1e-9)
    close(at.alpha[1:] ** 2, tensor(np.cumprod(1.0 - beta)), rtol=1e-9)
    assert int((got > 0.999 - 1e-12).sum()) == 1
    printed(got[0], "4.128422e-05")
    for step, figure in ((999, "2.428767e-06"), (1000, "2.428767e-09"), (500, ".4938436")):
        printed(at.alpha[step] ** 2, figure)
