"""Optimizers: Muon against its definition and torch's own, schedule-free against its recursion, learning rates, and exact resumes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ddpm.config import to_dict
from ddpm.data.dataset import Dataset
from ddpm.errors import ConfigError
from ddpm.networks.config import CondSpec, UNetConfig
from ddpm.objective import Denoising
from ddpm.training import ClassifierConfig, OptimizerSettings, classifier, run, train_classifier
from ddpm.training.checkpoints.checkpoint import Checkpoint, flatten, unflatten
from ddpm.training.optimizers import Muon, ScheduleFree, build_optimizer, matrices_of, muon_direction, newton_schulz
from ddpm.training.state import compare
from small_runs import SMALL_MLP, SMALL_UNET, digests, held, pictures, quietly, settings, table, trainer_for

CPU = torch.device("cpu")
KINDS = ("adamw", "muon", "schedule-free")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Unit normals in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Muon -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5)])
def test_newton_schulz_is_the_quintic_on_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = normal(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    s = values / matrix.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(newton_schulz(matrix), left @ torch.diag(s) @ right, rtol=0, atol=1e-6)


def test_newton_schulz_brings_singular_values_into_the_band() -> None:
    for seed, shape in enumerate(itertools.product((8, 48, 64), (16, 64, 576))):
        left, _, right = torch.linalg.svd(normal(*shape, seed=seed), full_matrices=False)
        for values in (torch.logspace(0, -2, len(left.T)), torch.linspace(1, 0.1, len(left.T))):
            found = torch.linalg.svdvals(newton_schulz((left * values @ right).float()))
            assert 0.65 < found.min() and found.max() < 1.21
    assert newton_schulz(torch.zeros(3, 4)).eq(0).all()  # nothing learned yet, as behind a layer that starts at zero


@pytest.mark.parametrize("shape", [(6, 5), (8, 3, 3, 3), (4, 6, 5), (4, 2, 3, 3, 3)])
def test_a_step_of_a_kernel_is_that_of_its_matrix(shape: tuple[int, ...]) -> None:
    start, gradients = normal(*shape), [normal(*shape, seed=seed) for seed in (1, 2, 3)]
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    optimizers = [Muon([{"params": [p], "matrices": True}], lr=0.1, weight_decay=0.3) for p in (kernel, matrix)]
    for gradient in gradients:
        kernel.grad, matrix.grad = gradient, gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix) and not torch.equal(kernel, start)
    rms = muon_direction(gradients[0]).square().mean().sqrt().item()
    assert 0.2 * 0.65 < rms < 0.2 * 1.21  # that of an AdamW step


def test_a_sharded_matrix_takes_the_step_of_the_whole(tmp_path: Path) -> None:
    """On a mesh of one process, where the way through gathering and sharding is the same."""
    distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = nn.Parameter(normal(6, 2, 3, 3))
        shard = nn.Parameter(distribute_tensor(normal(6, 2, 3, 3), mesh, [Shard(0)]))
        optimizers = [Muon([{"params": [p], "matrices": True}], lr=0.1, weight_decay=0.3) for p in (whole, shard)]
        for seed in range(3):
            whole.grad = normal(6, 2, 3, 3, seed=seed)
            shard.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step()
        kept = cast(DTensor, shard.data)
        assert kept.placements == (Shard(0),) and torch.equal(kept.full_tensor(), whole)
    finally:
        distributed.destroy_process_group()


def test_muon_is_that_of_torch_on_matrices() -> None:
    """torch's is for two axes and works in bfloat16, hence the tolerance; the step's size is compared closely by its norm."""
    ours, theirs = (nn.Parameter(normal(16, 24).float()) for _ in range(2))
    mine = Muon([{"params": [ours], "matrices": True}], lr=0.05, momentum=0.9, weight_decay=0.2)
    other = torch.optim.Muon([theirs], lr=0.05, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        ours.grad = normal(16, 24, seed=seed).float()
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    moved = ours.detach() - normal(16, 24).float()
    assert (ours - theirs).norm() < 0.01 * moved.norm() and moved.norm() > 1.0


def test_muon_gives_the_rest_to_adamw() -> None:
    ours, theirs = ([nn.Parameter(normal(5, 3, seed=seed).float()) for seed in range(3)] for _ in range(2))
    options = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.2}
    mine = Muon([{"params": ours, "matrices": False}], **options, fused=True)
    other = torch.optim.AdamW(theirs, **options, fused=True)
    for seed in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = normal(5, 3, seed=seed + 9).float()
            q.grad = p.grad.clone()
        ours[2].grad = theirs[2].grad = None  # never used: no weight decay either
        mine.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True)) and torch.equal(ours[2], normal(5, 3, seed=2).float())


def test_which_weights_are_matrices() -> None:
    network = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(1,)).build((1, 8, 8), cond=CondSpec(classes=3, vector=2))
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)] for p in matrices_of(network)}
    expected = {n for n, p in network.named_parameters() if p.ndim > 1 and n.split(".")[0] not in ("embed", "stem", "head")}
    assert chosen == expected and {"middle.first.conv1.weight", "middle.attention.qkv.weight", "up.1.resample.conv.weight"} < chosen
    own = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 1), nn.LayerNorm([2, 2]))
    assert matrices_of(own) == [own[1].weight]
    tied = nn.ModuleDict({"inner": nn.Linear(4, 3, bias=False), "head": nn.Linear(4, 3)})
    tied["head"].weight = tied["inner"].weight
    assert matrices_of(tied) == []


def test_every_parameter_is_in_one_group(tmp_path: Path) -> None:
    config = OptimizerSettings(kind="muon", muon_lr=3.0)
    trainer = trainer_for(tmp_path, pictures(1, 8, 8), network=SMALL_UNET, optimizer=config, loss=Denoising(uncertainty=True))
    groups = trainer.state.optimizer.param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    wanted = [*trainer.denoiser.parameters(), *trainer.loss.parameters()]
    assert len(ids) == len({*ids}) == len(wanted) and {*ids} == {id(p) for p in wanted}
    assert [group["matrices"] for group in groups] == [True, False]
    trainer.step(print)
    assert [group["lr"] for group in groups] == [3.0 * config.lr_at(0, 4), config.lr_at(0, 4)]


# --- schedule-free --------------------------------------------------------------------------------------------------------------------


def test_schedule_free_is_its_textbook_recursion() -> None:
    """On a quadratic, with a warm-up, in three sequences as the paper writes them."""
    lr, beta1, beta2, decay, curvature = 0.05, 0.9, 0.99, 0.1, normal(7).abs() + 0.1
    y = nn.Parameter(normal(7))
    optimizer = ScheduleFree([y], lr=lr, betas=(beta1, beta2), weight_decay=decay)
    x, z, v, total = y.detach().clone(), y.detach().clone(), torch.zeros(7, dtype=torch.float64), 0.0
    for t in range(1, 101):
        at = (1 - beta1) * z + beta1 * x
        torch.testing.assert_close(y.detach(), at, rtol=0, atol=1e-12)
        gradient = curvature * at
        v = beta2 * v + (1 - beta2) * gradient**2
        rate = lr * min(1.0, t / 10) * math.sqrt(1 - beta2**t)
        z = z - rate * (gradient / (v.sqrt() + 1e-8) + decay * at)
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        optimizer.param_groups[0]["lr"] = lr * min(1.0, t / 10)
        optimizer.zero_grad()
        (0.5 * curvature * y**2).sum().backward()
        optimizer.step()
        torch.testing.assert_close(optimizer.average(y), x, rtol=0, atol=1e-12)
    assert x.norm() < 0.3 * normal(7).norm()


# --- learning rates and settings ------------------------------------------------------------------------------------------------------


def test_inverse_square_root_by_formula() -> None:
    plain = OptimizerSettings(lr=0.3, warmup=4, decay="inverse-sqrt", decay_after=9)
    found = [plain.lr_at(step, 10) for step in (0, 1, 3, 9, 36, 900)]
    assert found == pytest.approx([0.075, 0.15, 0.3, 0.3, 0.15, 0.03], rel=1e-15)
    assert plain.lr_at(36, 10) == plain.lr_at(36, 10_000)  # it knows of no end


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "sgd"}, 'kind is "sgd"; allowed: adamw, muon or schedule-free'),
        ({"decay": "sqrt"}, 'decay is "sqrt"; allowed: none, cosine, linear or inverse-sqrt'),
        ({"kind": "schedule-free", "decay": "cosine"}, "schedule-free takes none"),
        ({"kind": "schedule-free", "beta1": 0.0}, "give a value in (0, 1)"),
        ({"momentum": 1.0}, "momentum is 1.0; allowed: a number >= 0 and < 1"),
        ({"muon_lr": 0.0}, "muon_lr is 0.0"),
        ({"decay_after": 0}, "decay_after is 0"),
    ],
)
def test_refusals(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OptimizerSettings(**values)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_refusals_of_the_classes() -> None:
    with pytest.raises(ValueError, match="fewer than two axes"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "matrices": True}], lr=0.1)
    with pytest.raises(ValueError, match="allowed values lie in"):
        ScheduleFree([nn.Parameter(torch.zeros(3))], lr=0.1, betas=(0.0, 0.9))


# --- in a run -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_states_survive_a_checkpoint(kind: str) -> None:
    """Bit for bit, in the middle of a run, through the form in which they are stored."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = SMALL_UNET.build((1, 4, 4))
        return network, build_optimizer(OptimizerSettings(kind=kind, weight_decay=0.1), network, nn.Identity(), CPU)  # type: ignore[arg-type]

    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            for p in network.parameters():
                p.grad = normal(*p.shape, seed=seed).float()
            optimizer.step()

    straight, optimizer = build()
    steps(straight, optimizer, range(3))
    tensors, document = flatten(optimizer.state_dict())
    middle = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    steps(straight, optimizer, range(3, 6))
    again, other = build()
    again.load_state_dict(middle)
    other.load_state_dict(unflatten(tensors, document))
    steps(again, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Rows with classes."""
    return table(60, classes=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_as_one_nobody_touched(kind: str, tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)
    optimizer = OptimizerSettings(kind=kind, lr=1e-2, warmup=3, weight_decay=0.01)  # type: ignore[arg-type]
    straight, stopped = (settings(tmp_path / name, steps=8, optimizer=optimizer, accumulate=2) for name in ("straight", "stopped"))
    quietly(straight, data=data)
    for steps in (3, 5, 8):
        quietly(replace(stopped, steps=steps), data=data)
    assert digests(tmp_path / "straight") == digests(tmp_path / "stopped")


def test_a_classifier_has_the_optimizer_it_asks_for(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly(settings(tmp_path), data=data)
    made: list[torch.optim.Optimizer] = []

    def build(*words: Any) -> torch.optim.Optimizer:
        made.append(build_optimizer(*words))
        return made[-1]

    monkeypatch.setattr(classifier, "build_optimizer", build)
    plain = OptimizerSettings(kind="muon", lr=1e-2, warmup=0, muon_lr=2.0)
    train_classifier(tmp_path, ClassifierConfig(steps=2, batch=8, threads=1, network=SMALL_MLP, optimizer=plain), data=data, quiet=True)
    assert isinstance(made[0], Muon) and [group["lr"] for group in made[0].param_groups] == [2e-2, 1e-2]


def test_a_checkpoint_older_than_a_setting_has_its_default(tmp_path: Path) -> None:
    config = settings(tmp_path)
    saved = to_dict(config)
    for name in ("kind", "momentum", "muon_lr", "decay_after"):
        del saved["optimizer"][name]
    older = cast(Checkpoint, SimpleNamespace(document={"state": {"config": saved}}.__getitem__, path=tmp_path / "step-0000004"))
    assert compare(older, config) == []
    assert compare(older, replace(config, optimizer=OptimizerSettings(muon_lr=2.0))) == ["optimizer.muon_lr: 1.0 -> 2.0"]
    with pytest.raises(ConfigError, match="optimizer.kind: adamw -> muon"):
        compare(older, replace(config, optimizer=OptimizerSettings(kind="muon")))


def test_another_kind_does_not_resume(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)
    quietly(settings(tmp_path), data=data)
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match="optimizer.kind: adamw -> muon"):
        quietly(settings(tmp_path, steps=6, optimizer=OptimizerSettings(kind="muon")), data=data)
    assert digests(tmp_path) == before and held(tmp_path).step == 4
