"""docs/six_steps.md: its code is the source's, its figures exist, and the numbers in it are what the code gives."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ddpm.denoiser import X0, Eps, V
from ddpm.process import Cosine, Linear, Process, Sigmoid, Straight
from ddpm.sampling import Ancestral, sample

PAGE = Path(__file__).resolve().parents[1] / "docs" / "six_steps.md"
TEXT = " ".join(re.sub(r"```python\n.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL).split())
LINEAR = Process(Linear())


def load(name: str) -> Iterator[ModuleType]:
    """A module of docs/figures, which is no package."""
    sys.path.insert(0, str(PAGE.parent / "figures"))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.pop(0)
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def blocks() -> Iterator[ModuleType]:
    yield from load("blocks")


@pytest.fixture(scope="module")
def curves() -> Iterator[ModuleType]:
    yield from load("curves")


def says(sentence: str) -> None:
    """The page has these words."""
    assert sentence in TEXT, f"docs/six_steps.md no longer says {sentence!r}: change the claim and its test together"


# --- the page ----------------------------------------------------------------------------------------------------------------------------


def test_code_is_the_source(blocks: ModuleType) -> None:
    assert "<!-- code: " in PAGE.read_text(encoding="utf-8")
    assert blocks.stale(PAGE) == [], "run python docs/figures/make.py"


def test_a_changed_block_is_seen_and_renewed(blocks: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("return at.alpha * x0 + at.sigma * eps", "return at.sigma * x0 + at.alpha * eps"), encoding="utf-8")
    assert blocks.stale(page) == ["ddpm.process.process.Process.perturb"]
    assert blocks.refresh(page)
    assert page.read_text(encoding="utf-8") == text
    page.write_text("<!-- code: ddpm.process.process.Process.perturb -->\nno end", encoding="utf-8")
    assert blocks.stale(page) == ["ddpm.process.process.Process.perturb"]


def test_check_is_an_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(PAGE.parent / "figures"))
    make = importlib.import_module("make")
    assert make.main(["--check"]) == 0
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8").replace("at.alpha * x0", "x0"), encoding="utf-8")
    monkeypatch.setattr(make, "PAGE", page)
    assert make.main(["--check"]) == 1
    assert "Process.perturb" in capsys.readouterr().err


def test_files_it_points_to_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    figures = {link for link in links if link.endswith(".png")}
    assert {f"figures/{path.name}" for path in (PAGE.parent / "figures").glob("*.png")} == figures
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
    assert all((PAGE.parent / figure).stat().st_size < 120_000 for figure in figures)


# --- its numbers -------------------------------------------------------------------------------------------------------------------------


def test_augmentation(curves: ModuleType) -> None:
    says("gives $\\alpha_t$ and $\\sigma_t$ of the jump at every level to 1e-14")
    assert max(curves.composed(LINEAR)) < 1e-14
    says("within 1.2e-8 of $N(0, 1)$ in total variation")
    assert curves.distance_from_normal(LINEAR) == pytest.approx(1.2e-8, rel=0.05)


@pytest.mark.parametrize(("s", "t", "percent"), [(0.0, 1.0, "100"), (0.4, 0.5, "59.7"), (0.49, 0.5, "9.5")])
def test_regression_leaves_over(curves: ModuleType, s: float, t: float, percent: str) -> None:
    says(f"{percent} %")
    assert 100 * curves.unexplained(LINEAR, s, t) == pytest.approx(float(percent), abs=0.05)
    x0 = curves.draw(LINEAR, 40_000)  # and the pairs themselves say so
    rng = curves.generator(1)
    then, now = LINEAR.at(s), LINEAR.at(t)
    x_s = LINEAR.perturb(x0, torch.randn(x0.shape, dtype=x0.dtype, generator=rng), then)
    scale, std = LINEAR.transition(then, now)
    x_t = scale * x_s + std * torch.randn(x0.shape, dtype=x0.dtype, generator=rng)
    c_x0, c_xt, _ = LINEAR.posterior(then, now)
    left = (x_s - c_x0 * curves.mixture(LINEAR)(x_t, now).x0 - c_xt * x_t).square().mean().item()
    assert 100 * left == pytest.approx(float(percent), rel=0.03)


@pytest.mark.parametrize("step", [2, 10, 500, 1000])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_bound_is_regression_and_a_constant(curves: ModuleType, step: int, shift: float) -> None:
    says("In the code the two agree to 1e-12 for a right and for a wrong denoiser")
    assert curves.bound_minus_regression(LINEAR, step, shift) < 1e-12


def test_neighbouring_levels(curves: ModuleType) -> None:
    says("changes by at most 0.024")
    change = [curves.change_between(LINEAR, (step - 1) / 1000, step / 1000) for step in (*range(2, 20), *range(20, 1000, 20), 1000)]
    assert max(change) == pytest.approx(0.024, abs=5e-4)


@pytest.mark.parametrize(
    ("step", "ratio", "words"), [(2, 1.8, "1.8 at the second level"), (100, 145, "145 at"), (1000, 1.2e6, "1.2 million at $t = 1$")]
)
def test_variance_of_the_gradient(curves: ModuleType, step: int, ratio: float, words: str) -> None:
    says(words)
    sampled, reduced = curves.gradient_variance(LINEAR, step)
    assert sampled / reduced == pytest.approx(ratio, rel=0.03)
    measured = curves.measured_gradient_variance(LINEAR, step)
    assert measured == pytest.approx((sampled, reduced), rel=0.2)


def test_best_variance_of_a_step() -> None:
    says('If the data were standard normal, it would be the transition\'s ("large").')
    s, t = LINEAR.at(0.4), LINEAR.at(0.5)
    torch.testing.assert_close(LINEAR.residual_variance(s, t, t.sigma**2), LINEAR.transition(s, t)[1] ** 2)


ERRORS = {"analytic": (0.166, 0.0076, 0.00064), "large": (0.148, 0.022, 0.0026), "small": (0.272, 0.060, 0.0086)}


@pytest.mark.parametrize(
    ("variance", "steps"),
    [*((kind, steps) for kind in ERRORS for steps in (10, 100)), ("analytic", 1000), pytest.param("large", 1000, marks=pytest.mark.slow)],
)
def test_gaussian_steps(curves: ModuleType, variance: str, steps: int) -> None:
    says("the total variation is 0.166 for $T = 10$, 0.0076 for $T = 100$ and 0.00064 for $T = 1000$")
    says("it is 0.148, 0.022 and 0.0026; with the small one 0.272, 0.060 and 0.0086")
    wanted = ERRORS[variance][(10, 100, 1000).index(steps)]
    assert curves.chain_error(curves.with_steps(LINEAR, steps), steps, variance) == pytest.approx(wanted, rel=0.02)


def test_walked_densities_are_those_of_samples(curves: ModuleType) -> None:
    """The study's total variation against a histogram of the sampler's own output."""
    process = curves.with_steps(LINEAR, 10)
    x = sample(curves.Measured(process), n=4000, steps=10, sampler=Ancestral(variance="large"), clip="off", batch=4000, decode=False)
    edges = torch.linspace(-3, 3, 31, dtype=torch.float64)
    share = torch.histogram(x[:, 0].double(), edges)[0] / len(x)
    cdf = 0.4 * torch.special.ndtr((edges + 1.2) / 0.2) + 0.6 * torch.special.ndtr((edges - 0.8) / 0.2)
    assert 0.5 * (share - cdf.diff()).abs().sum().item() == pytest.approx(ERRORS["large"][0], abs=0.03)  # bins hide a little of it


@pytest.mark.parametrize(
    ("kind", "ratio", "words"), [(Eps(), 101, "factor of 101"), (X0(), 1.2e10, "1.2e10 for"), (V(), 1.2e6, "1.2e6 for $v$")]
)
def test_weight_in_the_bound(curves: ModuleType, kind: Eps | X0 | V, ratio: float, words: str) -> None:
    says(words)
    weights = [curves.bound_weight(LINEAR, kind, step) for step in (1, 2, *range(50, 1000, 7), 349, 1000)]
    assert max(weights) / min(weights) == pytest.approx(ratio, rel=0.02)


def test_scores(curves: ModuleType) -> None:
    says("the derivative of $\\log p_t$ agree to 1e-12")
    assert max(curves.score_gap(LINEAR, t) for t in (0.1, 0.5, 0.9)) < 1e-12
    excess, distance = curves.score_matching_offset(LINEAR, 0.3, 0.2)
    assert distance == pytest.approx(0.04)
    assert excess == pytest.approx(distance, rel=0.05)
    says("$(x_t + \\mathrm{std}^2 \\nabla \\log p_t) \\alpha_s / \\alpha_t$")
    world, s, t = curves.mixture(LINEAR), LINEAR.at(0.1), LINEAR.at(0.2)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    (scale, std), (c_x0, c_xt, _) = LINEAR.transition(s, t), LINEAR.posterior(s, t)
    torch.testing.assert_close((x + std**2 * world.score(x, t)) / scale, c_x0 * world(x, t).x0 + c_xt * x)


SCHEDULES = {"linear": Linear(), "sigmoid": Sigmoid(), "cosine": Cosine(clip=None), "straight": Straight()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(curves: ModuleType, name: str) -> None:
    says("the error is 0.166 for the linear schedule, 0.101 for the sigmoid, 0.064 for the cosine and 0.045 for the straight one")
    says("with 200 it is 0.0034, 0.0075, 0.0017 and 0.0025")
    wanted = dict(zip(SCHEDULES, ((0.166, 0.0034), (0.101, 0.0075), (0.064, 0.0017), (0.045, 0.0025)), strict=True))[name]
    found = tuple(curves.chain_error(curves.with_steps(Process(SCHEDULES[name]), steps), steps, "analytic") for steps in (10, 200))
    assert found == pytest.approx(wanted, rel=0.03)


def test_a_schedule_is_a_clock(curves: ModuleType) -> None:
    says("gives the linear one's error to 1e-9")
    linear, cosine = curves.with_steps(LINEAR, 50), Process(Cosine(clip=None, T=None))
    times = cosine.time_of(linear.log_snr(torch.arange(50, 0, -1, dtype=torch.float64) / 50))
    other = curves.chain_error(cosine, 50, "analytic", times=times)
    assert curves.chain_error(linear, 50, "analytic") == pytest.approx(other, abs=1e-9)
