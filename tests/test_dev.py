"""dev.py: what it installs and when, without installing anything."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "dev.py"


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of dev.py in an empty project that records its commands instead of running them."""
    for name, text in {"dev.py": SOURCE.read_text("utf-8"), "pyproject.toml": "", "constraints.txt": "torch==2.13.0\n"}.items():
        (tmp_path / name).write_text(text, "utf-8")
    spec = importlib.util.spec_from_file_location("dev_copy", tmp_path / "dev.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.commands = []

    def record(*command: object) -> None:
        words = [str(word) for word in command]
        module.commands.append(words)
        if "venv" in words:
            module.PYTHON.parent.mkdir(parents=True, exist_ok=True)
            module.PYTHON.touch()

    monkeypatch.setattr(module, "run", record)
    monkeypatch.setattr(module, "pip", lambda: ["pip"])
    return module


def installed(module: Any) -> list[str]:
    return [words[-1] for words in module.commands if words[0] == "pip"]


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[list[str]]:
    monkeypatch.setattr(sys, "argv", ["dev.py", *words])
    module.commands.clear()
    module.main()
    return module.commands


def test_demo_then_again(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(dev, monkeypatch, "demo", "--steps", "20")
    assert [words[-1] for words in first] == [str(dev.VENV), ".[plots]", "20"]
    assert first[-1][1:] == ["-m", "ddpm", "train", "--steps", "20"]
    assert "constraints.txt" in first[1]
    assert len(call(dev, monkeypatch, "demo")) == 1, "a second call installs nothing"


def test_extras_add_up_in_one_environment(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call(dev, monkeypatch, "demo")
    second = call(dev, monkeypatch, "test", "-k", "laws")
    assert installed(dev) == [".[plots,test]"]
    assert not any("venv" in words for words in second)
    assert second[-1][-2:] == ["-k", "laws"]
    assert len(call(dev, monkeypatch, "slow")) == 1, "slow needs what test needs"
    assert len(call(dev, monkeypatch, "demo")) == 1


def test_installs_again_when_the_project_changes(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call(dev, monkeypatch, "test")
    (dev.ROOT / "constraints.txt").write_text("torch==2.14.0\n", "utf-8")
    call(dev, monkeypatch, "test")
    assert installed(dev) == [".[test]"]


def test_new_environment_for_another_python(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call(dev, monkeypatch, "test")
    stamp = json.loads(dev.STAMP.read_text("utf-8"))
    dev.STAMP.write_text(json.dumps({**stamp, "python": "3.10"}), "utf-8")
    assert any("--clear" in words for words in call(dev, monkeypatch, "demo"))
    assert installed(dev) == [".[plots]"]


def test_an_environment_made_by_hand_is_not_cleared(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.PYTHON.parent.mkdir(parents=True)
    dev.PYTHON.touch()
    assert not any("venv" in words for words in call(dev, monkeypatch, "test"))
    assert installed(dev) == [".[test]"]


def test_lint_runs_all_three(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = call(dev, monkeypatch, "lint")
    assert [next(tool for tool in ("ruff", "pyright", "lint-imports") if tool in " ".join(words)) for words in commands[-3:]] == [
        "ruff",
        "pyright",
        "lint-imports",
    ]


def test_messages(dev: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(dev, monkeypatch, "--help") == []
    assert "dev.py demo" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no task 'tset'; there are: demo, test, slow, lint"):
        call(dev, monkeypatch, "tset")
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match="needs 3.11 or newer"):
        call(dev, monkeypatch, "test")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT as a terminal's Ctrl-C does, which Windows does not have")
def test_ctrl_c_waits_for_the_child_and_returns_its_code() -> None:
    """A training that saves on Ctrl-C must not be killed by its parent half-way."""
    child = """if True:
        import sys, time
        try:
            print("up", flush=True)
            time.sleep(30)
        except KeyboardInterrupt:
            time.sleep(1)
            print("saved", flush=True)
            sys.exit(3)
    """
    parent = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import dev; dev.run(sys.executable, '-c', {child!r})"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "up":
        pass
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out.strip().endswith("saved")
    assert process.returncode == 3
