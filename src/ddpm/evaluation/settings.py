"""What `ddpm evaluate` and `ddpm.evaluation.evaluate` are asked for; read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ddpm.config import Layer, check, setting, to_dict
from ddpm.data.settings import DataSettings
from ddpm.evaluation.drawing.ready import How


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored, by what, and how samples are drawn."""

    n: int | None = setting(
        None,
        "samples scored; none: 50,000 by Inception, else 10,000, all of --samples; published FID compares with the uncorrected distance of "
        "50,000",
        low=40,
        high=100_000_000,
        group="what",
    )
    seed: int = setting(0, "sample i depends on (seed, i) alone", low=0, high=2**63 - 1, group="what")
    extractor: Literal["auto", "own", "inception", "dinov2", "clip", "raw"] = setting(
        "auto",
        "what makes vectors of samples; inception: as FID is defined, needs --weights-file; dinov2, clip: by transformers; own: an encoder "
        "trained on the data; raw: the entries; auto: inception where its weights are named, else own",
        group="what",
    )
    weights_file: str | None = setting(
        None, "weights of the extractor: a file; for dinov2 and clip a folder, none: those in the library's cache", group="what"
    )
    reference: str | None = setting(None, "score against another tool's statistics, an .npz with mu and sigma", group="what")
    sweep: int = setting(2000, "samples for each point of the curves; 0: no curves", low=0, high=10_000_000, group="curves")
    nfe_curve: tuple[int, ...] = setting((5, 10, 20, 50), "numbers of network calls", low=1, group="curves")
    guidance_curve: tuple[float, ...] = setting((1.0, 1.5, 2.0, 3.0), "guidance scales, for models with conditions", group="curves")
    likelihood: int = setting(100, "held-out samples whose bits per dimension are bounded; 0: none", low=0, high=10_000_000, group="what")
    data: DataSettings = setting(DataSettings(), "", flat=True, group="data", inherits="the run")
    how: How = setting(How(), "", flat=True)
    out: str | None = setting(None, "folder; none: report in the run folder, or report-2, ...", group="output")

    def __post_init__(self) -> None:
        problems = []
        if self.extractor == "inception" and self.weights_file is None:
            problems.append(
                "extractor: inception needs --weights-file, the network of 2015 as pt_inception-2015-12-05-6726825d.pth holds it, from the "
                "releases of github.com/mseitzer/pytorch-fid or github.com/toshas/torch-fidelity; without it, --extractor own"
            )
        if self.weights_file is not None and self.extractor in ("own", "raw"):
            problems.append(f"weights_file: given, but the extractor is {self.extractor}; leave one of the two out")
        if 0 < self.sweep < 40:
            problems.append(f"sweep: got {self.sweep}, allowed 0 or at least 40")
        check(self, problems)

    @property
    def count(self) -> int:
        """Samples that are scored: n, or its default."""
        inception = self.weights_file is not None and self.extractor in ("auto", "inception")
        return self.n or (50_000 if inception else 10_000)

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        return self.data.problems()


def said(config: EvaluateConfig) -> Layer:
    """What settings made in Python say: all that is not the default, as if it had been typed."""
    return Layer("", _apart(to_dict(config), to_dict(EvaluateConfig())))


def _apart(mine: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The entries that differ; of a member of a family all of it."""
    found: dict[str, Any] = {}
    for key, value in mine.items():
        if value == usual[key]:
            continue
        nested = isinstance(value, dict) and isinstance(usual[key], dict) and "name" not in value
        found[key] = _apart(value, usual[key]) if nested else value
    return found
