"""Axes that are circles, and sizes that do not halve evenly."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from ddpm.denoiser.serving import packed
from ddpm.errors import ConfigError
from ddpm.networks import CondSpec, UNetConfig
from ddpm.networks.blocks import reference
from ddpm.networks.unet import UNet, fitted


def network(shape: tuple[int, ...], **changes: Any) -> UNet:
    """A small U-Net of three levels whose output is not zero."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"channels": 8, "mults": (1, 2, 2), "blocks": 1, "attention": (2,), "dropout": 0.0, "zero_init": False}
    return UNetConfig(**{**settings, **changes}).build(shape, cond=CondSpec(image=1)).eval()


@pytest.mark.parametrize("resample", ["conv", "block"])
@pytest.mark.parametrize("shape", [(2, 16), (2, 8, 16), (1, 4, 8, 16), (2, 7, 16)])
@torch.no_grad()
def test_a_turned_circle_gives_the_turned_result(shape: tuple[int, ...], resample: Literal["conv", "block"]) -> None:
    net = network(shape, padding="periodic", resample=resample, fit=shape[1] == 7)
    x, image, level = torch.randn(3, *shape), torch.randn(3, 1, *shape[1:]), torch.rand(3)
    for plain in (False, True):
        with reference(net) if plain else torch.no_grad():
            here = net(x, level, {"image": image})
            turned = net(x.roll(4, -1), level, {"image": image.roll(4, -1)})
        torch.testing.assert_close(turned, here.roll(4, -1), rtol=1e-5, atol=1e-5)
    flat = network(shape, padding="zeros", resample=resample, fit=shape[1] == 7)
    gap = flat(x.roll(4, -1), level, {"image": image.roll(4, -1)}) - flat(x, level, {"image": image}).roll(4, -1)
    assert gap.abs().max() > 1e-3


@torch.no_grad()
def test_packed_weights_see_the_circle_too() -> None:
    net = network((2, 8, 16), padding="periodic")
    x, cond, level = torch.randn(9, 2, 8, 16), {"image": torch.randn(9, 1, 8, 16)}, torch.rand(9)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net(x, level, cond)
        with packed(net):
            quick = net(x, level, cond)
    torch.testing.assert_close(quick, plain, rtol=0.05, atol=0.05)


def test_gradients_reach_across_the_seam() -> None:
    net = network((1, 4, 16), padding="periodic", mults=(1,), attention=())
    net.middle.attention = torch.nn.Identity()  # type: ignore[assignment]
    net.norm, x = torch.nn.Identity(), torch.randn(1, 1, 4, 16, requires_grad=True)  # type: ignore[assignment]
    net.norm.forward = lambda h, swish=False: h  # type: ignore[method-assign, misc]
    net(x, torch.zeros(1), {"image": torch.zeros(1, 1, 4, 16)})[..., 0].sum().backward()
    assert x.grad is not None and x.grad[..., -1].abs().sum() > 0.1 * x.grad[..., 1].abs().sum()


@pytest.mark.parametrize("shape", [(2, 33, 49), (1, 7), (1, 5, 6, 7), (2, 8, 16)])
@torch.no_grad()
def test_sizes_that_do_not_halve_are_padded_and_cut(shape: tuple[int, ...]) -> None:
    net = network(shape, fit=True)
    x, image, level = torch.randn(2, *shape), torch.randn(2, 1, *shape[1:]), torch.rand(2)
    out = net(x, level, {"image": image})
    assert out.shape == x.shape and out.isfinite().all()
    wide, inner = fitted(torch.cat([x, image], 1), net.factor)
    assert all(size % 4 == 0 for size in wide.shape[2:]) and torch.equal(wide[inner], torch.cat([x, image], 1))
    strict = network(tuple([shape[0], *wide.shape[2:]]))
    torch.testing.assert_close(strict(wide[:, :-1], level, {"image": wide[:, -1:]})[inner], out)


def test_what_cannot_be_padded_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the last axis of \(1, 33, 49\) is a circle, .* multiple of 4: 49 \(nearest: 48 or 52\)"):
        network((1, 33, 49), fit=True, padding="periodic")
    net = network((1, 33, 48), fit=True, padding="periodic")
    with pytest.raises(ConfigError, match=r"50 is not divisible by 4"):
        net(torch.zeros(1, 1, 33, 50), torch.zeros(1), {"image": torch.zeros(1, 1, 33, 50)})
