"""The model that is distilled: frozen, beside the student, and no part of what training changes or saves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.denoiser import UNASKED, Cond, Denoiser, Prediction
from ddpm.distillation.methods import Distillation
from ddpm.guidance import ClassifierFree
from ddpm.process import At


class Teacher:
    """A denoiser that is only asked. It is opened when it is first needed, and goes where the student is."""

    def __init__(self, settings: Distillation) -> None:
        self.settings = settings
        self._plain: Denoiser | None = None
        self._asked: Denoiser | None = None
        self._device: torch.device | None = None

    def use(self, denoiser: Denoiser) -> None:
        """Take this denoiser instead of the run of the settings: one with an exact answer, say."""
        self._plain = denoiser.eval().requires_grad_(False)
        self._asked = self._device = None

    def plain(self, like: Tensor) -> Denoiser:
        """The denoiser without guidance, on the device of `like`."""
        if self._plain is None:
            from ddpm.training.state import load

            self.use(load(self.settings.teacher))
        assert self._plain is not None
        if self._device != like.device:
            self._plain.to(like.device)
            self._device = like.device
        return self._plain

    @torch.no_grad()
    def __call__(self, x: Tensor, at: At, cond: Cond) -> Prediction:
        """What the teacher says, under the guidance of the settings where there is a condition to guide by."""
        plain = self.plain(x)
        if self.settings.guidance == 1.0 or not cond or not cond.keys() - UNASKED - {"null"}:
            return plain(x, at, cond)
        if self._asked is None:
            self._asked = ClassifierFree(plain, self.settings.guidance)
        return self._asked(x, at, cond)


def masks(device: torch.device) -> Callable[[], None]:
    """What to call before a network is asked again, for it to drop what it drops now."""
    host = torch.get_rng_state()
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.mps.get_rng_state() if device.type == "mps" else None

    def again() -> None:
        torch.set_rng_state(host)
        if own is not None:
            torch.cuda.set_rng_state(own, device) if device.type == "cuda" else torch.mps.set_rng_state(own)

    return again
