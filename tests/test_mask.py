"""Samples of which entries are missing: what is not there is never learned from, never seen, and never drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ddpm
from ddpm.denoiser import Card, Codec, Index, NetworkDenoiser
from ddpm.denoiser.parameterization import PARAMETERIZATIONS, Eps
from ddpm.errors import ConfigError, DataError
from ddpm.networks import CondSpec, MLPConfig, UNetConfig
from ddpm.objective import Denoising, Draws
from ddpm.process import Cosine, Process
from ddpm.training.held_out import held_out_loss
from ddpm.training.latents import refusals
from ddpm.training.tricks import Tricks


def points(n: int = 60, most: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sets of 2 to `most` points in 3 dimensions, (n, 3, most), what is beyond a set NaN, and the mask (n, most)."""
    draw = np.random.default_rng(seed)
    mask = np.arange(most)[None] < draw.integers(2, most + 1, n)[:, None]
    x = draw.normal(5.0, 2.0, (n, 3, most)).astype(np.float32)
    return np.where(mask[:, None], x, np.nan), mask


class Echo(nn.Module):
    """Keeps what it was shown; answers ones."""

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: dict[str, torch.Tensor] | None) -> torch.Tensor:
        self.shown, self.cond = x, cond
        return torch.ones_like(x)


def denoiser(network: nn.Module, parameterization: object, shape: tuple[int, ...] = (3, 6)) -> NetworkDenoiser:
    codec = Codec(shift=(0.0,) * shape[0], scale=(1.0,) * shape[0])
    return NetworkDenoiser(network, Process(Cosine(clip=0.999)), parameterization, Index(), codec, shape)  # type: ignore[arg-type]


def test_statistics_are_of_the_entries_that_are_there() -> None:
    x, mask = points()
    card = ddpm.from_arrays(x, {"mask": mask}, holdout=np.arange(10)).card
    for channel in range(3):
        values = x[10:, channel][mask[10:]].astype(np.float64)
        got = (card.low[channel], card.high[channel], card.mean[channel], card.std[channel])
        np.testing.assert_allclose(got, (values.min(), values.max(), values.mean(), values.std()), rtol=1e-6)
    assert card.mask_channels == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_statistics_of_integers(dtype: type) -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(3, 9, (40, 2, 4, 4)).astype(dtype)
    mask = draw.random((40, 2, 4, 4)) < 0.5
    x[~mask] = 0
    card = ddpm.from_arrays(x, {"mask": mask}, holdout=0.0, bins=(0, 15)).card
    assert card.low == (3.0, 3.0) and card.high == (8.0, 8.0) and card.mask_channels == 2
    np.testing.assert_allclose(card.mean, [x[:, c][mask[:, c]].mean() for c in range(2)])


@pytest.mark.parametrize("kind", [p for p in PARAMETERIZATIONS if p.__name__ in ("Eps", "X0", "V", "Flow")], ids=lambda p: p.__name__)
def test_what_is_not_there_is_known_to_be_0(kind: type) -> None:
    network = Echo()
    model = denoiser(network, kind())
    mask = torch.rand(5, 1, 6) < 0.6
    x, at = torch.randn(5, 3, 6), model.process.at(torch.full((5,), 0.4, dtype=torch.float64), like=torch.zeros(5, 3, 6))
    said, whole = model(x, at, {"mask": mask}), model(x * mask, at)
    torch.testing.assert_close(said.x0, whole.x0 * mask)
    torch.testing.assert_close(at.alpha * said.x0 + at.sigma * said.eps, x, atol=1e-5, rtol=1e-5)
    model(x, at, {"mask": mask})
    assert bool((network.shown[~mask.expand_as(x)] == 0).all())
    torch.testing.assert_close(model(x + 100.0 * ~mask, at, {"mask": mask}).x0, said.x0)


def test_no_loss_counts_what_is_not_there() -> None:
    """Noise where nothing is changes nothing, and of entries that are there each counts as it does without a mask."""
    torch.manual_seed(0)
    model, loss = denoiser(Echo(), PARAMETERIZATIONS[0]()), Denoising().build()
    x0, mask = torch.randn(8, 3, 6), torch.arange(6).expand(8, 1, 6) < torch.arange(1, 9).reshape(8, 1, 1).clamp(max=5)
    draws = Draws(torch.rand(8, dtype=torch.float64), torch.randn(8, 3, 6), torch.randn(8, 3, 6))
    with_mask = loss(model, x0 * mask, {"mask": mask}, draws)
    other = draws._replace(eps=torch.where(mask, draws.eps, 50.0))
    torch.testing.assert_close(loss(model, x0 * mask, {"mask": mask}, other), with_mask)
    nothing = draws._replace(eps=torch.where(mask, draws.eps, 1.0))  # Echo's answer: no error there
    torch.testing.assert_close(loss(model, x0 * mask, None, nothing), with_mask)


def test_a_mask_of_a_table_has_a_column_for_each_or_one() -> None:
    model = denoiser(Echo(), Eps(), (5,))
    for wide in (1, 5):
        assert ddpm.sample(model, 4, steps=2, cond={"mask": torch.ones(4, wide)}).shape == (4, 5)
    for shape in ((4,), (4, 2), (4, 5, 1)):
        with pytest.raises(ConfigError, match=r"cond\['mask'\]: got \(4"):
            ddpm.sample(model, 4, steps=2, cond={"mask": torch.ones(shape)})


@pytest.mark.parametrize("sampler", [ddpm.DDIM(), ddpm.Ancestral()], ids=lambda s: type(s).__name__)
def test_samples_end_at_the_middle_where_nothing_is(sampler: ddpm.Sampler) -> None:
    model, mask = denoiser(Echo(), PARAMETERIZATIONS[0]()), torch.rand(4, 1, 6) < 0.5
    drawn = ddpm.sample(model, 4, steps=5, sampler=sampler, cond={"mask": mask}, clip="off")
    assert bool((drawn[~mask.expand_as(drawn)].abs() < 1e-6).all()) and bool((drawn[mask.expand_as(drawn)].abs() > 1e-6).any())


@pytest.mark.parametrize(
    ("config", "shape"), [(UNetConfig(channels=8, mults=(1,), attention=(0,), groups=4), (2, 4, 4)), (MLPConfig(width=16, depth=1), (5,))]
)
def test_our_networks_are_told(config: UNetConfig | MLPConfig, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = config.build(shape, 1, CondSpec(mask=shape[0])).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, c = torch.randn(3, *shape), torch.zeros(3)
    everything = network(x, c, {"mask": torch.ones(3, *shape, dtype=torch.bool)})
    torch.testing.assert_close(network(x, c, None), everything)
    some = torch.ones(3, *shape, dtype=torch.bool)
    some[:, 0] = False
    assert not torch.allclose(network(x, c, {"mask": some}), everything)
    with pytest.raises(ConfigError, match=r'cond\["mask"\]'):
        network(x, c, {"mask": torch.ones(3, 7)})


class Points(nn.Module):
    """A person's own network for sets of points: each point by itself, and the mean of those that are there."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width))
        self.all = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 3))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        there = cond["mask"].transpose(1, 2).to(x.dtype)  # (B, N, 1)
        h = self.each(torch.cat([x.transpose(1, 2), (c_noise / 1000).reshape(-1, 1, 1).expand(-1, x.shape[2], 1)], dim=2))
        mean = (h * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        return self.all(torch.cat([h, mean.expand_as(h)], dim=2)).transpose(1, 2)


def test_sets_of_points_train_sample_and_resume_to_the_bit(tmp_path) -> None:
    x, mask = points(80)
    data = ddpm.from_arrays(x, {"mask": mask}, name="points")

    def config(out: str, steps: int) -> ddpm.TrainConfig:
        return ddpm.TrainConfig(steps=steps, batch=16, out=str(tmp_path / out), preview=4, checkpoint_every=10, track=("none",))

    def fresh() -> Points:
        torch.manual_seed(0)
        return Points()

    whole = ddpm.train(config("whole", 20), network=fresh(), data=data, quiet=True).denoiser
    ddpm.train(config("parts", 10), network=fresh(), data=data, quiet=True)
    parts = ddpm.train(config("parts", 20), network=fresh(), data=data, quiet=True).denoiser
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    loaded = ddpm.load(str(tmp_path / "parts"), network=Points())
    told = torch.from_numpy(mask[:5, None])
    drawn = ddpm.sample(loaded, 5, steps=5, cond={"mask": told})
    assert drawn.shape == (5, 3, 6) and bool(drawn.isfinite().all())
    full = torch.ones(5, 1, 6, dtype=torch.bool)
    torch.testing.assert_close(ddpm.sample(loaded, 5, steps=2), ddpm.sample(loaded, 5, steps=2, cond={"mask": full}), rtol=0, atol=0)
    for cond, said in (
        ({"mask": full[:, :, :5]}, r"cond\['mask'\]: got \(5, 1, 5\), must be \(5, 3, 6\), or 1 in the place of the channels"),
        ({"mask": torch.full((5, 2, 6), 1.0)}, r"cond\['mask'\]: got \(5, 2, 6\)"),
        ({"mask": torch.full((5, 1, 6), 0.5)}, "must be 1 where an entry is there and 0 elsewhere"),
        ({"mask": full, "maks": full}, r"cond\['maks'\]: this model is told class and image and mask"),
    ):
        with pytest.raises(ConfigError, match=said):
            ddpm.sample(loaded, 5, steps=2, cond=cond)
    middle = torch.tensor(data.card.mean, dtype=torch.float32).reshape(1, 3, 1).expand(5, 3, 6)
    torch.testing.assert_close(drawn[~told.expand(5, 3, 6)], middle[~told.expand(5, 3, 6)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones((60, 5)), "shape"),
        (np.full((60, 6), 2), "other values"),
        (np.zeros((60, 6)), "row 0 has no entry"),
        (np.ones((59, 6)), "the first axis must agree"),
    ],
)
def test_masks_that_cannot_be(mask: np.ndarray, said: str) -> None:
    x, _ = points()
    with pytest.raises(DataError, match=said):
        ddpm.from_arrays(np.nan_to_num(x), {"mask": mask})


def test_missing_entries_need_a_mask_that_knows_them() -> None:
    x, mask = points()
    with pytest.raises(DataError, match="give a mask"):
        ddpm.from_arrays(x)
    mask[3] = True
    with pytest.raises(DataError, match="row 3"):
        ddpm.from_arrays(x, {"mask": mask})


def test_mirrored_with_the_samples() -> None:
    draw = np.random.default_rng(0)
    mask = draw.random((30, 1, 4, 4)) < 0.5
    mask[:, :, 0, 0] = True
    data = ddpm.from_arrays(mask.astype(np.uint8).repeat(1, 1) + 1, {"mask": mask}, flip=True, bins=(0, 2), holdout=0.0)
    raw, cond = data.batch(np.arange(30), np.random.default_rng(1))
    assert bool((raw[cond["mask"] != 0] == 2).all()) and not np.array_equal(cond["mask"], mask)
    assert Card.__dataclass_fields__["mask_channels"].default == 0


def test_the_held_out_loss_is_of_what_is_there() -> None:
    """However much is missing: of a network that says 0 it is the mean square of the noise, near 1, not that times the share."""

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: object) -> torch.Tensor:
            return torch.zeros_like(x)

    mask = np.random.default_rng(0).random((200, 1, 40)) < 0.25
    mask[:, :, 0] = True
    data = ddpm.from_arrays(np.random.default_rng(1).normal(size=(200, 3, 40)).astype(np.float32), {"mask": mask}, holdout=0.5)
    found = held_out_loss(denoiser(Zero(), Eps(), (3, 40)), data, frozenset())
    assert found is not None and found.loss == pytest.approx(1.0, abs=0.05)


def test_what_knows_no_mask_refuses_it(tmp_path) -> None:
    draw = np.random.default_rng(0)
    data = ddpm.from_arrays(draw.normal(size=(40, 1, 8, 8)).astype(np.float32), {"mask": draw.random((40, 1, 8, 8)) < 0.9})
    with pytest.raises(ConfigError, match="augment: entries"):
        ddpm.train(ddpm.TrainConfig(batch=8, tricks=Tricks(augment=0.1), out=str(tmp_path / "a")), data=data, quiet=True)
    assert any("entries are missing" in line for line in refusals(data))
