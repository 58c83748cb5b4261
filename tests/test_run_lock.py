"""One writer a run folder: the second is told who holds it, and an owner that died holds nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpm.errors import DiskError, LockedError
from ddpm.training.checkpoints.lock import RunLock

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file modes, links and fork")

OWNER = """
import os, sys
from pathlib import Path
from ddpm.training.checkpoints.lock import RunLock
with RunLock(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else -1
    if child != 0:
        print(child, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["alone", pytest.param("fork", marks=posix)])
def test_second_process_is_refused_until_the_owner_dies(tmp_path: Path, kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdin and owner.stdout
        child = int(owner.stdout.readline())
        start = time.monotonic()
        with pytest.raises(LockedError, match=rf"in use by pid {owner.pid} on host .* since \d\d:\d\d") as caught, RunLock(tmp_path):
            pass
        assert time.monotonic() - start < 1 and caught.value.exit_code == 7
        owner.kill()
        owner.wait()
        start = time.monotonic()
        if child > 0:
            os.kill(child, 0)  # a loader worker that outlives its parent holds nothing
        while True:
            try:
                with RunLock(tmp_path):
                    assert json.loads((tmp_path / ".lock-owner").read_text())["pid"] == os.getpid()
                break
            except LockedError:
                assert time.monotonic() - start < 1
        assert not (tmp_path / ".lock-owner").exists()


def test_lock_is_free_after_an_error_and_names_no_one_without_a_note(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path / "new"):
        raise ZeroDivisionError
    with RunLock(tmp_path / "new"):
        (tmp_path / "new" / ".lock-owner").write_text("{")
        with pytest.raises(LockedError, match=r"new is in use; wait"), RunLock(tmp_path / "new"):
            pass


def test_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match=r"cannot lock .*file"), RunLock(tmp_path / "file"):
        pass
