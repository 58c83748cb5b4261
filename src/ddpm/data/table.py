"""The data card as a plain-text table, for `ddpm inspect`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpm.denoiser.card import Card
    from ddpm.denoiser.fields import Fields

_MOST_NAMES = 20
_MOST_CHANNELS = 8


def describe(card: Card) -> str:
    """The card as aligned text of at most 100 columns: facts, statistics of each channel, classes and their balance, notices."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    remarks = (*_listed("unreadable", card.unreadable), *_listed("notice", card.notices))
    for label, value in (*_facts(card), *_channels(card), *_classes(card), *remarks):
        table.add_row(label, value)
    text = io.StringIO()
    # markup and highlighting off: a file called "[red].png" is printed as it is
    Console(file=text, width=100, color_system=None, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _facts(card: Card) -> list[tuple[str, str]]:
    levels = "continuous" if card.levels is None or card.bins is None else f"{card.levels} levels, {card.bins[0]:g}..{card.bins[1]:g}"
    share = f"{card.count - card.held_out:,} train, {card.held_out:,} held out"
    scaled = "[-1, 1]" if card.normalise == "range" else "mean 0, deviation 1 per channel"
    facts = [
        ("data", card.name),
        ("samples", f"{card.count:,} ({share})"),
        ("shape", f"{' x '.join(str(side) for side in card.shape)} (channels first)"),
        ("type", f"{card.dtype}, {levels}"),
        ("normalised to", f"{scaled}; sigma_data {card.sigma_data:.4f}"),
        ("duplicates", f"{card.duplicates:,}"),
        ("unreadable", f"{len(card.unreadable):,}"),
    ]
    if card.vector:
        facts.append(("vector condition", f"{len(card.vector)}: {_some(card.vector)}"))
    if card.image_channels:
        facts.append(("image condition", f"{card.image_channels} channels"))
    if card.mask_channels:
        facts.append(("mask", f"{card.mask_channels} channels: entries may be missing; the statistics are of those that are there"))
    if card.fields is not None:
        facts += _fields(card.fields)
    if card.captions:
        facts.append(("captions", f"{card.captions:,} of {card.count:,} samples"))
        facts += [("", f'"{text}"') for text in card.examples]
    return [*facts, ("fingerprint", card.fingerprint)]


def _fields(about: Fields) -> list[tuple[str, str]]:
    """Variables with their units, the grid, the times, and what is forecast."""
    variables = [f"{name} ({unit})" if unit else name for name, unit in zip(about.names, about.units, strict=True)]
    axes = [f"{axis.name} {axis.values[0]:g} .. {axis.values[-1]:g} {axis.units}".strip() for axis in (about.rows, about.columns)]
    held = f"; held out from {about.held} on" if about.held else ""
    said = [
        ("fields", _some(tuple(variables))),
        ("grid", "; ".join(axes)),
        ("times", f"every {about.step:g} h ({about.calendar}), trained on {about.trained[0]} .. {about.trained[1]}{held}"),
    ]
    if about.past:
        leads = ", ".join(f"{lead:g}" for lead in about.leads)
        days = f" and the changes of {about.days} days" if about.days else ""
        said.append(("forecasts", f"{leads} h ahead, given {about.past} fields{days}; statistics are of departures from what is expected"))
    return said


def _channels(card: Card) -> list[tuple[str, str]]:
    rows = list(zip(card.low, card.high, card.mean, card.std, strict=True))
    said: list[tuple[str, str]] = []
    for i, (low, high, mean, std) in enumerate(rows[:_MOST_CHANNELS]):
        said.append((f"channel {i}", f"{low:.6g} .. {high:.6g}, mean {mean:.6g}, std {std:.6g}"))
    return said + ([("", f"... and {len(rows) - _MOST_CHANNELS} more channels")] if len(rows) > _MOST_CHANNELS else [])


def _classes(card: Card) -> list[tuple[str, str]]:
    if not card.classes:
        return [("classes", "none")]
    largest = max(card.class_counts) or 1
    said = [("classes", f"{len(card.classes)}, {min(card.class_counts):,} to {largest:,} samples each")]
    width = max(len(name) for name in card.classes[:_MOST_NAMES])
    for i, (name, count) in enumerate(zip(card.classes[:_MOST_NAMES], card.class_counts, strict=False)):
        said.append((f"  {i}", f"{name:<{width}}  {count:>9,}  {'#' * round(20 * count / largest)}"))
    return said + ([("", f"... and {len(card.classes) - _MOST_NAMES} more classes")] if len(card.classes) > _MOST_NAMES else [])


def _listed(label: str, lines: tuple[str, ...]) -> list[tuple[str, str]]:
    said = [(label, line) for line in lines[:_MOST_NAMES]]
    return said + ([("", f"... and {len(lines) - _MOST_NAMES} more")] if len(lines) > _MOST_NAMES else [])


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
