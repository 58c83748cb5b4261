"""A denoiser that is only asked: cast and laid-out weights say what the ordinary ones say, and are gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddpm.denoiser import Codec, Eps, Index, NetworkDenoiser
from ddpm.denoiser.serving import evaluating, packed, serving
from ddpm.guidance import ClassifierFree
from ddpm.networks import UNetConfig
from ddpm.networks.blocks import GroupNorm, reference
from ddpm.process import Cosine, Process

BF16 = torch.bfloat16
CPU = torch.device("cpu")


def trained(module: nn.Module) -> nn.Module:
    """With numbers in the layers that start at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if not bool(weight.any()):
                weight.normal_(std=0.05)
    return module.eval()


class Foreign(nn.Module):
    """Somebody's own network: strides, groups, dilation, no bias, a reflecting border, a linear layer of many axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, stride=2, bias=False)
        self.second = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.third = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.fourth = nn.Conv2d(16, 8, 3, padding="same")
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        h = self.fourth(self.third(self.second(self.first(x)).relu())).relu()
        return self.last(h.permute(0, 2, 3, 1))


def networks() -> dict[str, nn.Module]:
    """What is compared, with inputs (2, 3, 16, 16)."""
    plain = UNetConfig(channels=32, mults=(1, 2, 2), blocks=1, attention=(1,), dropout=0.1)
    film = UNetConfig(channels=32, mults=(1, 2), blocks=1, attention=(0, 1), head_channels=16, film=True, resample="block")
    return {"unet": plain.build((3, 16, 16)), "film": film.build((3, 16, 16)), "foreign": Foreign()}


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.rand(2, generator=generator)


@pytest.mark.parametrize("name", ["unet", "film", "foreign"])
@torch.no_grad()
def test_packed_says_the_same(name: str) -> None:
    """Within what bfloat16 makes of it: both differ from float32 by as much as from each other, or more."""
    network, (x, t) = trained(networks()[name]), inputs()
    exact = network(x, t)
    with torch.autocast("cpu", BF16):
        ordinary = network(x, t).float()
    with serving(network, CPU, BF16):
        fast, again = network(x, t).float(), network(x, t).float()
    assert torch.equal(fast, again)
    error, rounding = (fast - exact).abs().mean(), (ordinary - exact).abs().mean()
    assert 0 < error < 1.3 * rounding, f"packed is off by {error:.2g}, autocast by {rounding:.2g}"


def test_weights_are_packed_indeed() -> None:
    network = trained(networks()["unet"])
    with packed(network):
        fast = sum("forward" in layer.__dict__ for layer in network.modules())
    assert fast == sum(isinstance(layer, nn.Linear | nn.Conv2d) or hasattr(layer, "packed") for layer in network.modules()) > 20


def test_nothing_is_left_behind() -> None:
    """Neither after an exception nor after new weights."""
    network, (x, t) = trained(networks()["unet"]), inputs()
    network.train()
    with pytest.raises(RuntimeError, match="stop"), serving(network, CPU, BF16):
        assert not network.training and network.layout == torch.channels_last
        raise RuntimeError("stop")
    assert network.training and network.layout == torch.contiguous_format
    assert not any("forward" in layer.__dict__ for layer in network.modules())
    with torch.no_grad(), evaluating(network):
        with serving(network, CPU, BF16):
            before = network(x, t)
        for weight in network.parameters():
            weight.mul_(1.5)
        with serving(network, CPU, BF16):
            assert not torch.allclose(network(x, t), before, rtol=0.05)


def test_gradients_go_the_ordinary_way() -> None:
    network, (x, t) = trained(networks()["unet"]), inputs()

    def gradient() -> Tensor:
        point = x.clone().requires_grad_()
        with torch.autocast("cpu", BF16):
            return torch.autograd.grad(network(point, t).square().sum(), point)[0]

    ordinary = gradient()
    with serving(network, CPU, BF16), torch.enable_grad():
        network.layout = torch.contiguous_format  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
        assert torch.equal(gradient(), ordinary)


def test_a_guided_model_is_laid_out_as_its_own_is() -> None:
    """Its method `plain` is no choice of how it runs."""
    process = Process(Cosine())
    codec = Codec(shift=(0.0,) * 3, scale=(1.0,) * 3)
    network = networks()["unet"]
    shape = tuple(inputs()[0].shape[1:])
    guided = ClassifierFree(NetworkDenoiser(network, process, Eps(), Index(), codec, shape), 2.0)
    with serving(guided, CPU, BF16):
        assert any("forward" in vars(part) for part in network.modules())


def test_other_precisions_and_parts_of_weights_are_left_alone() -> None:
    network, (x, t) = trained(networks()["unet"]), inputs()
    with torch.no_grad():
        exact = network(x, t)
        with serving(network, CPU, None):
            torch.testing.assert_close(network(x, t), exact, rtol=1e-4, atol=1e-5)  # channels last, and not cast
        assert torch.equal(network(x, t), exact)

    class Part(nn.Parameter):
        """As a weight of which each process has a part."""

    layer = nn.Linear(4, 4)
    layer.weight = Part(layer.weight.detach())
    with packed(layer):
        assert "forward" not in layer.__dict__


class Careful(nn.Module):
    """A network that computes one layer in float32 whatever is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.last(self.first(x))


@torch.no_grad()
def test_parts_that_refuse_autocast_keep_their_precision() -> None:
    network, x = Careful(), torch.randn(4, 8)
    exact = network(x)
    with serving(network, CPU, BF16):
        assert torch.equal(network(x), exact)


@torch.no_grad()
def test_the_textbook_way_stays_the_textbook_way() -> None:
    network, (x, t) = trained(networks()["unet"]), inputs()
    with reference(network), torch.autocast("cpu", BF16):
        plain = network(x, t)
    with reference(network), serving(network, CPU, BF16):
        assert torch.equal(network(x, t), plain)


@pytest.mark.parametrize(("channels", "size"), [(64, 8), (64, 40), (512, 8), (30, 8)])
def test_group_norm_keeps_values_and_layout(channels: int, size: int) -> None:
    norm = GroupNorm(2 if channels == 30 else 32, channels)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, channels, size, size).to(memory_format=torch.channels_last)
    there = norm(x)
    assert there.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(there, nn.functional.group_norm(x.contiguous(), norm.num_groups, norm.weight, norm.bias))
