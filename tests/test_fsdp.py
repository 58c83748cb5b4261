"""Networks spread over processes: the numbers of one process, checkpoints in parts that anybody can read, and the same end for all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ddpm
from ddpm.cli import main
from ddpm.errors import CheckpointError, ConfigError, LockedError
from ddpm.training import TrainConfig
from ddpm.training.checkpoints import checkpoint, tensors
from ddpm.training.checkpoints.checkpoint import RunLock
from ddpm.training.distributed.merging import merge
from fsdp_jobs import COND, DOUBLE, SINGLE, VARIANTS, Precise, config, data_of, go
from small_runs import digests, environment, held, metrics, quietly, settings

JOBS = Path(__file__).parent / "fsdp_jobs.py"
QUICK = ("law", "variants", "moves", "never_whole", "skipped", "full_disk")


def launched(folder: Path, *jobs: str, processes: int = 2) -> list[dict[str, Any]]:
    """The jobs on so many processes; what each rank found, jobs put together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    extra = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{JOBS.parent}"}
    done = subprocess.run([*command, str(JOBS), str(folder), *jobs], env=environment(**extra), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    read = [{job: json.loads((folder / f"{job}-{rank}.json").read_text()) for job in jobs} for rank in range(processes)]
    return [{key: value for found in rank.values() for key, value in found.items()} for rank in read]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint."""
    saved = held(run)
    return {f"{name}/{key}": value for name in saved.tensor_names for key, value in saved.tensors(name).items()}


def apart(one: Path, two: Path) -> float:
    """The largest difference between the tensors of two runs, relative to the largest entry of each."""
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max() / a[key].abs().max().clamp(min=1e-6)) for key in a if a[key].numel())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Everything that two processes do, done by one pair of them; and the run they go on with."""
    folder = tmp_path_factory.mktemp("two")
    torch.set_num_threads(1)
    go(folder / "moves", steps=2, snapshots=2)
    return folder, launched(folder, *QUICK)


# the law ---------------------------------------------------------------------------------------------


def test_fifty_steps_in_float64_equal_a_single_process_to_1e9(many: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    go(tmp_path / "one", Precise(), **DOUBLE)
    ours, theirs = weights(tmp_path / "one"), weights(many[0] / "double")
    assert all(value.dtype == torch.float64 for key, value in theirs.items() if key.startswith("model/"))
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours if not key.startswith("optimizer/")) < 1e-9
    assert apart(tmp_path / "one", many[0] / "double") < 1e-9  # the optimizer's state too: AdamW hides wrong factors of the gradient
    assert held(many[0] / "double").step == 50


def test_fifty_steps_in_float32_reach_the_held_out_loss_of_a_single_process(
    many: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    one, two = (metrics(run)[-1]["held_out_loss"] for run in (go(tmp_path / "one", **SINGLE).run, many[0] / "single"))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_optimizers_losses_and_networks_end_as_on_a_single_process(
    many: tuple[Path, list[dict[str, Any]]], tmp_path: Path, name: str
) -> None:
    go(tmp_path / "one", steps=4, **VARIANTS[name])
    assert apart(tmp_path / "one", many[0] / name) < 2e-5
    if "loss" in VARIANTS[name]:
        start = config(tmp_path, **VARIANTS[name]).loss.build().state_dict()
        moved = held(many[0] / name).tensors("loss")
        assert any(not torch.equal(start[key], moved[key]) for key in start), "the loss learned nothing"


def test_what_train_returns_is_whole_and_of_use_to_one_process(many: tuple[Path, list[dict[str, Any]]]) -> None:
    loaded = ddpm.load(many[0] / "muon")
    assert ddpm.sample(loaded, 2, steps=3, seed=1, cond=COND).flatten().tolist() == many[1][0]["drawn"]


def test_a_number_that_is_not_finite_on_one_rank_is_skipped_by_all(many: tuple[Path, list[dict[str, Any]]]) -> None:
    state = held(many[0] / "skipped").document("state")
    assert (state["step"], state["good_steps"]) == (5, 4)


# forms of a checkpoint -------------------------------------------------------------------------------


def test_a_run_goes_on_whatever_the_processes_and_the_form_of_its_checkpoints(
    many: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """One process -> parts of two -> ddp -> fsdp -> parts -> one process: the bits of one that never stopped."""
    moves = tmp_path / "moves"
    shutil.copytree(many[0] / "moves", moves)
    assert held(moves, 10).parts("model") and not held(moves, 8).parts("model")
    assert held(moves / "snapshots", 4).parts("ema-0.050") and not held(moves / "snapshots", 6).parts("ema-0.050")
    go(moves, steps=12, snapshots=2)
    go(tmp_path / "straight", steps=12, snapshots=2)
    assert digests(moves) == digests(tmp_path / "straight")


def test_no_rank_puts_anything_together_to_save_or_load_parts(many: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["calls"] for found in many[1]] == [["save", "load", "save"]] * 2
    files = held(many[0] / "parts").files
    sizes = [files[f"model.part-0000{part}-of-00002.safetensors"].size for part in (1, 2)]
    assert max(sizes) < 0.6 * sum(sizes)
    kinds = {path.suffix for path in (many[0] / "parts").rglob("step-*/*")}
    assert kinds == {".safetensors", ".json"}, "nothing else, least of all a pickle"


def test_parts_can_be_sampled_from_and_merged(many: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    run, to = many[0] / "pictures", tmp_path / "whole"
    assert main(["merge", str(run), "--to", str(to)]) == 0
    assert "model.safetensors" in held(to).files and not held(to).parts("model")
    assert digests(to) == digests(run)
    flags = ["--n", "2", "--steps", "3", "--classes", "0", "--vector", "1,2"]
    for folder, name in ((run, "parts"), (to, "merged")):
        assert main(["sample", str(folder), *flags, "--out", str(tmp_path / name)]) == 0
    drawn = [[path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))] for name in ("parts", "merged")]
    assert drawn[0] and drawn[0] == drawn[1]
    data = data_of(VARIANTS["pictures"])
    quietly(config(to, steps=5, **VARIANTS["pictures"]), data=data)  # a run like any other
    assert held(to).step == 5


def test_merging_writes_into_no_folder_of_something_else(many: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for to in (tmp_path, tmp_path / "file", many[0] / "single"):
        with pytest.raises(ConfigError, match="to: "):
            merge(many[0] / "pictures", to)
    assert main(["merge", str(many[0] / "pictures"), "--to", str(many[0] / "pictures")]) == 2
    with RunLock(tmp_path / "held"), pytest.raises(LockedError):
        merge(many[0] / "pictures", tmp_path / "held")


# damage ----------------------------------------------------------------------------------------------


def test_a_full_disk_on_one_rank_ends_all_alike_and_leaves_the_checkpoint_before(many: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["code"] for found in many[1]] == [5, 5]
    assert all("cannot write step 4" in found["error"] and "Step 2 is intact" in found["error"] for found in many[1])
    assert held(many[0] / "full").step == 2
    assert [path.name for path in (many[0] / "full").glob("step-*")] == ["step-0000002"]


def test_every_part_is_verified_before_anything_is_read(many: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder = held(many[0] / "parts").path
    for number, path in enumerate(sorted(folder.glob("*.part-*"))):
        copied = tmp_path / str(number) / folder.name
        shutil.copytree(folder, copied)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        (copied / path.name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{path.name} fails SHA-256"):
            checkpoint.open_checkpoint(copied)
        (copied / path.name).unlink()
        with pytest.raises(CheckpointError, match=f"{path.name} is missing"):
            checkpoint.open_checkpoint(copied)


@pytest.mark.parametrize("change", ["whole", "more", "format", "beyond"])
def test_a_mixture_of_forms_is_refused(many: tuple[Path, list[dict[str, Any]]], tmp_path: Path, change: str) -> None:
    """Manifests that are whole, but say what no save says."""
    source, copied = held(many[0] / "parts"), tmp_path / held(many[0] / "parts").path.name
    shutil.copytree(source.path, copied)
    part = copied / source.parts("model")[0]
    other = {
        "whole": "model.safetensors", "more": "model.part-00003-of-00003.safetensors", "beyond": "model.part-00003-of-00002.safetensors"
    }.get(change)  # fmt: skip
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["seal"]
    if other:
        shutil.copy(part, copied / other)
        manifest["files"][other] = manifest["files"][part.name]
    else:
        manifest["format"] = 1
    (copied / "manifest.json").write_bytes(checkpoint.sealed(manifest))
    with pytest.raises(CheckpointError, match="both whole files and parts|parts of different saves"):
        checkpoint.open_checkpoint(copied)


def test_parts_that_do_not_cover_a_tensor_are_refused(many: tuple[Path, list[dict[str, Any]]]) -> None:
    saved = held(many[0] / "parts")
    contents = [(saved.path / part).read_bytes() for part in saved.parts("model")]
    assert tensors.join(contents).keys() == saved.tensors("model").keys()
    for wrong in (contents[1:], [*contents, contents[0]]):
        with pytest.raises(CheckpointError, match="numbers of"):
            tensors.join(wrong)
    with pytest.raises(CheckpointError, match="not a part"):
        tensors.join([tensors.to_bytes(saved.tensors("model"))])
    with pytest.raises(CheckpointError, match="not a part"):
        tensors.join([b"\x00" * 40])


# settings --------------------------------------------------------------------------------------------


def test_parts_are_for_fsdp_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sharded_save: .* use it with parallel = 'fsdp'"):
        TrainConfig(sharded_save=True)
    alone = quietly(settings(tmp_path / "run", parallel="fsdp", sharded_save=True), data=data_of({}))
    assert not held(alone.run).parts("model")  # one process has nothing to divide


@pytest.mark.slow
def test_two_four_two_processes(tmp_path: Path) -> None:
    for count, processes in enumerate((2, 4, 2), 1):
        launched(tmp_path, "spread", processes=processes)
        assert held(tmp_path / "spread").step == 3 * count
        assert held(tmp_path / "spread").parts("model")[-1] == f"model.part-0000{processes}-of-0000{processes}.safetensors"
    go(tmp_path / "one", steps=9, logical_shards=4, batch=8)
    assert apart(tmp_path / "one", tmp_path / "spread") < 1e-5
