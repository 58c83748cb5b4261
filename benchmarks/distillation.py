"""What distillation buys and costs: every method on a mixture whose answer is known, and on the digits.

    python benchmarks/distillation.py --part exact                                about 15 minutes on one core
    python benchmarks/distillation.py --part digits                               about 40 minutes on two

exact: the teacher is the exact denoiser of three bumps in two dimensions, the student a small MLP that begins as an ordinary denoiser of
the same data. One step of the student is put beside where the trajectory through the same noise ends: RMS error over that of one step of
DDIM; for matching, which learns no trajectories, the sliced Wasserstein distance to data over that of one step of DDIM.

digits: the teacher is the digits recipe, trained for --teacher-steps. Every student may cost a fifth of that in network passes (a forward
pass counts 1, a training pass 3). Frechet distance of --n samples to the training digits, by an encoder trained on them, over that of the
teacher's --reference steps of its own chain; beside it the teacher by solvers at as many calls. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.config import Layer, resolve
from ddpm.data import open_data
from ddpm.denoiser import Codec, Index, Mixture, NetworkDenoiser, V, default_clock
from ddpm.distillation import Consistency, ContinuousConsistency, Distillation, DistillConfig, Matching, Progressive, distill
from ddpm.distillation.matching import MatchingLoss
from ddpm.evaluation.extractors import Learned
from ddpm.evaluation.report import Evaluator
from ddpm.metrics import sliced_wasserstein
from ddpm.networks.config import CondSpec, MLPConfig
from ddpm.objective import Denoising, Draws, Loss
from ddpm.process import Cosine, LogSNR, Process, default_grid
from ddpm.random import normals
from ddpm.sampling import DDIM, PRESETS, Adaptive, Ancestral, sample
from ddpm.training import FAMILIES, TrainConfig, load, train
from ddpm.training.config import OptimizerSettings
from ddpm.training.recipes import recipe

METHODS: dict[str, Distillation] = {
    "progressive": Progressive(),
    "consistency": Consistency(),
    "consistency, from data": Consistency(source="data"),
    "consistency, from data, squared": Consistency(source="data", huber=1.0),
    "continuous": ContinuousConsistency(),
    "continuous, from data": ContinuousConsistency(source="data"),
    "continuous, from data, soft": ContinuousConsistency(source="data", soften=10.0),
    "matching": Matching(),
}
PASSES = {"progressive": 5, "consistency": 6, "consistency, from data": 4, "continuous": 6, "continuous, from data": 5, "matching": 7}
PASSES |= {"consistency, from data, squared": 4, "continuous, from data, soft": 5}
SOLVERS = {preset.name: preset.value for preset in PRESETS if preset.name in ("dpm++2m", "heun", "unipc")}
WEIGHTS = torch.tensor([0.3, 0.4, 0.3])


def bumps(process: Process) -> Mixture:
    """Three bumps, each its own distance from the others and its own width."""
    means = torch.tensor([[-1.2, -0.8], [1.0, -0.6], [0.1, 1.3]], dtype=torch.float64)
    return Mixture(process, means, torch.tensor([0.09, 0.04, 0.06], dtype=torch.float64), WEIGHTS)


class Pupil:
    """Fits small networks to losses, on data drawn from the mixture."""

    def __init__(self, batch: int, seed: int) -> None:
        self.process = Process(Cosine(T=None, clip=None))
        self.exact, self.batch, self.seed = bumps(self.process), batch, seed

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Data."""
        choice = torch.multinomial(WEIGHTS, count, True, generator=generator)
        return self.exact.draw(torch.randn(count, 2, generator=generator, dtype=torch.float64), choice).float()

    def denoiser(self, settings: Distillation | None, network: torch.nn.Module | None = None) -> NetworkDenoiser:
        """A student of a method, with this network's weights or fresh ones."""
        torch.manual_seed(self.seed)
        network = copy.deepcopy(network) if network else MLPConfig(width=128, depth=3, dropout=0.0).build((2,), 1, CondSpec())
        student = settings.student(self.process) if settings else None
        codec = Codec(shift=(0.0, 0.0), scale=(1.0, 1.0))
        slow = isinstance(settings, ContinuousConsistency)
        clock = Index(scale=settings.clock) if slow else default_clock(self.process.schedule)
        return NetworkDenoiser(network.requires_grad_(True), self.process, V(), clock, codec, (2,), student=student)

    def fit(self, denoiser: NetworkDenoiser, loss: Loss, steps: int, lr: float) -> NetworkDenoiser:
        """AdamW, warm-up and cosine decay, and an average of the last weights."""
        generator = torch.Generator().manual_seed(self.seed + 3)
        optimizer = torch.optim.AdamW([*denoiser.parameters(), *loss.parameters()], lr=lr, weight_decay=0.0)
        average = [p.detach().clone() for p in denoiser.parameters()]
        denoiser.train()
        for k in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (k + 1) / 50) * 0.5 * (1.0 + math.cos(math.pi * k / steps))
            loss.advance(k / steps)
            x0 = self.draw(self.batch, generator)
            normal = [torch.randn(self.batch, 2, generator=generator) for _ in range(2)]
            value = loss(denoiser, x0, None, Draws(torch.rand(self.batch, generator=generator, dtype=torch.float64), *normal)).mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            with torch.no_grad():
                for held, now in zip(average, denoiser.parameters(), strict=True):
                    held.lerp_(now, max(0.02, 1.0 / (k + 1)))
        with torch.no_grad():
            for held, now in zip(average, denoiser.parameters(), strict=True):
                now.copy_(held)
        return denoiser.eval()

    def student(self, name: str, base: NetworkDenoiser, steps: int, lr: float) -> NetworkDenoiser:
        """A student of one step."""
        method = METHODS[name]
        if isinstance(method, Progressive):
            fine = tuple(default_grid(self.process, 64).times(self.process, 64).tolist())
            teacher, pupil, rounds = self.exact, base, int(math.log2(len(fine)))
            while len(fine) > 1:
                method = replace(method, fine=fine)
                loss: Any = method.build()
                loss.teacher.use(copy.deepcopy(teacher))
                teacher = pupil = self.fit(self.denoiser(method, pupil.network), loss, steps // rounds, lr)
                fine = fine[::2]
            return pupil
        loss = MatchingLoss(method) if isinstance(method, Matching) else method.build()
        if isinstance(loss, MatchingLoss):
            loss.use(self.exact, self.denoiser(None, base.network))
        else:
            loss.teacher.use(self.exact)
        return self.fit(self.denoiser(method, base.network), loss, steps, lr)


def exact(args: argparse.Namespace) -> dict[str, Any]:
    """Every method on the mixture."""
    pupil, count = Pupil(args.batch, args.seed), 4000
    start = normals(5, range(count), (2,), "start", dtype=torch.float64)
    ends = sample(pupil.exact, count, sampler=Adaptive(rtol=1e-6, atol=1e-6), start=start, dtype=torch.float64)
    data = pupil.draw(count, torch.Generator().manual_seed(99)).double()
    one = sample(pupil.exact, count, steps=1, start=start, dtype=torch.float64)

    def error(x: Tensor) -> float:
        return float((x.double() - ends).square().mean().sqrt())

    far, near = sliced_wasserstein(one, data), sliced_wasserstein(ends, data)
    print(f"one step of DDIM: rms {error(one):.4f}, sliced W2 {far:.4f}; the exact map: W2 {near:.4f}", flush=True)
    base = pupil.fit(pupil.denoiser(None), Denoising().build(), args.steps, 1e-3)
    found: dict[str, Any] = {}
    for name in args.methods:
        began = time.perf_counter()
        student = pupil.student(name, base, args.steps, args.lr)
        noise = start.float() if not student.times else pupil.process.prior(start.float(), pupil.process.at(student.times[0]))
        x = sample(student, count, start=noise)
        found[name] = {
            "rms_over_ddim": round(error(x) / error(one), 4),
            "w2_over_ddim": round(sliced_wasserstein(x.double(), data) / far, 4),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(f"{name:<24} rms {found[name]['rms_over_ddim']:.4f}, W2 {found[name]['w2_over_ddim']:.4f} of one step of DDIM's", flush=True)
    return found


def settings(args: argparse.Namespace) -> TrainConfig:
    """The teacher: the digits recipe, for longer."""
    base = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    return replace(
        base, out=str(args.folder / "teacher"), steps=args.teacher_steps, preview=0, monitor=False, threads=args.threads, seed=args.seed
    )


def students(args: argparse.Namespace, name: str) -> list[tuple[int, Path, DistillConfig]]:
    """The runs of a method: one for each number of steps where it needs them, else one for all."""
    method, budget = METHODS[name], args.teacher_steps * 3 // 5
    out: list[tuple[int, Path, DistillConfig]] = []
    for steps in (1, 2, 4) if isinstance(method, Progressive | Matching) else (0,):
        rounds = int(math.log2(32 // steps)) if isinstance(method, Progressive) else 1
        updates = max(1, budget // PASSES[name] // rounds)
        folder = args.folder / f"{name.replace(', ', '-').replace(' ', '-')}{steps or ''}"
        optimizer = OptimizerSettings(lr=args.lr, warmup=min(20, updates // 5), decay="cosine")
        config = DistillConfig(
            method=method, steps=steps or 1, rounds=rounds, updates=updates, out=str(folder), preview=0, optimizer=optimizer,
            threads=args.threads, seed=args.seed, checkpoint_every=updates,
        )  # fmt: skip
        out.append((steps, folder, config))
    return out


def digits(args: argparse.Namespace) -> dict[str, Any]:
    """Every method on the digits, at one, two and four steps."""
    began = time.perf_counter()
    config = settings(args)
    train(config, quiet=True)
    taught = time.perf_counter() - began
    data = open_data(config.data)
    evaluator, teacher = Evaluator(data, Learned.of(data)), load(args.folder / "teacher")
    cond = evaluator.conditions(args.n, 0, teacher.conditions, torch.device("cpu"))

    def score(denoiser: Any, **how: Any) -> float:
        return evaluator.frechet(sample(denoiser, args.n, cond=cond, seed=args.seed, **how)).value

    chain = score(teacher, steps=args.reference, sampler=Ancestral())
    real = evaluator.real(args.n)
    floor = real.estimates["frechet"].value if real is not None else float("nan")
    print(f"teacher: {taught:.0f} s; {args.reference} ancestral steps {chain:.3f}; real data, unseen {floor:.3f}", flush=True)
    found: dict[str, Any] = {"chain": chain, "real": floor, "teacher_seconds": round(taught, 1)}
    for name, solver in {"ddim": DDIM(), **SOLVERS}.items():
        for calls in (1, 2, 4, 8, 16):
            if calls >= solver.least and (name != "heun" or calls % 2 == 0):
                steps = max(n for n in range(1, calls + 1) if solver.calls(n) <= calls)
                found[f"{name} {calls}"] = score(teacher, steps=steps, sampler=solver, grid=None if name == "ddim" else LogSNR())
                print(f"{name + ', ' + str(calls):<28} {found[f'{name} {calls}'] / chain:8.2f} of the chain's", flush=True)
    for name in args.methods:
        for steps, folder, config in students(args, name):
            began = time.perf_counter()
            distill(args.folder / "teacher", config, quiet=True)
            cost, student = time.perf_counter() - began, load(folder)
            for count in (steps,) if steps else (1, 2, 4):
                value = score(student, steps=count)
                found[f"{name} {count}"] = value
                share = cost / taught
                print(f"{name + ', ' + str(count):<28} {value / chain:8.2f} of the chain's; {share:.2f} of the teacher's time", flush=True)
    return found


def main() -> None:
    """One part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("exact", "digits"), default="exact")
    parser.add_argument("--methods", type=lambda text: text.split(";"), default=list(METHODS), help="some of them, between semicolons")
    parser.add_argument("--steps", type=int, default=4000, help="exact: updates of each student")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--teacher-steps", type=int, default=3000)
    parser.add_argument("--reference", type=int, default=1000)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(exact(args) if args.part == "exact" else digits(args)))


if __name__ == "__main__":
    main()
