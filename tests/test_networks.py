"""The networks: shapes, conditions, refusals, initialisation, and every fast way against the plain one."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any, TypeVar, cast

import pytest
import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError
from ddpm.networks import NETWORKS, CondSpec, MLPConfig, UNetConfig, blocks
from ddpm.networks.blocks import Attention, Downsample, ResidualBlock, Upsample, conv, group_norm, reference
from ddpm.networks.embeddings import sinusoidal

SHAPES = [(2, 8), (3, 4, 8), (2, 2, 4, 6)]
TINY = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(1,), dropout=0.0, groups=2)
M = TypeVar("M", bound=nn.Module)
VARIANTS = {
    "plain": TINY,
    "film": dataclasses.replace(TINY, film=True, heads=2),
    "block": dataclasses.replace(TINY, resample="block", attention=(0, 1), head_channels=4),
    "deep": dataclasses.replace(TINY, mults=(2, 1), blocks=2, attention=(), groups=3),
}
ALL = CondSpec(classes=3, vector=4, image=2)


def settled(network: M, seed: int = 0, dtype: torch.dtype = torch.float64) -> M:
    """The network with every parameter random, so that no branch is switched off by a zero."""
    generator = torch.Generator().manual_seed(seed)
    network = network.to(dtype)
    with torch.no_grad():
        for value in network.parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=dtype)
            value.copy_(noise / math.sqrt(value[0].numel()) if value.ndim > 1 else 1 + 0.3 * noise)
    return network


def inputs(shape: tuple[int, ...], batch: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    cond = {"class": torch.arange(batch) % 3, "vector": normal(batch, 4), "image": normal(batch, 2, *shape[1:])}
    return normal(batch, *shape), 10 * torch.rand(batch, generator=generator, dtype=dtype), cond


def built() -> list[Any]:
    pictures = [pytest.param(config, shape, id=f"{name}-{len(shape) - 1}d") for name, config in VARIANTS.items() for shape in SHAPES]
    return [*pictures, pytest.param(MLPConfig(width=8, depth=2), (5,), id="mlp")]


networks = pytest.mark.parametrize(("config", "shape"), built())


def test_settings_are_read_and_checked_without_torch() -> None:
    code = (
        "import sys; from ddpm.networks import NETWORKS; print([n().problems((3, 8, 8)) for n in NETWORKS]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[], ['shape: MLP got (3, 8, 8)") and done.stdout.endswith("\nFalse\n")


def test_every_setting_explains_itself() -> None:
    assert [network.__name__ for network in NETWORKS] == ["UNetConfig", "MLPConfig"]
    for network in NETWORKS:
        assert all(setting.metadata.get("help") for setting in dataclasses.fields(network))


@networks
@pytest.mark.parametrize("out", [1, 2])
def test_output_is_shaped_as_the_input_and_zero_at_first(config: UNetConfig | MLPConfig, shape: tuple[int, ...], out: int) -> None:
    network = config.build(shape, out, ALL)
    x, c_noise, cond = inputs(shape, dtype=torch.float32)
    result = network(x, c_noise, cond)
    assert result.shape == (3, out * shape[0], *shape[1:])
    assert torch.equal(result, torch.zeros_like(result))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x, c_noise, cond).dtype == torch.float32


def test_without_zero_init_nothing_starts_at_zero() -> None:
    network = dataclasses.replace(TINY, zero_init=False).build((1, 4, 4))
    assert network(torch.ones(2, 1, 4, 4), torch.ones(2)).abs().min() > 0
    assert all(value.abs().max() > 0 for name, value in network.named_parameters() if name.endswith("weight"))


@networks
def test_gradients_reach_every_parameter_and_the_input(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    network = settled(config.build(shape, 2, ALL))
    x, c_noise, cond = inputs(shape)
    cond["null"] = torch.tensor([False, False, True])
    network(x.requires_grad_(), c_noise, cond).square().sum().backward()
    dead = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert not dead
    assert x.grad is not None and (x.grad.flatten(1).abs().amax(1) > 0).all()


@networks
def test_each_condition_changes_its_own_sample_only(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    network = settled(config.build(shape, 1, ALL)).eval()
    x, c_noise, cond = inputs(shape)
    before = network(x, c_noise, cond)
    for key in ("class", "vector", "image"):
        changed = cond[key].clone()
        changed[1] = (changed[1] + 1) % 3 if key == "class" else changed[1] + 1
        difference = (network(x, c_noise, {**cond, key: changed}) - before).flatten(1).abs().amax(1)
        assert difference[1] > 1e-3, key
        assert difference[[0, 2]].max() < 1e-12, key
    later = network(x, c_noise + torch.tensor([0.0, 1.0, 0.0]), cond)
    assert ((later - before).flatten(1).abs().amax(1) > 1e-3).tolist() == [False, True, False]


@networks
def test_null_means_that_no_condition_is_read(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    network = settled(config.build(shape, 1, ALL)).eval()
    x, c_noise, cond = inputs(shape)
    other = {"class": (cond["class"] + 1) % 3, "vector": -cond["vector"], "image": cond["image"] + 3}
    null = torch.tensor([True, False, True])
    full = network(x, c_noise, cond)
    one, two = (network(x, c_noise, {**given, "null": null}) for given in (cond, other))
    torch.testing.assert_close(one[null], two[null], rtol=0, atol=1e-12)
    torch.testing.assert_close(one[~null], full[~null], rtol=0, atol=1e-12)
    assert (one[null] - full[null]).flatten(1).abs().amax(1).min() > 1e-3
    alone = network(x, c_noise, {"null": torch.ones(3, dtype=torch.bool)})
    torch.testing.assert_close(alone[null], one[null], rtol=0, atol=1e-12)
    none = torch.zeros(3, dtype=torch.bool)
    torch.testing.assert_close(network(x, c_noise, {**cond, "null": none}), full, rtol=0, atol=1e-12)


def test_null_rows_are_learned_apart_from_the_rest() -> None:
    network = settled(TINY.build((1, 4), 1, ALL))
    x, c_noise, cond = inputs((1, 4))
    network(x, c_noise, {**cond, "null": torch.ones(3, dtype=torch.bool)}).sum().backward()
    grads = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    assert (grads["embed.classes.weight"].abs().amax(1) > 0).tolist() == [False, False, False, True]
    assert grads["embed.null_vector"].abs().max() > 0
    assert grads["embed.vector_in.weight"].abs().max() == 0
    assert grads["stem.weight"][:, 1:].abs().max() == 0  # the image's channels saw zeros


@networks
@pytest.mark.parametrize("enough", [0, 10**9], ids=["transposed", "repeated"])
def test_fast_ways_equal_the_plain_one(
    config: UNetConfig | MLPConfig, shape: tuple[int, ...], enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ENOUGH", enough)
    network = settled(config.build(shape, 2, ALL)).eval()
    x, c_noise, cond = inputs(shape)
    cond["null"] = torch.tensor([False, False, True])

    def run() -> list[Tensor]:
        result = network(x.requires_grad_(), c_noise, cond)
        return [result.detach(), *torch.autograd.grad(result.sin().sum(), [x, *network.parameters()])]

    fast = run()
    with torch.inference_mode():
        torch.testing.assert_close(network(x, c_noise, cond), fast[0], rtol=0, atol=1e-11)
    with reference(network):
        plain = run()
    for one, two in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_the_fast_ways_are_taken_and_reference_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for module, name in ((blocks, "short_attention"), (blocks, "stretched"), (torch.nn.functional, "scaled_dot_product_attention")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, name=name, original=original: taken.append(name) or original(*given))
    network, x = TINY.build((1, 16, 16)), torch.zeros(4, 1, 16, 16)
    network(x, torch.zeros(4))
    assert set(taken) == {"short_attention", "stretched"}
    taken.clear()
    with pytest.raises(KeyError), reference(network):
        network(x, torch.zeros(4))
        raise KeyError
    assert not taken
    network(x[:1], torch.zeros(1))
    assert set(taken) == {"short_attention"}  # 64 positions do not pay for making the weights
    taken.clear()
    dataclasses.replace(TINY, heads=2).build((1, 16, 16))(x[:1], torch.zeros(1))
    assert set(taken) == {"scaled_dot_product_attention"}


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


def test_every_block_of_the_unet_is_told_the_swish_of_the_embedding() -> None:
    network, told, made = settled(TINY.build((1, 4, 4))), [], []
    network.embed.register_forward_hook(lambda module, given, result: made.append(result))
    for part in network.modules():
        if isinstance(part, ResidualBlock):
            part.project.register_forward_hook(lambda module, given, result: told.append(given[0]))
    network(torch.zeros(1, 1, 4, 4, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert len(told) == 8
    assert all(torch.allclose(value, made[0] * made[0].sigmoid(), rtol=0, atol=1e-14) for value in told)


def test_mlp_is_its_formula() -> None:
    network = settled(MLPConfig(width=8, depth=1).build((3,)))
    x, c_noise = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    emb = network.embed(c_noise, None)
    h, block = network.stem(x), network.blocks[0]
    scale, shift = block.project(emb * emb.sigmoid()).chunk(2, dim=1)
    inner = block.layer1((h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt() * (1 + scale) + shift)
    h = network.norm(h + block.layer2(inner * inner.sigmoid()))
    torch.testing.assert_close(network(x, c_noise), network.head(h * h.sigmoid()), rtol=0, atol=1e-12)


def test_axes_are_treated_alike() -> None:
    network, turned = settled(TINY.build((1, 4, 8))), settled(TINY.build((1, 8, 4)))
    with torch.no_grad():
        for value in turned.parameters():
            if value.ndim == 4:
                value.copy_(value.transpose(2, 3).clone())
    x, c_noise = torch.randn(2, 1, 4, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(turned(x.transpose(2, 3), c_noise).transpose(2, 3), network(x, c_noise), rtol=0, atol=1e-11)


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


def test_dropout_acts_in_training_only() -> None:
    unet, mlp = dataclasses.replace(TINY, dropout=0.5).build((1, 4, 4)), MLPConfig(width=8, depth=1, dropout=0.5).build((5,))
    for network in (settled(unet), settled(mlp)):
        shape = network.shape
        x, c_noise = torch.ones(2, *shape, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        assert not torch.equal(network(x, c_noise), network(x, c_noise))
        network.eval()
        assert torch.equal(network(x, c_noise), network(x, c_noise))


def test_other_sizes_than_built_for_are_taken_where_they_divide() -> None:
    network = TINY.build((1, 4, 4))
    assert network(torch.zeros(1, 1, 6, 10), torch.zeros(1)).shape == (1, 1, 6, 10)


def test_strides_of_the_input_do_not_matter() -> None:
    network = settled(TINY.build((3, 4, 4)))
    x, c_noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last), c_noise), network(x, c_noise), rtol=0, atol=1e-12)


def test_names_of_weights_are_fixed() -> None:
    block = ["norm1", "conv1", "project", "norm2", "conv2"]
    attention = ["norm", "qkv", "proj"]
    modules = ["embed.time_in", "embed.time_out", "stem", "norm", "head", "down.0.resample.conv", "up.1.resample.conv"]
    modules += [f"down.0.blocks.0.{part}" for part in block] + [f"down.1.blocks.0.{part}" for part in [*block, "shortcut"]]
    modules += [f"down.1.attention.0.{part}" for part in attention]
    modules += [f"middle.{which}.{part}" for which in ("first", "second") for part in block]
    modules += [f"middle.attention.{part}" for part in attention]
    for level in (0, 1):
        modules += [f"up.{level}.blocks.{index}.{part}" for index in (0, 1) for part in [*block, "shortcut"]]
    modules += [f"up.1.attention.{index}.{part}" for index in (0, 1) for part in attention]
    names = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert set(TINY.build((1, 4, 4)).state_dict()) == names
    extra = {"embed.classes.weight", "embed.null_vector"}
    extra |= {f"embed.vector_{end}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}
    assert set(TINY.build((1, 4, 4), 1, ALL).state_dict()) == names | extra
    block = [f"blocks.0.{part}" for part in ("project", "layer1", "layer2")]
    modules = ["embed.time_in", "embed.time_out", "stem", "norm", "head", *block]
    assert set(MLPConfig(depth=1).build((5,)).state_dict()) == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@networks
def test_saved_weights_give_the_same_network(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    one, two = settled(config.build(shape, 1, ALL), seed=0), settled(config.build(shape, 1, ALL), seed=1)
    given = inputs(shape)
    two.load_state_dict(one.state_dict())
    assert all(value.is_contiguous() for value in one.state_dict().values())
    assert torch.equal(one.eval()(*given), two.eval()(*given))


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (UNetConfig(), (3, 30, 32), r"divisible by 8; got \(3, 30, 32\), where not divisible: 30 \(nearest: 24 or 32\)\. Resize or pad"),
        (UNetConfig(), (1, 3), r"3 \(nearest: 8\)"),
        (UNetConfig(), (5,), r"UNet got \(5,\); it takes .* For a vector \(F,\) use MLP"),
        (UNetConfig(), (1, 8, 8, 8, 8), r"it takes \(C, L\), \(C, H, W\) or \(C, T, H, W\)"),
        (UNetConfig(mults=()), (3, 8, 8), r"mults: got none; give one"),
        (UNetConfig(mults=(1, 0)), (3, 8, 8), r"mults .*0.*>= 1"),
        (UNetConfig(attention=(4,)), (3, 8, 8), r"attention: got level 4; allowed 0\.\.3"),
        (UNetConfig(heads=3), (3, 8, 8), r"heads: got 3; it must divide the 256 channels of level 1"),
        (UNetConfig(head_channels=48), (3, 8, 8), r"head_channels: got 48; it must divide the 256 channels"),
        (UNetConfig(dropout=1.0), (3, 8, 8), r"dropout .*1\.0.*>= 0 and < 1"),
        (UNetConfig(resample=cast(Any, "bilinear")), (3, 8, 8), r"resample .*bilinear.*conv.*block"),
        (UNetConfig(channels=5), (3, 8, 8), r"channels: got 5; the time embedding needs an even number"),
        (UNetConfig(channels=2, groups=0), (3, 8, 8), r"channels .*2.*>= 4(.|\n)*groups .*0.*>= 1"),
        (MLPConfig(), (3, 8), r"MLP got \(3, 8\); it takes vectors \(F,\)"),
        (MLPConfig(width=3, depth=0), (3,), r"width .*3.*>= 4\ndepth .*0.*>= 1"),
        (MLPConfig(width=5), (3,), r"width: got 5; the time embedding needs an even number"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_all_at_once(config: UNetConfig | MLPConfig, shape: tuple[int, ...], message: str) -> None:
    assert config.problems(shape)
    with pytest.raises(ConfigError, match=message):
        config.build(shape)


def test_condition_spec_and_out_are_checked_with_the_rest() -> None:
    for config, shape in ((TINY, (1, 4)), (MLPConfig(), (4,))):
        with pytest.raises(ConfigError, match=r"cond\.classes .*-1.*\nout: got 0"):
            config.build(shape, 0, CondSpec(classes=-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (3, 2, 4, 4)}, r"got x of shape \(3, 2, 4, 4\); it was built for \(B, 1, 4, 4\)"),
        ({"x": (3, 1, 4)}, r"got x of shape \(3, 1, 4\)"),
        ({"x": (3, 1, 4, 5)}, r"5 is not divisible by 2, nearest: 4 or 6"),
        ({"c_noise": ()}, r"got c_noise of shape \(\); it needs one number a sample, \(3,\)"),
        ({"class": None}, r'cond\["class"\]: this network is conditioned on it and got .*"vector"|\'vector\''),
        ({"class": torch.zeros(3)}, r"torch.float32; it must hold whole numbers 0\.\.2"),
        ({"class": torch.zeros(3, 1, dtype=torch.int64)}, r'cond\["class"\]: got shape \(3, 1\); .* need \(3,\)'),
        ({"vector": torch.zeros(3, 5)}, r'cond\["vector"\]: got shape \(3, 5\); .* need \(3, 4\)'),
        ({"image": torch.zeros(3, 2, 4, 2)}, r"need \(3, 2, 4, 4\)"),
        ({"null": torch.zeros(3)}, r'cond\["null"\]: got torch.float32 \(3,\); it must be bool \(3,\)'),
    ],
)
def test_misuse_is_refused_with_what_was_given_and_what_is_needed(change: dict[str, Any], message: str) -> None:
    network = TINY.build((1, 4, 4), 1, ALL)
    x, c_noise, cond = inputs((1, 4, 4), dtype=torch.float32)
    x = torch.zeros(change.pop("x", x.shape))
    c_noise = torch.zeros(change.pop("c_noise", c_noise.shape))
    cond = {key: value for key, value in {**cond, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        network(x, c_noise, cond)


def test_mlp_refuses_misuse_too() -> None:
    network = MLPConfig(width=8).build((5,))
    for shape, levels in (((2, 4), (2,)), ((2, 5, 1), (2,)), ((2, 5), (3,))):
        with pytest.raises(ConfigError, match="MLP: got"):
            network(torch.zeros(shape), torch.zeros(levels))
