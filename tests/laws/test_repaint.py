"""Laws of RePaint: on a Gaussian every row is affine, so where its walk ends is computed."""

from __future__ import annotations

import torch
from measurements import ended, eye, law, pair
from worlds import close

from ddpm.process import Full, Trailing
from ddpm.sampling import RePaint


def test_one_resample_is_ancestral_sampling_with_replacement() -> None:
    """The law of the walk by Ho's coefficients, the known entry being N(alpha y, sigma^2) after every step."""
    denoiser, mask, y, _, _ = pair()
    sampler = RePaint(values=y[0], known=mask.known, resamples=1, variance="small")
    got = law(denoiser, sampler, 2, Full(), 1000)
    bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)])
    c = 0.25 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    mean, cov = torch.zeros(2, dtype=torch.float64), eye(2)
    for t in range(1000, 0, -1):
        beta, before = 1 - bar[t] / bar[t - 1], bar[t - 1]
        to_x0 = bar[t].sqrt() * c @ torch.linalg.inv(bar[t] * c + (1 - bar[t]) * eye(2))
        step = before.sqrt() * beta / (1 - bar[t]) * to_x0 + (1 - beta).sqrt() * (1 - before) / (1 - bar[t]) * eye(2)
        mean, cov = step @ mean, step @ cov @ step.T + beta * (1 - before) / (1 - bar[t]) * eye(2)
        mean = torch.stack([before.sqrt() * y[0, 0], mean[1]])
        cov = torch.diag(torch.stack([1 - before, cov[1, 1]]))
    close(got[0], mean, rtol=1e-8)
    close(got[1], cov, rtol=1e-7, atol=1e-12)


def test_the_way_up_is_a_move_of_its_own_in_law() -> None:
    """Merged into the step before it, it leaves the same mean and covariance as a step down followed by q(x_t | x_s)."""
    denoiser, mask, y, _, _ = pair()
    process, times = denoiser.process, Trailing().times(denoiser.process, 12)
    sampler = RePaint(values=y[0], known=mask.known, jump=3, resamples=2, variance="small")
    down = RePaint(values=y[0], known=mask.known, resamples=1, variance="small").plan(denoiser.bind(), times)
    rows = down.rows(y)
    none, probe = torch.zeros(3, 2, dtype=torch.float64), torch.cat([torch.zeros(1, 2, dtype=torch.float64), eye(2)])
    mean, cov, at, calls = torch.zeros(2, dtype=torch.float64), eye(2), 0, 0
    left = dict.fromkeys(range(11, 2, -3), 1)  # as the published schedule: 0, 3, 6 ... steps before the last, with 3 above them
    while at < 12:
        pushed = sampler.step(denoiser.bind(), torch.cat([probe, none]), rows[at], (), torch.cat([none, probe]))[0]
        by_x, by_z = (pushed[1:3] - pushed[0]).T, (pushed[4:] - pushed[0]).T
        mean, cov, at, calls = pushed[0] + by_x @ mean, by_x @ cov @ by_x.T + by_z @ by_z.T, at + 1, calls + 1
        if left.get(at):
            left[at] -= 1
            scale, std = process.transition(rows[at].now, rows[at - 3].now)
            mean, cov, at = scale * mean, scale**2 * cov + std**2 * eye(2), at - 3
    got = law(denoiser, sampler, 2, Trailing(), 12)
    close(got[0], mean, rtol=1e-9)
    close(got[1], cov, rtol=1e-9, atol=1e-12)
    plan = sampler.plan(denoiser.bind(), times)
    assert calls == len(plan) == sampler.calls(12) == sampler.rows(12) == 12 + 3 * 3 and bool((plan.instants.t.diff() > 0).any())


def test_more_resamples_come_nearer_to_the_posterior() -> None:
    """Known bias: exact is (1, 0.8), the second with standard deviation 0.3; replacement alone stops at 0.48, ten rounds at 0.73."""
    denoiser, mask, y, mean, _ = pair(noise=0.0)
    ends = {}
    for resamples in (1, 2, 5, 10):
        ends[resamples] = ended(denoiser, RePaint(values=y[0], known=mask.known, jump=5, resamples=resamples, variance="small"), 100)
        assert float(ends[resamples][0][0]) == 1.0 and float(ends[resamples][1][0]) == 0.0  # what is known is known
    off = [float((end[0][1] - mean[1]).abs()) for end in ends.values()]
    assert off == sorted(off, reverse=True) and off[0] > 0.3 > 0.1 > off[-1]
