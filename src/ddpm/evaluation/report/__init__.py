"""The report on a run: scores beside real data's, what they depend on, pictures, and one page that shows it all."""

from __future__ import annotations

from ddpm.evaluation.report.compare import Ranking, compare
from ddpm.evaluation.report.content import Evaluator, Point
from ddpm.evaluation.report.files import read_report, write_report

__all__ = ["Evaluator", "Point", "Ranking", "compare", "read_report", "write_report"]
