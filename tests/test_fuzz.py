"""Files that lie: whatever is in a checkpoint, it is refused with our own error or it loads; never a crash, a hang, or memory without end.

`python tests/long_checks.py --fuzz 100000` prints the figures of a longer run.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ddpm.errors import CheckpointError, DDPMError
from ddpm.training import load
from ddpm.training.checkpoints import verified
from ddpm.training.checkpoints.checkpoint import newest, open_checkpoint, save
from ddpm.training.memory import peak_memory, restart_peak

GOLDEN = Path(__file__).parent / "golden" / "0.1.0" / "mlp" / "run"
SLOWEST = 1.0  # seconds for one file; a second chance is given, for machines that are busy


class Figures(NamedTuple):
    """What a run of mutations showed."""

    cases: int
    refused: int
    loaded: int
    slowest: float  # seconds
    growth: int  # bytes of memory


# mutations ------------------------------------------------------------------------------------------------------------------


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to three changes: bits, bytes, blocks, numbers of its text, its length."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data)) if data else 0
        span = draw.choice((1, 1, 2, 4, 8, 64))
        kind = draw.randrange(8)
        if not data or kind == 0:
            data[at:at] = draw.randbytes(span)
        elif kind == 1:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at] = draw.choice((0, 255, 34, 44, 45, 57, 91, 123, 125))
        elif kind == 3:
            del data[at : at + span]
        elif kind == 4:
            data[at:at] = data[at : at + span]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[:8] = struct.pack("<Q", draw.choice((0, 1, len(data), len(data) - 8, 2**32, 2**63, 2**64 - 1)))
        else:
            digits = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
            if digits:
                place = draw.choice(digits)
                data[place : place + 1] = draw.choice((b"0", b"9", b"-1", b"1e9", b"999999", b"0.5", b"null", b"18446744073709551615"))
    return bytes(data)


def forge(folder: Path, name: str, content: bytes) -> None:
    """Put content in place of a file, with a manifest that agrees and is sealed."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest.pop("seal")
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_bytes(verified.sealed(manifest))


def fuzz(folder: Path, cases: int, seed: int = 0) -> Figures:
    """Mutate every file of a checkpoint, half of them under a manifest that was forged to agree, and open, read and load what comes out.

    Raises: AssertionError for any other error than ours, a file taken for what it is not, or a hang.
    """
    run = folder / "run"
    shutil.copytree(GOLDEN, run)
    (step,) = run.glob("step-*")
    originals = {path.name: path.read_bytes() for path in step.iterdir()}
    draw = random.Random(seed)
    refused = loaded = 0
    slowest = 0.0
    outcome(step, "model.safetensors", True)  # everything imported
    restart_peak()
    before = peak_memory()
    for case in range(cases):
        name = draw.choice(sorted(originals))
        content = mutated(originals[name], draw)
        forged = draw.random() < 0.5 and name != "manifest.json"
        if forged:
            forge(step, name, content)
        else:
            (step / name).write_bytes(content)
        took, fine = timed(step, name, forged)
        if took > SLOWEST:
            took, fine = timed(step, name, forged)
        slowest = max(slowest, took)
        assert took <= SLOWEST, f"case {case}: {name} took {took:.1f} s"
        assert not fine or forged or content == originals[name], f"case {case}: {name} was changed and passed"
        refused, loaded = refused + (not fine), loaded + fine
        for changed in (name, "manifest.json"):
            (step / changed).write_bytes(originals[changed])
    return Figures(cases, refused, loaded, slowest, max(0, peak_memory() - before))


def timed(step: Path, name: str, forged: bool) -> tuple[float, bool]:
    """Seconds, and whether it loaded."""
    begin = time.monotonic()
    fine = outcome(step, name, forged)
    return time.monotonic() - begin, fine


def outcome(step: Path, name: str, forged: bool) -> bool:
    """Whether everything of a checkpoint loads; only our own errors may come, and CheckpointError alone where the file is opened."""
    try:
        found = open_checkpoint(step)
        for group in found.tensor_names:
            found.tensors(group)
        for document in found.document_names:
            found.document(document)
        if forged or name == "manifest.json":
            load(step)
    except CheckpointError as error:
        assert error.exit_code == 4 and len(str(error)) < 5000
        return False
    return True


def test_a_thousand_mutations(tmp_path: Path) -> None:
    figures = fuzz(tmp_path, 1000)
    print(figures)
    assert figures.refused + figures.loaded == 1000 and figures.refused > 600
    assert figures.loaded > 25, "numbers in tensors may change under a forged manifest: else nothing was reached"
    assert figures.growth < 64 * 2**20


# hand-made lies -------------------------------------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: dict[str, Any] = {
    "a header longer than the file": (10**6, {"w": F32}),
    "a header of 2^63 bytes": (2**63, {"w": F32}),
    "offsets beyond the end": (None, {"w": {**F32, "shape": [200], "data_offsets": [0, 800]}}),
    "offsets that run backwards": (None, {"w": {**F32, "data_offsets": [8, 0]}}),
    "two tensors in one place": (None, {"w": F32, "v": F32}),
    "a hole between tensors": (
        None,
        {"w": {**F32, "shape": [1], "data_offsets": [0, 4]}, "v": {**F32, "shape": [0], "data_offsets": [8, 8]}},
    ),
    "a shape that overflows 64 bits": (None, {"w": {**F32, "shape": [2**32, 2**32, 4]}}),
    "a shape of another size than the bytes": (None, {"w": {**F32, "shape": [3]}}),
    "a negative side": (None, {"w": {**F32, "shape": [-2]}}),
    "a type nobody knows": (None, {"w": {**F32, "dtype": "F31"}}),
    "no tensors for the bytes": (None, {}),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers_that_lie(lie: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"state": {}})
    length, header = HEADERS[lie]
    text = json.dumps(header).encode()
    forge(folder, "model.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + bytes(8))
    begin = time.monotonic()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file") as caught:
        open_checkpoint(folder).tensors("model")
    assert caught.value.exit_code == 4 and time.monotonic() - begin < 10


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    """For two places: one of them would be a hole."""
    folder = save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {})
    text = f'{{"w": {json.dumps(F32)}, "w": {json.dumps({**F32, "data_offsets": [8, 16]})}}}'.encode()
    forge(folder, "model.safetensors", struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        open_checkpoint(folder).tensors("model")


def grown(action: Callable[[], object]) -> int:
    """By how many bytes the most memory this process ever held rose."""
    restart_peak()
    before = peak_memory()
    with pytest.raises(DDPMError):
        action()
    return peak_memory() - before


def test_memory_is_bounded_by_the_file(tmp_path: Path) -> None:
    """20 MB whose header claims more, and a bomb: 64 MB of zeros in a few kilobytes, refused without unpacking."""
    folder = save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {})
    size = 20 * 2**20
    text = json.dumps({"w": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}).encode()
    forge(folder, "model.safetensors", struct.pack("<Q", len(text)) + text + bytes(size))
    assert grown(lambda: open_checkpoint(folder).tensors("model")) <= 2.2 * size
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 * 2**20))
    forge(folder, "model.safetensors", bomb.getvalue())
    assert len(bomb.getvalue()) < 100_000
    assert grown(lambda: newest(tmp_path)) < 8 * 2**20


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"name": "MLPConfig", "width": 1_000_000, "depth": 256}},
        {"network": {"name": "MLPConfig", "width": 10**12}},
        {"network": {"name": "UNetConfig", "channels": 65_536}, "shape": [3, 64, 64]},
        {"network": {"name": "os.system"}},
        {"network": None},
        {"shape": [10**9]},
        {"shape": [-8]},
        {"shape": "8"},
        {"cond": {"classes": 10**9}},
        {"schedule": {"name": "Cosine", "T": 10**12}},
        {"codec": {"shift": [], "scale": []}},
        {"residuals": {"log_snr": [1], "value": "x"}},
        {"learned_variance": "yes"},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_descriptions_that_lie(change: dict[str, Any], tmp_path: Path) -> None:
    """Under a manifest that agrees: refused within a second and without the memory they ask for."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    (step,) = (tmp_path / "run").glob("step-*")
    document = json.loads((step / "config.json").read_text(encoding="utf-8"))
    forge(step, "config.json", json.dumps({**document, **change}).encode())
    begin = time.monotonic()
    assert grown(lambda: load(step)) < 64 * 2**20 and time.monotonic() - begin < 20
