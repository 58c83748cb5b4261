"""The augmentation: schedules, the process q with every formula, and the grids a sampler walks."""

from ddpm.process.derived import Shifted, Table, ZeroTerminalSNR, betas_from_alpha_bar
from ddpm.process.grid import Full, Grid, Karras, Leading, Listed, LogSNR, Quadratic, Trailing, Uniform, default_grid
from ddpm.process.process import At, Process
from ddpm.process.schedule import EDM, VE, VPSDE, Cosine, Linear, Schedule, Sigmoid, Straight, SubVP

SCHEDULES = (Linear, Cosine, Sigmoid, VPSDE, SubVP, Straight, VE, EDM, Table, Shifted, ZeroTerminalSNR)
GRIDS = (Full, Trailing, Uniform, Leading, Quadratic, LogSNR, Karras, Listed)

__all__ = [
    "EDM",
    "GRIDS",
    "SCHEDULES",
    "VE",
    "VPSDE",
    "At",
    "Cosine",
    "Full",
    "Grid",
    "Karras",
    "Leading",
    "Linear",
    "Listed",
    "LogSNR",
    "Process",
    "Quadratic",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "Straight",
    "SubVP",
    "Table",
    "Trailing",
    "Uniform",
    "ZeroTerminalSNR",
    "betas_from_alpha_bar",
    "default_grid",
]
