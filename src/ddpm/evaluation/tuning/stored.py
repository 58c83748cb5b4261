"""What tuning found, and where a run keeps it: sampling.json, an entry for each number of network calls and way of guiding."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm.config import from_dict, to_dict
from ddpm.errors import CheckpointError, ConfigError
from ddpm.process import Listed
from ddpm.sampling import PRESETS, SAMPLERS, Sampler
from ddpm.training.averaging.weights import weight_set
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.checkpoints.storage import MAX_JSON, from_json, to_json, write_text
from ddpm.training.state import open_run

FILE = "sampling.json"
FORMAT = 1
PLAIN: Mapping[str, Any] = {"guidance": 1.0}  # the conditional model as it is


class Trial(NamedTuple):
    """A sampler on a parametrised grid, and its error on the most starts it was tried on."""

    sampler: str
    grid: str
    error: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The best found at `nfe` network calls: sampler, instants, interval of guidance (None: as the model has it), held-out errors.

    error, defaults: root mean square distance per entry to the reference over the held-out starts. reference_error: by how much the
    reference itself changed when its calls were doubled, None where a chain has no more. trials: best first. calls: spent in all, a sample
    each.
    """

    nfe: int
    sampler: Sampler
    at: tuple[float, ...]
    interval: tuple[float, float] | None
    error: float
    defaults: Mapping[str, float]
    reference_error: float | None
    trials: tuple[Trial, ...] = ()
    calls: int = 0
    starts: int = 0
    seed: int = 0

    @property
    def grid(self) -> Listed:
        """The instants, as `sample` takes them."""
        return Listed(at=self.at)

    @property
    def steps(self) -> int:
        """How many instants there are: `sample`'s steps."""
        return len(self.at)


class Entry(NamedTuple):
    """A tuned sampler as a run keeps it: how the model was guided (`PLAIN`: not at all), and of which weights it speaks."""

    tuned: Tuned
    guiding: Mapping[str, Any]
    weights: str
    step: int
    fingerprint: str  # SHA-256 of the weights' file
    schedule: Mapping[str, Any]


def name_of(sampler: Sampler) -> str:
    """The name people know these settings by, or the class's."""
    return next((preset.name for preset in PRESETS if preset.value == sampler), type(sampler).__name__)


def fingerprint(saved: Checkpoint, weights: str) -> str:
    """SHA-256 of the file that holds the weights samples are drawn from."""
    return weight_set(saved, weights).sha256


def home_of(run: str | Path) -> Path:
    """The run folder of a run folder or of one of its step folders."""
    path = Path(run)
    return path.resolve().parent if (path / "manifest.json").is_file() else path


def save_tuned(run: str | Path, tuned: Tuned, *, guiding: Mapping[str, Any] = PLAIN, weights: str = "ema", step: int | None = None) -> Path:
    """Put a result into the run's sampling.json in place of an earlier one at the same nfe, guiding and weights; others stay.

    step: the checkpoint it was tuned on, None the newest. Raises DiskError, and CheckpointError for a file that is not ours.
    """
    saved = open_run(run, step)
    entry = Entry(tuned, guiding, weights, saved.step, fingerprint(saved, weights), saved.document("config")["schedule"])
    path = home_of(run) / FILE
    same = (tuned.nfe, dict(guiding), weights)
    others = [old for old in read(run) if (old.tuned.nfe, dict(old.guiding), old.weights) != same]
    entries = sorted([*others, entry], key=lambda one: (one.tuned.nfe, json.dumps(dict(one.guiding), sort_keys=True), one.weights))
    document = {"format": FORMAT, "entries": [_written(one) for one in entries]}
    write_text(path, to_json(document, FILE))
    return path


def read(run: str | Path) -> list[Entry]:
    """All entries of a run's sampling.json; none where there is no such file. CheckpointError for a damaged one."""
    path = home_of(run) / FILE
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} is far too large to be ours; remove it, and run ddpm tune again")
        document = from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        return [_entry(table) for table in document["entries"]]
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path} cannot be understood ({error}); remove it, and run ddpm tune again") from error


def load_tuned(
    run: str | Path,
    nfe: int | None = None,
    *,
    guiding: Mapping[str, Any] = PLAIN,
    weights: str = "ema",
    step: int | Literal["best"] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Tuned | None:
    """What `ddpm tune` found for this run at `nfe` calls; None: for the most calls tuned for. None where nothing fits.

    guiding: as the entry was saved with. A file that speaks of other weights than those of the checkpoint (the newest, or `step`) is still
    used where the schedule is the same, and said so through `notice`; one of another schedule is not used. Raises CheckpointError.
    """
    entries = read(run)
    if not entries:
        return None
    saved = open_run(run, step)
    found, told = choose(entries, nfe, guiding, weights, saved.step, fingerprint(saved, weights), saved.document("config")["schedule"])
    if told and notice is not None:
        notice(told)
    return found.tuned if found else None


def choose(
    entries: Sequence[Entry],
    nfe: int | None,
    guiding: Mapping[str, Any],
    weights: str,
    step: int,
    fingerprint: str,
    schedule: Mapping[str, Any],
) -> tuple[Entry | None, str]:
    """The entry that fits, and what has to be said about it; "" for nothing."""
    fitting = [one for one in entries if dict(one.guiding) == dict(guiding) and one.weights == weights and nfe in (None, one.tuned.nfe)]
    own = [one for one in fitting if dict(one.schedule) == dict(schedule)]
    if not own:
        wanted = f"{'any number of' if nfe is None else nfe} calls, {weights} weights" + "".join(f", {k} {v}" for k, v in guiding.items())
        if fitting:
            return None, f"{FILE} was made for another schedule and is not used; run ddpm tune again"
        held = ", ".join(f"{one.tuned.nfe} (guidance {one.guiding.get('guidance', 1.0):g}, {one.weights})" for one in entries)
        return None, f"{FILE} has nothing for {wanted}; it has {held}. Run ddpm tune with these"
    best = max(own, key=lambda one: one.tuned.nfe)
    if best.fingerprint != fingerprint:
        return best, f"{FILE} was tuned on other weights (step {best.step}, these are step {step}); run ddpm tune again for the best"
    return best, ""


def _written(entry: Entry) -> dict[str, Any]:
    """An entry as plain values; what is not finite becomes null."""
    tuned = entry.tuned

    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    return {
        "nfe": tuned.nfe,
        "guiding": dict(entry.guiding),
        "weights": entry.weights,
        "sampler": to_dict(tuned.sampler, named=True),
        "at": list(tuned.at),
        "interval": list(tuned.interval) if tuned.interval else None,
        "error": number(tuned.error),
        "defaults": {name: number(value) for name, value in tuned.defaults.items()},
        "reference_error": tuned.reference_error,
        "calls": tuned.calls,
        "starts": tuned.starts,
        "seed": tuned.seed,
        "step": entry.step,
        "fingerprint": entry.fingerprint,
        "schedule": dict(entry.schedule),
    }


def _entry(table: Mapping[str, Any]) -> Entry:
    def number(value: float | None) -> float:
        return math.inf if value is None else float(value)

    tuned = Tuned(
        nfe=int(table["nfe"]),
        sampler=from_dict(Sampler, table["sampler"], {Sampler: SAMPLERS}, where=FILE),
        at=Listed(at=tuple(float(t) for t in table["at"])).at,
        interval=(float(table["interval"][0]), float(table["interval"][1])) if table["interval"] else None,
        error=number(table["error"]),
        defaults={name: number(value) for name, value in table["defaults"].items()},
        reference_error=table["reference_error"],
        calls=int(table["calls"]),
        starts=int(table["starts"]),
        seed=int(table["seed"]),
    )
    return Entry(tuned, table["guiding"], table["weights"], int(table["step"]), str(table["fingerprint"]), table["schedule"])
