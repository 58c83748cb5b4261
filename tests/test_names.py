"""Names in place of objects, and rooms as attributes: what a person types first."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ddpm
from ddpm.denoiser import Mixture
from ddpm.errors import ConfigError
from ddpm.process import Cosine, Karras, Process
from ddpm.sampling import PRESETS


def exact() -> Mixture:
    return Mixture(Process(Cosine()), torch.zeros(1, 2), torch.ones(1))


def test_samplers_and_grids_by_name() -> None:
    """As the command line has them, with the objects' results."""
    multistep = {preset.name: preset.value for preset in PRESETS}["dpm++2m"]
    drawn = ddpm.sample(exact(), 8, steps=5, sampler="dpm++2m", grid="karras")
    assert torch.equal(drawn, ddpm.sample(exact(), 8, steps=5, sampler=multistep, grid=Karras()))
    frames = list(ddpm.trajectory(exact(), 8, steps=5, sampler="DPM++ 2M", grid="karras"))
    assert torch.equal(frames[-1].x, drawn)
    with pytest.raises(ConfigError, match=r'sampler is "ddimm"; did you mean DDIM\?'):
        ddpm.sample(exact(), 8, sampler="ddimm")
    with pytest.raises(ConfigError, match=r"grid is .*allowed: Full, Trailing"):
        ddpm.sample(exact(), 8, grid="dpm++2m")


@pytest.mark.parametrize(("name", "value"), [("schedule", "cosine"), ("data", "photos/"), ("network", "unet")])
def test_a_name_where_settings_take_an_object(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is '{value}'; allowed: .*, an object and not its name"):
        ddpm.TrainConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("typed", "meant"), [("dpm-solver++", "dpm++2m"), ("DPMSolverMultistep", "dpm++2m")])
def test_names_of_other_libraries(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant.replace('+', '[+]')}"):
        ddpm.sample(exact(), 4, sampler=typed)


def test_rooms_are_attributes_of_the_package() -> None:
    """In a process that has imported nothing else, without the cost of importing them all."""
    code = "import sys, ddpm; assert 'torch' not in sys.modules; ddpm.likelihood.continuous; ddpm.metrics.frechet; ddpm.evaluation.compare"
    subprocess.run([sys.executable, "-c", code], check=True)
