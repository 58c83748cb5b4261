"""`python -m ddpm` is the command `ddpm`."""

from __future__ import annotations

import sys

from ddpm.cli import main

if __name__ == "__main__":
    sys.exit(main())
