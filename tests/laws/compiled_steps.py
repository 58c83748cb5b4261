"""Compiles a guided step of every kind, whole (no branch that depends on data) and once for all rows, and compares with the plain one;
then walks of two batches through a network that is compiled itself, as `ddpm sample --compile default` does.

A program of its own, `PYTHONPATH=src python tests/laws/compiled_steps.py`: run-time checks of annotations, which are on under pytest,
are not to be compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from worlds import plain_codec, toy, unit

from ddpm.denoiser import Index, NetworkDenoiser, V
from ddpm.guidance import AutoGuided, ClassifierFree, ClassifierGuided, NetworkClassifier
from ddpm.process import Linear, Process
from ddpm.sampling import DDIM, sample


class Steady(nn.Module):
    """A denoising network without parameters or memory."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        """Something of everything."""
        known = torch.where(cond["null"], 0.0, 1.0 + cond["class"]) if "null" in cond else 1.0 + cond["class"]
        return torch.tanh(x) + (known + self.shift + torch.cos(c_noise))[:, None]


class Logits(nn.Module):
    """A classifier network without parameters."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Three logits."""
        return torch.stack([x.sum(1), torch.sin(x).sum(1), torch.cos(c_noise) * x[:, 0]], 1)


def main() -> None:
    """AssertionError or dynamo's own error where a step does not compile so, or another result comes out."""
    network, weak = toy(Linear(), V()), toy(Linear(), V())
    network.network, weak.network = Steady(), Steady(0.5)
    classifier = NetworkClassifier(Logits(), Process(Linear()), Index(), plain_codec(2), (2,), ("a", "b", "c"))
    options: dict[str, Any] = {"interval": (0.3, 3.0), "rescale": 0.7}
    every = (
        ClassifierFree(network, 3.0, **options),
        ClassifierGuided(network, classifier, 3.0, **options),
        AutoGuided(network, weak, 3.0, **options),
    )
    x, cond, sampler = unit(3, 2).float(), {"class": torch.tensor([0, 1, 2])}, DDIM()
    for guided in every:
        torch._dynamo.reset()
        compiled, model = torch.compile(sampler.step, backend="eager", fullgraph=True), guided.bind(cond)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            for row in sampler.plan(model, torch.linspace(1.0, 0.1, 6).double()).rows(x):
                got, wanted = compiled(model, x, row, (), None)[0], sampler.step(model, x, row, (), None)[0]
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        print(type(guided).__name__)
    walks(network)


def walks(network: NetworkDenoiser) -> None:
    """One graph for every step of every batch, and the samples of the plain walk."""
    plain = sample(network, 6, steps=5, cond={"class": torch.tensor([0, 1, 2, 0, 1, 2])}, batch=3)
    translate, graphs = torch.compile, list[Any]()
    torch._dynamo.reset()
    network.network.compile(backend="eager")

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile = lambda step: translate(step, backend=backend, fullgraph=True)  # pyright: ignore
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = sample(network, 6, steps=5, cond={"class": torch.tensor([0, 1, 2, 0, 1, 2])}, batch=3, compiled=True)
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5)
    print("graphs:", len(graphs))


if __name__ == "__main__":
    main()
