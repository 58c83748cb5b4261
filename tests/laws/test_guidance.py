"""Guidance: at scales 0 and 1 it is its parts, on exact models it is Bayes' rule, and whatever is switched off changes nothing."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from guided import KINDS, ByClass, ExactClassifier, kinds, world
from members import named
from torch import Tensor, nn
from worlds import close, plain_codec, unit

from ddpm.denoiser import Index
from ddpm.guidance import AutoGuided, ClassifierFree, ClassifierGuided, NetworkClassifier
from ddpm.networks import MLPConfig, UNetConfig
from ddpm.networks.blocks import reference
from ddpm.networks.classifier import build_classifier
from ddpm.process import EDM, VPSDE, At, Cosine, Linear, Process, Schedule, Straight
from ddpm.sampling import DDIM, sample, trajectory
from small_runs import environment

SCHEDULES: list[Schedule] = [Linear(), VPSDE(), Straight(), Cosine(clip=None), EDM()]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_schedule = pytest.mark.parametrize("schedule", named(SCHEDULES))


@every_kind
@every_schedule
def test_scales_0_and_1_are_the_parts_and_the_rest_lies_on_their_line(schedule: Schedule, kind: str) -> None:
    truth, x, at, cond = world(schedule)
    make = kinds(truth)[kind]
    none, one = make(0.0)(x, at, cond), make(1.0)(x, at, cond)
    if kind == "auto":
        assert torch.equal(none.x0, make(2.0).weak(x, at, cond).x0)  # type: ignore[attr-defined, operator]
    else:
        assert torch.equal(none.x0, truth(x, at).x0)
    if kind != "classifier":  # where it holds up to rounding: below
        assert torch.equal(one.x0, truth(x, at, cond).x0) and torch.equal(one.eps, truth(x, at, cond).eps)
    for scale in (-0.5, 0.5, 2.5, 8.0):
        for got, low, high in zip(make(scale)(x, at, cond)[:2], none[:2], one[:2], strict=True):
            close(got, low + scale * (high - low), rtol=1e-9, atol=1e-9 * float(high.abs().max() + low.abs().max()))


@every_kind
@every_schedule
def test_the_two_predictions_still_make_up_x(schedule: Schedule, kind: str) -> None:
    truth, x, at, cond = world(schedule, (2, 3))
    for options in ({}, {"rescale": 0.7}, {"interval": (0.2, 2.0)}, {"interval": (0.2, 2.0), "rescale": 1.0}):
        x0, eps, _ = kinds(truth)[kind](3.0, **options)(x, at, cond)
        size = 1.0 + float((at.alpha * x0).abs().max() + (at.sigma * eps).abs().max())
        close(truth.process.perturb(x0, eps, at), x, atol=1e-13 * size, rtol=0.0)
        assert bool(x0.isfinite().all() and eps.isfinite().all())


@every_schedule
def test_a_classifier_at_scale_1_makes_the_unconditional_model_the_conditional_one(schedule: Schedule) -> None:
    truth, x, at, cond = world(schedule)
    got, wanted = ClassifierGuided(truth, ExactClassifier(truth), 1.0)(x, at, cond), truth(x, at, cond)
    held = (at.alpha > 0).expand_as(x)  # at alpha = 0 x says nothing, and nothing is what the classifier changes
    close(got.x0[held], wanted.x0[held], rtol=1e-10, atol=1e-10)
    close(got.eps, wanted.eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
def test_guided_scores_are_the_combined_scores(scale: float) -> None:
    """Against derivatives of log-densities: (1 - w) log p(x) + w log p(x | y), and log p(x) + w log p(y | x), which are one."""
    truth, x, at, cond = world(VPSDE())
    x = x.requires_grad_()
    joint = torch.stack([one.log_density(x, at) for one in truth.each], 1).gather(1, cond["class"][:, None])[:, 0]  # type: ignore[operator]
    (wanted,) = torch.autograd.grad(((1 - scale) * truth.every.log_density(x, at) + scale * joint).sum(), x)
    x = x.detach()
    for guided in (ClassifierFree(truth, scale), ClassifierGuided(truth, ExactClassifier(truth), scale)):
        close(guided.score(x, at, cond), wanted, rtol=1e-9, atol=1e-9)


def test_an_unconditional_row_is_left_alone_by_the_classifier() -> None:
    truth, x, at, cond = world(VPSDE())
    null = torch.tensor([True, False] * 3)
    got, plain = ClassifierGuided(truth, ExactClassifier(truth), 3.0)(x, at, {**cond, "null": null}), truth(x, at)
    assert torch.equal(got.x0[null], plain.x0[null]) and not torch.allclose(got.x0[~null], plain.x0[~null])


@every_kind
def test_rescaling_gives_back_the_spread_of_scale_1(kind: str) -> None:
    truth, x, at, cond = world(VPSDE(), (2, 3))
    make = kinds(truth)[kind]
    one, four = make(1.0)(x, at, cond).x0, make(4.0)(x, at, cond).x0
    part, whole = make(4.0, rescale=0.7)(x, at, cond).x0, make(4.0, rescale=1.0)(x, at, cond).x0
    assert not torch.allclose(four.std((1, 2)), one.std((1, 2)), rtol=0.01)
    close(whole.std((1, 2)), one.std((1, 2)))
    close(part, 0.7 * whole + 0.3 * four)
    single = ClassifierFree(ByClass(Process(VPSDE()), (1,)), 4.0, rescale=1.0)  # one entry has no spread: nothing to give back
    assert torch.equal(single(x[:, 0, :1], At(*(level[:, :1, 0] for level in at)), cond).x0, ClassifierFree(
        single.denoiser, 4.0)(x[:, 0, :1], At(*(level[:, :1, 0] for level in at)), cond).x0)  # fmt: skip


@every_kind
def test_outside_the_interval_nothing_is_guided_to_the_last_bit(kind: str) -> None:
    truth, x, at, cond = world(VPSDE())
    make = kinds(truth)[kind]
    low, high = float(at.ratio[1]), float(at.ratio[2])  # the interval is open below: t = 0.3 is out, 0.6 is in, and so is 0.5
    got, free, plain = (model(x, at, cond) for model in (make(3.0, interval=(low, high), rescale=0.5), make(3.0, rescale=0.5), make(1.0)))
    inside = torch.tensor([False, False, True, False, False, True])
    for mine, guided, asked in zip(got[:2], free[:2], plain[:2], strict=True):
        assert torch.equal(mine[~inside], asked[~inside]) and torch.equal(mine[inside], guided[inside])


@pytest.mark.parametrize("kind", ["free", "auto"])
def test_a_walk_calls_the_plain_model_once_outside_the_interval(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, _, _, _ = world(VPSDE())
    guided, cond = kinds(truth)[kind](3.0, interval=(0.3, 3.0)), {"class": torch.tensor([0, 1, 2, 1])}

    def walk() -> Tensor:
        truth.calls.clear()
        return list(trajectory(guided, 4, steps=10, sampler=DDIM(), cond=cond, dtype=torch.float64))[-1].x

    end, calls = walk(), list(truth.calls)
    monkeypatch.setattr(type(guided), "within", lambda self, ratios: self)  # guided everywhere, by the same rule within the step
    close(end, walk(), rtol=1e-9, atol=1e-12)
    ratios = [float(truth.process.at(1 - k / 10).ratio) for k in range(10)] + [0.0]
    inside = sum(now > 0.3 and after <= 3.0 for now, after in itertools.pairwise(ratios))
    assert 2 < inside < 8
    if kind == "free":
        assert sorted(calls) == [4] * (10 - inside) + [8] * inside and truth.calls == [8] * 10
    plain = sample(truth, 4, steps=10, cond=cond, dtype=torch.float64)
    assert not torch.allclose(end, plain)


def test_a_weak_model_that_is_not_weaker_changes_nothing() -> None:
    truth, x, at, cond = world(VPSDE())
    got, plain = AutoGuided(truth, truth, 5.0)(x, at, cond), truth(x, at, cond)
    assert torch.equal(got.x0, plain.x0) and torch.equal(got.eps, plain.eps)


def test_a_guided_step_compiles_whole_and_once() -> None:
    """No kind, interval or rescaling puts a branch that depends on data into a step."""
    program = str(Path(__file__).with_name("compiled_steps.py"))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False, env=environment())
    assert done.stdout.split() == ["ClassifierFree", "ClassifierGuided", "AutoGuided", "graphs:", "1"], done.stderr[-2000:]


@pytest.mark.parametrize(
    ("config", "shape"), [(MLPConfig(width=8, depth=1), (3,)), (UNetConfig(channels=8, mults=(1, 2), blocks=1), (2, 4, 4))]
)
def test_a_network_classifiers_gradient_is_that_of_its_log_probability(config: Any, shape: tuple[int, ...]) -> None:
    """By finite differences, on a network with its in-place short cuts and without, inside `no_grad`."""
    torch.manual_seed(0)
    network = build_classifier(config, shape, 3).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)  # the last layers start at zero
    process = Process(Linear())
    classifier = NetworkClassifier(network, process, Index(), plain_codec(shape[0]), shape, ("a", "b", "c"))
    x, label, at = (
        unit(4, *shape),
        torch.tensor([0, 1, 2, 1]),
        process.at(torch.tensor([0.1, 0.4, 0.7, 0.9]).double(), like=unit(4, *shape)),
    )
    with torch.no_grad():
        gradient, way = classifier.gradient(x, at, label), unit(4, *shape, seed=5)
        with reference(network):
            close(gradient, classifier.gradient(x, at, label), rtol=1e-9, atol=1e-12)

        def log_p(x: Tensor) -> Tensor:
            return classifier(x, at).log_softmax(-1).gather(1, label[:, None])[:, 0]

        slope = (log_p(x + 1e-5 * way) - log_p(x - 1e-5 * way)) / 2e-5
    assert not gradient.requires_grad and float(slope.abs().min()) > 1e-4
    close((gradient * way).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-9)


def test_the_pull_of_a_network_classifier_stays_finite_where_signal_ends() -> None:
    """Its factor alpha/std cancels the 1/alpha by which a gradient moves x0: equal pulls at signal shares 1e-3 and 1e-8."""
    process = Process(VPSDE())
    classifier, x = NetworkClassifier(Bent(), process, Index(), plain_codec(2), (2,), ("a", "b", "c")).double(), unit(4, 2)
    label, nothing = torch.tensor([0, 1, 2, 1]), torch.zeros_like(x)
    pulls = []
    for alpha in (1e-3, 1e-8):
        at = At(*(torch.tensor(value, dtype=torch.float64) for value in (1.0, alpha, math.sqrt(1 - alpha**2))))
        with torch.no_grad():
            pulls.append(process.tilted(nothing, nothing, classifier.gradient(x, at, label), at)[0])
    close(pulls[0], pulls[1], rtol=0.02, atol=1e-3)
    assert float(pulls[1].abs().max()) > 0.1


class Bent(nn.Module):
    """A classifier network without parameters."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Three logits."""
        return torch.stack([x.sum(1), torch.sin(x).sum(1), torch.cos(c_noise) * x[:, 0]], 1)
