"""Laws of the bound through latents: one-dimensional ones, where every integral can be done on a grid."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal
from worlds import close, isotropic, unit, z_score

from ddpm.denoiser import Codec, Denoiser, LatentCodec, Mixture
from ddpm.errors import ConfigError
from ddpm.likelihood import LatentTerms, Scores, continuous, discrete, flow, latent_bound
from ddpm.likelihood.latents import laplace_nll, log_mass
from ddpm.likelihood.scores import in_own_units
from ddpm.networks import AutoencoderConfig
from ddpm.networks.autoencoder import ConvolutionalAutoencoder, Posterior
from ddpm.process import Process, Straight
from ddpm.sampling import Adaptive

LEVELS = Codec(shift=(8.0,), scale=(8.0,), dtype="uint8", bins=(0.0, 16.0))  # 0..16, as the digits have
PLAIN = Codec(shift=(1.0,), scale=(4.0,), dtype="float64")
LATENT = Codec(shift=(1.0,), scale=(3.0,), dtype="float64")  # what is diffused is (z - 1)/3
TIGHT = Adaptive(rtol=1e-6, atol=1e-6)
GRID = torch.linspace(-9.0, 9.0, 36001, dtype=torch.float64)  # of z
STEP = float(GRID[1] - GRID[0])


def number(value: float) -> Tensor:
    """(), in float64, which torch's distributions keep."""
    return torch.tensor(value, dtype=torch.float64)


class Affine(ConvolutionalAutoencoder):
    """q(z|x) = N(gain x + 0.3, std^2), decoded as slope z - 0.2, for samples of one number; p(x|z) is Laplace of scale b."""

    def __init__(self, gain: float = 1.6, std: float = 0.4, slope: float = 0.5, b: float = 0.2) -> None:
        super().__init__(AutoencoderConfig(channels=8, mults=(1, 1), latent=1), (1, 1))
        self.shape, self.gain, self.std, self.slope, self.scale = (1,), gain, std, slope, b

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One number."""
        return (1,)

    def posterior(self, x: Tensor) -> Posterior:
        """In float64."""
        mean = self.gain * x.double() + 0.3
        return Posterior(mean, torch.full_like(mean, math.log(self.std)))

    def decode(self, z: Tensor) -> Tensor:
        """The centre."""
        return self.slope * z - 0.2


def bumps() -> Mixture:
    """The exact denoiser of two bumps, which latents have once they are normalised."""
    means, variances, weights = (torch.tensor(row, dtype=torch.float64) for row in ((-0.8, 0.5), (0.05, 0.2), (0.4, 0.6)))
    return Mixture(Process(Straight()), means[:, None], variances, weights)


def model(pixels: Codec = LEVELS, autoencoder: Affine | None = None, latent: Codec = LATENT) -> Mixture:
    """The same as the density of an autoencoder's latents."""
    denoiser = bumps()
    denoiser.codec = LatentCodec.through(autoencoder or Affine(), pixels, latent)
    return denoiser


def known(denoiser: Denoiser, x: Tensor, cond: None, *, seed: int, first: int) -> Scores:
    """The density of the bumps themselves, in the units that every route has its scores in."""
    assert isinstance(denoiser, Mixture)
    nats = in_own_units(-denoiser.log_density(x, denoiser.process.clean), x, denoiser.codec)
    return Scores(nats, torch.zeros_like(nats), torch.ones(len(x), dtype=torch.int64))


def on_grid(pixels: Codec, raw: float, autoencoder: Affine) -> tuple[Tensor, Tensor, Tensor]:
    """log P(x|z), log p(z) and log q(z|x) on the grid, by torch's distributions and, for the two bumps, written out."""
    x, width = (raw - pixels.shift[0]) / pixels.scale[0], 1.0 / pixels.scale[0]
    likely = Laplace(autoencoder.slope * GRID - 0.2, number(autoencoder.scale or math.nan))
    if pixels.bins is None:
        decoded = likely.log_prob(number(x)) - math.log(pixels.scale[0])
    else:
        low = torch.zeros_like(GRID) if raw == pixels.bins[0] else likely.cdf(number(x - width / 2))
        high = torch.ones_like(GRID) if raw == pixels.bins[1] else likely.cdf(number(x + width / 2))
        decoded = (high - low).log()
    one, other = (Normal(number(1 + 3 * m), number(3 * math.sqrt(v))).log_prob(GRID).exp() for m, v in ((-0.8, 0.05), (0.5, 0.2)))
    return decoded, (0.4 * one + 0.6 * other).log(), Normal(number(autoencoder.gain * x + 0.3), number(autoencoder.std)).log_prob(GRID)


def bound_of(pixels: Codec, raw: float, autoencoder: Affine) -> tuple[float, float]:
    """The bound by the trapezoid rule, and -log P(x) itself."""
    decoded, prior, encoder = on_grid(pixels, raw, autoencoder)
    share = encoder.exp()
    inside = share > 1e-30  # beyond, a difference of two cdf may be 0
    terms = (share * (encoder - decoded - prior))[inside]
    return float(terms.sum() * STEP), -float(((decoded + prior).exp().sum() * STEP).log())


def repeated(raw: float, times: int) -> Tensor:
    """(times, 1)."""
    return torch.full((times, 1), raw, dtype=torch.float64)


# --- the decoder's distribution -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [1e-3, 0.05, 2.0])
def test_masses_of_all_levels_sum_to_one_and_are_torchs(b: float) -> None:
    """For centres inside, on a level, and outside the levels."""
    x = LEVELS.encode(torch.arange(17, dtype=torch.float64)[:, None])
    for centre in (-3.0, -1.0, -0.37, 0.0, 0.06, 0.9999, 1.2):
        nll = laplace_nll(x, torch.full_like(x, centre), b, LEVELS)
        close(torch.exp(-nll).sum(), 1.0, rtol=1e-12)
        likely = Laplace(number(centre), number(b))
        inner = likely.cdf(x[1:, 0] - 1 / 16)
        below, above = torch.cat([torch.zeros(1), inner]), torch.cat([inner, torch.ones(1)])
        close(torch.exp(-nll[:, 0]), above - below, rtol=1e-9, atol=1e-14)


def test_masses_of_narrow_bins_are_density_times_width_also_where_nothing_is_left() -> None:
    """1e-7 wide, to 20,000 scales from the centre, either side: log P has no floor there."""
    for place in (-2e4, -30.0, -1.0, 1e-3, 0.5, 40.0, 2e4):
        low, high = (number(edge) for edge in (place - 5e-8, place + 5e-8))
        close(log_mass(low, high), (high - low).log() - abs(place) - math.log(2.0), rtol=1e-7, atol=1e-7)
    infinity = number(math.inf)
    for high in (-1e4, -2.0, 0.0, 0.1, 50.0):
        wanted = high - math.log(2) if high <= 0 else math.log1p(-0.5 * math.exp(-high))
        close(log_mass(-infinity, number(high)), wanted, rtol=1e-12, atol=1e-14)
        close(log_mass(number(-high), infinity), wanted, rtol=1e-12, atol=1e-14)
    close(log_mass(-infinity, infinity), 0.0, atol=1e-15)


def test_continuous_data_have_the_density_that_the_autoencoder_was_trained_with() -> None:
    x, centre = unit(5, 1), unit(5, 1, seed=1)
    close(laplace_nll(x, centre, 0.3, PLAIN), -Laplace(centre, number(0.3)).log_prob(x))


# --- the bound ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [LEVELS, PLAIN], ids=["levels", "continuous"])
def test_the_estimate_is_the_integral(pixels: Codec) -> None:
    """E_q[-log P(x|z) - log p(z) + log q(z|x)] on a grid, and each of the three terms; the gap to -log P(x) is KL(q || p(z|x)) > 0."""
    autoencoder = Affine()
    for raw in (0.0, 11.0, 16.0):
        wanted, exact = bound_of(pixels, raw, autoencoder)
        decoded, prior, encoder = on_grid(pixels, raw, autoencoder)
        share, inside = encoder.exp(), encoder > -60
        gap = float((share * (encoder - decoded - prior - exact))[inside].sum() * STEP)  # log p(z|x) = decoded + prior + exact
        assert gap > 0.05
        close(wanted, exact + gap, rtol=1e-9)
        terms = latent_bound(model(pixels, autoencoder), repeated(raw, 1500), density=known, seed=int(raw))
        assert z_score(terms.scores.nats, wanted) < 4.5
        assert z_score(terms.decoder.nats, float(-(share * decoded)[inside].sum() * STEP)) < 4.5
        assert z_score(terms.latents.nats, float(-(share * prior)[inside].sum() * STEP)) < 4.5
        close(terms.entropy.nats, 0.5 * math.log(2 * math.pi * math.e * 0.4**2))
        error = float(terms.scores.nats.std()) / math.sqrt(1500)
        assert error < 0.05 and float(terms.scores.nats.mean()) > exact - 4.5 * error


@pytest.mark.parametrize("route", ["discrete", "continuous", "flow"])
def test_every_route_gives_the_density_of_latents_in_their_own_units(route: str) -> None:
    """Whether the data have levels or not: -log p(z) is that of x, and log |dz/dx| more; the chain's is a bound on it."""
    process = Process(Straight(T=10))
    denoiser, x0 = isotropic(process, 0.5, (1,)), unit(200, 1) * math.sqrt(0.5)
    kept, z = (-denoiser.log_density(x0, process.clean)), LATENT.decode(x0)
    assert z.std() > 2
    for pixels in (LEVELS, PLAIN):
        denoiser.codec = LatentCodec.through(Affine(), pixels, LATENT)
        if route == "flow":
            close(flow(denoiser, x0[:3], solver=TIGHT).nats, (kept + math.log(3.0))[:3], rtol=1e-5, atol=1e-5)
        elif route == "continuous":
            assert z_score(continuous(denoiser, x0, draws=8).nats - kept, math.log(3.0)) < 4.5
        else:
            gap = discrete(denoiser, x0, variance="analytic", draws=1).scores.nats - kept - math.log(3.0)
            assert -0.2 < float(gap.mean()) < 0.5


@pytest.mark.parametrize("density", [partial(flow, solver=Adaptive(rtol=1e-3, atol=1e-3)), partial(continuous, draws=16)])
def test_routes_give_the_bound(density: partial[Scores]) -> None:
    """A Gaussian's flow and continuous bound are tight: what the density itself gives, to their own noise."""
    denoiser = isotropic(Process(Straight()), 0.3, (1,))
    denoiser.codec = LatentCodec.through(Affine(), LEVELS, LATENT)
    one, other = (latent_bound(denoiser, repeated(6.0, 150), density=way).scores for way in (density, known))
    assert z_score(one.nats - other.nats) < 4.5 or float((one.nats - other.nats).abs().max()) < 0.01
    assert float((one.nats - other.nats).std()) / math.sqrt(150) < 0.25


def test_an_encoder_that_is_the_posterior_leaves_no_gap() -> None:
    """Of a decoder so flat that p(z|x) is p(z), a Gaussian: the bound is -log P(x)."""
    autoencoder = Affine(gain=0.0, std=0.6, slope=1e-9, b=0.5)
    denoiser = isotropic(Process(Straight()), 0.04, (1,))
    denoiser.codec = LatentCodec.through(autoencoder, LEVELS, Codec(shift=(0.3,), scale=(3.0,), dtype="float64"))
    x = LEVELS.encode(repeated(5.0, 1000))
    exact = float(laplace_nll(x, torch.full_like(x, -0.2), 0.5, LEVELS).mean())
    terms = latent_bound(denoiser, repeated(5.0, 1000), density=known, draws=4)
    assert z_score(terms.scores.nats, exact) < 4.5 and float(terms.scores.nats.std()) / math.sqrt(1000) < 0.02


def test_a_bound_on_every_level_leaves_no_more_than_one_to_share() -> None:
    """sum_x exp(-bound(x)) <= sum_x P(x) = 1."""
    raw = torch.arange(17, dtype=torch.float64)[:, None]
    nats = latent_bound(model(), raw, density=known, draws=100).scores.nats
    assert 0.3 < float(torch.exp(-nats).sum()) < 1.0


@pytest.mark.parametrize("unit_of_z", [0.2, 50.0])
def test_the_unit_of_latents_changes_nothing(unit_of_z: float) -> None:
    """An autoencoder that gives k z, undone by the codec: the same bound, draw by draw; latents and entropy move alike, by log k."""
    k = unit_of_z

    class Scaled(Affine):
        def posterior(self, x: Tensor) -> Posterior:
            mean, log_std = super().posterior(x)
            return Posterior(k * mean, log_std + math.log(k))

        def decode(self, z: Tensor) -> Tensor:
            return super().decode(z / k)

    raw = torch.tensor([[0.0], [3.0], [12.0]], dtype=torch.float64)
    there = replace(LATENT, shift=(k * 1.0,), scale=(k * 3.0,))
    one, other = (latent_bound(denoiser, raw, density=known) for denoiser in (model(), model(autoencoder=Scaled(), latent=there)))
    close(other.scores.nats, one.scores.nats, rtol=1e-5, atol=1e-5)
    close(other.entropy.nats - one.entropy.nats, math.log(k), rtol=1e-9)
    close(other.latents.nats - one.latents.nats, math.log(k), rtol=1e-4)


def test_how_latents_are_normalised_changes_nothing() -> None:
    """p(z) diffused as (z - 1)/3 and as (z + 2)/1.5."""
    raw = torch.tensor([[1.0], [9.0]], dtype=torch.float64)
    wide = model()
    narrow = Mixture(Process(Straight()), 2 * wide.means + 2.0, 4 * wide.variances[:, 0], wide.log_weights.exp())
    narrow.codec = LatentCodec.through(Affine(), LEVELS, Codec(shift=(-2.0,), scale=(1.5,), dtype="float64"))
    one, other = (latent_bound(denoiser, raw, density=known) for denoiser in (wide, narrow))
    close(other.latents.nats, one.latents.nats, rtol=1e-4, atol=1e-4)


def test_terms_add_up_errors_cover_and_noise_is_that_of_seed_and_number() -> None:
    raw = torch.tensor([[0.0], [4.0], [8.0], [12.0]], dtype=torch.float64)

    def asked(x: Tensor, draws: int = 3, seed: int = 0, first: int = 0) -> LatentTerms:
        return latent_bound(model(), x, density=known, draws=draws, seed=seed, first=first)

    terms = asked(raw, draws=300)
    close(terms.decoder.nats + terms.latents.nats - terms.entropy.nats, terms.scores.nats)
    wanted = torch.tensor([bound_of(LEVELS, float(value), Affine())[0] for value in raw])
    assert bool((terms.scores.error > 1e-3).all()) and float(((terms.scores.nats - wanted) / terms.scores.error).abs().max()) < 4.5
    assert bool((terms.entropy.error == 0).all()) and int(terms.scores.calls.min()) == 300
    few = asked(raw).scores
    close(asked(raw[2:], first=2).scores.nats, few.nats[2:], rtol=1e-7)
    assert not torch.isclose(asked(raw, seed=1).scores.nats, few.nats).any()
    alone = asked(repeated(4.0, 2), draws=1).scores
    assert bool(alone.error.isnan().all()) and float(alone.nats[0]) != float(alone.nats[1])
    seen: list[int] = []

    def watched(denoiser: Denoiser, x: Tensor, cond: None, *, seed: int, first: int) -> Scores:
        seen.append(first)
        return known(denoiser, x, cond, seed=seed, first=first)

    latent_bound(model(), raw, density=watched, draws=3, first=7)
    assert seen[0] == 7 and len(set(seen)) == 3  # the noise in latents is new in every draw


def test_what_gives_no_bound_says_why() -> None:
    raw = repeated(3.0, 2)
    with pytest.raises(ConfigError, match="diffuses the data themselves"):
        latent_bound(bumps(), raw)
    with pytest.raises(ConfigError, match="draws: got 0"):
        latent_bound(model(), raw, draws=0)
    codes, old = Affine(), Affine()
    codes.codebook, old.scale = torch.nn.Parameter(torch.zeros(2, 1)), None
    with pytest.raises(ConfigError, match=r"encoder is certain.*--network.codes 0"):
        latent_bound(model(autoencoder=codes), raw)
    with pytest.raises(ConfigError, match=r"does not hold the scale.*more --steps"):
        latent_bound(model(autoencoder=old), raw)
