"""Labels: from folders, labels.csv, metadata.jsonl and dataset.json; every fault is named by file and line before the first step."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.config import Parser, add_flags, dump_toml, flags_layer, from_dict, resolve, to_dict
from ddpm.data import Dataset, DataSettings, open_data
from ddpm.errors import DataError

NAMES = [f"{i}.png" for i in range(1, 13)]
FAIR = "file_name,label\n" + "".join(f"{name},{i % 3}\n" for i, name in enumerate(NAMES))


def put(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    Image.new("L", (4, 4), value).save(out, "PNG")
    path.write_bytes(out.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        put(tmp_path / "set" / name, i)
    return tmp_path / "set"


def read(folder: Path, **settings: object) -> Dataset:
    return open_data(DataSettings(data=str(folder), **settings))  # type: ignore[arg-type]


def lines(*changes: tuple[int, str | None]) -> str:
    """The fair file with some lines (counted from 1) replaced, or taken out."""
    rows: list[str | None] = [*FAIR.splitlines()]
    for number, text in changes:
        rows[number - 1] = text
    return "\n".join(row for row in rows if row is not None) + "\n"


def test_a_fair_file_in_every_form_and_coding(folder: Path) -> None:
    expected = [i % 3 for i in range(12)]
    for coding in ("utf-8", "utf-8-sig"):
        for end in ("\n", "\r\n"):
            (folder / "labels.csv").write_bytes(FAIR.replace("\n", end).encode(coding))
            dataset = read(folder)
            assert list(dataset.cond["class"]) == expected and dataset.card.classes == ("0", "1", "2")
    (folder / "labels.csv").unlink()
    rows = [{"file_name": name, "label": i % 3, "text": "a caption", "by": "me"} for i, name in enumerate(NAMES)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in reversed(rows)))
    dataset = read(folder)
    assert list(dataset.cond["class"]) == expected
    assert dataset.texts is not None and dataset.texts[3] == "a caption" and dataset.card.captions == 12
    assert "metadata.jsonl: column 'by' holds no numbers and is not used" in dataset.card.notices
    (folder / "metadata.jsonl").unlink()
    (folder / "dataset.json").write_text(json.dumps({"labels": [[name, i % 3] for i, name in enumerate(NAMES)]}))
    assert list(read(folder).cond["class"]) == expected
    (folder / "dataset.json").write_text(json.dumps({"labels": None}))
    assert "class" not in read(folder).cond


def test_names_and_numbers_become_classes_and_vectors(folder: Path) -> None:
    text = "file_name,label,age,height\n" + "".join(f"{n},{'cat' if i % 2 else 'dog'},{i},{i / 2}\n" for i, n in enumerate(NAMES))
    (folder / "labels.csv").write_text(text)
    dataset = read(folder)
    assert dataset.card.classes == ("cat", "dog") and list(dataset.cond["class"][:2]) == [1, 0]
    assert dataset.card.vector == ("age", "height") and dataset.cond["vector"].dtype == np.float32
    assert np.array_equal(dataset.cond["vector"][:, 1], np.arange(12) / 2)
    (folder / "labels.csv").unlink()
    (folder / "dataset.json").write_text(json.dumps({"labels": [[name, [i, 0.5]] for i, name in enumerate(NAMES)]}))
    assert read(folder).cond["vector"].shape == (12, 2) and read(folder).card.classes == ()
    assert "vector" not in read(folder, labels="none").cond


def test_none_means_no_labels_in_flags_and_files(folder: Path) -> None:
    (folder / "labels.csv").write_text(FAIR)
    for typed, classes in ((["--labels", "none"], 0), (["--labels", "auto"], 3), ([], 3)):
        parser = Parser()
        add_flags(parser, DataSettings)
        args, extra = parser.parse_known_args(["--data", str(folder), *typed])
        settings = resolve(DataSettings, [flags_layer(args, extra, parser, DataSettings)])
        assert open_data(settings).card.class_counts == (4,) * classes
        assert from_dict(DataSettings, to_dict(settings)) == settings == from_dict(DataSettings, tomllib.loads(dump_toml(settings)))


FAULTS = {
    "missing": (lines((7, "6.png,")), "labels.csv line 7: the label is missing"),
    "no line": (lines((7, None)), "labels.csv: 6.png has no line"),
    "extra": (FAIR + "99.png,1\n", "labels.csv line 14: 99.png is not among the pictures"),
    "twice": (FAIR + "3.png,1\n", "labels.csv line 14: 3.png was labelled before, in labels.csv line 4"),
    "negative": (lines((5, "4.png,-1")), "labels.csv line 5: class -1 is negative"),
    "too high": (lines((9, "8.png,10")), "labels.csv line 9: class 10, there are 10 (0-9)"),
    "text": (lines((5, "4.png,cat")), "labels.csv line 5: label 'cat' is text, the first labels are whole numbers"),
    "fraction": (lines((5, "4.png,1.5")), "labels.csv line 5: label '1.5' is text"),
    "wrong column": (FAIR.replace("file_name", "image"), "labels.csv line 1: expected different column names with 'file_name'"),
    "column twice": (FAIR.replace("label", "file_name", 1), "labels.csv line 1: expected different column names"),
    "no label column": ("file_name\n" + "\n".join(NAMES), "labels.csv: no column 'label', 'text' or of numbers"),
    "too many columns": (lines((6, "5.png,1,2")), "labels.csv line 6: 3 columns, the first line has 2"),
    "only a header": ("file_name,label\n", "labels.csv: 1.png has no line"),
    "empty": ("", "labels.csv line 1: expected different column names"),
    "out of the folder": (lines((6, "../5.png,1")), "labels.csv line 6: member '../5.png' points out"),
    "open quote": (lines((6, '"5.png,1')), "not CSV"),
    "text among numbers": (
        "file_name,age\n" + "".join(f"{name},{'old' if name == '4.png' else 3}\n" for name in NAMES),
        "labels.csv line 5: age is 'old', not a number",
    ),
    "not finite": (
        "file_name,age\n" + "".join(f"{name},{'nan' if name == '4.png' else 3}\n" for name in NAMES),
        "labels.csv line 5: age is not finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_csv_are_named_by_line(fault: str, folder: Path) -> None:
    text, message = FAULTS[fault]
    (folder / "labels.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read(folder, classes=10)
    assert message in str(caught.value) and caught.value.exit_code == 3


JSON_FAULTS = {
    "metadata.jsonl": {
        '{"file_name": "1.png", "label": 0}\nnot json\n': "metadata.jsonl line 2: not JSON",
        "[1]\n": "metadata.jsonl line 1: expected an object",
        '{"label": 0}\n': "metadata.jsonl line 1: no file_name",
        '{"file_name": "1.png", "label": true}\n': "label True is neither",
        "[" * 100_000 + "\n": "metadata.jsonl line 1: not JSON",
    },
    "dataset.json": {
        '{"labels": [["1.png", 0], ["2.png"]]}': "dataset.json labels[1]: expected [file_name, label]",
        '{"labels": {"1.png": 0}}': 'dataset.json: expected {"labels"',
        json.dumps(
            {"labels": [[name, [1.0] * (1 + (name == "3.png"))] for name in NAMES]}
        ): "labels[2]: the label has 2 numbers, the first one 1",
        json.dumps({"labels": [[name, [1e400 if name == "3.png" else 1.0]] for name in NAMES]}): "labels[2]: the label holds something",
        json.dumps({"labels": [[name, 10**400 if name == "3.png" else 1] for name in NAMES]}): "dataset.json labels[2]: class 1000000",
    },
}


CASES = [(file, text) for file, cases in JSON_FAULTS.items() for text in cases]


@pytest.mark.parametrize(("file", "text"), CASES, ids=range(len(CASES)))
def test_faults_in_json_are_named(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)
    with pytest.raises(DataError) as caught:
        read(folder)
    assert JSON_FAULTS[file][text] in str(caught.value)


def test_other_codings_and_two_files_are_refused(folder: Path) -> None:
    (folder / "labels.csv").write_bytes(FAIR.encode("utf-16"))
    with pytest.raises(DataError, match="labels.csv: not UTF-8"):
        read(folder)
    (folder / "labels.csv").write_text(FAIR)
    (folder / "metadata.csv").write_text(FAIR)
    with pytest.raises(DataError, match="holds labels.csv and metadata.csv; keep one"):
        read(folder)
    other = folder.parent / "mine.csv"
    other.write_text(FAIR)
    assert read(folder, labels=str(other)).card.class_counts == (4, 4, 4)
    with pytest.raises(DataError, match="nowhere.csv: No such file"):
        read(folder, labels="nowhere.csv")


def test_all_faults_are_reported_at_once_but_not_a_thousand(folder: Path) -> None:
    (folder / "labels.csv").write_text(FAIR + "".join(f"x{i}.png,0\n" for i in range(1000)))
    with pytest.raises(DataError, match="x19.png is not among") as caught:
        read(folder)
    assert "... and 980 more" in str(caught.value) and len(str(caught.value).splitlines()) == 21


def test_more_classes_than_the_model_has(folder: Path) -> None:
    (folder / "labels.csv").write_text("file_name,label\n" + "".join(f"{name},kind{i}\n" for i, name in enumerate(NAMES)))
    with pytest.raises(DataError, match=r"12 classes \(0-11\), the setting classes allows 10"):
        read(folder, classes=10)
    (folder / "labels.csv").write_text(FAIR)
    card = read(folder, classes=5).card
    assert card.classes == ("0", "1", "2", "3", "4") and card.class_counts == (4, 4, 4, 0, 0)


def test_folders_name_the_classes(tmp_path: Path) -> None:
    for kind in ("b10", "b2", "a"):
        for i in range(3):
            put(tmp_path / "photos" / "train" / kind / "deeper" / f"{i}.png", i)
    card = read(tmp_path / "photos").card
    assert card.classes == ("a", "b2", "b10") and card.class_counts == (3, 3, 3)
    put(tmp_path / "photos" / "train" / "loose.png")
    card = read(tmp_path / "photos").card
    assert card.classes == () and any("some beside them" in notice for notice in card.notices)


def test_a_validation_folder_is_held_out_and_a_test_folder_left_out(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("validation", 4), ("test", 2)):
        for kind in ("cat", "dog"):
            for i in range(count):
                put(tmp_path / split / kind / f"{i}.png", i + 10 * len(split))
    dataset = read(tmp_path)
    assert (dataset.card.count, dataset.card.held_out, dataset.card.classes) == (20, 8, ("cat", "dog"))
    assert set(np.unique(dataset.samples[dataset.held_rows])) == {100 + i for i in range(4)}
    assert "4 pictures in test/ are left out" in dataset.card.notices
    for split in ("train", "validation"):  # the layout of Hugging Face's image folders: a file a split
        rows = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6 if split == "train" else 4)]
        (tmp_path / split / "metadata.csv").write_text("file_name,size\n" + "".join(f"{row},{len(row)}\n" for row in rows))
    assert read(tmp_path).card.vector == ("size",)


def test_train_is_a_class_among_other_vehicles(tmp_path: Path) -> None:
    for kind in ("train", "bus", "plane"):
        put(tmp_path / kind / "1.png", 1)
        put(tmp_path / kind / "2.png", 2)
    assert read(tmp_path).card.classes == ("bus", "plane", "train")


def test_lines_of_skipped_and_of_test_pictures_are_no_fault(tmp_path: Path) -> None:
    for i in range(200):
        put(tmp_path / "train" / f"{i}.png", i)
    for i in range(3):
        put(tmp_path / "test" / f"{i}.png", i)
    (tmp_path / "train" / "7.png").write_bytes(b"")
    rows = [f"train/{i}.png,{i % 2}" for i in range(200)] + [f"test/{i}.png,0" for i in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    dataset = read(tmp_path, on_bad_image="skip")
    assert dataset.card.count == 199 and dataset.card.class_counts == (100, 99)
    assert np.array_equal(dataset.cond["class"], dataset.samples[:, 0, 0, 0] % 2)
    assert "3 pictures in test/ are left out" in dataset.card.notices
