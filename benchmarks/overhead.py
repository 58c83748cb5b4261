"""What a sampler's step costs beside the network call: ours against diffusers' DDIM and DDPM schedulers, with a model that costs nothing.

    python benchmarks/overhead.py

Both sides get a prediction that is already there. A stochastic step includes drawing its noise as a user pays for it: ours by sample from a
counter-based generator, diffusers' from torch's. Rounds are interleaved; the figures are medians of processor time. The last line is JSON:
our time as a share of diffusers'.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm.denoiser import Prediction
from ddpm.process import At, Linear, Process, Trailing
from ddpm.random import normals
from ddpm.sampling import DDIM, Ancestral, Multistep, Sampler

SHAPE = (3, 32, 32)
STEPS, PLACE = 50, 20  # a step in the middle of a plan of 50
Action = Callable[[], object]


class Still:
    """A model whose prediction is made beforehand."""

    meaning = "mean"

    def __init__(self, x: Tensor) -> None:
        self.process = Process(Linear())
        self.prediction = Prediction(0.5 * x, x.clone())

    def __call__(self, x: Tensor, at: At) -> Prediction:
        """The same whatever x."""
        return self.prediction

    def residual(self, at: At) -> Tensor:
        """Nothing is left."""
        return torch.zeros_like(at.t)


def ours(sampler: Sampler, x: Tensor) -> Action:
    """One step of ours with its noise."""
    model = Still(x)
    row = sampler.plan(model, Trailing().times(model.process, STEPS)).rows(x)[PLACE]
    state = tuple(x.clone() for _ in sampler.init(x))
    indices = range(len(x))

    def step() -> None:
        z = normals(0, indices, SHAPE, "step", PLACE) if sampler.draws else None
        sampler.step(model, x, row, state, z)

    return step


def theirs(name: str, x: Tensor) -> Action:
    """One step of a scheduler of diffusers."""
    try:
        import diffusers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit("this benchmark compares with diffusers, which is not installed: pip install 'ddpm[diffusers]'") from error
    scheduler: Any = getattr(diffusers, name)(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    moment, eps, generator = scheduler.timesteps[PLACE], x.clone(), torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": generator} if name == "DDPMScheduler" else {}

    def step() -> None:
        scheduler.step(eps, moment, x, **options)

    return step


def medians(actions: dict[str, Action], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of a call: median over rounds in which all take their turn, one call at a time."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    with torch.inference_mode():
        for k in range(rounds + 10):
            for name, action in actions.items():
                action()  # its own caches and memory, not the last one's
                begin = clock()
                action()
                if k >= 10:  # the first ones warm up
                    taken[name].append(clock() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400, help="rounds of each batch size")
    parser.add_argument(
        "--wall", action="store_true", help="wall time; by default processor time, the same on a machine with nothing else to do"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    clock = time.perf_counter if chosen.wall else time.process_time
    ratios: dict[str, float] = {}
    print(f"torch {torch.__version__}, {chosen.threads} thread(s), {platform.processor() or platform.machine()}; {SHAPE} float32\n")
    print("| batch | step | microseconds | of diffusers' |")
    print("|---:|---|---:|---:|")
    for batch in (1, 64):
        x = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
        pairs: dict[str, dict[str, Action]] = {
            "ode": {"ours: DDIM": ours(DDIM(), x), "ours: dpm++2m": ours(Multistep(), x), "diffusers: DDIM": theirs("DDIMScheduler", x)},
            "stochastic": {"ours: Ancestral": ours(Ancestral(), x), "diffusers: DDPM": theirs("DDPMScheduler", x)},
        }
        for kind, actions in pairs.items():
            seconds = medians(actions, chosen.rounds, clock)
            first, last = next(iter(seconds)), list(seconds)[-1]
            for name, taken in seconds.items():
                print(f"| {batch} | {name} | {taken * 1e6:.1f} | {taken / seconds[last]:.2f} |", flush=True)
            ratios[f"{kind}_batch{batch}"] = round(seconds[first] / seconds[last], 3)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
