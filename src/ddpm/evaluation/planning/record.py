"""What a plan foretold beside what happened: `plan.json` of a run folder keeps both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.config import to_dict
from ddpm.errors import CheckpointError, ConfigError, DiskError
from ddpm.evaluation.planning.plan import Plan, duration
from ddpm.evaluation.planning.rehearsal import size_of
from ddpm.training.checkpoints.storage import size_text, write_text
from ddpm.training.config import TrainConfig

PLAN = "plan.json"
COSTLY = (
    *("network", "loss", "batch", "accumulate", "steps", "checkpoint_every", "keep", "preview"),
    *("device", "precision", "threads", "compile", "gradient_checkpointing"),
)


def save_plan(run: Path, plan: Plan) -> Path:
    """Keep a plan in a run folder, which may not exist yet; a plan that was there is replaced.

    Raises ConfigError for a plan.json that is something else, DiskError where it cannot be written.
    """
    path = run / PLAN
    try:
        load_plan(run)
    except CheckpointError as error:
        raise ConfigError(f"out: {path} is there and is no plan of `ddpm plan`; name another folder, nothing was changed") from error
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"format": 1, **plan.to_dict(), "happened": []}, indent=1) + "\n")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}; name another folder with --out, or leave it out") from error
    return path


def load_plan(run: Path) -> dict[str, Any] | None:
    """plan.json of a run folder; None where there is none, CheckpointError where it cannot be read."""
    path = run / PLAN
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plan.get("happened"), list) or not {"steps"} <= plan["settings"].keys() or "seconds" not in plan["foretold"]:
            raise ValueError("it is not a plan")
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; `ddpm plan` writes it anew, or remove it") from error
    return plan


def happened(run: Path, config: TrainConfig, first: int, last: int, seconds: float, memory: int) -> str | None:
    """Note in plan.json what steps first..last of a run have cost, and say it beside what was foretold; None without a plan.

    A run that was stopped and resumed adds up; its time is compared with that of as many steps. memory: bytes, the most this process held.
    """
    plan = load_plan(run)
    if plan is None or last <= first:
        return None
    own = size_of(run / "plan.json")
    plan["happened"].append({"first": first, "last": last, "seconds": round(seconds, 3), "memory": memory, "disk": size_of(run) - own})
    write_text(run / PLAN, json.dumps(plan, indent=1) + "\n")
    return "\n".join([compared(plan), *differences(plan, config)])


def compared(plan: Mapping[str, Any]) -> str:
    """One line: planned and actual time, memory and disk."""
    told, done = plan["foretold"], plan["happened"]
    steps = sum(one["last"] - one["first"] for one in done)
    share = steps / plan["settings"]["steps"]
    part = "" if share == 1.0 else f" for {steps:,} steps"
    disk = "" if share < 1.0 else f"; disk {size_text(told['disk'])}, now {size_text(done[-1]['disk'])}"
    return (
        f"planned {duration(share * told['seconds'])}{part}, took {duration(sum(one['seconds'] for one in done))}; "
        f"memory {size_text(told['memory'])}, at most {size_text(max(one['memory'] for one in done))}{disk}"
    )


def differences(plan: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """A line where the run was not that of the plan."""
    now = to_dict(config)
    other = [name for name in COSTLY if now.get(name) != plan["settings"].get(name, now.get(name))]
    return [f"the plan was for other settings: {', '.join(other)}"] if other else []
