"""Settings: a frozen dataclass is its own configuration; this room reads it from files and flags, checks it, and writes it back."""

from ddpm.config.build import Layer, Typed, check, from_dict, resolve, to_dict
from ddpm.config.field_info import Families, Preset, Range, setting
from ddpm.config.files import dump_toml, read_file
from ddpm.config.flags import Parser, add_flags, flags_layer, tidy, unknown_arguments

__all__ = [
    "Families",
    "Layer",
    "Parser",
    "Preset",
    "Range",
    "Typed",
    "add_flags",
    "check",
    "dump_toml",
    "flags_layer",
    "from_dict",
    "read_file",
    "resolve",
    "setting",
    "tidy",
    "to_dict",
    "unknown_arguments",
]
