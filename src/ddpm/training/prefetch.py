"""Batches prepared ahead by threads while the device computes. A batch is a function of its key, so nothing of the result changes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ddpm.data.dataset import Dataset
from ddpm.data.demand import OnDemand

Key = tuple[int, ...]
T = TypeVar("T")
_MOST_WORKERS = 8  # a guess, not a measurement: every batch ahead takes memory, and all threads share one lock of Python


class Ahead(NamedTuple):
    """How many batches are prepared ahead, and by how many threads; 0 batches: none, and no thread."""

    batches: int
    workers: int


def choose_ahead(dataset: Dataset, device: torch.device, batches: int | None = None, workers: int | None = None) -> Ahead:
    """What is asked for, or, where that is None, what suits the data and the device.

    Samples in memory on a CPU: nothing ahead, because the threads would take the time from the network they share the cores with. Samples
    in memory beside an accelerator: two batches, one thread. Samples decoded at each visit: a thread for every core of this process but
    one, at most 8, and as many batches, at least two.
    """
    decoding = isinstance(dataset.samples, OnDemand)
    if batches == 0 or (batches is None and device.type == "cpu" and not decoding):
        return Ahead(0, 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cores //= max(int(beside) if beside.isdecimal() else 1, 1)
    chosen = workers or (min(max(cores - 1, 1), _MOST_WORKERS, batches or _MOST_WORKERS) if decoding else 1)
    return Ahead(batches or max(2, chosen), chosen)


class Prefetch(Generic[T]):
    """`make`, called ahead of time: `prefetch(*key)` returns make(*key), and meanwhile threads work on the keys that follow.

    make: a pure function of the key that may run in several threads at once. following: the key after a key, None after the last. With a
    key that was not expected, as after a step was taken back, what was prepared is dropped. An error of `make` is raised, as it is, where
    the batch is asked for: at the very step at which it would be raised without threads, so a run ends in the same state.

    device: tensors in what `make` returns (made on the CPU) are copied to it: page-locked by the threads, so that the copy to an NVIDIA
    device runs beside the computation. What is float64 stays on the host, where it is computed with: not every device has it, and to ask
    for it back would wait for the device.

    Use it as a context: at its end, however it comes, no thread is left. The threads start with the first call.
    """

    def __init__(
        self, make: Callable[..., T], following: Callable[[Key], Key | None], ahead: Ahead, device: torch.device | None = None
    ) -> None:
        self._make, self._following, self._ahead = make, following, ahead
        self._device = device if device is not None and device.type != "cpu" else None
        self._waiting: deque[tuple[Key, Future[T]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, *key: int) -> T:
        """The batch of a key, on the device."""
        if not self._ahead.batches:
            return self._placed(self._prepared(*key))
        if not self._waiting or self._waiting[0][0] != key:
            self._drop()
            self._submit(key)
        _, job = self._waiting.popleft()
        last = self._waiting[-1][0] if self._waiting else key
        while len(self._waiting) < self._ahead.batches and (coming := self._following(last)) is not None:
            self._submit(coming)
            last = coming
        return self._placed(job.result())

    def close(self) -> None:
        """Forget what is being prepared, and wait for the threads to end: at most for the batches they are at."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _submit(self, key: Key) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._ahead.workers, "prefetch", self._begin)
        self._waiting.append((key, self._pool.submit(self._prepared, *key)))

    def _begin(self) -> None:
        """In each thread: page-locked memory belongs to the thread's current device, which is the first one unless told otherwise."""
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def _drop(self) -> None:
        for _, job in self._waiting:
            job.cancel()
        self._waiting.clear()

    def _prepared(self, *key: int) -> T:
        made = self._make(*key)
        return _mapped(made, Tensor.pin_memory) if self._device is not None and self._device.type == "cuda" else made

    def _placed(self, made: T) -> T:
        device = self._device
        if device is None:
            return made
        return _mapped(made, lambda one: one if one.dtype == torch.float64 else one.to(device, non_blocking=device.type == "cuda"))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with every tensor changed: in tuples, named or not, lists and mappings."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(one, change) for one in value))
    return type(value)(_mapped(one, change) for one in value) if isinstance(value, tuple | list) else value
