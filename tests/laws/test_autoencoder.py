"""The autoencoder's formulas against torch's own distributions, brute force, and numbers that can be counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Laplace, Normal, kl_divergence
from torch.testing import assert_close

from ddpm.errors import ConfigError, DataError
from ddpm.metrics import mean_psnr, psnr, ssim
from ddpm.networks import AutoencoderConfig
from ddpm.networks.autoencoder import ConvolutionalAutoencoder, Posterior
from ddpm.networks.blocks import reference
from ddpm.networks.discriminator import PatchDiscriminator
from ddpm.objective import AutoencodingLoss, Critic
from ddpm.objective.adversarial import strength

SMALL = AutoencoderConfig(channels=8, mults=(1, 2), latent=3)
CODES = AutoencoderConfig(channels=8, mults=(1, 2), latent=3, codes=7)


def built(config: AutoencoderConfig, shape: tuple[int, ...] = (2, 8, 12)) -> ConvolutionalAutoencoder:
    """In float64, with numbers in every layer."""
    torch.manual_seed(0)
    model = config.build(shape).double()
    with torch.no_grad():
        for weight in model.parameters():
            if not bool(weight.any()):
                weight.normal_(std=0.1)
    return model


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    """Unit normals."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_divergence_is_that_of_normals() -> None:
    """Per sample, summed over the latent's entries."""
    posterior = Posterior(drawn(5, 3, 2, 2), drawn(5, 3, 2, 2, seed=2))
    there, unit = Normal(posterior.mean, posterior.log_std.exp()), Normal(torch.zeros(5, 3, 2, 2).double(), 1.0)
    assert_close(posterior.kl(), kl_divergence(Independent(there, 3), Independent(unit, 3)))
    eps = drawn(5, 3, 2, 2, seed=3)
    assert_close(posterior.draw(eps), posterior.mean + posterior.log_std.exp() * eps)


def test_with_weight_one_the_loss_is_the_evidence_bound() -> None:
    """-log p(x|z) + KL, per entry, by torch's Laplace and Normal; the weight scales the second term alone."""
    model, x, eps = built(SMALL), drawn(4, 2, 8, 12), drawn(4, 3, 4, 6, seed=2)
    posterior = model.posterior(x)
    copy = model.decode(posterior.mean + posterior.log_std.exp() * eps)
    for weight in (1.0, 0.25):
        loss = AutoencodingLoss(weight).double()
        with torch.no_grad():
            loss.log_scale.fill_(-0.7)
        likely = Laplace(copy, math.exp(-0.7)).log_prob(x).flatten(1).mean(1)
        assert_close(loss(model, x, eps), -likely + weight * posterior.kl() / 192)


def test_no_posterior_is_certain_or_says_nothing_at_all() -> None:
    """log std stays between -10 and 5, whatever the encoder says."""
    model = built(SMALL)
    with torch.no_grad():
        model.encoder[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 100.0, -100.0, 0.0]))  # type: ignore[union-attr]
    log_std = model.posterior(drawn(2, 2, 8, 12)).log_std
    assert bool((log_std[:, 0] == 5.0).all()) and bool((log_std[:, 1] == -10.0).all()) and bool((log_std[:, 2].abs() < 5.0).all())


def test_the_learned_scale_tends_to_the_mean_error() -> None:
    """Where the loss is least, b = E|x - x'|."""
    model, x, eps, loss = built(SMALL), drawn(64, 2, 8, 12), drawn(64, 3, 4, 6, seed=2), AutoencodingLoss(0.0).double()
    error = (x - model.decode(model.posterior(x).draw(eps))).abs().mean()
    with torch.no_grad():
        loss.log_scale.fill_(float(error.log()))
    (slope,) = torch.autograd.grad(loss(model, x, eps).mean(), [loss.log_scale])
    assert abs(float(slope)) < 1e-12


def test_the_nearest_code_is_the_nearest() -> None:
    """By every distance; what is rounded stays where it is when rounded again."""
    model, z = built(CODES), drawn(4, 3, 4, 6)
    assert model.codebook is not None
    far = torch.cdist(z.movedim(1, -1).reshape(-1, 3), model.codebook).argmin(1).view(4, 4, 6)
    assert torch.equal(model.codes(z), far) and len(far.unique()) > 3
    near = model.rounded(z)
    assert torch.equal(near[1, :, 2, 3], model.codebook[far[1, 2, 3]]) and torch.equal(model.rounded(near), near)
    assert torch.equal(model.decode(z), model.decode(near))
    assert torch.equal(built(SMALL).rounded(z), z)


def test_gradients_pass_the_rounding_and_codes_learn_from_their_own_term_only() -> None:
    """The encoder's gradient of the error is what the rounded latents would get; the codebook's that of |sg(z) - e|^2."""
    model, x, loss = built(CODES), drawn(4, 2, 8, 12), AutoencodingLoss(1.0).double()
    assert model.codebook is not None
    z = model.posterior(x).mean
    near = model.rounded(z).detach().requires_grad_()
    error = (x - model.decoder(near)).abs().flatten(1).mean(1).sum()
    (through,) = torch.autograd.grad(error, [near])
    commitment = 2 * 0.25 * (z - near).detach() / z[0].numel()
    weight = next(model.encoder.parameters())
    (wanted,) = torch.autograd.grad(z, [weight], grad_outputs=through + commitment)
    found, codes = torch.autograd.grad(loss(model, x, torch.zeros_like(z)).sum(), [weight, model.codebook])
    assert_close(found, wanted)
    index = model.codes(z)
    expected = torch.zeros_like(model.codebook)
    expected.index_add_(0, index.flatten(), (2 * (near - z).detach() / z[0].numel()).movedim(1, -1).reshape(-1, 3))
    assert_close(codes, expected)


@pytest.mark.parametrize("shape", [(3, 16), (1, 8, 4), (2, 4, 8, 4)])
def test_every_number_of_axes(shape: tuple[int, ...]) -> None:
    """Sizes are halved level by level, may differ from those it was built for, and the plain way gives the same."""
    model = built(SMALL, shape)
    assert model.latent_shape == (3, *(size // 2 for size in shape[1:]))
    x = drawn(2, shape[0], *(2 * size for size in shape[1:]))
    posterior = model.posterior(x)
    assert posterior.mean.shape == (2, 3, *shape[1:]) and model.decode(posterior.mean).shape == x.shape
    with reference(model):
        plain = model.decode(model.posterior(x).mean)
    assert_close(model.decode(posterior.mean), plain, rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="divisible by 2"):
        model.posterior(x[..., :-1])
    with pytest.raises(ConfigError, match="autoencoder: got x of shape"):
        model.posterior(x[:, :1].repeat(1, 5, *[1] * (x.ndim - 2)))


def test_settings_that_cannot_be() -> None:
    """Named, with what is allowed."""
    for config, shape, words in (
        (AutoencoderConfig(mults=(1,)), (1, 8, 8), "mults: got"),
        (AutoencoderConfig(codes=1), (1, 8, 8), "codes: got 1"),
        (SMALL, (1, 9, 8), "nearest: 8 or 10"),
        (SMALL, (12,), "an autoencoder takes"),
    ):
        with pytest.raises(ConfigError, match=words):
            config.build(shape)


def test_psnr_is_counted() -> None:
    """Known errors; an exact copy is infinitely good, and counts as 100 dB in a mean."""
    x = torch.zeros(3, 1, 4, 4)
    copies = torch.stack([x[0], x[0] + 25.5, x[0] + 255.0])
    assert_close(psnr(copies, x, 255.0), torch.tensor([math.inf, 20.0, 0.0]).double())
    assert mean_psnr(psnr(copies, x, 255.0)) == pytest.approx(40.0)
    for bad, words in ((x[:, :, :2], "must be alike"), (x * math.nan, "not all numbers are finite")):
        with pytest.raises(DataError, match=words):
            psnr(bad, x, 255.0)
    with pytest.raises(DataError, match="reach: got 0"):
        psnr(x, x, 0.0)


def test_ssim_by_its_definition() -> None:
    """Window by window, in plain loops; an exact copy has 1, a negative one less than 0; short axes have shorter windows."""
    x = torch.rand(2, 2, 12, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x + 0.2 * drawn(2, 2, 12, 13)).clamp(0, 1)
    place = torch.arange(11).double() - 5
    line = (-(place**2) / (2 * 1.5**2)).exp()
    window = line[:, None] * line[None] / line.sum() ** 2
    for sample in range(2):
        values = []
        for channel in range(2):
            for i in range(2):
                for j in range(3):
                    a, b = (one[sample, channel, i : i + 11, j : j + 11] for one in (x, y))
                    m, n = (window * a).sum(), (window * b).sum()
                    v, w, both = (window * (a - m) ** 2).sum(), (window * (b - n) ** 2).sum(), (window * (a - m) * (b - n)).sum()
                    c1, c2 = 0.01**2, 0.03**2
                    values.append((2 * m * n + c1) * (2 * both + c2) / ((m**2 + n**2 + c1) * (v + w + c2)))
        assert_close(ssim(y, x, 1.0)[sample], torch.stack(values).mean())
    assert_close(ssim(x, x, 1.0), torch.ones(2).double())
    assert bool((ssim(1 - x, x, 1.0) < 0).all())
    assert ssim(x[..., :4, :5], x[..., :4, :5], 1.0).tolist() == pytest.approx([1.0, 1.0])
    assert ssim(x[:, 0, :, :], x[:, 0, :, :], 1.0).shape == (2,)
    with pytest.raises(DataError, match="SSIM compares"):
        ssim(x.flatten(1), x.flatten(1), 1.0)


def test_a_patch_is_26_entries_long() -> None:
    """A changed entry changes what is said of the patches that see it, and of no other."""
    torch.manual_seed(0)
    network, x = PatchDiscriminator((1, 96)).double(), drawn(1, 1, 96)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, torch.nn.GroupNorm):
                part.forward = lambda h: h  # type: ignore[method-assign]  # its mean and variance are the whole sample's
        touched = torch.zeros(24, 96, dtype=torch.bool)
        for entry in range(96):
            moved = x.clone()
            moved[0, 0, entry] += 1.0
            touched[:, entry] = (network(moved)[0] != network(x)[0])[0, 0]
    spans = [row.nonzero().flatten() for row in touched[8:16]]  # away from the ends
    assert all(len(span) == 26 and int(span[-1] - span[0]) == 25 for span in spans)


def test_the_critic_is_hinge_and_feature_distance() -> None:
    """Its own loss, and what it adds to the autoencoder's, spelled out; neither sends a gradient where it does not belong."""
    model, x, eps, loss = built(SMALL), drawn(4, 2, 8, 12), drawn(4, 3, 4, 6, seed=2), AutoencodingLoss(0.1).double()
    torch.manual_seed(1)
    critic = Critic((2, 8, 12), 0.7, 0.0).double()
    losses, copy = loss.with_copy(model, x, eps)
    assert_close(losses, loss(model, x, eps))
    last = model.last
    real, made = critic.network(x), critic.network(copy)
    wanted = 0.5 * (torch.relu(1 - real[0]) + torch.relu(1 + made[0])).mean((1, 2, 3))
    assert_close(critic.own(x, copy), wanted)
    assert torch.autograd.grad(critic.own(x, copy).mean(), [last], allow_unused=True) == (None,)
    apart = sum((a - b).abs().mean() for a, b in zip(real[1], made[1], strict=True))
    assert_close(critic.terms(x, copy, losses.mean(), last), 0.7 * apart)


def test_the_adversarial_term_is_as_strong_as_the_rest() -> None:
    """At the decoder's last weight, times the weight that is asked for; and it makes the critic take copies for originals."""
    model, x, eps, loss = built(SMALL), drawn(4, 2, 8, 12), drawn(4, 3, 4, 6, seed=2), AutoencodingLoss(0.1).double()
    torch.manual_seed(1)
    critic = Critic((2, 8, 12), 0.0, 0.5).double()
    losses, copy = loss.with_copy(model, x, eps)
    last, rest = model.last, losses.mean()
    (added,) = torch.autograd.grad(critic.terms(x, copy, rest, last), [last], retain_graph=True)
    (own,) = torch.autograd.grad(rest, [last], retain_graph=True)
    (fooling,) = torch.autograd.grad(critic.network(copy)[0].mean(), [last])
    assert_close(added.norm(), 0.5 * own.norm(), rtol=1e-2, atol=0.0)
    assert_close(added / added.norm(), -fooling / fooling.norm())
    line = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert_close(
        strength((6 * line).sum(), (line * torch.tensor([0.0, 0.0, 2.0])).sum(), line),
        torch.tensor(3.0 * 3**0.5).double(),
        rtol=1e-3,
        atol=0.0,
    )
