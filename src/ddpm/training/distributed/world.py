"""The processes of one run: which of them this is, and the little they tell each other.

Started by `torchrun` (or `ddpm train --processes N`, which is the same engine), every process runs the same command and finds its place in
the environment. Sums of gradients are torch's own (`parallel`); here are the small agreements: one decision for all, one error for all, and
who it was when somebody stops answering. Alone, a process is a world of size 1 in which all of this costs nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from ddpm.errors import ConfigError, DDPMError, DistributedError
from ddpm.training.distributed.parent import watch_parent

T = TypeVar("T")

BEAT = 0.5  # seconds between two signs of life
LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "store", "broken pipe", "socket")  # words of torch's errors about peers


class World:
    """This process among those of the run: `rank` of `size`, `local_rank` on its machine; `main` is rank 0, which alone writes and speaks.

    Every method but `beat` is called by all ranks in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, timeout: float = 300.0, store: Store | None = None) -> None:
        self.rank, self.size, self.local_rank, self.timeout = rank, size, local_rank, timeout
        self.device = torch.device("cpu")  # where tensors to be summed lie; nccl has none on the host
        self._store = store
        self._step = 0
        self._watch: threading.Thread | None = None
        if store is not None:
            own: Store = store.clone()  # pyright: ignore[reportAttributeAccessIssue]  (a connection that the other thread does not wait on)
            self._watch = threading.Thread(target=self._beats, args=(own,), name="ddpm heartbeat", daemon=True)
            self._watch.start()

    @classmethod
    def join(cls, timeout: float = 300.0, *, cuda: bool = False) -> World:
        """The world that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), joined; else a world of one.

        timeout: seconds a process may keep the others waiting.

        Raises: ConfigError for variables that are no numbers, DistributedError where the others cannot be reached.
        """
        if int(_number("WORLD_SIZE", "1")) == 1:
            return cls()
        watch_parent()  # the launcher may end while the others are waited for
        rank, size, local = (int(_number(name, default)) for name, default in (("RANK", ""), ("WORLD_SIZE", ""), ("LOCAL_RANK", "0")))
        if cuda:
            torch.cuda.set_device(local)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # restarted ranks must not find the addresses of those before them
        try:
            limit = timedelta(seconds=timeout)
            store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=limit)))
            if not dist.is_initialized():
                shared = PrefixStore(f"ddpm/group/{attempt}", store)
                dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=shared, rank=rank, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise DistributedError(f"rank {rank} of {size} cannot reach the others: {str(error).splitlines()[0]}") from error
        return cls(rank, size, local, timeout, PrefixStore(f"ddpm/life/{attempt}", store))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """This rank's share of `count` things in their order; all ranks together have each once."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    # agreements ------------------------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """What every rank gave, in order of rank; small things that can be pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_main(self, action: Callable[[], T]) -> T:
        """`action()` on rank 0; its result, or the error it met, on every rank."""
        if self.size == 1:
            return action()
        box: list[Any] = [None, None]
        if self.main:
            try:
                box[0] = action()
            except DDPMError as error:
                error.rank, box[1] = 0, error
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def everywhere(self, action: Callable[[], T]) -> T:
        """`action()` on every rank; where it fails on one, its error on all: none runs on alone."""
        if self.size == 1:
            return action()
        result, error = None, None
        try:
            result = action()
        except DDPMError as met:
            error = met
        for rank, found in enumerate(self.gather(error)):
            if found is not None:
                told = type(found)(f"rank {rank}: {found}" if rank and rank != self.rank else str(found))
                told.rank = rank
                raise told
        return result  # type: ignore[return-value]

    # life and death --------------------------------------------------------------------------------

    def beat(self, step: int) -> None:
        """Note the step this rank is in, for messages of the others."""
        self._step = step

    def _beats(self, store: Store) -> None:
        """Signs of life while the process runs."""
        count = 0
        while True:
            count += 1
            with suppress(RuntimeError):  # the store went with the launcher, and so will this process
                store.set(f"{self.rank}", f"{count} {os.getpid()} {socket.gethostname()}")
            time.sleep(BEAT)

    def _lives(self) -> dict[int, list[str]]:
        """Last sign of life of every rank: count, process id, host."""
        assert self._store is not None
        return {rank: self._store.get(f"{rank}").decode().split() for rank in range(self.size) if self._store.check([f"{rank}"])}

    def _culprits(self) -> dict[int, list[str]]:
        """Ranks that give no sign of life for three beats."""
        before = self._lives()
        time.sleep(3 * BEAT)
        after = self._lives()
        return {rank: after.get(rank, []) for rank in range(self.size) if before.get(rank) == after.get(rank)}

    @contextmanager
    def guard(self, left: Callable[[], str]) -> Iterator[None]:
        """Within the block, torch's error about a lost peer becomes a DistributedError that names the rank; left: what the run has."""
        if self.size == 1:
            yield
            return
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, DDPMError) or not any(word in str(error).lower() for word in LOST):
                raise
            self._accuse(text, left(), error)

    def _accuse(self, text: str, left: str, error: BaseException) -> NoReturn:
        silent = "timed out" in text.lower() or "timeout" in text.lower()
        try:
            found = self._culprits()
        except (RuntimeError, dist.DistError):
            found = {}
        for _, pid, host in filter(None, found.values()):
            if silent and host == socket.gethostname():  # it stands still, and the launcher would wait for it in vain
                with suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
        who = f"rank {', '.join(map(str, found))}" if found else "another process"
        what = f"silent for {self.timeout:g} s" if silent else "died"
        detail = "" if found else f" ({text})"
        raise DistributedError(f"{who} {what} in step {self._step + 1}; {left}{detail}") from error


def _number(name: str, default: str) -> str:
    text = os.environ.get(name, default)
    if not text.isdigit():
        raise ConfigError(f"environment: {name} is {text!r}, expected a whole number; start with torchrun or --processes")
    return text
