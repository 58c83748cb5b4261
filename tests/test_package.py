"""The package as a whole: cheap to import, one list of public names, shapes really checked in tests, a self-contained example."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import ddpm
from ddpm.process import Linear

ROOT = Path(__file__).resolve().parent.parent


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["ddpm", "ddpm.errors", "ddpm.config", "ddpm.process", "ddpm.networks.config", "ddpm.data", "ddpm.cli"])
def test_settings_do_not_import_torch(module: str) -> None:
    heavy = "torch", "sklearn", "matplotlib", "scipy"
    assert in_new_process(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_no_extra_is_imported() -> None:
    extras = "matplotlib", "datasets", "tensorboard", "diffusers", "transformers", "accelerate", "torchvision"
    code = f"import sys, ddpm; [getattr(ddpm, name) for name in ddpm.__all__]; print([name for name in {extras} if name in sys.modules])"
    assert in_new_process(code) == "[]"


def test_public_names() -> None:
    for name in ddpm.__all__:
        assert getattr(ddpm, name) is not None
        assert name in dir(ddpm)
    with pytest.raises(AttributeError, match="public names: .*Process"):
        ddpm.tarin  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The names under TYPE_CHECKING, the lazy table and __all__ agree."""
    tree = ast.parse(Path(ddpm.__file__).read_text("utf-8"))
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    static = {(alias.asname or alias.name): node.module for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*static, "__version__"} == set(ddpm.__all__)
    for name, room in static.items():
        assert getattr(ddpm, name) is getattr(importlib.import_module(str(room)), name)


def test_version_is_the_one_in_pyproject() -> None:
    assert ddpm.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_shape_annotations_are_checked_here() -> None:
    with pytest.raises(Exception, match="(?i)type-check"):
        Linear().alpha(torch.tensor([1, 2]))  # integers where Float is announced


def test_example_stands_alone() -> None:
    source = (ROOT / "examples" / "ddpm_in_150_lines.py").read_text("utf-8")
    assert len(source.splitlines()) <= 150
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}
