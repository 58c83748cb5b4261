"""A plan: what to train with and why, and what it will cost in time, memory and disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ddpm.config import Layer, Typed, resolve, to_dict
from ddpm.data import open_data, require
from ddpm.data.dataset import Dataset
from ddpm.errors import ConfigError
from ddpm.evaluation.planning import proposals
from ddpm.evaluation.planning.proposals import Choice
from ddpm.evaluation.planning.rehearsal import Cost, activations_of, parameters_of, rehearsed
from ddpm.training.build import measured
from ddpm.training.checkpoints.storage import size_text
from ddpm.training.config import FAMILIES, TrainConfig
from ddpm.training.given import with_given
from ddpm.training.latents import in_latents, load_through
from ddpm.training.machine import Machine, choose, device_of
from ddpm.training.memory import available_memory
from ddpm.training.run import run_folder
from ddpm.training.tokens import tokenised


class Foretold(NamedTuple):
    """The run in figures: bytes, and seconds from the first read of the data to the model card."""

    parameters: int
    step_seconds: float
    seconds: float
    memory: int
    checkpoint: int
    disk: int  # once the run has ended
    disk_peak: int  # while a checkpoint is saved


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings, the reason of each choice, what the run will cost, how that was found, and what to look out for."""

    config: TrainConfig
    choices: tuple[Choice, ...]
    facts: tuple[tuple[str, str], ...]
    foretold: Foretold
    parts: Mapping[str, int]  # of memory, by what they hold; the rest is Python, torch, the data and work space
    how: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as plan.json holds them."""
        return {
            "settings": to_dict(self.config),
            "choices": [{"name": one.name, "value": _plain(one.value), "why": one.why, "proposed": one.ours} for one in self.choices],
            "facts": dict(self.facts),
            "foretold": self.foretold._asdict(),
            "memory_parts": dict(self.parts),
            "how": self.how,
            "warnings": list(self.warnings),
        }


def _plain(value: Any) -> Any:
    return to_dict(value, named=True) if hasattr(value, "__dataclass_fields__") else value


def said_in(layers: Sequence[Layer], name: str) -> str | None:
    """Where a setting was said last, in words; None where nobody has."""
    for layer in reversed(layers):
        if name in layer.values:
            return f"said in {layer.source}" if layer.source else "as you said"
    return None


def flags_of(choices: Sequence[Choice]) -> list[str]:
    """The plan's own choices as flags of `ddpm train`; what is the default needs none."""
    usual, words = TrainConfig(), list[str]()
    for choice in (one for one in choices if one.ours):
        if choice.name == "network":
            kind = type(choice.value)
            words += ["--network", kind.__name__]
            changed = {key: value for key, value in to_dict(choice.value).items() if value != to_dict(kind())[key]}
            for key, value in changed.items():
                words += [f"--network.{key.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        elif choice.value != getattr(usual, choice.name):
            words += [f"--{choice.name.replace('_', '-')}", str(choice.value)]
    return words


def typed_flags(layer: Layer) -> list[str]:
    """The flags a layer of typed settings came from."""
    words: list[str] = []
    for value in layer.values.values():
        if isinstance(value, Typed):
            words += [value.flag] if value.value in ("True", "False") else [value.flag, value.value]
        elif isinstance(value, Mapping):
            words += typed_flags(Layer("", value))
    return words


class _Draft:
    """The settings as they grow: what was said wins, what was not is proposed."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers, self.choices = layers, list[Choice]()

    @property
    def config(self) -> TrainConfig:
        return resolve(TrainConfig, [Layer("the plan", proposals.layer_of(self.choices)), *self.layers], FAMILIES)

    def add(self, choice: Choice) -> None:
        """Take the proposal, or note what was said instead; a choice of the same name is replaced."""
        where = said_in(self.layers, choice.name)
        self.choices = [one for one in self.choices if one.name != choice.name]
        self.choices.append(choice if where is None else Choice(choice.name, getattr(self.config, choice.name), where, ours=False))


def make_plan(layers: Sequence[Layer], *, data: Dataset | None = None, seconds: float = 20.0, hours: float | None = None) -> Plan:
    """Read the data, choose what the layers of settings leave open, and rehearse.

    seconds: about how long the rehearsal may take. hours: time there is for the run; steps that nobody asked for are cut to fit.

    Raises: whatever `train` raises for these settings and data; ConfigError where the network does not fit into memory.
    """
    config = resolve(TrainConfig, list(layers), FAMILIES)
    began = time.perf_counter()
    dataset = with_given(data if data is not None else open_data(config.data), config.given)
    dataset = tokenised(dataset, config.text, config.conditional, lambda _: None, device=device_of(config.device))
    if config.autoencoder is not None:
        dataset = in_latents(dataset, load_through(config.autoencoder, dataset))
    reading = time.perf_counter() - began
    card = dataset.card
    draft = _Draft(layers)
    machine = choose(config.device, config.precision, config.threads, 0)
    draft.add(proposals.network(card, machine.device.type))
    draft.add(proposals.batch(card))
    config = measured(draft.config, card)
    require(dataset, config.batch)
    parameters = parameters_of(config, card)
    machine = choose(config.device, config.precision, config.threads, parameters)
    free = available_memory(machine.device.type)
    per_sample = _fit(draft, config, dataset, machine, parameters, free)
    config = draft.config
    a_step = config.batch * config.accumulate
    draft.add(proposals.steps(card, a_step))
    draft.add(proposals.ema(draft.config.steps))
    found = rehearsed(replace(draft.config, device=machine.device.type), dataset, per_sample, seconds)
    if hours is not None and said_in(layers, "steps") is None:
        _cut(draft, found.cost, hours)
    draft.add(proposals.checkpoint_every(draft.config.steps, found.cost.step))
    config = draft.config
    foretold = foretell(config, parameters, found.cost, reading)
    return Plan(
        config=config,
        choices=tuple(draft.choices),
        facts=_facts(dataset, machine, free),
        foretold=foretold,
        parts=_parts(found.cost, parameters, config.batch * per_sample),
        how=found.how,
        warnings=tuple([*proposals.warnings(card, config.steps, a_step), *_tight(config, foretold, free)]),
    )


def _fit(draft: _Draft, config: TrainConfig, dataset: Dataset, machine: Machine, parameters: int, free: int | None) -> int:
    """Halve the batch, where it is ours to choose, until a step fits; returns the bytes of activations of a sample."""
    fixed = 4 * parameters * (4 + len(config.widths))  # weights, gradients, two moments, averages: 4 bytes each
    if free is not None and fixed > free:
        raise ConfigError(
            f"network: {parameters:,} parameters need {size_text(fixed)} to train, {size_text(free)} are free; use a smaller network"
        )
    per_sample = activations_of(config, dataset.card, machine)
    size, passes = proposals.fitting(config.batch, config.accumulate, fixed, per_sample, free)
    if size < config.batch and said_in(draft.layers, "batch") is None and said_in(draft.layers, "accumulate") is None:
        draft.add(Choice("batch", size, f"what fits into {size_text(free or 0)}; one sample takes {size_text(per_sample)}"))
        draft.add(Choice("accumulate", passes, f"so that a step still sees {config.batch * config.accumulate} samples"))
    return per_sample


def _cut(draft: _Draft, cost: Cost, hours: float) -> None:
    """Fewer steps where the time there is asks for them."""
    asked = steps = draft.config.steps
    while True:
        draft.add(proposals.checkpoint_every(steps, cost.step))  # fewer steps, more of them with a checkpoint
        if steps == 1 or foretell(replace(draft.config, steps=steps), 0, cost, 0.0).seconds <= 3600.0 * hours:
            break
        steps = int(steps * 0.95)
    if steps < asked:
        draft.add(Choice("steps", steps, f"what {hours:g} h allow"))
        draft.add(proposals.ema(steps))


def foretell(config: TrainConfig, parameters: int, cost: Cost, reading: float) -> Foretold:
    """Add up what a whole run takes, of what its parts take."""
    steps = config.steps
    saves = -(-steps // config.checkpoint_every)
    both = set(range(config.evaluate_every, steps + 1, config.evaluate_every)) if steps // config.evaluate_every < 10**6 else set()
    evaluations = len(both | set(range(config.checkpoint_every, steps + 1, config.checkpoint_every)) | {steps})
    seconds = reading + cost.setup + steps * cost.step + evaluations * cost.evaluation + saves * cost.save + cost.finish
    lines = -(-steps // config.log_every) + evaluations
    rest = cost.rest + int(lines * cost.line) + saves * cost.preview
    rest += steps // config.snapshots * _averages(cost) if config.snapshots else 0
    kept = min(saves, config.keep + config.keep_best)
    peak = min(saves, kept + 1) * cost.checkpoint + rest
    return Foretold(parameters, cost.step, seconds, cost.memory, cost.checkpoint, kept * cost.checkpoint + rest, peak)


def _facts(dataset: Dataset, machine: Machine, free: int | None) -> tuple[tuple[str, str], ...]:
    card = dataset.card
    classes = f", {len(card.classes)} classes" if card.classes else ""
    import torch

    where = torch.cuda.get_device_name() if machine.device.type == "cuda" else f"{machine.device}, {torch.get_num_threads()} threads"
    memory = f", {size_text(free)} of memory free" if free is not None else ""
    return (
        ("data", f"{card.name}: {card.count:,} samples {card.shape} {card.dtype}{classes}, {card.held_out:,} held out"),
        ("machine", where + memory),
        ("precision", f"{machine.precision}: {machine.why}"),
    )


def _averages(cost: Cost) -> int:
    return sum(size for name, size in cost.files.items() if name.startswith("ema"))


def _parts(cost: Cost, parameters: int, activations: int) -> dict[str, int]:
    groups = {"weights": cost.files.get("model", 0), "gradients": 4 * parameters, "optimizer": cost.files.get("optimizer", 0)}
    return {**groups, "averages": _averages(cost), "activations": activations}


def _tight(config: TrainConfig, foretold: Foretold, free: int | None) -> list[str]:
    out: list[str] = []
    if free is not None and foretold.memory > free:
        need = f"{size_text(foretold.memory)} are needed, {size_text(free)} free"
        out.append(f"memory: {need}; use a smaller --batch with a larger --accumulate, or --gradient-checkpointing")
    folder = run_folder(config).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    room = shutil.disk_usage(there).free
    if room < 2 * foretold.disk_peak:
        out.append(f"disk: the run takes {size_text(foretold.disk_peak)}, {size_text(room)} are free in {there}")
    if foretold.seconds > 48 * 3600:
        shorter = "fewer --steps, a narrower network, smaller samples or an accelerator shorten it"
        out.append(f"time: {duration(foretold.seconds)}; {shorter}; --hours X plans for X hours")
    return out


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3.5 min, 2.1 h, 4.0 days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= (2 if unit == "days" else 1) * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def shown(value: Any) -> str:
    """A choice in a table."""
    if not hasattr(value, "__dataclass_fields__"):
        return str(value)
    kind = type(value)
    changed = {key: entry for key, entry in to_dict(value).items() if entry != to_dict(kind())[key]}
    return f"{kind.__name__} {' '.join(f'{key}={entry}' for key, entry in changed.items())}".strip()


def table(plan: Plan) -> str:
    """What, value and why, line by line."""
    told, parts = plan.foretold, plan.parts
    pieces = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items())
    rows = [(name, value, "") for name, value in plan.facts]
    rows += [(one.name, shown(one.value), one.why) for one in plan.choices]
    rows += [
        ("parameters", f"{told.parameters:,}", ""),
        ("time", duration(told.seconds), f"{duration(told.step_seconds)} a step: {plan.how}, timed here"),
        ("memory", size_text(told.memory), f"{pieces}; the rest: Python, torch, data, work space"),
        ("disk", size_text(told.disk), f"checkpoints of {size_text(told.checkpoint)}; {size_text(told.disk_peak)} while one is saved"),
    ]
    wide = max(len(name) for name, _, _ in rows)
    short = max((len(value) for _, value, why in rows if why and len(value) <= 40), default=0)
    lines = [f"{name:<{wide}}  {value:<{short if why else 0}}{'  ' + why if why else ''}" for name, value, why in rows]
    return "\n".join([*lines, *(f"note: {line}" for line in plan.warnings)])
