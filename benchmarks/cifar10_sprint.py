"""The best CIFAR-10 score that a fixed time buys, with its curve against the images seen.

    python benchmarks/cifar10_sprint.py --data cifar10-train.tar.xz                              25 minutes of an accelerator
    python benchmarks/cifar10_sprint.py --data cifar10-train.tar.xz --minutes 60 --channels 48   of a CPU, with a smaller network
    python benchmarks/cifar10_sprint.py --data cifar10-train.tar.xz --part-minutes 9             in parts: call it until it has ended

The speed of the settings is measured first, once; from it the number of steps is fixed, so that training takes --share of the time, and
the rest is left for scoring. The recipe is `cifar10`. At eighths of the run the averaged weights are scored on --curve samples, at the end
on --samples, by `ddpm evaluate`, whose report lies in FOLDER/report. Exit code 75: this part is over, call it again; 1: it took more than
--minutes, or its report is larger than 1 MiB.

Scored with --weights-file, Inception's, the distance is FID; without, that of an encoder trained on the same data, which compares with
nothing but itself. The last line is JSON, and FOLDER/sprint.json and FOLDER/sprint.png hold the same. A folder belongs to one sprint: other
flags are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from budget import beating, begun

from ddpm.cli import main as command
from ddpm.config import Layer, resolve
from ddpm.data import open_data
from ddpm.data.dataset import Dataset
from ddpm.data.settings import DataSettings
from ddpm.evaluation.drawing.ready import FAMILIES as WAYS
from ddpm.evaluation.drawing.ready import How, draw, ready
from ddpm.evaluation.planning.rehearsal import rehearse
from ddpm.evaluation.report import Evaluator
from ddpm.evaluation.report.files import finite
from ddpm.evaluation.run import extractor_of
from ddpm.evaluation.settings import EvaluateConfig
from ddpm.sampling import steps_for
from ddpm.training import FAMILIES, TrainConfig, train
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.recipes import recipe

POINTS = 8
KEPT = 1000  # checkpoints: the eighths, and one wherever a part ended
LATER = 75  # EX_TEMPFAIL
LARGEST = 2**20  # bytes of the report


class Part:
    """The clock of one call: how much of the sprint's time it has taken, kept in FOLDER/used.json, every few seconds and so also when the
    process is killed.
    """

    def __init__(self, folder: Path, minutes: float | None) -> None:
        self.path, self.began = folder / "used.json", time.monotonic()
        self.used: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.left = 60.0 * minutes if minutes else float("inf")

    @property
    def over(self) -> bool:
        """Whether this call should end."""
        return time.monotonic() - self.began > self.left

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Count the time within as spent on this."""
        before, began = self.used.get(what, 0.0), time.monotonic()

        def keep() -> None:
            self.used[what] = before + time.monotonic() - began
            replace_text(self.path, json.dumps(self.used))

        with beating(keep):
            yield


def settings(args: argparse.Namespace, folder: Path) -> TrainConfig:
    """The recipe, with a smaller network and batch where asked for."""
    base = resolve(TrainConfig, [Layer("recipe cifar10", recipe("cifar10"))], FAMILIES)
    data = replace(base.data, data=args.data)
    network: Any = base.network if args.channels is None else replace(base.network, channels=args.channels)  # pyright: ignore[reportArgumentType]
    quiet: dict[str, Any] = {"preview": 16, "monitor": False, "track": ("none",), "log_every": 20}
    return replace(
        base, data=data, network=network, batch=args.batch or base.batch, out=str(folder), seed=args.seed, compile=args.compile, **quiet
    )


def planned(config: TrainConfig, dataset: Dataset, args: argparse.Namespace, folder: Path) -> TrainConfig:
    """With the number of steps that fits; decided once."""
    path = folder / "plan.json"
    if not path.is_file():
        cost = rehearse(replace(config, preview=0), dataset, args.rehearsal)
        beside = cost.setup + cost.finish + POINTS * (cost.evaluation + cost.save)
        steps = max(POINTS, int((args.share * args.minutes * 60.0 - beside) / cost.step))
        replace_text(path, json.dumps({"step_seconds": cost.step, "steps": steps}))
    plan: dict[str, Any] = json.loads(path.read_text())
    every = -(-plan["steps"] // POINTS)
    optimizer = replace(config.optimizer, warmup=min(config.optimizer.warmup, plan["steps"] // 10))
    return replace(config, steps=plan["steps"], checkpoint_every=every, evaluate_every=every, keep=KEPT, optimizer=optimizer)


def trained(config: TrainConfig, dataset: Dataset, part: Part) -> bool:
    """Train on to the end, or until this part is over: then the run saves itself as it does for SIGTERM."""
    done = Path(config.out or "") / "trained"
    if done.is_file():
        return True
    timer = None
    if part.over:
        return False
    if part.left < float("inf"):
        left = part.left - (time.monotonic() - part.began)
        timer = threading.Timer(max(1.0, left), os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    with part.during("training"):
        code = train(config, data=dataset).code
    if timer is not None:
        timer.cancel()
    if code == 0:
        replace_text(done, "")
    return code == 0


def curve(config: TrainConfig, evaluator: Evaluator, args: argparse.Namespace, part: Part) -> list[dict[str, Any]] | None:
    """The distance at every eighth of the run; None where this part is over before all are found."""
    path = Path(config.out or "") / "curve.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    eighths = [min(config.steps, k * config.checkpoint_every) for k in range(1, POINTS + 1)]
    for step in list(dict.fromkeys(eighths))[len(found) :]:
        if part.over:
            return None
        way = resolve(How, [Layer("the sprint", {"sampler": args.sampler, "step": step})], WAYS)
        way = replace(way, steps=steps_for(way.sampler, args.nfe))
        with part.during("scoring"):
            score = evaluator.frechet(draw(ready(config.out or "", way, Layer("", {})), 0, args.curve, None))
        found.append(finite({"step": step, "images": step * config.batch, **score._asdict()}))
        replace_text(path, json.dumps(found))
        print(f"step {step}: {score}", flush=True)
    return found


def figure(found: dict[str, Any], path: Path) -> None:
    """Distance by images."""
    import matplotlib.pyplot as plt

    drawing, axis = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    images = [point["images"] / 1e6 for point in found["curve"]]
    values = [point["value"] for point in found["curve"]]
    known = all(point["low"] is not None for point in found["curve"])
    reach = [[abs(point["value"] - point[end]) for point in found["curve"]] for end in ("low", "high")] if known else None
    axis.errorbar(
        images,
        values,
        yerr=reach,
        fmt="o-",
        color="C3",
        markersize=4,
        capsize=2,
        label=f"{found['curve_samples']:,} samples{'' if known else ', uncorrected'}",
    )
    if found["floor"] is not None:
        axis.axhline(found["floor"], color="0.6", linestyle="--", linewidth=1, label="real data, unseen")
    above = all(value > 0 for value in (*values, *([] if found["floor"] is None else [found["floor"]])))  # corrected ones need not be
    axis.set(xlabel="million images seen", ylabel=f"Frechet distance, {found['extractor']}", yscale="log" if above else "linear")
    axis.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=110)


def told(found: dict[str, Any]) -> int:
    """Print it, and what was not kept to; the exit code."""
    wrong: list[str] = []
    if found["minutes_used"] > found["minutes"]:
        wrong.append(f"{found['minutes_used']:g} minutes were used, {found['minutes']:g} were given")
    if found["report_bytes"] >= LARGEST:
        wrong.append(f"the report has {found['report_bytes']:,} bytes, {LARGEST:,} are allowed")
    for line in wrong:
        print(f"not kept to: {line}", file=sys.stderr)
    print(json.dumps(found))
    return int(bool(wrong))


def main() -> int:
    """Plan, train, score, report; each as far as this part reaches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10's archive or folder")
    parser.add_argument("--folder", type=Path, default=Path("runs/sprint"))
    parser.add_argument("--minutes", type=float, default=25.0, help="of the whole sprint")
    parser.add_argument("--part-minutes", type=float, default=None, help="of this call; none: to the end")
    parser.add_argument("--share", type=float, default=0.85, help="of the time, for training")
    parser.add_argument("--channels", type=int, default=None, help="of the network's first level; none: 128")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--rehearsal", type=int, default=12, help="steps the speed is measured on")
    parser.add_argument("--sampler", default="dpm++2m")
    parser.add_argument("--nfe", type=int, default=20, help="network calls a sample")
    parser.add_argument("--samples", type=int, default=None, help="scored at the end; none: 50,000 on an accelerator, 2,000 on a CPU")
    parser.add_argument("--curve", type=int, default=None, help="scored at eighths; none: 5,000 and 500")
    parser.add_argument("--weights-file", default=None, help="Inception's weights; see ddpm evaluate --help")
    parser.add_argument("--compile", default="none", choices=("none", "default", "max-autotune"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fast = torch.cuda.is_available()
    args.samples, args.curve = args.samples or (50_000 if fast else 2_000), args.curve or (5_000 if fast else 500)
    args.folder.mkdir(parents=True, exist_ok=True)
    begun(args.folder / "asked.json", {key: str(value) for key, value in vars(args).items() if key not in ("folder", "part_minutes")})
    if (ended := args.folder / "sprint.json").is_file():
        return told(json.loads(ended.read_text()))
    part = Part(args.folder, args.part_minutes)
    with part.during("setup"):
        dataset = open_data(DataSettings(data=args.data, flip=True))
        config = planned(settings(args, args.folder / "run"), dataset, args, args.folder)
    if not trained(config, dataset, part):
        return LATER
    kind = "own" if args.weights_file is None else "inception"
    asked = EvaluateConfig(extractor=kind, weights_file=args.weights_file)
    with part.during("scoring"):
        evaluator = Evaluator(dataset, extractor_of(asked, dataset, torch.device("cuda" if fast else "cpu")))
    points = curve(config, evaluator, args, part)
    if points is None or part.over:
        return LATER
    words = ["--n", args.samples, "--nfe", args.nfe, "--sampler", args.sampler, "--sweep", 0, "--likelihood", 200, "--extractor", kind]
    words += ["--weights-file", args.weights_file] if args.weights_file else []
    report = args.folder / "report"
    with part.during("scoring"):
        if not (report / "report.json").is_file() and command(["evaluate", str(config.out), *map(str, words), "--out", str(report)]):
            return 1
    content = json.loads((report / "report.json").read_text())
    real = (content["real"] or {}).get("frechet")
    used = round(sum(part.used.values()) / 60.0, 2)
    found: dict[str, Any] = {
        "minutes": args.minutes, "minutes_used": used, "exceeded": used > args.minutes,
        "frechet": content["scores"]["frechet"], "floor": real["value"] if real and real["low"] is not None else None,
        "extractor": kind, "samples": args.samples, "calls": args.nfe, "images": config.steps * config.batch, "steps": config.steps,
        "seconds": {what: round(seconds, 1) for what, seconds in part.used.items()}, "curve_samples": args.curve, "curve": points,
        "device": torch.cuda.get_device_name() if fast else f"{torch.get_num_threads()} CPU threads",
        "report_bytes": sum(file.stat().st_size for file in report.iterdir()),
    }  # fmt: skip
    found = finite(found)
    figure(found, args.folder / "sprint.png")
    replace_text(ended, json.dumps(found, indent=1) + "\n")
    return told(found)


if __name__ == "__main__":
    sys.exit(main())
