"""The augmentation: schedules, the process q with every formula, and the grids a sampler walks."""

from ddpm.process.derived import LogSNRTable, Shifted, Table, ZeroTerminalSNR, betas_from_alpha_bar
from ddpm.process.grid import (
    Below,
    Full,
    Grid,
    Karras,
    Leading,
    Level,
    Listed,
    LogSNR,
    Quadratic,
    Trailing,
    Uniform,
    default_grid,
    log_snr_ends,
)
from ddpm.process.process import At, Process
from ddpm.process.schedule import EDM, VE, VPSDE, Cosine, Linear, Schedule, Sigmoid, Straight, SubVP

SCHEDULES = (Linear, Cosine, Sigmoid, VPSDE, SubVP, Straight, VE, EDM, Table, LogSNRTable, Shifted, ZeroTerminalSNR)
GRIDS = (Full, Trailing, Uniform, Leading, Quadratic, LogSNR, Karras, Level, Listed, Below)

__all__ = [
    "EDM",
    "GRIDS",
    "SCHEDULES",
    "VE",
    "VPSDE",
    "At",
    "Below",
    "Cosine",
    "Full",
    "Grid",
    "Karras",
    "Leading",
    "Level",
    "Linear",
    "Listed",
    "LogSNR",
    "LogSNRTable",
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
    "log_snr_ends",
]
