"""Self-conditioning: what the network is shown in sampling and in training, through every sampler and wrapper."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddpm
from ddpm.denoiser import Codec, LogSNRClock, NetworkDenoiser, Twice, V
from ddpm.errors import ConfigError
from ddpm.guidance import AutoGuided, ClassifierFree, Mask, Projection
from ddpm.networks.config import CondSpec
from ddpm.process import Cosine, Process
from ddpm.sampling import DDIM, SAMPLERS, Restart, Sampler, SingleStep, trajectory
from ddpm.training import Tricks
from small_runs import SMALL_UNET, environment, settings, table, trainer_for


class Recorder(nn.Module):
    """A network without parameters that keeps what it was shown, and answers to it in a share."""

    def __init__(self, share: float = 0.3) -> None:
        super().__init__()
        self.share, self.shown = share, list[Tensor | None]()

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        """Something of x, the class and what was fed back."""
        fed = (cond or {}).get("x0")
        self.shown.append(fed)
        known = (cond or {}).get("class", torch.zeros(len(x)))
        return torch.tanh(x + known.to(x.dtype)[:, None]) + (0.0 if fed is None else self.share * fed)


def recorded(share: float = 0.3, *, on: bool = True) -> tuple[NetworkDenoiser, Recorder]:
    """A denoiser of two features round a recorder."""
    codec, network = Codec(shift=(0.0, 0.0), scale=(1.0, 1.0), low=(-1.0, -1.0), high=(1.0, 1.0)), Recorder(share)
    denoiser = NetworkDenoiser(network, Process(Cosine()), V(), LogSNRClock(), codec, (2,), self_condition=on)
    return denoiser, network


@pytest.mark.parametrize("sampler", [*(member() for member in SAMPLERS if member is not Restart), SingleStep(order=3)], ids=repr)
def test_every_call_of_a_step_is_shown_what_the_step_before_said(sampler: Sampler) -> None:
    denoiser, network = recorded()
    before, seen = torch.zeros(3, 2), 0
    for frame in trajectory(denoiser, 3, steps=6, sampler=sampler, clip="static"):
        if frame.prediction is None:
            continue
        assert len(network.shown) > seen
        for shown in network.shown[seen:]:
            assert shown is not None and torch.equal(shown, before)
        before, seen = frame.prediction.x0, len(network.shown)
        assert before.abs().max() <= 1.0  # after clipping


@pytest.mark.parametrize("sampler", [DDIM(), SingleStep()], ids=repr)
def test_a_network_that_does_not_look_draws_the_same_samples(sampler: Sampler) -> None:
    one, other = (ddpm.sample(recorded(0.0, on=on)[0], 5, steps=7, sampler=sampler, decode=False) for on in (True, False))
    assert torch.equal(one, other)
    looks = ddpm.sample(recorded(0.3)[0], 5, steps=7, sampler=sampler, decode=False)
    assert not torch.allclose(looks, one, atol=1e-3)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    denoiser, _ = recorded()
    whole = ddpm.sample(denoiser, 5, steps=6, decode=False)
    assert torch.allclose(whole, ddpm.sample(denoiser, 5, steps=6, batch=2, decode=False), atol=1e-6)


COMPILED = """
import torch
from ddpm.denoiser import Codec, LogSNRClock, NetworkDenoiser, V
from ddpm.process import Cosine, Process, Uniform
from ddpm.sampling import DDIM

class Steady(torch.nn.Module):
    def forward(self, x, c_noise, cond):
        return torch.tanh(x) + torch.cos(c_noise)[:, None] + 0.3 * cond["x0"]

codec = Codec(shift=(0.0,), scale=(1.0,))
denoiser = NetworkDenoiser(Steady(), Process(Cosine()), V(), LogSNRClock(), codec, (1,), self_condition=True)
sampler, x = DDIM(), torch.ones(2, 1)
compiled, x0 = torch.compile(sampler.step, backend="eager", fullgraph=True), torch.zeros_like(x)
with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
    for row in sampler.plan(denoiser.bind(), Uniform().times(denoiser.process, 50)).rows(x):
        x, _, prediction = compiled(denoiser.bind({"x0": x0}), x, row, (), None)
        x0 = prediction.x0
"""


def test_a_step_compiles_once_for_all_rows() -> None:
    """In a process of its own: the checks of annotations that tests run under would break every graph."""
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment(), capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


def test_wrappers_hand_it_on() -> None:
    denoiser, network = recorded()
    cond = {"class": torch.tensor([0, 1, 2])}
    weak, mask = recorded()[0], Mask(torch.tensor([True, False]))
    for wrapped in (ClassifierFree(denoiser, 2.0), AutoGuided(denoiser, weak, 2.0), Projection(denoiser, mask, torch.zeros(3, 2))):
        network.shown.clear()
        frames = list(trajectory(wrapped, 3, steps=3, cond=cond))
        last = network.shown[-1]
        assert last is not None and frames[2].prediction is not None
        assert torch.equal(last[:3], frames[2].prediction.x0) and torch.equal(last[-3:], last[:3])  # both halves of guidance
    with pytest.raises(ConfigError, match="no condition to guide by"):
        ddpm.sample(ClassifierFree(denoiser, 2.0), 3, steps=3)


def test_the_network_takes_zeros_where_nothing_is_fed_back() -> None:
    for shape, config in (((3, 8, 8), replace(SMALL_UNET, zero_init=False)), ((5,), None)):
        torch.manual_seed(0)
        network = (config or settings(Path()).network).build(shape, 1, CondSpec(x0=True)).eval()  # type: ignore[union-attr]
        nn.init.normal_(network.head.weight)  # pyright: ignore[reportArgumentType]
        x, c_noise = torch.randn(2, *shape), torch.zeros(2)
        nothing = network(x, c_noise)
        assert torch.equal(nothing, network(x, c_noise, {"x0": torch.zeros_like(x)}))
        assert not torch.allclose(nothing, network(x, c_noise, {"x0": torch.ones_like(x)}), atol=1e-4)
        with pytest.raises(ConfigError, match="x0"):
            network(x, c_noise, {"x0": torch.zeros(2, 1)})


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_training_shows_the_first_prediction_and_learns_from_the_second_alone(dtype: torch.dtype | None, tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, table(), tricks=Tricks(self_condition=True))
    denoiser, head = trainer.denoiser, trainer.denoiser.network.head
    assert isinstance(head, nn.Linear)
    x, at = torch.randn(6, 3), denoiser.process.at(torch.full((6,), 0.4), like=torch.zeros(6, 3))
    found = []
    for by_hand in (False, True):
        denoiser.zero_grad()
        nn.init.constant_(head.weight, 0.1)
        with torch.autocast("cpu", dtype, enabled=dtype is not None, cache_enabled=not by_hand):
            if by_hand:
                first = denoiser(x, at, None).x0.detach()
                prediction = denoiser(x, at, {"x0": first})
            else:
                prediction = Twice(denoiser)(x, at)
        prediction.x0.square().sum().backward()
        found.append([prediction.x0.detach(), *(p.grad for p in denoiser.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and sum(bool(g.any()) for g in found[0][1:]) >= 4


def test_half_of_the_passes_are_shown_a_prediction_whatever_the_shard(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, table(), tricks=Tricks(self_condition=True))
    feed = trainer.feed
    again = [feed.batch(step, part).again for step in range(200) for part in (0, 1)]
    assert abs(sum(again) - 200) < 4.5 * 10
    feed.shards = 2
    assert all(feed.batch(step, 1, shard).again == again[2 * step + 1] for step in range(8) for shard in (0, 1))
    feed.shards = 1
    used = [tensor.again for tensor in map(lambda step: feed.batch(step, 0), range(6))]
    seen: list[bool] = []
    forward = trainer.denoiser.network.forward
    trainer.denoiser.network.forward = lambda *args: seen.append(bool(args[2]["x0"].any())) or forward(*args)  # type: ignore[method-assign]
    for _ in used:
        trainer.step(print)
    assert seen == [shown for twice in used for shown in ([False, True] if twice else [False])]
