"""What distillation buys and costs: every method on a mixture whose answer is known, and on the digits.

    python benchmarks/distillation.py --part exact                                about 15 minutes on one core
    python benchmarks/distillation.py --part digits --figure docs/distillation.png      hours on two cores; the same call goes on
    python benchmarks/distillation.py --part cost                                 after digits; about 12 minutes on one core

exact: the teacher is the exact denoiser of three bumps in two dimensions, the student a small MLP that begins as an ordinary denoiser of
the same data. One step of the student is put beside where the trajectory through the same noise ends: RMS error over that of one step of
DDIM; for matching, which learns no trajectories, the sliced Wasserstein distance to data over that of one step of DDIM.

digits: the teacher is the digits recipe, trained for --teacher-steps. Every student makes an eighth of its network passes (a forward pass
counts 1, a training pass 3, of a sample), in updates of --student-batch; students drop nothing, and are never asked without a class.
Frechet distance of --n samples to the training digits, by an encoder trained on them, beside that of the teacher's --reference steps of its
own chain, all with the classes in the very shares of the data, and of the teacher at as many calls, by the best of four solvers on three
grids. Each student is trained in a process of its own, --processes side by side; costs are CPU seconds. FOLDER/rows.json keeps every row.

cost: the CPU time of every student's training over the teacher's, by short runs of all of them in turns: what a row says of its own
training was measured beside whatever else the machine did then. The last line is JSON.
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
from distillation_digits import METHODS, costs, digits
from torch import Tensor

from ddpm.denoiser import Codec, Index, Mixture, NetworkDenoiser, V, default_clock
from ddpm.distillation import ContinuousConsistency, Distillation, Matching, Progressive
from ddpm.distillation.matching import MatchingLoss
from ddpm.metrics import sliced_wasserstein
from ddpm.networks.config import CondSpec, MLPConfig
from ddpm.objective import Denoising, Draws, Loss
from ddpm.process import Cosine, Process, default_grid
from ddpm.random import normals
from ddpm.sampling import Adaptive, sample

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
        student = pupil.student(name, base, args.steps, args.lr or 1e-3)
        noise = start.float() if not student.times else pupil.process.prior(start.float(), pupil.process.at(student.times[0]))
        x = sample(student, count, start=noise)
        found[name] = {
            "rms_over_ddim": round(error(x) / error(one), 4),
            "w2_over_ddim": round(sliced_wasserstein(x.double(), data) / far, 4),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(f"{name:<24} rms {found[name]['rms_over_ddim']:.4f}, W2 {found[name]['w2_over_ddim']:.4f} of one step of DDIM's", flush=True)
    return found


def main() -> None:
    """One part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("exact", "digits", "cost"), default="exact")
    parser.add_argument("--methods", type=lambda text: text.split(";"), default=list(METHODS), help="some of them, between semicolons")
    parser.add_argument("--steps", type=int, default=4000, help="exact: updates of each student")
    parser.add_argument("--batch", type=int, default=512, help="exact: points an update")
    parser.add_argument(
        "--lr",
        type=float,
        default=None,
        help="of students; none: 1e-3, on the digits 2e-3 for progressive, 5e-5 for matching and 1e-4 for the others",
    )
    parser.add_argument("--teacher-steps", type=int, default=6000)
    parser.add_argument("--student-batch", type=int, default=32, help="digits: samples an update; the teacher has 64")
    parser.add_argument("--fine", type=int, default=32, help="digits: steps of the teacher that progressive students begin with")
    parser.add_argument("--reference", type=int, default=1000, help="digits: steps of the teacher's chain")
    parser.add_argument("--n", type=int, default=5000, help="digits: samples a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2, help="digits: jobs side by side; two of one thread are faster than one of two")
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"), help="digits: where runs and rows are kept")
    parser.add_argument("--figure", type=Path, default=None, help="digits: write the curves, such as docs/distillation.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps({"exact": exact, "digits": digits, "cost": costs}[args.part](args)))


if __name__ == "__main__":
    main()
