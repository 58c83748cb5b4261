"""The networks as wholes: shapes, conditions, gradients, names, and every fast way against the plain one."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from ddpm.networks import NETWORKS, CondSpec, MLPConfig, UNetConfig, blocks, resampling
from ddpm.networks.blocks import reference

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
    monkeypatch.setattr(resampling, "ENOUGH", enough)
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
    for module, name in ((blocks, "short_attention"), (resampling, "stretched"), (torch.nn.functional, "scaled_dot_product_attention")):
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


def test_axes_are_treated_alike() -> None:
    network, turned = settled(TINY.build((1, 4, 8))), settled(TINY.build((1, 8, 4)))
    with torch.no_grad():
        for value in turned.parameters():
            if value.ndim == 4:
                value.copy_(value.transpose(2, 3).clone())
    x, c_noise = torch.randn(2, 1, 4, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(turned(x.transpose(2, 3), c_noise).transpose(2, 3), network(x, c_noise), rtol=0, atol=1e-11)


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
