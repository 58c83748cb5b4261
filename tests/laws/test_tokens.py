"""Laws of conditions in tokens: what is not there counts for nothing, and what is asked for reaches the answer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError
from ddpm.networks import CondSpec, MLPConfig, UNetConfig
from ddpm.networks.blocks import checkpointed, reference
from ddpm.networks.tokens import Context, CrossAttention

SIZE = 6
TINY = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(1,), dropout=0.0, groups=2)
HEADS = dataclasses.replace(TINY, heads=2, film=True)
BUILT = [
    *(pytest.param(TINY, shape, id=f"unet-{len(shape) - 1}d") for shape in ((2, 8), (3, 4, 8), (2, 2, 4, 6))),
    pytest.param(HEADS, (3, 4, 8), id="heads"),
    pytest.param(MLPConfig(width=8, depth=2), (5,), id="mlp"),
]
networks = pytest.mark.parametrize(("config", "shape"), BUILT)


def settled(config: UNetConfig | MLPConfig, shape: tuple[int, ...], spec: CondSpec) -> nn.Module:
    """A network in float64 with every parameter random, so that no branch is switched off by a zero."""
    generator = torch.Generator().manual_seed(0)
    network = config.build(shape, 1, spec).double().eval()
    with torch.no_grad():
        for value in network.parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise / math.sqrt(value[0].numel()) if value.ndim > 1 else 1 + 0.3 * noise)
    return network


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(seed: int = 2) -> Tensor:
    """Tokens (3, 4, SIZE): of four, of two, and of none."""
    tokens = normal(3, 4, SIZE, seed=seed)
    tokens[1, 2:] = 0.0
    tokens[2] = 0.0
    return tokens


@networks
def test_what_is_not_there_counts_for_nothing(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    network, x, c = settled(config, shape, CondSpec(tokens=SIZE)), normal(3, *shape), torch.tensor([0.1, 2.0, 30.0]).double()
    before = network(x, c, {"tokens": told()})
    padded = torch.cat([told(), torch.zeros(3, 5, SIZE, dtype=torch.float64)], dim=1)
    assert torch.allclose(network(x, c, {"tokens": padded}), before, atol=1e-12, rtol=0)
    anywhere = padded[:, torch.randperm(9, generator=torch.Generator().manual_seed(3))]  # zeros between tokens, tokens in any order
    assert torch.allclose(network(x, c, {"tokens": anywhere}), before, atol=1e-12, rtol=0)
    alone = network(x[1:2], c[1:2], {"tokens": told()[1:2, :2]})
    assert torch.allclose(alone, before[1:2], atol=1e-12, rtol=0)
    with reference(network):
        assert torch.allclose(network(x, c, {"tokens": told()}), before, atol=1e-10, rtol=0)


@networks
def test_null_is_no_token_at_all(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    network, x, c = settled(config, shape, CondSpec(tokens=SIZE)), normal(3, *shape), torch.tensor([0.1, 2.0, 30.0]).double()
    everyone = torch.ones(3, dtype=torch.bool)
    nothing = network(x, c, {"null": everyone})
    assert torch.equal(network(x, c, {"tokens": told(), "null": everyone}), network(x, c, {"tokens": 9 * told(7), "null": everyone}))
    assert torch.allclose(network(x, c, {"tokens": told(), "null": everyone}), nothing, atol=1e-12, rtol=0)
    assert torch.allclose(network(x, c, {"tokens": torch.zeros(3, 2, SIZE).double()}), nothing, atol=1e-12, rtol=0)
    first = torch.tensor([True, False, False])
    mixed, asked = network(x, c, {"tokens": told(), "null": first}), network(x, c, {"tokens": told()})
    assert torch.allclose(mixed[0], nothing[0], atol=1e-12, rtol=0) and torch.allclose(mixed[1:], asked[1:], atol=1e-12, rtol=0)
    assert not torch.allclose(asked[:2], nothing[:2], atol=1e-3) and torch.allclose(asked[2], nothing[2], atol=1e-12, rtol=0)


@networks
def test_a_network_without_tokens_becomes_one_with_them_and_says_the_same(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    without, told_by = settled(config, shape, CondSpec()), config.build(shape, 1, CondSpec(tokens=SIZE)).double().eval()
    added = told_by.load_state_dict(without.state_dict(), strict=False)
    assert not added.unexpected_keys and all("told" in name or "embed.tokens" in name for name in added.missing_keys)
    x, c = normal(3, *shape), torch.tensor([0.1, 2.0, 30.0]).double()
    assert torch.equal(told_by(x, c, {"tokens": told()}), without(x, c))


@networks
def test_gradients_reach_every_weight_and_the_tokens(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    network, x, c = settled(config, shape, CondSpec(tokens=SIZE)), normal(3, *shape), torch.tensor([0.1, 2.0, 30.0]).double()
    tokens = told().requires_grad_()
    network(x, c, {"tokens": tokens}).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in network.parameters())
    assert tokens.grad is not None and (tokens.grad[0] != 0).any(1).all() and not tokens.grad[2].any()
    if isinstance(config, UNetConfig):  # computed twice, the gradients are the same
        kept = [value.grad.clone() for value in network.parameters() if value.grad is not None]
        network.zero_grad()
        with checkpointed(network, True):
            network(x, c, {"tokens": told()}).square().sum().backward()
        assert all(torch.allclose(a, b.grad) for a, b in zip(kept, network.parameters(), strict=True) if b.grad is not None)


def test_attention_is_its_formula() -> None:
    part = CrossAttention(8, 5, 2, groups=2, zero=False).double()
    x, context = normal(2, 8, 3), Context(normal(2, 4, 5, seed=4), torch.tensor([[True, True, False, True], [True, False, False, False]]))
    rows = part.norm(x).transpose(1, 2)
    out = torch.zeros(2, 3, 8, dtype=torch.float64)
    for sample in range(2):
        seen = context.tokens[sample][context.seen[sample]]
        for head in range(2):
            part_of = slice(4 * head, 4 * head + 4)
            q, k, v = part.q(rows[sample])[:, part_of], part.k(seen)[:, part_of], part.v(seen)[:, part_of]
            for place in range(3):
                weights = torch.exp(k @ q[place] / 2.0)
                out[sample, place, part_of] = (weights / weights.sum()) @ v
    assert torch.allclose(part(x, context), x + part.proj(out).transpose(1, 2), atol=1e-12, rtol=0)


def test_refusals_say_what_is_needed() -> None:
    network = TINY.build((2, 8), 1, CondSpec(tokens=SIZE))
    x, c = torch.zeros(3, 2, 8), torch.zeros(3)
    with pytest.raises(ConfigError, match=r'cond\["tokens"\]: this network is conditioned on it and got nothing'):
        network(x, c)
    for wrong in (torch.zeros(3, 4, 5), torch.zeros(2, 4, SIZE), torch.zeros(3, SIZE)):
        with pytest.raises(ConfigError, match=rf'cond\["tokens"\]: got shape .* need \(3, L, {SIZE}\)'):
            network(x, c, {"tokens": wrong})
