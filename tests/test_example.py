"""examples/ddpm_in_150_lines.py computes what the library computes: tables, loss, reverse step and a whole sampling run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpm.denoiser import Codec, Eps, Index, NetworkDenoiser
from ddpm.objective import Denoising, Draws
from ddpm.process import Full, Linear, Process
from ddpm.random import normals
from ddpm.sampling import Ancestral, sample

FILE = Path(__file__).parents[1] / "examples" / "ddpm_in_150_lines.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ddpm_in_150_lines", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example: Any = load()


class Adapter(nn.Module):
    """The example's eps_theta(x, t), t in 1..T, as the library calls a network: (x, index 0..T-1, cond)."""

    def __init__(self, eps_theta: nn.Module) -> None:
        super().__init__()
        self.eps_theta = eps_theta

    def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
        return self.eps_theta(x, (c_noise + 1).round())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def both() -> tuple[Any, nn.Module, NetworkDenoiser]:
    """The chain, a network with random weights and the library's denoiser round it, in float64."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = example.EpsMLP(features=2, width=32).double()
    torch.random.set_rng_state(state)
    codec = Codec(shift=(0.0, 0.0), scale=(1.0, 1.0), dtype="float64")
    return example.Chain(dtype=torch.float64), network, NetworkDenoiser(Adapter(network), Process(Linear()), Eps(), Index(), codec, (2,))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_alpha_bar(both: tuple[Any, nn.Module, NetworkDenoiser]) -> None:
    chain, _, denoiser = both
    at = denoiser.process.at(torch.arange(1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(chain.alpha_bar, at.alpha**2, rtol=1e-10, atol=0.0)


def test_the_loss(both: tuple[Any, nn.Module, NetworkDenoiser]) -> None:
    chain, network, denoiser = both
    t = torch.tensor([1, 2, 10, 100, 371, 500, 999, 1000])
    x_0, eps = draw(8, 2, seed=1), draw(8, 2, seed=2)
    ours = Denoising().build()(denoiser, x_0, None, Draws((t.double() - 0.5) / 1000, eps, eps))
    for i in range(8):
        theirs = example.L_simple(chain, network, x_0[i : i + 1], t[i : i + 1], eps[i : i + 1])
        torch.testing.assert_close(ours[i], theirs, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.mean(), example.L_simple(chain, network, x_0, t, eps), rtol=1e-6, atol=1e-9)


def test_a_reverse_step(both: tuple[Any, nn.Module, NetworkDenoiser]) -> None:
    chain, network, denoiser = both
    x, z = draw(5, 2, seed=3), draw(5, 2, seed=4)
    rows = Ancestral().plan(denoiser.bind(), Full().times(denoiser.process, 1000)).rows(x)
    with torch.no_grad():
        for t in (1000, 612, 2, 1):
            ours, _, _ = Ancestral().step(denoiser.bind(), x, rows[1000 - t], (), z)
            theirs = example.p_sample_step(chain, network, x, t, z if t > 1 else 0 * z)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_whole_sampling_run_with_the_same_noise(both: tuple[Any, nn.Module, NetworkDenoiser]) -> None:
    chain, network, denoiser = both
    ours = sample(denoiser, 3, steps=1000, sampler=Ancestral(), seed=9, clip="off", dtype=torch.float64)

    def noise(t: int) -> Tensor:
        return normals(9, range(3), (2,), "step", 1000 - t, torch.float64)

    theirs = example.sample(chain, network, normals(9, range(3), (2,), "start", dtype=torch.float64), noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert bool(torch.isfinite(theirs).all()) and len(FILE.read_text(encoding="utf-8").splitlines()) <= 150
