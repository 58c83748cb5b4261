"""Checkpoints when things go wrong: killed, disk full, damaged, mixed up. A complete one must remain, and no bad one may be used."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ddpm.errors import DiskError
from ddpm.training.checkpoints import storage
from ddpm.training.checkpoints.checkpoint import Checkpoint, clean, newest, save

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork, signals and resource limits")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_at(step: int, size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"w": torch.randn(size, 4, generator=generator), "b": torch.randn(4, generator=generator)}


def write(run: Path, step: int, keep: int | None = None, size: int = 64) -> Path:
    model = model_at(step, size)
    return save(run, step, {"model": model, "ema-0.999": model}, {"config": {"name": "UNet"}, "state": {"step": step}}, keep)


def check(found: Checkpoint | None, step: int) -> None:
    assert found and found.step == step and found.document("state") == {"step": step}
    for group in ("model", "ema-0.999"):
        for name, tensor in found.tensors(group).items():
            assert torch.equal(tensor, model_at(step, found.tensors("model")["w"].shape[0])[name])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def boundaries(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> list[str]:
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "boundary", seen.append)
        action()
    return seen


def in_child(action: Callable[[], object]) -> int:
    """Run in a forked process; its exit status (0: returned, 1: raised), or minus the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons: torch has threads; the child starts none
        child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# killed --------------------------------------------------------------------------------------------------------------------


def kill_at(index: int) -> Callable[[str], None]:
    count = iter(range(10**6))

    def stop(_: str) -> None:
        if next(count) == index:
            os.kill(os.getpid(), signal.SIGKILL)

    return stop


@posix
@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
def test_killed_at_every_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """`again`: step 200 is there already and is the only checkpoint; else 50 and 100 are, and 50 gets pruned."""
    monkeypatch.setattr(storage, "CHUNK", 300)  # several writes a file
    template = tmp_path / "template"
    for step in (200,) if again else (50, 100):
        write(template, step)
    first = 200 if again else 100
    shutil.copytree(template, tmp_path / "dry")
    names = boundaries(monkeypatch, lambda: write(tmp_path / "dry", 200, keep=2))
    for kind in ("open", "write", "fsync", "rename", "fsync run", "rename latest", *(() if again else ("prune rename", "prune remove"))):
        assert any(name.startswith(kind) for name in names)
    assert len(names) >= 25
    for index, name in enumerate(names):
        run = tmp_path / f"run {index}"
        shutil.copytree(template, run)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "boundary", kill_at(index))
            assert in_child(lambda run=run: write(run, 200, keep=2)) == -signal.SIGKILL, name
        named = index >= names.index("rename")
        check(newest(run, notice=pytest.fail), 200 if named else first)
        notices: list[str] = []
        unfinished = clean(run, notices.append)
        assert notices == (["removed 1 unfinished save"] if unfinished else []), name
        assert named or unfinished == 1, name
        check(newest(run, notice=pytest.fail), 200 if named else first)
        left = {path.name for path in run.iterdir()} - {"latest"}
        assert all(len(name) == len("step-0000200") for name in left), left
        write(run, 300, keep=2)
        check(newest(run, notice=pytest.fail), 300)
        assert len(list(run.glob("step-*"))) == 2, name


def test_failing_at_every_boundary_leaves_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with an error instead of a kill: no room, no permission, read-only, a bad disk, Ctrl-C."""
    monkeypatch.setattr(storage, "CHUNK", 300)
    run = tmp_path / "run"
    write(run, 100)
    before = content(run)
    names = boundaries(monkeypatch, lambda: write(tmp_path / "dry", 200))
    errors = [OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO)]
    for index, name in enumerate(names[: names.index("rename")]):
        error: BaseException = [*errors, KeyboardInterrupt()][index % 5]
        count = iter(range(10**6))

        def fail(_: str, index: int = index, error: BaseException = error, count: Iterator[int] = count) -> None:
            if next(count) == index:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(storage, "boundary", fail)
            with pytest.raises((DiskError, KeyboardInterrupt)) as caught:
                write(run, 200, keep=1)
        if isinstance(error, OSError):
            said = "need 3 KiB, .* free" if error.errno == errno.ENOSPC else os.strerror(error.errno or 0)
            assert caught.match(f"cannot write step 200.*{said}.*Step 100 is intact"), name
        assert content(run) == before, name


def test_no_room_for_latest_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 100)

    def fail(name: str) -> None:
        if name.startswith("open latest"):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(storage, "boundary", fail)
    with pytest.raises(DiskError, match=r"step 200 is saved and whole, but .*latest cannot be written: full"):
        write(tmp_path, 200, keep=1)
    assert (tmp_path / "latest").read_text() == "step-0000100\n" and len(list(tmp_path.iterdir())) == 3
    check(newest(tmp_path, notice=pytest.fail), 200)


def test_everything_is_flushed_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order of the system calls: each file, then the manifest, then the folder, then the rename, then the run, then `latest`."""
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        calls.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    folder = write(tmp_path, 100)
    files = [
        (folder / name).stat().st_ino
        for name in ("model.safetensors", "ema-0.999.safetensors", "config.json", "state.json", "manifest.json")
    ]
    inside, outside, latest = folder.stat().st_ino, tmp_path.stat().st_ino, (tmp_path / "latest").stat().st_ino
    expected = [("fsync", file) for file in files]
    expected += [("fsync", inside), ("replace", inside), ("fsync", outside), ("fsync", latest), ("replace", latest), ("fsync", outside)]
    assert calls == (
        [call for call in expected if call[0] == "replace" or call[1] not in (inside, outside)] if os.name == "nt" else expected
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_what_the_disk_gives_back_is_compared_before_anything_else_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path, 100)
    before = content(tmp_path)

    def damage(boundary: str) -> None:
        if boundary == "fsync folder":
            (path,) = tmp_path.glob(f"step-0000200.tmp-*/{name}")
            path.write_bytes(path.read_bytes()[:-3] + b"0}\n")

    monkeypatch.setattr(storage, "boundary", damage)
    with pytest.raises(DiskError, match=r"what was read back is not what was written .*Step 100 is intact"):
        write(tmp_path, 200, keep=1)
    assert content(tmp_path) == before


# no room, no permission ----------------------------------------------------------------------------------------------------


def test_preflight_refuses_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 100)
    before = content(tmp_path)
    opened = boundaries(monkeypatch, lambda: write(tmp_path / "dry", 100))
    assert opened[0] == "folder"
    shutil.rmtree(tmp_path / "dry")
    notices: list[str] = []
    big = {"w": torch.zeros(2**18)}
    monkeypatch.setattr(storage, "free_space", lambda _: 2**19)
    monkeypatch.setattr(storage, "boundary", pytest.fail)
    with pytest.raises(DiskError) as caught:
        save(tmp_path, 200, {"model": big}, {}, notice=notices.append)
    assert str(caught.value) == f"cannot write step 200: need 1 MiB, 512 KiB free in {tmp_path}. Step 100 is intact"
    assert caught.value.exit_code == 5 and content(tmp_path) == before and not notices
    monkeypatch.setattr(storage, "free_space", lambda _: 3 * 2**19)
    monkeypatch.setattr(storage, "boundary", lambda _: None)
    save(tmp_path, 200, {"model": big}, {}, notice=notices.append)
    assert notices == [f"disk nearly full: step 200 takes 1 MiB, 2 MiB free in {tmp_path}"]
    with pytest.raises(DiskError, match=r"No earlier checkpoint of this run exists"):
        monkeypatch.setattr(storage, "free_space", lambda _: 0)
        save(tmp_path / "new", 1, {"model": big}, {})


@posix
@pytest.mark.parametrize("percent", [1, 50, 99])
def test_file_size_limit(tmp_path: Path, percent: int) -> None:
    import resource

    run = tmp_path / "run"
    folder = write(run, 100, size=5000)
    before = content(run)
    limit = (folder / "model.safetensors").stat().st_size * percent // 100

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(
            DiskError, match=r"cannot write step 200: need 15\d KiB, more than the system lets one file hold .* Step 100 is intact"
        ):
            write(run, 200, keep=1, size=5000)

    assert in_child(limited) == 0
    assert content(run) == before
    check(newest(run, notice=pytest.fail), 100)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=2m none '{folder}' 2>/dev/null"):
        pytest.skip("mounting a file system needs Linux and root")
    yield folder
    os.system(f"umount '{folder}'")


def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_disk / "run"
    write(run, 100, size=2**14)
    before = content(run)
    monkeypatch.setattr(storage, "free_space", lambda _: 2**30)  # another process takes the room after the preflight
    with pytest.raises(DiskError, match=r"cannot write step 200: need 2 MiB, 1 GiB free .* Step 100 is intact"):
        write(run, 200, keep=1, size=2**16)
    assert content(run) == before
    check(newest(run, notice=pytest.fail), 100)
    monkeypatch.undo()
    write(run, 300, keep=1, size=2**14)
    check(newest(run, notice=pytest.fail), 300)


@posix
def test_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        write(run, 100)
        before = content(run)
        run.chmod(0o555)

        def unprivileged() -> None:
            if os.geteuid() == 0:  # root may write anywhere
                os.seteuid(65534)
            with pytest.raises(DiskError, match=r"cannot write step 200 in .*: Permission denied. Step 100 is intact"):
                write(run, 200)

        assert in_child(unprivileged) == 0
        run.chmod(0o755)
        assert content(run) == before
