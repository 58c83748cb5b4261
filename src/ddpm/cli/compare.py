"""`ddpm compare`: runs ranked by their reports."""

from __future__ import annotations

import argparse

from ddpm.config import Parser
from ddpm.errors import ConfigError

HELP = """Rank runs by the Frechet distances of their reports, and say which differences are more than the scatter of samples.

  ddpm evaluate runs/a                                   first a report on each
  ddpm compare runs/a runs/b                             the newest report of each
  ddpm compare runs/a/report runs/a/report-2             two reports of one run: another sampler, say

Only what was scored alike is compared: the same rows of the same data, or the same --reference, by the same extractor. Runs that copy their
training data are marked: copies bring the distance down.
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, reports' folders, or report.json files")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Read, rank, show."""
    if extra:
        raise ConfigError(f"unknown flag '{extra[0]}'; ddpm compare takes runs only")
    if len(args.runs) < 2:
        raise ConfigError(f"runs: got {len(args.runs)}, a comparison needs at least 2")
    from ddpm.evaluation.report import compare, read_report

    reports = [read_report(name) for name in args.runs]
    places = [path.resolve() for path, _ in reports]
    for number, place in enumerate(places):
        if (first := places.index(place)) < number:
            raise ConfigError(f"runs: {args.runs[first]} and {args.runs[number]} are the same report; name different ones")
    print(compare([(name, report) for name, (_, report) in zip(args.runs, reports, strict=True)]).table())
    return 0
