"""Plans: what they foretell equals what happens, what was said wins over what is proposed, and nothing is written unasked."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.config import Layer, to_dict
from ddpm.denoiser import Card
from ddpm.errors import CheckpointError, ConfigError
from ddpm.evaluation.planning import proposals
from ddpm.evaluation.planning.plan import Plan, duration, foretell, make_plan
from ddpm.evaluation.planning.record import happened, load_plan
from ddpm.evaluation.planning.rehearsal import Cost, Rehearsed, activations_of, parameters_of
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.training import TrainConfig
from ddpm.training.build import build_denoiser, default_network, measured
from ddpm.training.machine import Machine
from small_runs import SMALL_MLP, SMALL_UNET, environment, pictures, quietly, settings, table

HOST = Machine(torch.device("cpu"), "fp32", "a test")
SMALL = {"network": {"name": "MLPConfig", "width": 16, "depth": 1}, "batch": 4, "steps": 12, "preview": 4, "threads": 1, "track": ["none"]}


def card(shape: tuple[int, ...] = (3, 32, 32), count: int = 1000, **other: Any) -> Card:
    channels = (0.0,) * shape[0]
    facts = {"low": channels, "high": channels, "mean": channels, "std": channels, "sigma_data": 0.5, **other}
    return Card(name="x", kind="array", shape=shape, dtype="uint8", count=count, held_out=count // 10, **facts)


def plan_for(tmp_path: Path, data: Any = None, **said: Any) -> Plan:
    values = {**SMALL, "out": str(tmp_path / "run"), **said}
    return make_plan([Layer("", values)], data=data if data is not None else table(), seconds=1.0)


def test_parameters_and_checkpoints_are_those_of_the_run(tmp_path: Path) -> None:
    larger = {"name": "MLPConfig", "width": 64, "depth": 2}  # beside which the text of state.json, whose length varies, is little
    plan = plan_for(tmp_path, network=larger, checkpoint_every=3, keep=2, evaluate_every=4, log_every=2)
    assert not (tmp_path / "run").exists()
    finished = quietly(plan.config, data=table())
    assert plan.foretold.parameters == sum(p.numel() for p in finished.denoiser.parameters())
    sizes = {step.name: sum(file.stat().st_size for file in step.iterdir()) for step in finished.run.glob("step-*")}
    assert len(sizes) == 2
    assert plan.foretold.checkpoint == pytest.approx(max(sizes.values()), rel=0.01)
    whole = sum(file.stat().st_size for file in finished.run.rglob("*") if file.is_file())
    assert plan.foretold.disk == pytest.approx(whole, rel=0.15)  # the figure of the loss and the log are not foretold to the byte
    assert plan.foretold.disk_peak - plan.foretold.disk == plan.foretold.checkpoint


@pytest.mark.parametrize("classes", [0, 3])
def test_parameters_are_counted_without_making_them(classes: int) -> None:
    data = table(classes=classes)
    config = measured(TrainConfig(network=SMALL_MLP), data.card)
    assert parameters_of(config, data.card) == sum(p.numel() for p in build_denoiser(config, data.card).parameters())


def test_activations_are_in_proportion_to_the_batch() -> None:
    """What the hooks count for one sample is what the peak of a large forward pass grows by, within the work space beside it."""
    data = pictures(3, 16, 16)
    config = measured(TrainConfig(network=UNetConfig(channels=16, mults=(1, 2), blocks=1, attention=())), data.card)
    one = activations_of(config, data.card, HOST)
    script = """if True:
        import torch
        from ddpm.networks import UNetConfig
        from ddpm.training.machine import executed
        from ddpm.training.memory import peak_memory, restart_peak
        torch.set_num_threads(1)
        network = UNetConfig(channels=16, mults=(1, 2), blocks=1, attention=()).build((3, 16, 16)).train()
        for size in (64, 256):
            restart_peak()
            with executed(network, "none", torch.device("cpu")):
                network(torch.zeros(size, 3, 16, 16), torch.zeros(size), None)
            print(peak_memory())
    """  # a process of its own: what others have freed is not asked for again
    told = subprocess.run([sys.executable, "-c", script], env=environment(), check=True, capture_output=True, text=True).stdout
    few, many = map(int, told.split())
    assert 0.6 < (many - few) / (192 * one) < 1.5


@pytest.fixture
def no_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second a step and a second for everything else, without running anything."""
    found = Rehearsed(Cost(1.0, 0.1, 1.0, 1.0, 1.0, 500, 1000, {"model": 400}, 10.0, 50, 7), "nothing was run")
    monkeypatch.setattr("ddpm.evaluation.planning.plan.rehearsed", lambda config, dataset, per_sample, seconds: found)


@pytest.mark.usefixtures("no_rehearsal")
def test_what_was_said_wins(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    by_name = {choice.name: choice for choice in plan.choices}
    assert plan.config.batch == 4 and not by_name["batch"].ours and by_name["batch"].why == "as you said"
    assert plan.config.network == SMALL_MLP and by_name["checkpoint_every"].ours and by_name["ema"].value == plan.config.ema == 0.1
    file = make_plan([Layer("my.toml", {**SMALL, "ema": 0.2})], data=table())
    assert file.config.ema == 0.2 and {one.name: one.why for one in file.choices}["ema"] == "said in my.toml"
    least = make_plan([Layer("recipe digits", {"steps": 900, "network": {"name": "MLPConfig", "depth": 1}})], data=table())
    assert [one.name for one in least.choices if one.ours] == ["batch", "ema", "checkpoint_every"] and least.config.steps == 900


@pytest.mark.usefixtures("no_rehearsal")
def test_fewer_steps_where_time_is_short() -> None:
    values = {key: value for key, value in SMALL.items() if key != "steps"}
    free = make_plan([Layer("", values)], data=table())
    tight = make_plan([Layer("", values)], data=table(), hours=100.0 / 3600.0)
    assert free.config.steps == 5000 and free.foretold.seconds > 500.0
    assert 500 < tight.config.steps < 1000 and 85.0 < tight.foretold.seconds < 100.1
    asked = make_plan([Layer("", SMALL)], data=table(), hours=1e-6)
    assert asked.config.steps == 12, "steps that were asked for are not cut"


def test_rules() -> None:
    few, many = card(count=1000), card(count=50_000)
    cpu, gpu = proposals.network(few, "cpu").value, proposals.network(many, "cuda").value
    assert isinstance(cpu, UNetConfig) and (cpu.channels, cpu.blocks, cpu.mults) == (32, 1, default_network((3, 32, 32)).mults)  # type: ignore[union-attr]
    assert isinstance(gpu, UNetConfig) and (gpu.channels, gpu.blocks) == (128, 2)
    assert proposals.network(card((5,), 500), "cpu").value == MLPConfig(width=128)
    assert proposals.batch(card(count=200)).value == 16 and proposals.batch(many).value == 128 and proposals.batch(card(count=2)).value == 4
    assert proposals.steps(many, 128).value == 50_000
    assert proposals.steps(card(count=100), 8).value == 10_000, "1000 passes through 90 samples, 8 a step"
    assert proposals.fitting(128, 1, 0, 2**20, None) == (128, 1)
    assert proposals.fitting(128, 1, 2**20, 2**20, 40 * 2**20) == (16, 8), "1.5 (1 + size) MiB in 32"
    assert any("by heart" in line for line in proposals.warnings(card(count=100), 10_000, 8))
    assert not proposals.warnings(many, 50_000, 128)
    assert [proposals.rounded(x) for x in (0.2, 1, 3.1, 3.3, 70, 72, 14_000)] == [1, 1, 2, 5, 50, 100, 10_000]
    assert [duration(x) for x in (0.034, 42, 210, 7560, 345_600)] == ["0.034 s", "42 s", "3.5 min", "2.1 h", "4.0 days"]


def test_time_and_disk_add_up() -> None:
    cost = Cost(1.0, 0.1, 2.0, 3.0, 4.0, 500, 1000, {}, 10.0, 50, 7)
    config = TrainConfig(steps=100, checkpoint_every=40, evaluate_every=30, log_every=50, keep=2)
    told = foretell(config, 9, cost, 5.0)
    evaluations, saves, lines = 6, 3, 2 + 6  # at 30, 40, 60, 80, 90, 100; at 40, 80, 100
    assert told.seconds == pytest.approx(5 + 1 + 100 * 0.1 + evaluations * 2 + saves * 3 + 4)
    assert told.disk == 2 * 1000 + 7 + lines * 10 + saves * 50 and told.disk_peak == told.disk + 1000 and told.memory == 500


def test_too_large_a_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.evaluation.planning.plan.available_memory", lambda device: 10_000)
    with pytest.raises(ConfigError, match="parameters need .* to train, .* are free"):
        plan_for(tmp_path)


@pytest.mark.usefixtures("no_rehearsal")
def test_little_memory_makes_a_smaller_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 6 * 2**20
    monkeypatch.setattr("ddpm.evaluation.planning.plan.available_memory", lambda device: free)
    monkeypatch.chdir(tmp_path)
    values = {
        "network": {"name": "UNetConfig", "channels": 8, "mults": [1], "blocks": 1, "attention": []},
        "steps": 4,
        "preview": 0,
        "threads": 1,
    }
    plan = make_plan([Layer("", values)], data=pictures(1, 16, 16, count=1200), seconds=1.0)
    assert plan.config.batch < 128 and plan.config.batch * plan.config.accumulate == 128
    fixed, one = 20 * plan.foretold.parameters, plan.parts["activations"] / plan.config.batch
    assert fixed + 1.5 * one * plan.config.batch <= 0.8 * free < fixed + 1.5 * one * 2 * plan.config.batch
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32))
    words = ["--data", "points.npy", "--network", "MLPConfig", "--network.width", "16", "--preview", "0", "--threads", "1", "--steps", "5"]
    assert main(["plan", *words, "--rehearse", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["points.npy"], "nothing is written unless asked"
    assert found["settings"]["network"]["width"] == 16 and found["foretold"]["parameters"] > 0
    command = shlex.split(found["command"])
    assert command[:2] == ["ddpm", "train"] and command[command.index("--network.width") + 1] == "16"
    assert command[command.index("--batch") + 1] == str(found["settings"]["batch"]) == "4"

    assert main(["plan", *words, "--rehearse", "1", "--out", "run"]) == 0
    assert "kept in" in capsys.readouterr().out and [path.name for path in Path("run").iterdir()] == ["plan.json"]
    assert main([*command[1:], "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "planned " in said and ", took " in said and "memory " in said and "other settings" not in said
    plan = load_plan(Path("run"))
    assert plan is not None
    (done,) = plan["happened"]
    assert (done["first"], done["last"]) == (0, 5) and 0.0 < done["seconds"] < 60.0 and done["memory"] > 2**20
    assert done["disk"] == pytest.approx(plan["foretold"]["disk"], rel=0.1)
    assert main([*command[1:], "--out", "run", "--steps", "7"]) == 0
    assert "for 7 steps" in (said := capsys.readouterr().out) and "the plan was for other settings: steps" in said


def test_a_file_that_is_no_plan_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32))
    Path("mine").mkdir()
    Path("mine/plan.json").write_text('{"my": "plan"}')
    words = ["--data", "points.npy", "--network", "MLPConfig", "--network.width", "16", "--preview", "0", "--threads", "1", "--steps", "5"]
    assert main(["plan", *words, "--rehearse", "1", "--out", "mine"]) == 2
    assert "mine/plan.json is there and is no plan" in capsys.readouterr().err
    assert Path("mine/plan.json").read_text() == '{"my": "plan"}'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hours", "0"], "--hours is 0; allowed: a number > 0"),
        (["--hours", "soon"], "--hours is soon"),
        (["--rehearse", "nan"], "--rehearse is nan"),
        (["--batch", "0"], "--batch is 0"),
        (["--stepz", "5"], "did you mean '--steps'?"),
        (["--recipe", "x"], "--recipe is x"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_broken_plan_says_so(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="cannot be read.*ddpm plan"):
        happened(tmp_path, settings(tmp_path), 0, 5, 1.0, 1)
    assert load_plan(tmp_path / "nowhere") is None and happened(tmp_path / "nowhere", settings(tmp_path), 0, 5, 1.0, 1) is None


def test_a_rehearsal_of_pictures_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    values = {**SMALL, "network": to_dict(SMALL_UNET, named=True), "preview": 2}
    plan = make_plan([Layer("", values)], data=pictures(1, 4, 4), seconds=1.0)
    assert not list(tmp_path.glob("ddpm-plan-*")) and plan.foretold.memory > 50 * 2**20 and plan.parts["activations"] > 0
