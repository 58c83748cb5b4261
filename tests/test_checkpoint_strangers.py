"""Files from strangers: nothing found in a checkpoint is ever run, and nothing in the package could run it."""

from __future__ import annotations

import ast
import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ddpm.errors
from ddpm.errors import CheckpointError
from ddpm.training.checkpoints import verified
from ddpm.training.checkpoints.checkpoint import newest, open_checkpoint, save

# payloads --------------------------------------------------------------------------------------------------------------------


class Calls:
    """Unpickling an instance calls `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payloads(marker: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> (file name it usually travels under, content); each makes the marker file when it is unpickled."""
    import os

    touch = f"open({str(marker)!r}, 'w').close()"
    system = Calls(os.system, f'"{sys.executable}" -c "{touch}"')
    evaluate = Calls(eval, touch)
    inner = io.BytesIO()
    torch.save(evaluate, inner)
    nested = Calls(torch.storage._load_from_bytes, inner.getvalue())
    sidecar = io.BytesIO()
    torch.save({"python": (3, (1, 2), None), "numpy": evaluate}, sidecar, _use_new_zipfile_serialization=False)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info, content = tarfile.TarInfo(name), pickle.dumps(evaluate, 2)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return {
        "os.system": ("pytorch_model.bin", pickle.dumps(system, 0)),
        "eval": ("model.pkl", pickle.dumps(evaluate, 4)),
        "nested _load_from_bytes": ("model.pt", pickle.dumps({"weights": nested}, 2)),
        "DCP .metadata": (".metadata", pickle.dumps({"state_dict_metadata": evaluate}, 5)),
        "DCP BYTE_IO": ("__0_0.distcp", inner.getvalue()),
        "RNG sidecar": ("random_states_0.pkl", sidecar.getvalue()),
        "legacy tar": ("model.pth.tar", tar.getvalue()),
    }


KINDS = list(payloads(Path("x")))


def run_with(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    save(run, 100, {"model": {"w": torch.ones(3)}}, {"config": {"a": 1}})
    return run / "step-0000100"


def plant(folder: Path, name: str, content: bytes) -> None:
    """Put content in place of a file, with a manifest that agrees."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("seal")
    manifest["files"][name] = verified.storage.digest(folder / name)._asdict()
    (folder / "manifest.json").write_bytes(verified.sealed(manifest))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("DCP BYTE_IO", "legacy tar", "nested _load_from_bytes")])
def test_the_payloads_are_live(tmp_path: Path, kind: str) -> None:
    """What the tests below keep from running does run when unpickled."""
    _, content = payloads(tmp_path / "marker")[kind]
    (tmp_path / "file").write_bytes(content)
    reader = "import pickle, sys; file = open(sys.argv[1], 'rb')\nfor _ in range(5): pickle.load(file)"
    subprocess.run([sys.executable, "-c", reader, str(tmp_path / "file")], capture_output=True, check=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place",
    [
        "beside",
        "model.safetensors",
        "config.json",
        "manifest.json",
        "step",
        "model.safetensors, manifest agreeing",
        "config.json, manifest agreeing",
    ],
)
def test_code_is_refused_and_never_runs(tmp_path: Path, kind: str, place: str) -> None:
    folder = run_with(tmp_path)
    name, content = payloads(tmp_path / "marker")[kind]
    if place == "beside":
        (folder / name).write_bytes(content)
    elif place == "step":
        (folder.parent / "step-0000200").write_bytes(content)
        folder.rename(folder.parent / "else")
        folder = folder.parent / "step-0000200"
    elif place.endswith("agreeing"):
        plant(folder, place.split(",")[0], content)
    else:
        (folder / place).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"contains code, refused") as caught:
        open_checkpoint(folder)
    assert caught.value.exit_code == 4
    with pytest.raises(CheckpointError, match=r"contains code, refused"):
        newest(folder.parent)
    assert not (tmp_path / "marker").exists()


def test_empty_archives_and_text_pickles_are_code_too(tmp_path: Path) -> None:
    empty, old = io.BytesIO(), bytearray(512)
    zipfile.ZipFile(empty, "w").close()
    header = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT)
    old[:257] = header[:257]
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + 8 * 32 + sum(old[156:]))  # a tar of 1979: no magic, only a checksum
    for content in (empty.getvalue(), bytes(old), b"cos\nsystem\n(S'x'\ntR.", b"(ios\nsystem\nS'x'\n.", b"(S'x'\ncbuiltins\neval\no."):
        (tmp_path / "file").write_bytes(content)
        assert verified.storage.holds_code(tmp_path / "file"), content
    for content in (b"", b"{", b"\0" * 600, b"text\n", b"\xff" * 600, (2).to_bytes(8, "little") + b"{}"):
        (tmp_path / "file").write_bytes(content)
        assert not verified.storage.holds_code(tmp_path / "file"), content


# the gate ----------------------------------------------------------------------------------------------------------------------

MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "torch.package", "torch.jit", "torch.hub"}
FORBIDDEN = {
    *(f"{module}.{name}" for module in ("pickle", "_pickle", "dill", "cloudpickle", "marshal") for name in ("load", "loads", "Unpickler")),
    *("torch.load", "torch.storage._load_from_bytes", "joblib.load", "shelve.open", "pandas.read_pickle", "eval", "exec"),
    *("builtins.eval", "builtins.exec", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("yaml.unsafe_load_all", "yaml.full_load_all", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "os.system", "os.popen"),
    *("torch.jit.load", "torch.hub.load", "torch.export.load", "runpy.run_path", "runpy.run_module", "shutil.unpack_archive"),
    *(f"torch.distributed.checkpoint.{name}" for name in ("load", "load_state_dict", "async_load", "state_dict_loader.load")),
    *(f"torch.distributed.checkpoint.{where}FileSystem{name}" for where in ("", "filesystem.") for name in ("Reader", "Writer")),
}
FLAGS = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False}  # the only value each may have
GATE = {
    ("training/distributed/sharded.py", "torch.distributed.checkpoint.state_dict_loader.load"),  # of verified safetensors files only
    ("data/cifar.py", "import pickle"),  # the published form; by an unpickler that knows arrays only
    ("data/cifar.py", "pickle.Unpickler"),
    ("evaluation/extractors/inception.py", "torch.load"),  # weights_only: published weights come in no other form
}


def violations(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call, import or reference that could run what a file says."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
            yield from ((node.lineno, f"import {alias.name}") for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if f"{node.module}.{alias.name}" in FORBIDDEN)
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, f"import {name}") for name in [node.module, *inside] if name in MODULES)

    def dotted(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            base = dotted(node.value)
            return f"{base}.{node.attr}" if base else ""
        return known.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and dotted(node) in FORBIDDEN:
            yield node.lineno, dotted(node)
        if isinstance(node, ast.keyword):
            value = node.value.value if isinstance(node.value, ast.Constant) else "not a constant"
            shell = node.arg == "shell" and value is True
            if shell or (node.arg in FLAGS and value is not FLAGS[node.arg]):
                yield node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"
        if isinstance(node, ast.Attribute) and node.attr == "extractall":  # members of an archive choose their own path
            yield node.lineno, f"{ast.unparse(node.value)}.{node.attr}"


def test_nothing_in_the_package_can_run_a_file() -> None:
    root = Path(ddpm.errors.__file__).parent
    paths = sorted(root.rglob("*.py"))
    assert any(path.name == "checkpoint.py" for path in paths)
    met = [(path.relative_to(root).as_posix(), line, name) for path in paths for line, name in violations(path.read_text(encoding="utf-8"))]
    found = [f"{file}:{line}: {name}" for file, line, name in met if (file, name) not in GATE]
    assert len(met) - len(found) == len(GATE)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import loads as x\nx(b)",
        "import pickle\nf = pickle.Unpickler",
        "import torch\ntorch.load(f)",
        "from torch import load\n",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "g(f, allow_pickle=flag)",
        "g(f, weights_only=False)",
        "g(f, weights_only=w)",
        "eval(s)",
        "exec(s)",
        "import builtins\nbuiltins.eval(s)",
        "import yaml\nyaml.load(s, Loader=L)",
        "import torch.distributed.checkpoint as dcp\ndcp.load(s)",
        "from torch.distributed import checkpoint as c\nc.load(s)",
        "import torch\ntorch.distributed.checkpoint.load(s)",
        "from torch.distributed.checkpoint import FileSystemReader",
        "import torch.distributed.checkpoint as dcp\ndcp.filesystem.FileSystemWriter(p)",
        "map(eval, s)",
        "import pickle",
        "from pickle import *",
        "import marshal as m",
        "from torch import package",
        "import torch.jit",
        "import yaml\nyaml.load_all(s, yaml.UnsafeLoader)",
        "from yaml import UnsafeLoader",
        "g(s, trust_remote_code=True)",
        "subprocess.run(s, shell=True)",
        "import os\nos.system(s)",
        "archive.extractall(path)",
        "import torch\ntorch.jit.load(f)",
        "from torch.distributed.checkpoint import load",
        "from torch.distributed.checkpoint import state_dict_loader as s\ns.load(d)",
    ],
)
def test_the_gate_sees(source: str) -> None:
    assert list(violations(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "np.load(f, allow_pickle=False)",
        "json.load(f)",
        "yaml.safe_load(s)",
        "safetensors.torch.load(b)",
        "tomllib.load(f)",
        "import pickletools",
        "t.compile(f)",
        "g(shell=s)",
    ],
)
def test_the_gate_lets_pass(source: str) -> None:
    assert not list(violations(source))
