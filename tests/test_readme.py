"""README says what is so: its Python runs, its tree is the real tree, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ddpm
from ddpm.cli.app import COMMANDS, make_parser

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PACKAGE = Path(ddpm.__file__).parent


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The ten lines as printed, with fewer steps and a narrower network."""
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found is not None
    code = found[1]
    short = code.replace("steps=300", "steps=3").replace("channels=32", "channels=8").replace("batch=64", "batch=8, threads=1")
    assert short != code
    assert len(code.strip().splitlines()) <= 12
    names: dict[str, object] = {}
    exec(compile(short, "README.md", "exec"), names)
    samples = names["samples"]
    assert tuple(samples.shape) == (16, 1, 8, 8) and samples.min() >= 0 and samples.max() <= 16  # type: ignore[attr-defined]
    assert len(capsys.readouterr().out.splitlines()) == 51


def test_a_network_and_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets of points of docs/conditions.md, in fewer steps."""
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "conditions.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    names: dict[str, object] = {}
    exec(compile(found[1].replace("steps=300", "steps=2, threads=1, preview=4"), "conditions.md", "exec"), names)
    assert tuple(names["sets"].shape) == (8, 3, 20)  # type: ignore[attr-defined]


def test_tree_is_the_real_tree() -> None:
    found = re.search(r"```\nsrc/ddpm/\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found is not None
    tree = found[1]
    rooms: dict[str, set[str]] = {}
    room = ""
    for line in tree.split("docs/ ")[0].splitlines():
        opens = re.match(r"  (\w+)/ ", line)
        if opens:
            room = opens[1]
            rooms[room] = set()
        elif room:
            rooms[room] |= set(re.findall(r"[\w-]+\.py", line)) if "ground floor" not in line else set()
    real = {
        folder.name: {file.name for file in folder.rglob("*.py")} - {"__init__.py"}
        for folder in PACKAGE.iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
    }
    assert rooms == real
    ground = {file.name for file in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert ground == set(re.findall(r"\w+\.py", tree.split("ground floor:")[1].splitlines()[0]))


def test_links_lead_somewhere() -> None:
    for page in [README, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http|#|mailto)([^)#\s]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_have_the_flags_they_are_shown_with() -> None:
    """Every `ddpm COMMAND --flag` of a page, in a block of commands or between backticks."""
    known: dict[str, set[str]] = {}
    checked = 0
    for page in [README, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"\\\n\s*", " ", page.read_text("utf-8"))
        for line in re.findall(r"^(?:\$ )?ddpm ([^#\n]+)", text, re.MULTILINE) + re.findall(r"`ddpm ([^`\n]+)`", text):
            command, _, rest = line.partition(" ")
            if command not in COMMANDS:
                continue
            if command not in known:
                chosen = next(action for action in make_parser([command])._actions if action.dest == "command")
                assert isinstance(chosen.choices, dict)
                known[command] = {option for action in chosen.choices[command]._actions for option in action.option_strings}
            for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", rest):
                assert flag in known[command], f"{page.name}: ddpm {line}: {flag}"
                checked += 1
    assert checked > 100


def test_what_can_be_added_is_where_contributors_are_sent() -> None:
    """The capitals in the table are names in one of the files beside them."""
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("| to add |")[1].split("\n\n")[0]
    rows = table.splitlines()[2:]
    for row in rows:
        folders = [PACKAGE, *(PACKAGE / folder for folder in re.findall(r"`([\w/]+/)", row))]
        files = [folder / file for file in re.findall(r"`([\w/]+\.py)`", row) for folder in folders if (folder / file).is_file()]
        text = "\n".join(file.read_text("utf-8") for file in files)
        for name in re.findall(r"`([A-Z]+|extractor_of)`", row):
            assert re.search(rf"^(def )?{name}\b", text, re.MULTILINE), row
    assert len(rows) > 10


def test_two_commands_come_first() -> None:
    """A picture, then the two commands."""
    text = README.read_text("utf-8")
    assert 0 < text.index("![") < text.index("python3 dev.py demo") < text.index("python3 dev.py test") < text.index("```python")
