"""Everything a fresh machine needs, with nothing but Python >= 3.11 and pip:

    python3 dev.py demo [flags]     set up, train on real handwritten digits, write a grid of samples
    python3 dev.py test [options]   set up, run the tests (options go to pytest)
    python3 dev.py slow [options]   the tests that take minutes
    python3 dev.py lint             ruff, pyright and the import contracts
    python3 dev.py figures          draw the figures of docs/ again and renew its code blocks

The environment is made once, in .venv beside this file, and brought up to date when pyproject.toml, constraints.txt or Python change.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "ddpm-dev.json"
EXTRA = {"demo": "plots", "test": "test", "slow": "test", "lint": "dev", "figures": "plots"}


def run(*command: object) -> None:
    """Run a command in the project folder; end with its exit code when it fails."""
    words = [str(word) for word in command]
    print("+", " ".join(words).replace(f"{ROOT}{os.sep}", ""), flush=True)
    process = subprocess.Popen(words, cwd=ROOT)
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # the child has had it too, and may still be saving: wait for it
            continue
    if code:
        sys.exit(code)


def make_environment() -> None:
    """Create .venv, also where Python comes without ensurepip (Debian without python3-venv)."""
    arguments = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if subprocess.call([sys.executable, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL) != 0:
        arguments.insert(-1, "--without-pip")
    run(*arguments)


def pip() -> list[str]:
    """The command that installs into .venv: its own pip, else the pip of the Python that runs this file (22.3 or newer)."""
    if subprocess.call([str(PYTHON), "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
        return [str(PYTHON), "-m", "pip"]
    if subprocess.call([sys.executable, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
        return [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    sys.exit(f"dev.py: {sys.executable} has no pip. Install it (Debian, Ubuntu: apt install python3-venv python3-pip) and run this again.")


def prepare(extra: str) -> None:
    """Bring .venv up to date with `extra` installed; nothing to do when the stamp says so."""
    files = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    here = {"python": sys.version, "root": str(ROOT), "files": hashlib.sha256(files).hexdigest()}
    stamp = json.loads(STAMP.read_text("utf-8")) if STAMP.exists() else {}
    extras = set(stamp.pop("extras", []))
    if stamp == here and extra in extras and PYTHON.exists():
        return
    if VENV.exists() and not STAMP.exists() and PYTHON.exists():
        print(f"dev.py: using the environment that is already at {VENV}", flush=True)
    elif not PYTHON.exists() or stamp.get("python") != sys.version:
        make_environment()
        extras = set()
    extras.add(extra)
    run(*pip(), "install", "--disable-pip-version-check", "-c", "constraints.txt", "-e", f".[{','.join(sorted(extras))}]")
    STAMP.write_text(json.dumps({**here, "extras": sorted(extras)}), "utf-8")


def main() -> None:
    """Do what the first word says; the rest is passed on."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is what an older Python meets first
        sys.exit(f"dev.py: this is Python {sys.version.split()[0]}; ddpm needs 3.11 or newer: install one and run `python3.12 dev.py ...`.")
    task, options = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if task in ("", "-h", "--help", "help"):
        return print(__doc__)
    if task not in EXTRA:
        sys.exit(f"dev.py: no task {task!r}; there are: {', '.join(EXTRA)}.")
    prepare(EXTRA[task])
    if task == "demo":
        run(PYTHON, "-m", "ddpm", "train", *options)
    elif task == "figures":
        run(PYTHON, "docs/figures/make.py", *options)
    elif task == "lint":
        run(PYTHON, "-m", "ruff", "check", *options)
        run(PYTHON, "-m", "pyright", "--pythonpath", PYTHON)
        run(BIN / "lint-imports")
    else:
        which = ["-m", "slow", "--timeout", "7200"] if task == "slow" else ["-n", min(os.cpu_count() or 1, 8)]
        run(PYTHON, "-m", "pytest", *which, *options)


if __name__ == "__main__":
    main()
