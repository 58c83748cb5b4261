"""The process that started this one: when it is gone, this one goes too. Imports nothing that takes time."""

from __future__ import annotations

import os
import threading
import time

from ddpm.errors import DistributedError

LAUNCHED = "DDPM_LAUNCHED"  # in the environment of processes that `ddpm train --processes N` started: its process id
NAME = "ddpm parent watch"
LOOK = 0.25  # seconds between two looks


def watch_parent() -> None:
    """End this process within a second of its launcher, whatever it is doing; begun once, as early as can be.

    A launcher that says its process id is missed even where it went before the first look. Any other is the parent of now.
    """
    if any(thread.name == NAME for thread in threading.enumerate()):
        return
    said = os.environ.get(LAUNCHED, "")
    # elsewhere an interpreter may be a program that starts another, and its child no child of the launcher
    parent = int(said) if said.isdigit() and os.name == "posix" else os.getppid()
    threading.Thread(target=_look, args=(parent,), name=NAME, daemon=True).start()


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(DistributedError.exit_code)  # whatever is on the disk is whole
