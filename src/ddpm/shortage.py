"""Out of memory: one sentence, and the same command line with a smaller batch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ddpm.errors import ShortOfMemoryError


def out_of_memory(error: Exception) -> str | None:
    """What an error says where it means that memory ran out, of whatever library and device; None for any other error."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error):
        return (str(error).splitlines() or ["the machine has no more to give"])[0]
    return None


def changed(words: Sequence[str], flags: dict[str, int]) -> str:
    """A command line with these flags in place of what it says of them: `ddpm train --batch 64`."""
    kept: list[str] = []
    skip = False
    for word in words:
        name = word.split("=", 1)[0].replace("_", "-")
        if skip:
            skip = False
        elif name in flags:
            skip = "=" not in word
        else:
            kept.append(word)
    return shlex.join(["ddpm", *kept, *(part for name, value in flags.items() for part in (name, str(value)))])


@contextmanager
def smaller_batch(batch: int, accumulate: int | None = None) -> Iterator[None]:
    """Within it, running out of memory is a ShortOfMemoryError with a command line to try: half the batch, and with `accumulate` twice the
    passes, so that a step sees the same samples.
    """
    try:
        yield
    except Exception as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        advice = "the batch is one sample already: use a smaller network or --size, or another machine"
        if batch > 1:
            flags = {"--batch": batch // 2} | ({} if accumulate is None else {"--accumulate": 2 * accumulate})
            same = " (the same samples a step)" if accumulate is not None and batch % 2 == 0 else ""
            advice = f"try half the batch{same}: {changed(sys.argv[1:], flags)}"
        raise ShortOfMemoryError(f"out of memory with a batch of {batch}: {reason}\n  {advice}") from error
