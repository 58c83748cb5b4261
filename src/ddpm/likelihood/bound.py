"""Two upper bounds on -log p: the T-step bound by its terms, with rate and distortion, and its limit of infinitely many steps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser
from ddpm.denoiser.serving import evaluating
from ddpm.errors import ConfigError
from ddpm.likelihood.scores import Scores, averaged, check_data, entry_instant, in_own_units, least_instant, noise_of, spread_of
from ddpm.objective.bound import Variance, chain_length, decoder_nll, mean_flat, prior_term, step_instants, term_at
from ddpm.random import generator


class Terms(NamedTuple):
    """The terms of the T-step bound. Nats are of whole samples.

    steps (S,): one number 1..T of each stratum's middle; weight (S,): how many steps of the chain the column stands for, summing to T.
    nats (B, S): L_0, L_1, ... as estimated, times no weight; prior (B,): L_T; distortion (B, S): mean |x0 - x0_hat|^2 per entry, data's
    own units; scores: the bound.
    """

    steps: Tensor
    weight: Tensor
    nats: Tensor
    prior: Tensor
    distortion: Tensor
    scores: Scores

    @property
    def rate(self) -> float:
        """L_1 + ... + L_T, mean over the samples, in nats in the encoded space: what it takes to send x_1."""
        return float((self.nats[:, 1:] @ self.weight[1:] + self.prior).mean())

    @property
    def decoding(self) -> float:
        """L_0, mean over the samples, in nats: what it takes to correct x_1 to x0."""
        return float(self.nats[:, 0].mean())

    def curve(self) -> tuple[Tensor, Tensor, Tensor]:
        """(step, rate, root mean squared error) as the chain is sent from T down: nats sent until x_step is known, and how far
        x0_hat(x_step) is from x0, in the data's own units.

        Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, section 4.3 and table 4.
        """
        sent = (self.nats * self.weight).mean(0).flip(0).cumsum(0).flip(0)  # of this step and all noisier ones
        above = self.weight.cumsum(0) - self.steps  # steps of the same stratum that are noisier than the one named
        rate = torch.cat([sent[1:], sent.new_zeros(1)]) + self.nats.mean(0) * above + self.prior.mean()
        return self.steps, rate, self.distortion.mean(0).sqrt()


def strata(length: int, terms: int | None) -> list[range]:
    """Steps 1..T in groups: the first, the decoder, alone; the rest in `terms` - 1 runs growing geometrically; None: every step."""
    count = length if terms is None else min(terms, length)
    if count < min(2, length):
        raise ConfigError(f"terms: got {terms}, must be at least 2: the decoder and one more; none for all {length}")
    edges = [1]
    for left in range(count - 1, 0, -1):
        even = round(edges[-1] * (length / edges[-1]) ** (1.0 / left))
        edges.append(min(max(even, edges[-1] + 1), length - left + 1))
    return [range(1, 2), *(range(low + 1, high + 1) for low, high in pairwise(edges))]


@torch.no_grad()
def discrete(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond = None,
    *,
    variance: Variance = "small",
    terms: int | None = None,
    draws: int = 2,
    seed: int = 0,
    first: int = 0,
) -> Terms:
    """The T-step bound L_T + sum_t L_{t-1} + L_0 >= -log p(x0) of each encoded sample x0 (B, *D), p the chain that Ancestral walks.

    terms: evaluate one random step of each of so many strata instead of all T; unbiased. draws: independent repetitions, of which the error
    bars are made. Sample i's noise is a function of (seed, first + i). ConfigError where time is continuous.

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, eqs. 5 and 13.
    """
    check_data(denoiser, x0, draws)
    length, entries = chain_length(denoiser.process), x0[0].numel()
    groups = strata(length, terms)
    weight = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    unit = 1.0 if denoiser.codec is None else denoiser.codec.unit(x0)
    prior = (entries * prior_term(denoiser.process, x0)).double().cpu()
    found: list[Tensor] = []
    misses: list[Tensor] = []
    for draw in range(draws):
        places = [generator(seed, "times", first + i, draw).random(len(groups)) for i in range(len(x0))]
        columns: list[Tensor] = []
        squares: list[Tensor] = []
        for k, group in enumerate(groups):
            step = torch.tensor([group[int(place[k] * len(group))] for place in places])
            s, t = step_instants(denoiser.process, step, x0)
            x = denoiser.process.perturb(x0, noise_of(seed, first, x0, draw * length + int(group[0])), t)
            with evaluating(denoiser):
                prediction = denoiser(x, t, cond)
            columns.append((entries * term_at(denoiser, x0, s, t, x, prediction, variance)).double().cpu())
            squares.append(mean_flat(((x0 - prediction.x0) * unit) ** 2).double().cpu())
        found.append(torch.stack(columns, 1))
        misses.append(torch.stack(squares, 1))
    totals = [in_own_units((table @ weight + prior).to(x0), x0, denoiser.codec) for table in found]
    calls = torch.full((len(x0),), draws * len(groups))
    middle = torch.tensor([(group[0] + group[-1]) // 2 for group in groups])
    return Terms(middle, weight, torch.stack(found).mean(0), prior, torch.stack(misses).mean(0), averaged(totals, calls))


def continuous_draw(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    eps: Tensor,
    eps_entry: Tensor,
    place: Tensor,
    *,
    entry: float | None = None,
    levels: bool = True,
) -> Tensor:
    """One unbiased draw of the continuous bound, (B,) nats of the encoded sample; differentiable in x0.

    With c = log(1 + SNR), drawn as c_low + place (c_high - c_low) by place (B,) in [0, 1):

        KL(q(x_1 | x0) || p(x_1)) - log p(x0 | x_e) + (c_high - c_low)/2 (|eps - eps_hat|^2 + |x0 - x0_hat|^2)

    whose last term is 1/2 int |eps - eps_hat|^2 d log_snr with log_snr drawn from the density sigmoid(log_snr). eps, eps_entry: unit
    normals like x0, for x_t and for x_e, at the `entry_instant`. The decoder p(x0 | x_e) is N(x0_hat, sigma^2/alpha^2), integrated over
    the bins where the data have them. levels False: x0 is a point of the space, its density is bounded, from the least noisy instant on.

    Reference: Kingma et al., 2021, arXiv:2107.00630, section 4 (there with the decoder q(x_e | x0), normalised over the levels).
    """
    process, entries = denoiser.process, x0[0].numel()
    start = entry_instant(denoiser, x0, entry) if levels or entry is not None else least_instant(denoiser)
    high, low = (process.information(end) for end in (start, process.at(1.0)))
    at = process.at_information(low + place.to(dtype=torch.float64, device="cpu") * (high - low)).like(x0)
    prediction = denoiser(process.perturb(x0, eps, at), at, cond)
    squares = mean_flat((eps - prediction.eps) ** 2) + mean_flat((x0 - prediction.x0) ** 2)
    opening = start.like(x0)
    guess = denoiser(process.perturb(x0, eps_entry, opening), opening, cond).x0
    std = spread_of(process, opening).expand_as(x0)
    if levels:
        decoded = mean_flat(decoder_nll(x0, guess, std, denoiser))
    else:
        decoded = mean_flat(0.5 * ((x0 - guess) / std) ** 2 + std.log() + 0.5 * math.log(2.0 * math.pi))
    return entries * (prior_term(process, x0) + decoded + 0.5 * float(high - low) * squares)


@torch.no_grad()
def continuous(
    denoiser: Denoiser, x0: Tensor, cond: Cond = None, *, entry: float | None = None, draws: int = 32, seed: int = 0, first: int = 0
) -> Scores:
    """The bound of infinitely many steps on -log p(x0) of each encoded sample x0 (B, *D), where p is the reverse SDE.

    For any schedule; between the knots of a chain the network is asked at instants it was not trained at, as every ODE sampler does. The
    draws of one sample are spread evenly over c = log(1 + SNR) with one shift at random, in halves, so that their difference gives an error
    bar. Two network calls a draw.
    """
    if draws < 2:
        raise ConfigError(f"draws: got {draws}, must be at least 2, for an error bar")
    check_data(denoiser, x0, draws)
    per_half = -(-draws // 2)
    halves: list[Tensor] = []
    for half in range(2):
        shift = torch.tensor([generator(seed, "times", first + i, half).random() for i in range(len(x0))])
        total = torch.zeros(len(x0), dtype=torch.float64)
        for k in range(per_half):
            number = 2 * (half * per_half + k)
            eps, eps_entry = (noise_of(seed, first, x0, number + j) for j in range(2))
            with evaluating(denoiser):
                total += continuous_draw(denoiser, x0, cond, eps, eps_entry, (shift + k) / per_half, entry=entry).double().cpu()
        halves.append(in_own_units((total / per_half).to(x0), x0, denoiser.codec))
    return averaged(halves, torch.full((len(x0),), 4 * per_half))
