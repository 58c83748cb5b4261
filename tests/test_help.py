"""Help costs nothing and leaves nothing out; every public name can be imported and explains itself."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import ddpm
from ddpm.cli.app import COMMANDS, command_module, make_parser
from ddpm.config.flags import walk
from ddpm.training import FAMILIES, TrainConfig
from small_runs import SOURCE, environment

HEAVY = {"torch", "sklearn", "matplotlib", "scipy", "PIL", "safetensors", "datasets", "tensorboard", "diffusers", "rich"}
QUICKLY = f"""
import sys, time
begin = time.perf_counter()
from ddpm.cli import main
code = main(sys.argv[1:])
print("found:", code, sorted({HEAVY!r} & set(sys.modules)), time.perf_counter() - begin, file=sys.stderr)
"""


@pytest.mark.parametrize("words", [[], ["train"], ["sample"], ["inspect"], ["completion"]], ids=lambda words: " ".join(["ddpm", *words]))
def test_help_imports_nothing_heavy_and_is_quick(words: list[str]) -> None:
    command = [sys.executable, "-c", QUICKLY, *words, "--help"]
    done = min(
        (subprocess.run(command, capture_output=True, text=True, check=True, env=environment()) for _ in range(2)),
        key=lambda done: float(done.stderr.split()[-1]),
    )
    assert done.stderr.startswith("found: 0 []"), done.stderr
    assert float(done.stderr.split()[-1]) < 1.5  # 0.2 s on a quiet machine
    assert done.stdout.startswith("usage: ddpm") and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_explained_and_every_command_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser([name])
    with pytest.raises(SystemExit):
        parser.parse_args([name, "--help"])
    shown = capsys.readouterr().out
    assert f"ddpm {name}" in command_module(name).HELP and command_module(name).HELP.splitlines()[0] in shown
    for line in command_module(name).HELP.splitlines():  # examples use commands there are, with flags there are
        words = line.strip().split("  ")[0].split()
        if words[:1] == ["ddpm"] and words[1] in COMMANDS:
            args, extra = make_parser([words[1]]).parse_known_args(words[1:])
            assert args.command == words[1] and extra == [], line


def test_the_help_of_train_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for word, advanced in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit):
            make_parser(["train"]).parse_args(["train", word])
        shown = capsys.readouterr().out
        listed = [flag for flag in walk(TrainConfig, FAMILIES) if flag.listed and (advanced or not flag.advanced)]
        assert len(listed) > 30 and [flag.option for flag in listed if flag.option not in shown] == []
        assert all(flag.explanation().split(" (")[0] for flag in listed), "a setting without help"


# --- public names -------------------------------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    """Every module of the package."""
    found = [name for _, name, _ in pkgutil.walk_packages([str(SOURCE / "ddpm")], "ddpm.") if not name.endswith("__main__")]
    return ["ddpm", *found]


def defined(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Public functions and classes that a module itself defines."""
    for name, thing in vars(module).items():
        if not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module.__name__:
            yield name, thing


def methods(owner: type) -> Iterator[tuple[str, object]]:
    """Public functions and properties in the body of a class, but not its own version of what argparse documents."""
    foreign = {name for base in owner.__mro__ if base.__module__ == "argparse" for name in vars(base)}
    for name, thing in vars(owner).items():
        if name in foreign:
            continue
        thing = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
        if not name.startswith("_") and (inspect.isfunction(thing) or isinstance(thing, property)):
            yield name, thing


def test_every_name_listed_as_public_is_there_and_documented() -> None:
    missing, silent = [], []
    for name in modules():
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", []):
            if not hasattr(module, public):
                missing.append(f"{name}.{public}")
                continue
            thing = getattr(module, public)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and not (thing.__doc__ or "").strip():
                silent.append(f"{name}.{public}")
    assert missing == [] and silent == []


@pytest.mark.parametrize("name", modules())
def test_every_module_function_class_and_method_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    silent = [] if (module.__doc__ or "").strip() else [name]
    for public, thing in defined(module):
        own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
        if not (own or "").strip() or (own or "").startswith(f"{public}("):  # what dataclass and NamedTuple write by themselves
            silent.append(f"{name}.{public}")
        if inspect.isclass(thing):
            silent += [f"{name}.{public}.{method}" for method, body in methods(thing) if not (body.__doc__ or "").strip()]
    assert silent == []


def test_no_file_outgrows_a_reader() -> None:
    files = Path(ddpm.__file__).parent.rglob("*.py")
    long = {path.name: count for path in files if (count := len(path.read_text("utf-8").splitlines())) > 320}
    assert long == {}
