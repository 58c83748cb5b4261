"""The parts the networks are built of, each against its formula written out."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from ddpm.networks import MLPConfig, UNetConfig
from ddpm.networks.blocks import Attention, ResidualBlock, conv, group_norm
from ddpm.networks.embeddings import sinusoidal
from ddpm.networks.mlp import MLPBlock
from ddpm.networks.resampling import Downsample, Upsample

TINY = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(1,), dropout=0.0, groups=2)
M = TypeVar("M", bound=nn.Module)


def settled(network: M, seed: int = 0) -> M:
    """The network with every parameter random, so that no branch is switched off by a zero."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double()
    with torch.no_grad():
        for value in network.parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise / math.sqrt(value[0].numel()) if value.ndim > 1 else 1 + 0.3 * noise)
    return network


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_stretched_upsampling_repeats_then_convolves(axes: int) -> None:
    layer = settled(Upsample(axes, 4))
    x = torch.randn(64, 4, *[4, 2, 3][:axes], dtype=torch.float64)
    repeated = x
    for axis in range(2, x.ndim):
        repeated = repeated.repeat_interleave(2, dim=axis)
    torch.testing.assert_close(layer(x, x), layer.conv(repeated), rtol=0, atol=1e-12)


def test_attention_is_softmax_of_scaled_products_head_by_head() -> None:
    layer = settled(Attention(8, 2, groups=2, zero=False))
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    heads = []
    for head in range(2):
        q, k, v = (tokens @ layer.qkv.weight[8 * part + 4 * head :][:4].T + layer.qkv.bias[8 * part + 4 * head :][:4] for part in range(3))
        heads.append(((q @ k.transpose(1, 2)) / 2).softmax(-1) @ v)
    expected = x + layer.proj(torch.cat(heads, dim=2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("resize", ["", "down", "up"])
def test_residual_block_is_its_formula(film: bool, resize: str) -> None:
    block = settled(ResidualBlock(2, 4, 8, 6, groups=2, dropout=0.0, film=film, zero=True, resize=resize))
    x, emb = torch.randn(2, 4, 4, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def swish(value: Tensor) -> Tensor:
        return value * value.sigmoid()

    def sized(value: Tensor) -> Tensor:
        if resize == "down":
            return value.unflatten(3, (3, 2)).mean(4).unflatten(2, (2, 2)).mean(3)
        return value.repeat_interleave(2, 2).repeat_interleave(2, 3) if resize else value

    h = block.conv1(sized(swish(block.norm1(x))))
    assert block.project is not None
    told = block.project(emb)[:, :, None, None]
    h = block.norm2(h) * (1 + told[:, :8]) + told[:, 8:] if film else block.norm2(h + told)
    assert block.shortcut is not None
    torch.testing.assert_close(block(x, emb), block.shortcut(sized(x)) + block.conv2(swish(h)), rtol=0, atol=1e-12)


def test_halving_pads_one_zero_at_the_end_only() -> None:
    layer = settled(Downsample(1, 1))
    first, second, third = layer.conv.weight.flatten().tolist()
    bias = layer.conv.state_dict()["bias"].item()
    result = layer(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64), torch.zeros(1, 1))
    assert result.flatten().tolist() == pytest.approx([first + 2 * second + 3 * third + bias, 3 * first + 4 * second + bias])


@pytest.mark.parametrize(("config", "shape", "count"), [(TINY, (1, 4, 4), 8), (MLPConfig(width=8, depth=3), (5,), 3)])
def test_every_block_is_told_the_swish_of_the_embedding(config: UNetConfig | MLPConfig, shape: tuple[int, ...], count: int) -> None:
    told: list[Tensor] = []
    made: list[Any] = []
    network = settled(config.build(shape))
    network.embed.register_forward_hook(lambda module, given, result: made.append(result))
    for part in network.modules():
        if isinstance(part, ResidualBlock | MLPBlock) and part.project is not None:
            part.project.register_forward_hook(lambda module, given, result: told.append(given[0]))
    network(torch.zeros(1, *shape, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert len(told) == count
    assert all(torch.allclose(value, made[0] * made[0].sigmoid(), rtol=0, atol=1e-14) for value in told)


def test_branches_that_start_at_zero_leave_their_input_as_it_is() -> None:
    emb = torch.randn(2, 6)
    picture, vector = torch.randn(2, 8, 4, 6), torch.randn(2, 6)
    block = ResidualBlock(2, 8, 8, 6, groups=2, dropout=0.0, film=False, zero=True)
    torch.testing.assert_close(block(picture, emb), picture, rtol=0, atol=0)
    torch.testing.assert_close(Attention(8, 2, groups=2, zero=True)(picture), picture, rtol=0, atol=0)
    torch.testing.assert_close(MLPBlock(6, 0.0)(vector, emb), vector, rtol=0, atol=0)


def test_mlp_block_is_its_formula() -> None:
    block = settled(MLPBlock(8, 0.0))
    h, emb = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    scale, shift = block.project(emb).chunk(2, dim=1)
    normed = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    inner = block.layer1(normed * (1 + scale) + shift)
    torch.testing.assert_close(block(h, emb), h + block.layer2(inner * inner.sigmoid()), rtol=0, atol=1e-12)


def test_sinusoidal_is_sines_then_cosines_from_frequency_1_to_1_in_10000() -> None:
    wave = sinusoidal(torch.tensor([0.0, 3.0, 999.0], dtype=torch.float64), 8)
    for row, c in enumerate((0.0, 3.0, 999.0)):
        angles = [c * 10000 ** (-i / 3) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert wave[row].tolist() == pytest.approx(expected, abs=1e-12)
    assert sinusoidal(torch.tensor([7.0], dtype=torch.bfloat16), 4).dtype == torch.float32


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [(128, 32, 32), (256, 32, 32), (384, 32, 32), (32, 32, 8), (48, 32, 12), (20, 32, 5), (6, 32, 1), (3, 32, 1), (128, 1, 1)],
)
def test_groups_divide_the_channels_and_hold_four(channels: int, groups: int, expected: int) -> None:
    assert group_norm(channels, groups).num_groups == expected


def test_weights_start_uniform_with_variance_one_over_the_mean_fan() -> None:
    torch.manual_seed(0)
    weight = conv(2, 64, 32).weight
    bound = math.sqrt(6 / (9 * (64 + 32)))
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    qkv = Attention(64, 1, groups=8, zero=True).qkv.weight
    assert qkv.std().item() == pytest.approx(1 / 8, rel=0.03)  # three square matrices, not one of 64 x 192
    assert conv(2, 4, 4).state_dict()["bias"].abs().max() == 0
