"""`ddpm train --processes N`: torchrun's engine on this machine, with one message and one exit code at the end.

    ddpm train --processes 2 ...                       the same as
    torchrun --standalone --nproc-per-node 2 -m ddpm train ...

but for the end: torchrun answers every failure with a report of its own and exit code 1; this says which rank failed and why, and returns
the code that rank had: 8 where a process died without a word.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm.errors import DistributedError

GRACE = 30  # seconds a process has to save after a signal


def inside() -> bool:
    """Whether this process is one of several that a launcher started."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def speaks() -> bool:
    """Whether this process is alone, or the main one of several."""
    return not inside() or os.environ.get("RANK", "0") == "0"


def report(message: str, code: int) -> None:
    """Leave the reason of this rank's end where the launcher finds it; nothing where there is no launcher."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        about = {"errorCode": code, "extraInfo": {"timestamp": str(int(time.time())), "py_callstack": ""}}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": message, **about}}, file)


def launch(words: Sequence[str], run: Path, processes: int, restarts: int = 0, grace: int = GRACE) -> int:
    """Run `ddpm WORDS` in `processes` processes of this machine, up to `restarts` times anew after a failure; returns the exit code.

    run: the run folder, to say what is left there. grace: seconds between the request to stop and the end of those that do not.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ddpm.training.distributed.parent import LAUNCHED
    from ddpm.training.leftovers import last_checkpoint

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the end is told once, below
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ[LAUNCHED] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"ddpm-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        shutdown_timeout=grace,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ddpm", *words)
    except ChildFailedError as error:
        message, code = root_cause(error.failures, last_checkpoint(run))
        if message:
            print(message, file=sys.stderr)
        return code
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0


def root_cause(failures: Mapping[int, Any], left: str) -> tuple[str, int]:
    """What ended the run, among torch's `ProcessFailure`s by rank: (message, exit code); what others saw of it comes last.

    left: what remains of the run, for the message of a process that could not say it.
    """

    def consequence(rank: int) -> tuple[bool, bool, int, int]:
        failure = failures[rank]
        names = failure.exitcode == DistributedError.exit_code
        accuser = names and " silent for " in str(failure.message)  # it has ended the silent one, so that it would not be waited for
        return not accuser, names or failure.exitcode in (-signal.SIGTERM, -signal.SIGABRT), failure.timestamp, rank

    rank = min(failures, key=consequence)
    failure = failures[rank]
    if failure.exitcode in (130, 143):  # asked to stop, and saved
        return "", failure.exitcode
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        guess = "; out of memory?" if name == "SIGKILL" else ""
        return f"ddpm train: error: rank {rank} died ({name}{guess}); {left}", DistributedError.exit_code
    said = failure.message.get("message", "") if isinstance(failure.message, dict) else ""
    if said:
        return said, failure.exitcode
    return f"ddpm train: error: rank {rank} ended with code {failure.exitcode} without a word; {left}", DistributedError.exit_code
