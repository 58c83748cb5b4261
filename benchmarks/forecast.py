"""Forecasts of a temperature field: this package's ensembles beside persistence, climatology, the expected field, and a regression by the
same network.

    python benchmarks/forecast.py --data era5-2m-temperature-uk-2019-03.grib --minutes 19 --seeds 3 --figure docs/forecast.png

The recipe `forecast` is trained for so many CPU minutes a seed (the number of steps that fits is measured first), and a regression with the
same network, conditions, optimizer and minutes on the mean square of the same departures. Half of the minutes goes to a run of its own on
the training days alone, which holds out the last of them: one over the spread-skill ratio of its ensembles there, the geometric mean over
the leads (single ones are uncertain), is how much those of the other run are inflated. How they are without it is said beside it. Both
runs make as many steps: the longer a run, the narrower its ensembles. Scored on the days that training held out, every --every hours, by
ensembles of --members drawn in --calls network calls each: CRPS (fair), mean absolute and root mean square error of the ensemble's mean,
spread-skill ratio; persistence is the field of the start, climatology all training days' fields at that hour, as an ensemble, expected the
field of the start plus the mean change of the days before. For one member the CRPS is the mean absolute error.

Finished seeds are kept in --folder, and runs save at every quarter: a second call goes on. Seeds may be made by processes of their own,
with --seed-only 0, --seed-only 1 and so on; a call without it then says how all went. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import SHARE, begun, counted, fitting, used
from filelock import FileLock
from forecast_figure import figure
from torch import Tensor, nn

from ddpm.config import Layer, resolve
from ddpm.data import open_data
from ddpm.data.dataset import Dataset
from ddpm.data.field_files import write
from ddpm.data.field_opening import open_fields
from ddpm.data.fields import Record, read_record
from ddpm.denoiser import Codec, NetworkDenoiser
from ddpm.denoiser.fields import Fields
from ddpm.evaluation.forecasting import as_json, ensemble, inflated, scores, starts, table, truth
from ddpm.metrics import Scores, spectrum
from ddpm.random import torch_seed
from ddpm.sampling import PRESETS, sample
from ddpm.training import FAMILIES, TrainConfig, train
from ddpm.training.build import cond_spec
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.feed import rows_of
from ddpm.training.machine import choose
from ddpm.training.recipes import recipe

EARLIER = 0.5  # of the minutes: the run that says how much to inflate, as long as the other
FEWER = 20  # members of its ensembles
SAMPLER = {preset.name: preset.value for preset in PRESETS}["dpm++2m"]


class Regression(nn.Module):
    """The mean departure, by the network of the diffusion model: its noisy input and its noise level are always zero."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        super().__init__()
        assert config.network is not None
        self.network = config.network.build(data.card.shape, 1, cond_spec(data.card, config))
        self.codec, self.vector = Codec.of(data.card), Codec.of_vector(data.card)

    def forward(self, cond: dict[str, Tensor]) -> Tensor:
        """(B, C, H, W) in the space diffused in."""
        image = cond["image"]
        if self.vector is not None:
            cond = {**cond, "vector": self.vector.encode(cond["vector"])}
        return self.network(image.new_zeros(len(image), len(self.codec.scale), *image.shape[2:]), image.new_zeros(len(image)), cond)


def batch_of(data: Dataset, codec: Codec, seed: int, step: int, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The rows that the diffusion model's training takes at this step."""
    raw, cond = data.batch(rows_of(data, seed, step * size, size))
    return codec.encode(torch.from_numpy(raw)), {key: torch.from_numpy(value) for key, value in cond.items()}


def regress(config: TrainConfig, data: Dataset, seconds: float, autocast: torch.dtype | None) -> tuple[Regression, int]:
    """Train for so many CPU seconds; the average of the weights, and the steps made."""
    torch.manual_seed(torch_seed(config.seed, "network"))
    model = Regression(config, data)
    averaged, settings = deepcopy(model).eval(), config.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay)
    began, step, share = time.process_time(), 0, 0.0
    while share < 1.0:
        x0, cond = batch_of(data, model.codec, config.seed, step, config.batch)
        for group in optimizer.param_groups:  # the decay by the time that is gone, of which nobody knows how many steps it holds
            group["lr"] = settings.lr * min(1.0, (step + 1) / settings.warmup) * 0.5 * (1.0 + np.cos(np.pi * share))
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = (model(cond).float() - x0).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for mine, its in zip(averaged.parameters(), model.parameters(), strict=True):
                mine.lerp_(its, max(0.001, 9.0 / (step + 9.0)))
        share = (time.process_time() - began) / seconds
    return averaged, step


def settings(args: argparse.Namespace, seed: int, steps: int, out: Path, data: str = "") -> TrainConfig:
    """The recipe, of so many steps, on the fields or those of a part of the time."""
    base = resolve(TrainConfig, [Layer("recipe forecast", recipe("forecast"))], FAMILIES)
    quiet: dict[str, Any] = {"preview": 0, "monitor": False, "track": ("none",), "evaluate_every": steps}
    quiet["checkpoint_every"] = -(-steps // 4)  # four in all, whatever the steps
    warm = replace(base.optimizer, warmup=min(base.optimizer.warmup, max(1, steps // 10)))
    return replace(
        base,
        data=replace(base.data, data=data or args.data),
        steps=steps,
        seed=seed,
        out=str(out),
        optimizer=warm,
        threads=args.threads,
        **quiet,
    )


def steps_of(args: argparse.Namespace, data: Dataset) -> int:
    """How many steps fit: measured by the first call in this folder, whatever other calls there are at the same time."""

    def short(steps: int) -> None:
        shutil.rmtree(args.folder / "timed", ignore_errors=True)  # of a call that was killed
        train(settings(args, 0, steps, args.folder / "timed"), data=data, quiet=True)
        shutil.rmtree(args.folder / "timed")

    place = args.folder / "asked.json"
    with FileLock(args.folder / "asked.lock"):
        before = json.loads(place.read_text(encoding="utf-8"))
        if "steps" not in before:
            before["steps"] = fitting(short, args.minutes)
            replace_text(place, json.dumps(before) + "\n")
        return before["steps"]


def before(path: Path, time: str, out: Path) -> Path:
    """A file of the fields before this time, written where it is not there yet."""
    if not out.is_file():
        fields = open_fields(path)
        along = next(str(name) for name, axis in fields.indexes.items() if str(axis.dtype).startswith("datetime"))
        early = fields.isel({along: np.flatnonzero(fields[along].values < np.datetime64(time))})
        write(early.drop_vars([name for name in early.coords if name not in early.dims]), out)
        fields.close()
    return out


class Setting:
    """What all seeds share: the data, and which forecasts are made."""

    def __init__(self, args: argparse.Namespace, path: Path) -> None:
        self.args, self.path = args, path
        self.data = open_data(settings(args, 0, 10, Path(), str(path)).data)
        assert self.data.card.fields is not None
        self.about: Fields = self.data.card.fields
        self.record: Record = read_record(path, list(dict.fromkeys(self.about.variables)))
        every = starts(self.record, self.about, ["held-out"], args.every, path.name)
        last = self.record.seconds[-1] - 3600 * self.about.leads[-1]
        self.rows = every[self.record.seconds[every] <= last]  # whose truth is there at every lead

    def members(self, model: NetworkDenoiser, seed: int, autocast: torch.dtype | None, members: int) -> np.ndarray:
        """(S, L, M, C, H, W)."""

        def draw(first: int, size: int, cond: dict[str, Tensor]) -> Tensor:
            return sample(
                model, size, steps=self.args.calls, sampler=SAMPLER, seed=seed, first=first, cond=cond, batch=size, autocast=autocast
            )

        return ensemble(draw, self.record, self.about, self.rows, self.about.leads, members, 64)

    def points(self, model: Regression, autocast: torch.dtype | None) -> np.ndarray:
        """(S, L, 1, C, H, W)."""

        @torch.no_grad()
        def draw(first: int, size: int, cond: dict[str, Tensor]) -> Tensor:
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                return model.codec.decode(model(cond).float())

        return ensemble(draw, self.record, self.about, self.rows, self.about.leads, 1, 64)


def trained(setting: Setting, seed: int, steps: int, run: Path, clock: Path) -> tuple[NetworkDenoiser, torch.dtype | None]:
    """A run to its end, and in which numbers it calculates; the file keeps the seconds."""
    config = settings(setting.args, seed, steps, run, str(setting.path))
    with counted(clock):
        finished = train(config, data=setting.data, quiet=True)
    if finished.code:
        sys.exit(finished.code)  # stopped; the same call goes on
    model = finished.denoiser
    return model, choose("cpu", config.precision, setting.args.threads, sum(p.numel() for p in model.parameters())).autocast


def inflation(args: argparse.Namespace, whole: Setting, seed: int, steps: int) -> float:
    """How much to inflate, by a run of so many steps that sees nothing of the held-out days: three days or more are scored."""
    earlier = Setting(args, before(whole.path, whole.about.held, args.folder / "earlier.nc"))
    model, autocast = trained(earlier, seed, steps, args.folder / f"earlier-{seed}", args.folder / f"earlier-{seed}.seconds.json")
    drawn = earlier.members(model, seed, autocast, min(FEWER, args.members))
    found = scores(earlier.record, earlier.about, earlier.rows, earlier.about.leads, drawn)
    print(f"seed {seed}, by days from {earlier.about.held} on\n{table(found, earlier.about.units[0])}", flush=True)
    return float(np.exp(-np.mean([np.log(one["model"].ratio) for one in found.values()])))


def regressed(setting: Setting, seed: int, steps: int, autocast: torch.dtype | None) -> tuple[np.ndarray, int]:
    """What the regression forecasts, and the steps it made; trained where the folder does not have that yet."""
    args = setting.args
    place = args.folder / f"regression-{seed}.npz"
    if not place.is_file():
        model, made = regress(settings(args, seed, steps, args.folder), setting.data, SHARE * 60.0 * args.minutes, autocast)
        np.savez(place.with_suffix(".part.npz"), points=setting.points(model, autocast), steps=made)
        place.with_suffix(".part.npz").replace(place)  # whole, or not there
    kept = np.load(place)
    return kept["points"], int(kept["steps"])


def job(setting: Setting, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train both, score; what the figure shows lies in the folder."""
    args, first = setting.args, round(EARLIER * steps)
    factor = inflation(args, setting, seed, first)
    clock = folder / f"seconds-{seed}.json"  # beside the run, which counts as its own what lies in it
    model, autocast = trained(setting, seed, steps - first, folder / f"run-{seed}", clock)
    count = sum(p.numel() for p in model.parameters())
    began = time.process_time()
    plain = setting.members(model, seed, autocast, args.members)
    drawn, sampling = inflated(plain, (factor,)), time.process_time() - began
    points, made = regressed(setting, seed, steps, autocast)
    about, record, rows = setting.about, setting.record, setting.rows
    found = scores(record, about, rows, about.leads, drawn)
    for name, others in (("not inflated", plain), ("regression", points)):
        for lead, one in scores(record, about, rows, about.leads, others).items():
            found[lead][name] = one["model"]
    print(f"seed {seed}\n{table(found, about.units[0])}", flush=True)
    power = {"truth": [], "model": [], "regression": []}
    for k, lead in enumerate(about.leads):
        fields = {"truth": truth(record, rows, lead)[1], "model": drawn[:, k, 0], "regression": points[:, k, 0]}
        for name, some in fields.items():
            power[name].append(spectrum(torch.from_numpy(some - some.mean(axis=(2, 3), keepdims=True)))[0].tolist())
    case = len(rows) // 2
    np.savez(folder / f"seed-{seed}.npz", members=drawn[case], point=points[case], row=rows[case])
    said = {
        "seed": seed, "steps": steps - first, "steps_before": first, "regression_steps": made, "inflation": factor,
        "cpu_minutes": round((used(clock) + used(folder / f"earlier-{seed}.seconds.json")) / 60, 2),
        "sampling_minutes": round(sampling / 60, 2),
        "parameters": count, "starts": len(rows), "members": args.members, "scores": as_json(found), "spectrum": power,
    }  # fmt: skip
    replace_text(folder / f"seed-{seed}.json", json.dumps(said) + "\n")
    return said


def summary(seeds: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Means over the seeds, by lead and system."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for lead, systems in seeds[0]["scores"].items():
        out[lead] = {
            name: {key: float(np.mean([one["scores"][lead][name][key] for one in seeds])) for key in Scores._fields[:5]} for name in systems
        }
    return out


def verdict(seeds: list[dict[str, Any]]) -> list[str]:
    """What should hold of every seed and lead and does not."""
    wrong: list[str] = []
    for one in seeds:
        for lead, by in one["scores"].items():
            crps, where = by["model"]["crps"], f"seed {one['seed']}, {lead} h"
            bounds = {name: by[name]["crps"] for name in ("persistence", "climatology", "expected", "regression") if name in by}
            wrong += [f"{where}: CRPS {crps:.3f}, {name} {bound:.3f}" for name, bound in bounds.items() if crps >= bound]
            if not 0.8 <= by["model"]["ratio"] <= 1.2:
                wrong.append(f"{where}: spread-skill ratio {by['model']['ratio']:.2f}")
    return wrong


def main() -> int:
    """Train and score what is missing, say how it went, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="fields: .nc, .zarr or .grib")
    parser.add_argument("--minutes", type=float, default=19.0, help="CPU minutes of training for each model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed-only", type=int, default=None, help="train and score this one alone, and say nothing of the others")
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--calls", type=int, default=16, help="network calls for each member")
    parser.add_argument("--every", type=float, default=6.0, help="hours between two starts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = {key: getattr(args, key) for key in ("data", "minutes", "members", "calls", "every", "threads")}
    begun(args.folder / "asked.json", {**asked, "earlier": EARLIER})
    setting, seeds = Setting(args, Path(args.data)), list[dict[str, Any]]()
    for seed in range(args.seeds) if args.seed_only is None else [args.seed_only]:
        place = args.folder / f"seed-{seed}.json"
        if place.is_file():
            seeds.append(json.loads(place.read_text(encoding="utf-8")))
        else:
            seeds.append(job(setting, seed, steps_of(args, setting.data), args.folder))
    if args.seed_only is not None:
        return 0
    means = summary(seeds)
    print(f"\nmean of {len(seeds)} seeds, {seeds[0]['starts']} starts from {setting.about.held} on")
    for lead, systems in means.items():
        for name, one in systems.items():
            print(f"{lead:>4s} h  {name:12s} " + "  ".join(f"{key} {value:.3f}" for key, value in one.items()))
    for line in (failed := verdict(seeds)):
        print(f"not so: {line}")
    if args.figure:
        figure(setting.record, setting.about, seeds, dict(np.load(args.folder / "seed-0.npz")), args.figure)
    print(json.dumps({"mean": means, "failed": failed, "seeds": [{k: v for k, v in one.items() if k != "spectrum"} for one in seeds]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
