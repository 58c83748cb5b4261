"""How a network is executed changes what it costs, not what comes out: checkpointed, compiled, on how many threads."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ddpm.cli import main
from ddpm.denoiser.serving import serving
from ddpm.errors import ConfigError
from ddpm.networks import MLPConfig, UNetConfig, blocks, fused
from ddpm.networks.blocks import checkpoint_activations, checkpointable, reference, uncompiled
from ddpm.training import TrainConfig, machine, train
from ddpm.training.logbook import read_metrics
from ddpm.training.machine import check_compiler, choose, executed
from small_runs import SMALL_MLP, settings, table

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, where it compiles
COMPILER = shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


@pytest.fixture(autouse=True)
def _threads_and_cache() -> Iterator[None]:
    """As they were before."""
    threads, kept = torch.get_num_threads(), os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    yield
    torch.set_num_threads(threads)
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    if kept is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = kept


def unet() -> nn.Module:
    """With dropout, attention and numbers in every layer."""
    torch.manual_seed(1)
    network = UNetConfig(channels=16, mults=(1, 2), blocks=1, attention=(1,), dropout=0.3).build((1, 8, 8))
    with torch.no_grad():
        for weight in network.parameters():
            if not bool(weight.any()):
                weight.normal_(std=0.05)
    return network.train()


def gradients(network: nn.Module) -> tuple[list[Tensor], int]:
    """Of one loss, with the bytes that were kept for them besides the weights."""
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(2)
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = (network(x, t, None) - x).square().mean()
    held = sum(kept.values())
    return list(torch.autograd.grad(loss, list(network.parameters()))), held


def test_checkpointed_gradients_are_the_same_to_the_last_bit_and_need_less() -> None:
    """Dropout included: its masks are drawn again from the same state."""
    network = unet()
    plain, whole = gradients(network)
    checkpoint_activations(network, True)
    again, less = gradients(network)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert less < 0.4 * whole
    checkpoint_activations(network, False)
    assert gradients(network)[1] == whole


def test_checkpointing_is_refused_where_there_is_nothing_to_checkpoint() -> None:
    """A network of other parts would silently need as much as before."""
    network = MLPConfig(width=8, depth=1).build((2,))
    checkpoint_activations(network, False)
    with pytest.raises(ConfigError, match="gradient_checkpointing: MLP has no blocks"):
        checkpoint_activations(network, True)


def test_nothing_is_computed_twice_where_nobody_wants_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by the textbook, whose derivatives may be of any kind; blocks can be called by name."""
    network = unet()
    checkpoint_activations(network, True)
    monkeypatch.setattr(blocks, "checkpoint", lambda *_, **__: pytest.fail("computed twice"))
    x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    with torch.no_grad():
        network(x, t, None)
    with reference(network):
        torch.func.grad(lambda v: network(v, t, None).sum())(x)
        part = next(part for part in network.modules() if isinstance(part, blocks.ResidualBlock))
        part(torch.zeros(2, 16, 8, 8), emb=torch.zeros(2, 64))


def spied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every checkpointed call, that it was one."""
    calls: list[bool] = []
    plain = blocks.checkpoint
    monkeypatch.setattr(blocks, "checkpoint", lambda *given, **named: calls.append(True) or plain(*given, **named))
    return calls


def test_a_checkpointed_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setting may change between sessions; afterwards the network is as it was."""
    calls, small = spied(monkeypatch), UNetConfig(channels=8, mults=(1,), blocks=1, attention=(0,), dropout=0.2)
    runs = []
    for wanted in (False, True):
        assert not calls
        runs.append(train(settings(tmp_path / str(wanted), network=small, gradient_checkpointing=wanted), quiet=True))
    assert calls
    first, second = (dict(done.denoiser.named_parameters()) for done in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(getattr(part, "again", False) for part in runs[1].denoiser.modules())


def test_what_cannot_be_done_is_said_before_there_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both flags, by `train`."""
    with pytest.raises(ConfigError, match="gradient_checkpointing: MLP"):
        train(settings(tmp_path / "run", gradient_checkpointing=True), data=table(), quiet=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler is not found"):
        train(settings(tmp_path / "run", compile="default"), data=table(), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_a_compiled_run_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within rounding, of a U-Net with attention and a condition; what is translated stays in the cache; the denoiser that comes back is
    not compiled, and is ready for likelihoods. Nothing is held out: measuring would take a translation of its own.
    """
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    small = UNetConfig(channels=8, mults=(1,), blocks=1, attention=(0,), dropout=0.0)  # each layer more takes seconds to translate
    made = settings(tmp_path / "plain", steps=4, log_every=2, network=small)
    made = replace(made, data=replace(made.data, holdout=0.0))
    losses: list[list[float]] = []
    for config in (made, replace(made, out=str(tmp_path / "fast"), compile="default")):
        done = train(config, quiet=True)
        losses.append([row["loss"] for row in read_metrics(done.run) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 2
    assert any((tmp_path / "cache" / "compiled").rglob("*.so"))
    assert "_compiled_call_impl" not in vars(done.denoiser.network)


class Counted:
    """A backend of torch.compile that translates nothing and counts."""

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> object:
        def run(*given: object) -> object:
            self.calls.append(torch.is_grad_enabled())
            return graph(*given)

        return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """In place of what `network.compile(mode=...)` would use."""
    backend, plain = Counted(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, mode: plain(module, backend=backend))
    monkeypatch.setattr(fused, "compiler_of", lambda name: [name])
    return backend


def test_only_the_steps_of_a_compiled_run_are_compiled(tmp_path: Path, counted: Counted) -> None:
    """Evaluation, previews and the watch over gradients run as they are."""
    train(settings(tmp_path, steps=3, compile="default", preview=4, evaluate_every=1), data=table(), quiet=True)
    assert counted.calls == [True] * 3


def test_sampling_compiles_where_asked(tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ddpm sample --compile`: every call of the network, and in the default mode the step round it."""
    steps, translate = list[object](), torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **how: translate(call, **how) if how else steps.append(call) or call)
    train(settings(tmp_path / "run"), data=table(), quiet=True)
    for mode, calls in (("none", 0), ("reduce-overhead", 5), ("default", 5)):
        counted.calls.clear()
        assert not steps and main(["sample", str(tmp_path / "run"), "--n", "4", "--steps", "5", "--compile", mode]) == 0
        assert len(counted.calls) == calls
    assert len(steps) == 1


def test_compiled_networks_are_not_packed(counted: Counted) -> None:
    """Their weights are laid out by the translation."""
    network = unet()
    with executed(network, "default", CPU), serving(network, CPU, torch.bfloat16):
        assert not any("forward" in vars(part) for part in network.modules())
    with serving(network, CPU, torch.bfloat16):
        assert any("forward" in vars(part) for part in network.modules())


def test_checkpointing_by_the_user_outlives_a_run() -> None:
    """What a run switches on it switches off; what was on before stays on, within it too."""
    network = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(1,)).build((1, 8, 8))
    parts = checkpointable(network)
    for before in (False, True):
        checkpoint_activations(network, before)
        for wanted in (False, True):
            with executed(network, "none", CPU, checkpointing=wanted):
                assert {vars(part).get("again", False) for part in parts} == {before or wanted}
            assert {vars(part).get("again", False) for part in parts} == {before}


def test_compiling_says_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step, not somewhere within it."""
    monkeypatch.setattr(fused, "compiler_of", lambda name: None)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    for device, words in (("cpu", "needs a C.. compiler"), ("cuda", "needs triton")):
        with pytest.raises(ConfigError, match=f"compile: got default, which {words}"):
            check_compiler("default", torch.device(device))
        check_compiler("none", torch.device(device))
    with pytest.raises(ConfigError, match="compile: with parallel = 'fsdp'"):
        TrainConfig(compile="default", parallel="fsdp")


def test_the_cache_is_where_a_person_says_or_in_the_packages_folder(
    tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own default is replaced; a folder that cannot be made is done without."""
    (tmp_path / "file").touch()
    for given, cache, expected in (("/mine", tmp_path, "/mine"), ("", tmp_path, str(tmp_path / "compiled")), ("", tmp_path / "file", None)):
        monkeypatch.setenv("DDPM_CACHE", str(cache))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        if not given:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        with executed(SMALL_MLP.build((2,)), "default", CPU):
            assert os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == (expected or default_cache_dir())


def test_execution_is_restored(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a person's own is not compiled for good, nor kept from being so; on tensor cores it goes channels last meanwhile."""
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name)
    network, x, t = unet(), torch.zeros(2, 1, 8, 8), torch.zeros(2)
    for device, layout in ((CPU, torch.contiguous_format), (torch.device("cuda"), torch.channels_last)):
        with executed(network, "default", device, checkpointing=True):
            assert network.layout == layout and any(getattr(part, "again", False) for part in network.modules())
            with uncompiled(network), torch.no_grad():
                network(x, t, None)
            assert not counted.calls
            with reference(network):
                network(x, t, None)
            assert not counted.calls
        assert network.layout == torch.contiguous_format and not any(getattr(part, "again", False) for part in network.modules())
    network.compile(mode="default")
    with executed(network, "none", CPU), torch.no_grad():
        network(x, t, None)
    assert not counted.calls
    with torch.no_grad():
        network(x, t, None)
    assert counted.calls


@pytest.mark.parametrize(("given", "expected"), [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_waiting_threads_spin_for_a_while(given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the environment says otherwise."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    os.environ.pop("GOMP_SPINCOUNT", None)


def test_threads_follow_the_size_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cores for a large one, two for a small one, what is asked for in any case, also by OMP_NUM_THREADS."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    found: list[int] = []
    for wanted, processes, asked, parameters in (
        ("", "", None, 10), ("", "", None, 10_000_000), ("", "", 3, 10), ("5", "", None, 10), ("5", "", 3, 10),
        ("1", "2", None, 10_000_000), ("4,2", "", None, 10),
    ):  # fmt: skip
        for name, value in {"OMP_NUM_THREADS": wanted, "LOCAL_WORLD_SIZE": processes}.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        choose("cpu", "fp32", asked, parameters)
        found.append(torch.get_num_threads())
    assert found == [2, 8, 3, 5, 3, 4, 4]
