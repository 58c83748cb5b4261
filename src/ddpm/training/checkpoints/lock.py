"""One writer at a time in a run folder."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import filelock
from filelock import FileLock, Timeout

from ddpm.errors import DiskError, LockedError
from ddpm.lazy import at_least

at_least(filelock)


class RunLock:
    """Holds a run folder for this process: `with RunLock(run): ...`.

    The operating system keeps the lock (on `run/.lock`), so it is free at once when the owner ends, however it ends. `run/.lock-owner`
    beside it says who holds it; it is for people only and decides nothing.

    Raises: LockedError naming the owner, at once, where another process holds the folder; DiskError where the folder cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        self._note = self.run / ".lock-owner"
        self._lock = FileLock(self.run / ".lock", thread_local=False)

    def __enter__(self) -> RunLock:
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise LockedError(f"{self.run} is in use{_owner(self._note)}; wait for it to end, or use another folder") from error
        except (OSError, NotImplementedError) as error:
            raise DiskError(f"cannot lock {self.run}: {getattr(error, 'strerror', None) or error}; the folder must be writable") from error
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError):  # the note is a courtesy; a full disk must not stop a run that may still be able to sample or evaluate
            self._note.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):
            self._note.unlink(missing_ok=True)  # while still held: afterwards it could be the next owner's
        self._lock.release()


def _owner(note: Path) -> str:
    """The end of the sentence, "by pid 4711 on host a since 10:02"; empty where the note cannot be read (it may be just being written)."""
    try:
        owner = json.loads(note.read_text(encoding="utf-8"))
        since = datetime.fromisoformat(owner["since"]).astimezone()
        today = since.date() == datetime.now().astimezone().date()
        return f" by pid {int(owner['pid'])} on host {owner['host']} since {since:{'%H:%M' if today else '%Y-%m-%d %H:%M'}}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
