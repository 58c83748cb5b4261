"""What a model in an autoencoder's latents says of data: a bound on -log P, made of its density of latents, the decoder and the encoder.

    -log P(x) <= E_{z ~ q(z|x)} [-log P(x|z) - log p(z) + log q(z|x)]

Reference: Kingma, Welling, 2013, arXiv:1312.6114, eqs. 2 and 3, with a diffusion model for p(z) as in Vahdat, Kreis, Kautz, 2021,
arXiv:2106.05931, section 3.1; there all is trained at once, here the autoencoder comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.denoiser import Codec, Cond, Denoiser, LatentCodec
from ddpm.errors import ConfigError
from ddpm.likelihood.bound import continuous
from ddpm.likelihood.scores import Scores, averaged, in_own_units
from ddpm.objective.bound import level_edges
from ddpm.random import normals

APART = 2**48  # between the numbers of one sample in two draws, so that the noise in latents meets that of no other sample


class LatentTerms(NamedTuple):
    """The bound and its terms, nats of whole samples: scores = decoder + latents - entropy.

    decoder: -log P(x|z). latents: -log p(z), of the density in latents' own units, as the encoder gives them. entropy: of q(z|x), in the
    same units, exact. A change of units moves the last two alike: their difference, the rate, has a meaning, neither alone has.
    """

    scores: Scores
    decoder: Scores
    latents: Scores
    entropy: Scores


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(F(high) - F(low)) of the unit Laplace distribution F, low < high, entry by entry; either end may be infinite.

    Without cancellation or underflow: mirrored so that low is the farther end, then high + log(1 - e^(low - high)) - log 2 on one side of
    0, and log((1 - e^low) + (1 - e^-high)) - log 2 across it.
    """
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    beside = high.clamp(max=0.0) + torch.log(-torch.expm1(low - high))
    across = torch.log(-torch.expm1(low) - torch.expm1(-high))
    return torch.where(high > 0, across, beside) - math.log(2.0)


def laplace_nll(x: Tensor, centre: Tensor, scale: float, codec: Codec) -> Tensor:
    """-log P(x|z) for each entry of encoded data x (B, *shape): a Laplace distribution of this scale b around centre, integrated over each
    level's bin, the outermost open; the density |x - centre|/b + log 2b where data are continuous.
    """
    edges = level_edges(x, codec)
    if edges is None:
        return (x - centre).abs() / scale + math.log(2.0 * scale)
    low, high = ((edge - centre) / scale for edge in edges[:2])
    return -log_mass(low.masked_fill(edges[2], -math.inf), high.masked_fill(edges[3], math.inf))


def latent_codec(denoiser: Denoiser) -> tuple[LatentCodec, float]:
    """The codec and the decoder's scale of a model that bounds -log P of data through latents; ConfigError, with the reason, for others."""
    codec = denoiser.codec
    if not isinstance(codec, LatentCodec):
        raise ConfigError("likelihood: this model diffuses the data themselves, not latents; use continuous, flow or discrete")
    if codec.autoencoder.codebook is not None:
        raise ConfigError(
            "likelihood: diffuses in latents of an autoencoder with a codebook, whose encoder is certain: against a density of latents "
            "E[log q(z|x)] is infinite, and there is no bound; train in continuous latents (ddpm autoencode --network.codes 0)"
        )
    if codec.autoencoder.scale is None:
        raise ConfigError(
            "likelihood: diffuses in latents, and this run does not hold the scale of its decoder's distribution. One of diffusers has "
            "none; of an older run the autoencoder's folder does: train on from there (ddpm train as before, with more --steps), or in "
            "Python denoiser.autoencoder.scale = ddpm.training.autoencoder.load_autoencoder(FOLDER).autoencoder.scale"
        )
    return codec, codec.autoencoder.scale


@torch.no_grad()
def latent_bound(
    denoiser: Denoiser,
    raw: Tensor,
    cond: Cond = None,
    *,
    density: Callable[..., Scores] = continuous,
    draws: int = 2,
    seed: int = 0,
    first: int = 0,
) -> LatentTerms:
    """The bound on -log P of each sample raw (B, *data_shape), in the data's own units, of what decoding the model's latents makes.

    density: gives -log p of encoded latents as `continuous` and `flow` do, called (denoiser, x, cond, seed=, first=); bind what else it
    takes by functools.partial. If it gives an upper bound, so does this; if it gives a density, the bound is of that density's model.
    draws: independent latents, of which the error bars are made; NaN from a single one. E[log q(z|x)] is exact. Sample i's noise is a
    function of (seed, first + i).

    P is a probability where the data are levels, else a density. Raises ConfigError for a model that diffuses no latents, with a codebook,
    or older than the decoder's scale.
    """
    codec, scale = latent_codec(denoiser)
    if draws < 1:
        raise ConfigError(f"draws: got {draws}, must be at least 1")
    posterior = codec.posterior(raw)
    x = codec.pixels.encode(raw).cpu().double()
    entropy = (posterior.log_std.cpu().double() + 0.5 * math.log(2.0 * math.pi * math.e)).flatten(1).sum(1)
    decoder: list[Tensor] = []
    latents: list[Tensor] = []
    calls = torch.zeros(len(raw), dtype=torch.int64)
    for draw in range(draws):
        mine = range(first + draw * APART, first + draw * APART + len(raw))
        eps = normals(seed, mine, posterior.mean.shape[1:], "start", dtype=posterior.mean.dtype).to(posterior.mean)
        z = posterior.draw(eps)
        misfit = laplace_nll(x, codec.copies(z).cpu().double(), scale, codec.pixels)
        decoder.append(in_own_units(misfit.flatten(1).sum(1), x, codec.pixels))
        scores = density(denoiser, codec.latent.encode(z), cond, seed=seed, first=mine[0])
        latents.append(scores.nats)
        calls += scores.calls
    none = torch.zeros_like(calls)
    total = [one + other - entropy for one, other in zip(decoder, latents, strict=True)]
    certain = Scores(entropy, torch.zeros_like(entropy), none)
    return LatentTerms(averaged(total, calls), averaged(decoder, none), averaged(latents, calls), certain)
