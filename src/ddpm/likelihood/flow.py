"""The density of what the probability flow generates, by the instantaneous change of variables along the flow, solved adaptively.

In y = x/(alpha + sigma), u = sigma/(alpha + sigma) the flow is dy/du = f = eps_hat - x0_hat and d log p(y)/du = -tr(df/dy), both finite at
either end; log p(x) = log p(y) - D log(alpha + sigma).

Reference: Chen et al., 2018, arXiv:1806.07366, theorem 1; Grathwohl et al., 2018, arXiv:1810.01367, eq. 7 (Hutchinson's trace); Song et
al., 2021, arXiv:2011.13456, section 4.3 and appendix D.2.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser
from ddpm.denoiser.serving import evaluating
from ddpm.denoiser.student import refusal
from ddpm.errors import ConfigError
from ddpm.likelihood.dequantise import Uniform, Variational, bin_of
from ddpm.likelihood.scores import Scores, averaged, check_data, entry_instant, in_own_units, least_instant, noise_of, spread_of
from ddpm.objective.bound import decoder_nll
from ddpm.process import At
from ddpm.random import generator
from ddpm.sampling.adaptive import Adaptive

EXACT_UP_TO = 16  # entries up to which the trace is taken exactly unless a number of probes is asked for
Probe = Literal["rademacher", "gaussian"]
Dequantise = Literal["none", "noise", "uniform"] | Variational


class Transported(NamedTuple):
    """x (B, *D) carried along the flow; log p_start(x_start) = log p_stop(x_stop) + change, (B, K) with one column a probe; calls (B,)."""

    x: Tensor
    change: Tensor
    calls: Tensor


def divergence(flow: Tensor, y: Tensor, probes: list[Tensor]) -> Tensor:
    """tr(d flow/d y) of each sample: exact (B, 1) without probes, by D reverse-mode products; else v^T (d flow/d y) v for each, (B, K)."""
    if probes:
        columns = [(torch.autograd.grad(flow, y, v, retain_graph=True)[0] * v).reshape(len(y), -1).sum(1) for v in probes]
        return torch.stack(columns, 1)
    flat = flow.reshape(len(flow), -1)
    total = y.new_zeros(len(y))
    for d in range(flat.shape[1]):
        total = total + torch.autograd.grad(flat[:, d].sum(), y, retain_graph=True)[0].reshape(len(y), -1)[:, d]
    return total[:, None]


def probes_for(x: Tensor, count: int, seed: int, first: int, draw: int, kind: Probe) -> list[Tensor]:
    """`count` probes like x with mean 0 and covariance I, row i a function of (seed, first + i, draw) and the probe's number."""
    probes: list[Tensor] = []
    for k in range(count):
        rows = [generator(seed, "evaluate", first + i, draw * count + k) for i in range(len(x))]
        shape = tuple(x.shape[1:])
        values = [row.integers(0, 2, shape) * 2.0 - 1.0 if kind == "rademacher" else row.standard_normal(shape) for row in rows]
        probes.append(torch.stack([torch.as_tensor(value) for value in values]).to(x))
    return probes


def transport(
    denoiser: Denoiser,
    x: Tensor,
    start: At,
    stop: At,
    cond: Cond = None,
    *,
    probes: list[Tensor] | None = None,
    solver: Adaptive | None = None,
) -> Transported:
    """Carry x (B, *D) from `start` to `stop` along the probability flow, in either direction, with the change of its log-density in nats.

    probes: for Hutchinson's estimate of the trace, held along the path; none: the exact trace. The solver's tolerance holds for y and for
    the log-density per entry. Raises ConfigError for a model that predicts no mean, and where the solver gives up.
    """
    if denoiser.meaning != "mean":
        raise ConfigError(f"likelihood: {refusal(denoiser.meaning)}")
    process, entries = denoiser.process, x[0].numel()
    solver = solver or Adaptive(rtol=1e-5, atol=1e-5)

    def slope(y: Tensor, at: At) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            prediction = denoiser(process.straightened(at)[0] * y, at, cond)
            flow = prediction.eps - prediction.x0
            beside = divergence(flow, y, probes or []) / entries
        return flow.detach(), beside.detach()

    scales = [process.straightened(at.like(x))[0] for at in (start, stop)]
    with evaluating(denoiser), torch.no_grad():
        ended = solver.integrate(slope, process, x / scales[0], start, stop)
    wider = (scales[1].log() - scales[0].log()).reshape(-1, 1)
    return Transported(scales[1] * ended.y, entries * (ended.extra + wider), ended.calls)


def log_density(
    denoiser: Denoiser, x: Tensor, at: At, cond: Cond = None, *, probes: list[Tensor] | None = None, solver: Adaptive | None = None
) -> tuple[Tensor, Tensor]:
    """log p_t(x) in nats, (B, K), and network calls (B,), of what the flow makes of the prior, N(0, alpha_1^2 + sigma_1^2)."""
    noisiest = denoiser.process.at(1.0)
    ended = transport(denoiser, x, at, noisiest, cond, probes=probes, solver=solver)
    return denoiser.process.log_prior(ended.x, noisiest.like(ended.x))[:, None] + ended.change, ended.calls


def flow(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond = None,
    *,
    dequantise: Dequantise | None = None,
    entry: float | None = None,
    probes: int | None = None,
    probe: Probe = "rademacher",
    draws: int = 1,
    solver: Adaptive | None = None,
    seed: int = 0,
    first: int = 0,
) -> Scores:
    """-log p of each encoded sample x0 (B, *D) under the probability flow.

    The flow is entered at t = entry (none: the least noisy instant; `entry_instant` with "noise"). dequantise says how a datum becomes a
    point x there:
      "none"     x = alpha x0: the density of x/alpha, no bound; the default for continuous data, refused for levels.
      "noise"    x drawn from q(x | x0), with -log p(x0 | x) by the decoder N(x0_hat, sigma^2/alpha^2), over the bins where the data have
                 them: an upper bound on -log p(x0) of flow and decoder; the default for levels.
      "uniform"  x = alpha (x0 + noise filling its bin): an upper bound on -log of the mass that the density of x/alpha has in the bin.
      Variational: the same with noise drawn from a fitted density on the bin.
    probes: 0 the exact trace; else Hutchinson's estimate from so many probes; none: exact up to 16 entries, else 1. draws: independent
    repetitions of noise and probes; with a single draw the error bar is that over its probes.
    """
    check_data(denoiser, x0, draws)
    codec, width = denoiser.codec, bin_of(denoiser.codec, x0)
    chosen: Dequantise = dequantise if dequantise is not None else ("none" if width is None else "noise")
    if width is not None and chosen == "none":
        raise ConfigError("dequantise: got none, but discrete levels have no density; use noise, uniform or variational")
    if width is None and not (isinstance(chosen, str) and chosen in ("none", "noise")):
        raise ConfigError("dequantise: these data are continuous and have no bins to fill; use none or noise")
    if probes is not None and probes < 0:
        raise ConfigError(f"probes: got {probes}, must be at least 0 (exact)")
    x0 = x0 if x0.device.type == "mps" else x0.double()
    entries = x0[0].numel()
    start = entry_instant(denoiser, x0, entry) if chosen == "noise" or entry is not None else least_instant(denoiser)
    opening, count = start.like(x0), probes if probes is not None else int(entries > EXACT_UP_TO)
    found: list[Tensor] = []
    calls = torch.zeros(len(x0), dtype=torch.int64)
    for draw in range(draws):
        if chosen == "noise":
            x = denoiser.process.perturb(x0, noise_of(seed, first, x0, draw), opening)
            with evaluating(denoiser), torch.no_grad():
                guess = denoiser(x, opening, cond).x0
            decoded = decoder_nll(x0, guess, spread_of(denoiser.process, opening).expand_as(x0), denoiser)
            beside = denoiser.process.log_evidence(x, x0, opening) + decoded.reshape(len(x0), -1).sum(1)
            calls += 1
        else:
            filled, beside = x0, x0.new_zeros(len(x0))
            if chosen != "none":
                filler = Uniform() if isinstance(chosen, str) else chosen
                with torch.no_grad():
                    filled, beside = filler.fill(x0, width, seed, first, draw)
            x = denoiser.process.perturb(filled, torch.zeros_like(x0), opening)
            beside = beside - entries * float(start.alpha.log())
        columns, used = log_density(
            denoiser, x, start, cond, probes=probes_for(x0, count, seed, first, draw, probe) if count else None, solver=solver
        )
        found.append(beside[:, None] - columns)
        calls += used
    values = [in_own_units(table.mean(1), x0, codec) for table in found]
    scores = averaged(values, calls)
    if draws > 1:
        return scores
    if count > 1:
        return scores._replace(error=found[0].std(1).double().cpu() / math.sqrt(count))
    return scores._replace(error=torch.zeros_like(scores.nats)) if count == 0 and chosen == "none" else scores
