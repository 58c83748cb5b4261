"""Training: that it learns, and what a run measures, keeps, takes over and asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddpm
from ddpm.data import from_arrays
from ddpm.denoiser import Codec
from ddpm.denoiser.exact import Mixture
from ddpm.errors import CheckpointError, DataError
from ddpm.process import EDM, VE, Cosine, Linear, Process, Schedule, Straight
from ddpm.sampling import Ancestral
from ddpm.training import OptimizerSettings, load, run, trainer
from ddpm.training.held_out import binned, gaussian_error, gaussian_floor, held_out_loss, instants
from small_runs import SMALL_MLP, SMALL_UNET, digests, held, metrics, pictures, quietly, settings, table, trainer_for


def test_the_loss_falls_and_samples_come_back_in_kelvin(tmp_path: Path) -> None:
    data = table(200, 2)
    finished = quietly(
        settings(
            tmp_path,
            steps=250,
            batch=64,
            schedule=Straight(),
            log_every=10,
            evaluate_every=50,
            optimizer=OptimizerSettings(lr=5e-3, warmup=10),
        ),
        data=data,
    )
    rows = metrics(tmp_path)
    losses, measured_ = [row["loss"] for row in rows if "loss" in row], [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert len(losses) == 25 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])
    assert len(measured_) == 5 and measured_[-1] < 0.85 * measured_[0]
    last = next(row for row in reversed(rows) if "held_out_loss" in row)
    assert last["held_out_loss"] < last["gaussian_loss"]  # two clouds: a network knows more than a Gaussian
    drawn = ddpm.sample(load(finished.run), 400, steps=50).numpy()
    assert drawn.dtype == np.float32 and abs(drawn.mean() - data.samples[:].mean()) < 4.0  # type: ignore[union-attr]
    near = np.minimum(abs(drawn - 250.0), abs(drawn - 290.0))
    assert np.median(near) < 8.0 and 0.25 < (drawn[:, 0] > 270).mean() < 0.75


# --- what is measured and kept ------------------------------------------------------------------------------------------------------------


def test_what_is_measured_is_the_average_and_not_the_last_weights(tmp_path: Path) -> None:
    """Last weights that are noise change nothing; an average that is noise changes the loss, by what measuring it directly gives."""
    data = table()
    training = trainer_for(tmp_path, data)
    for _ in range(3):
        training.step(print)
    before = training.evaluate()["held_out_loss"]
    torch.manual_seed(0)
    last = {name: torch.randn_like(parameter) for name, parameter in training.denoiser.named_parameters()}
    training.denoiser.load_state_dict(last, strict=False)
    assert training.evaluate()["held_out_loss"] == before
    assert all(torch.equal(parameter, last[name]) for name, parameter in training.denoiser.named_parameters())
    direct = held_out_loss(training.denoiser, data, training.keys)
    training.state.ema.weights.update({name: value.clone() for name, value in last.items()})
    assert direct is not None and training.evaluate()["held_out_loss"] == direct.loss != before


def test_the_held_out_loss_is_the_same_every_time_and_no_step_is_logged_twice(tmp_path: Path) -> None:
    data = table(classes=2)
    training = trainer_for(tmp_path, data)
    training.step(print)
    first, second = training.evaluate(), training.evaluate()
    assert first == second and first["held_out_loss"] > 0 and all(np.isfinite(list(first.values())))
    torch.manual_seed(5)
    training.step(print)
    assert training.evaluate() != first
    quietly(settings(tmp_path, steps=6, log_every=1, evaluate_every=2, checkpoint_every=3), data=data)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')  # by a process killed beyond its last checkpoint
    quietly(settings(tmp_path, steps=9, log_every=1, evaluate_every=2, checkpoint_every=3), data=data)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 10))
    assert [row["step"] for row in rows if "held_out_loss" in row] == [2, 3, 4, 6, 8, 9]


@pytest.mark.parametrize("schedule", [Cosine(), Cosine(T=10), Straight(), Straight(T=7), Linear(T=1)], ids=repr)
def test_the_held_out_loss_covers_every_level_however_few_samples(schedule: object, tmp_path: Path) -> None:
    data = table(12, holdout=0.1)
    assert len(data.held_rows) == 1
    finished = quietly(settings(tmp_path, steps=2, schedule=schedule), data=data)
    rows = [row for row in metrics(tmp_path) if "held_out_loss" in row]
    assert rows and all(np.isfinite(list(row.values())).all() for row in rows)
    denoiser = load(finished.run)
    length = denoiser.process.schedule.T
    if denoiser.residuals is not None:
        assert all(np.diff(denoiser.residuals.log_snr) > 0)
        drawn = ddpm.sample(denoiser, 3, steps=min(5, length or 5), sampler=Ancestral(variance="analytic"))
        assert drawn.isfinite().all()


def test_held_out_samples_are_seen_at_all_noise_levels() -> None:
    """Also where t is the noise level itself, of which half of the range in log-SNR is the first 64th; the floor is of the same levels."""
    for schedule in (EDM(), VE(), Cosine(T=None), Straight()):
        process = Process(schedule)
        bins = binned(process.log_snr(instants(process, 32)))
        assert len(bins) == 7 and all(bool(here.any()) for here in bins.values())
        assert instants(process, 32).diff().min() > 0 and gaussian_floor(process, (1.0,)) == pytest.approx(
            gaussian_error(process, (1.0,), instants(process, 500)).mean().item(), rel=0.01
        )
    linear = Process(Linear(T=8))
    assert instants(linear, 32).tolist() == [k / 8 for k in range(1, 9)]


@pytest.mark.parametrize("schedule", [Straight(), Cosine(T=50)], ids=repr)
def test_the_exact_denoiser_of_a_gaussian_reaches_the_gaussian_floor(schedule: Schedule) -> None:
    process = Process(schedule)
    data = from_arrays(np.random.default_rng(0).normal(0.0, 2.0, (600, 4)), name="normal", holdout=0.5)
    exact = Mixture(process, torch.zeros(1, 4), torch.tensor([4.0]))
    assert held_out_loss(exact, data, frozenset()) is None  # no codec, nothing to encode by
    exact.codec = Codec(shift=(0.0,) * 4, scale=(1.0,) * 4)
    few = held_out_loss(exact, data, frozenset(), samples=10)
    assert few is not None and few.rows.max() == data.held_rows[-1] and few.rows.min() == data.held_rows[0]  # data may be sorted
    result = held_out_loss(exact, data, frozenset())
    assert result is not None and result.loss == pytest.approx(gaussian_floor(process, (4.0,) * 4), rel=0.05)
    at = process.at(process.time_of(result.log_snr))
    expected = 4.0 * at.sigma**2 / (4.0 * at.alpha**2 + at.sigma**2)  # Var[x0 | x_t]
    assert (result.residual / expected).log().abs().max() < 0.8 and (result.residual / expected).mean() == pytest.approx(1.0, abs=0.1)


def test_nothing_held_out_is_no_measurement(tmp_path: Path) -> None:
    quietly(settings(tmp_path), data=table(holdout=0.0))
    assert not any("held_out_loss" in row for row in metrics(tmp_path))
    assert "nothing was held out" in (tmp_path / "README.md").read_text(encoding="utf-8")


class Own(nn.Module):
    """A person's network."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 3))

    def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
        return self.layers(torch.cat([x, c_noise[:, None] / 1000.0], 1))


def test_what_was_left_out_of_the_data_is_said_and_no_picture_is_shown_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table()
    ddpm.train(settings(tmp_path, steps=1), data=replace(data, card=replace(data.card, notices=("3 rows are left out",))))
    assert "\n  3 rows are left out\n" in capsys.readouterr().err
    assert "![samples]" not in (tmp_path / "README.md").read_text(encoding="utf-8")  # no preview was drawn


def test_ones_own_network_and_data_are_asked_for_again(tmp_path: Path) -> None:
    quietly(settings(tmp_path), network=Own(), data=table())
    assert held(tmp_path).document("config")["network"] == {"own": "Own"}
    with pytest.raises(CheckpointError, match=r"your own network Own; pass it: ddpm.load\(run, network=Own\(...\)\)"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load(tmp_path, network=Own(9))
    denoiser = load(tmp_path, network=Own())
    averaged = held(tmp_path).tensors("ema-0.050")
    assert all(torch.equal(value, averaged[name]) for name, value in denoiser.state_dict().items())
    quietly(settings(tmp_path, steps=6), network=Own(), data=table())
    assert held(tmp_path).step == 6
    assert ddpm.sample(denoiser, 2, steps=2).shape == (2, 3)


def test_weights_and_steps_to_choose_from(tmp_path: Path) -> None:
    finished = quietly(settings(tmp_path, steps=6, checkpoint_every=3), data=table())
    raw, average, earlier = load(tmp_path, weights="raw"), load(tmp_path), load(tmp_path, step=3)
    name = "network.head.weight"
    values = [model.state_dict()[name] for model in (raw, average, earlier)]
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
    assert torch.equal(finished.denoiser.state_dict()[name], values[1]) and not finished.denoiser.training
    assert torch.equal(load(tmp_path / "step-0000003").state_dict()[name], values[2])


def test_fine_tuning_takes_over_what_fits_and_lists_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(settings(tmp_path / "first"), data=table())
    weights = held(tmp_path / "first").tensors("ema-0.050")
    for source in (tmp_path / "first", next((tmp_path / "first").glob("step-*")) / "ema-0.050.safetensors"):
        out = tmp_path / source.name.replace(".", "-")
        run.train(settings(out / "same", steps=1, init=str(source), optimizer=OptimizerSettings(lr=1e-12)), data=table())
        taken = held(out / "same").tensors("model")
        assert all(torch.allclose(taken[name], weights[name], atol=1e-6) for name in weights)
        assert f"started from {source}: {len(weights)} of {len(weights)} tensors taken over\n" in capsys.readouterr().err
    run.train(
        settings(tmp_path / "other", steps=1, init=str(tmp_path / "first"), network=replace(SMALL_MLP, depth=2)), data=table(classes=3)
    )
    said = capsys.readouterr().err
    assert "left as they were" in said and "not in" in said and "... and" in said
    with pytest.raises(CheckpointError, match="no tensor of .* fits this network"):
        quietly(settings(tmp_path / "none", init=str(tmp_path / "first"), network=SMALL_UNET), data=pictures(1, 4, 4))


def test_too_little_data_is_said_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="36 training samples .* fewer than one batch of 37"):
        quietly(settings(tmp_path / "run", batch=37), data=table())
    assert not (tmp_path / "run").exists()


def test_an_unbounded_prediction_is_no_reason_to_lose_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out numbers that are not finite are not kept as moments; the weights are saved all the same."""
    measure = trainer.held_out_loss
    monkeypatch.setattr(trainer, "held_out_loss", lambda *a, **k: measure(*a, **k)._replace(residual=torch.full((3,), float("inf"))))  # type: ignore[union-attr]
    quietly(settings(tmp_path), data=table())
    assert held(tmp_path).document("config")["residuals"] is None and digests(tmp_path)
