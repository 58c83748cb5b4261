"""Where this package keeps what it can make again: $DDPM_CACHE, or else the user's folder for caches (`~/.cache/ddpm` on Linux)."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def folder() -> Path:
    """The folder; it need not exist."""
    if named := os.environ.get("DDPM_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ddpm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "ddpm" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm"
