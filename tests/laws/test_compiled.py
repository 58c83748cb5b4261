"""A step compiles whole and once: no branch on data, no generator, no number that is baked in from a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from members import samplers
from torch import Tensor

from ddpm.denoiser import Prediction
from ddpm.process import At, Linear, Process, Uniform
from ddpm.sampling import Restart, Sampler, SingleStep

ROWS = 50


class Plain:
    """The simplest thing a sampler can call: a Gaussian's x0 and eps, a variance output, no module."""

    process = Process(Linear())
    meaning = "mean"

    def __call__(self, x: Tensor, at: At) -> Prediction:
        """E[x0 | x] of N(0, 1/4)."""
        x0 = at.alpha * 0.25 / (at.alpha**2 * 0.25 + at.sigma**2) * x
        return Prediction(x0, (x - at.alpha * x0) / at.sigma, torch.full_like(x, 0.3))

    def residual(self, at: At) -> Tensor:
        """Var[x0 | x]."""
        return at.sigma**2 * 0.25 / (at.alpha**2 * 0.25 + at.sigma**2)


def graphs_of(sampler: Sampler) -> tuple[int, float]:
    """How many graphs 50 rows compile to, and how far the compiled walk ends from the plain one."""
    model, graphs = Plain(), []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(sampler.step, backend=count, fullgraph=True, dynamic=False)
    x = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
    z = torch.linspace(-2.0, 2.0, 12 * max(sampler.draws, 1)).reshape(-1, 4, 3)
    z = None if not sampler.draws else z[0] if sampler.draws == 1 else z
    one, other, state, memory = x, x, sampler.init(x), sampler.init(x)
    for row in sampler.plan(model, Uniform().times(model.process, ROWS)).rows(x):
        one, state, _ = compiled(model, one, row, state, z)
        other, memory, _ = sampler.step(model, other, row, memory, z)
    return len(graphs), float(((one - other) / (1.0 + other.abs())).abs().max())


@pytest.mark.slow
def test_one_graph_serves_all_rows() -> None:
    """In a process of its own: the checks of annotations that tests run under would break every graph."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(samplers)
    for sampler, (graphs, gap) in zip(samplers, found, strict=True):
        last_is_shorter = isinstance(sampler, SingleStep | Restart)  # it makes one call: a second graph
        assert graphs == 1 + last_is_shorter and gap < 1e-4, f"{sampler}: {graphs} graphs, {gap} apart"


if __name__ == "__main__":
    print(json.dumps([graphs_of(sampler) for sampler in samplers]))
