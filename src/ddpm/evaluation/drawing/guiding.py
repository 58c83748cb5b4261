"""`--guidance` and what belongs to it: which way samples are pushed, how far, and at which noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.config import check, setting
from ddpm.errors import ConfigError

if TYPE_CHECKING:
    from ddpm.denoiser import Denoiser, NetworkDenoiser


@dataclass(frozen=True, kw_only=True)
class Guiding:
    """One convention for every kind: scale 1 is the conditional model, 0 what it is compared with; docs/guidance.md has the others."""

    guidance: float = setting(
        1.0,
        "scale: 1 the conditional model, 0 unconditional (or the weak model), more: closer to the class",
        low=-100.0,
        high=100.0,
        group="guidance",
    )
    guidance_kind: Literal["cfg", "classifier", "autoguide"] | None = setting(
        None,
        "cfg: away from the answer with the class hidden; classifier: along a classifier's gradient (see ddpm classifier); "
        "autoguide: away from a weaker model; none: autoguide where --autoguide is given, else cfg",
        group="guidance",
    )
    autoguide: str | None = setting(None, "the weaker model: another run folder, or an earlier step of this run", group="guidance")
    guidance_interval: tuple[float, ...] | None = setting(
        None,
        "LOW,HIGH: guide only where noise over signal (sigma/alpha) is within, such as 0.3,3; none: everywhere",
        low=0.0,
        group="guidance",
    )
    rescale: float = setting(
        0.0,
        "share by which a guided x0 gets back the spread it has at scale 1, against over-exposure; 0.7 is usual",
        low=0.0,
        high=1.0,
        group="guidance",
    )

    def __post_init__(self) -> None:
        ends, problems = self.guidance_interval, []
        if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
            problems.append(f"guidance_interval: got {','.join(f'{end:g}' for end in ends)}; give two numbers, LOW,HIGH, the lower first")
        if self.autoguide is not None and self.kind != "autoguide":
            problems.append(f"autoguide: names a weaker model, but --guidance-kind is {self.kind}; leave one of the two out")
        if self.kind == "autoguide" and self.autoguide is None:
            problems.append("guidance_kind: autoguide needs a weaker model; name one with --autoguide, a run folder or an earlier step")
        if self.guidance == 1.0 and self.kind != "classifier":
            idle = {"autoguide": self.autoguide is not None, "guidance_interval": ends is not None, "rescale": self.rescale > 0}
            problems += [f"{name}: does nothing at guidance scale 1; give --guidance 2, say" for name, given in idle.items() if given]
        check(self, problems)

    @property
    def kind(self) -> Literal["cfg", "classifier", "autoguide"]:
        """The kind asked for, or what the other flags make of it."""
        return self.guidance_kind or ("autoguide" if self.autoguide is not None else "cfg")

    @property
    def active(self) -> bool:
        """Whether anything differs from the conditional model as it is."""
        return self.guidance != 1.0 or self.kind == "classifier"

    @property
    def told(self) -> str:
        """For the line that says how samples were drawn; empty where nothing was guided."""
        if not self.active:
            return ""
        within = "" if self.guidance_interval is None else f" within {','.join(f'{end:g}' for end in self.guidance_interval)}"
        return f", guidance {self.guidance:g} ({self.kind}){within}" + (f", rescale {self.rescale:g}" if self.rescale else "")

    def check_model(self, document: Mapping[str, Any]) -> None:
        """ConfigError where the model that config.json describes cannot be guided so."""
        if not self.active or self.kind == "autoguide":
            return
        from ddpm.training.build import labelled

        able = labelled(document)
        if self.kind == "cfg" and not able:
            raise ConfigError(f"--guidance {self.guidance}: this model has no condition to be guided by; it was trained without labels")
        if able and document["cond_dropout"] == 0.0:
            raise ConfigError(
                f"--guidance {self.guidance}: this model was trained with --cond-dropout 0, so it knows no unconditional answer; "
                "leave guidance at 1, or use --autoguide"
            )
        if self.kind == "classifier" and (document["vector"] or document.get("text")):
            has = "vectors, and this model has one" if document["vector"] else "captions, and this model is told by them"
            raise ConfigError(f"--guidance-kind classifier: a classifier knows no {has}; use cfg")

    def guided(self, model: NetworkDenoiser, document: Mapping[str, Any], run: str, weights: str) -> tuple[Denoiser, list[str]]:
        """The model as guided, and the names of the classes that can be asked for.

        Raises:
            ConfigError: a weak model or classifier that does not fit, or an interval outside the model's noise levels.
            CheckpointError: one that is missing or damaged.
        """
        names: list[str] = document["classes"]
        if not self.active:
            return model, names
        from ddpm.guidance import AutoGuided, ClassifierFree, ClassifierGuided, Told

        device = next(model.parameters()).device
        interval = None if self.guidance_interval is None else (self.guidance_interval[0], self.guidance_interval[1])
        if self.kind == "classifier":
            from ddpm.training.classifier import load_classifier

            classifier = load_classifier(run).to(device)
            if names and tuple(names) != classifier.names:
                raise ConfigError(
                    f"--guidance-kind classifier: it knows other classes than the model; train it anew: ddpm classifier {run}"
                )
            return ClassifierGuided(model, classifier, self.guidance, interval=interval, rescale=self.rescale), list(classifier.names)
        if model.guided and self.kind == "cfg":
            if self.guidance_interval is not None or self.rescale:
                raise ConfigError("--guidance-interval, --rescale: this model answers under guidance in one call; they are for its teacher")
            return Told(model, self.guidance), names
        if self.kind == "autoguide":
            weak = self._weak(document, run, weights).to(device)
            return AutoGuided(model, weak, self.guidance, interval=interval, rescale=self.rescale), names
        return ClassifierFree(model, self.guidance, interval=interval, rescale=self.rescale), names

    def _weak(self, document: Mapping[str, Any], run: str, weights: str) -> NetworkDenoiser:
        from ddpm.training.build import described_text
        from ddpm.training.classifier import home_of
        from ddpm.training.state import load_with_card

        assert self.autoguide is not None  # `check` has seen to it
        step = int(self.autoguide) if self.autoguide.isdecimal() and not Path(self.autoguide).is_dir() else None
        weak, other = load_with_card(self.autoguide if step is None else home_of(run), step=step, weights=weights)
        for key in ("classes", "vector"):
            if other[key] != document[key]:
                raise ConfigError(
                    f"--autoguide {self.autoguide}: knows other {key} ({', '.join(other[key]) or 'none'}) than {run} "
                    f"({', '.join(document[key]) or 'none'}); the two must be asked the same"
                )
        mine, theirs = described_text(document), weak.text
        if (mine and mine.identity) != (theirs and theirs.identity):
            raise ConfigError(f"--autoguide {self.autoguide}: is told by another encoder than {run}; the two must be asked the same")
        return weak
