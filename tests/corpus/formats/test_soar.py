"""SOAR: episodes on whose label both judges agree, by the order of TensorFlow Datasets, through the real job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows
from tests.corpus.formats.tfrecords import IMAGE, TEXT, data_set, example, jpegs

STEPS = {"observation/image_0": IMAGE, "observation/image_1": IMAGE, "language_instruction": TEXT}


def _record(name: str, number: int = 0) -> bytes:
    images = jpegs(roll_out(number).frames[:3, ::4, ::4])
    views = {f"steps/observation/image_{i}": images for i in (0, 1)}
    return example({**views, "steps/language_instruction": [name.encode()] * 3})


def _write(folder: Path) -> None:
    success = [[_record(f"success {i}", i) for i in range(3)], [_record("success 3", 3)]]
    failure = [[_record(f"failure {i}", i) for i in range(3)]]
    data_set(folder / "rlds/1.0.0", "soar_dataset", STEPS, {"success": success, "failure": failure})
    labels = ["successful", "failure", "infeasible", "successful", "failure", "successful", "failure"]
    labels_file = {"label_corrections": {str(i): label for i, label in enumerate(labels)}}
    (folder / "soar_label_corrections_full.json").write_text(json.dumps(labels_file))


def test_both_judges_must_agree(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    _write(raw)
    (raw / "blacklist.txt").write_text("6\n")
    corpus = ingest(tmp_path, "soar")
    assert rows(corpus, "source", "view", "task", "quality_label", "partial_success", "is_robot") == [
        ("soar_rfm", "image_0", "failure 0", "failure", None, True),
        ("soar_rfm", "image_0", "success 0", "successful", None, True),
        ("soar_rfm", "image_0", "success 3", "successful", None, True),
    ]
    assert shows(corpus, row_of(corpus, task="success 3"), roll_out(3).frames[:3, ::4, ::4])
    assert {row["stage"] for row in corpus.quarantine().to_pylist()} == {"skip"}
    reasons = {uri.split(" ")[0].removeprefix("soar_dataset-"): error for uri, error in refusals(corpus).items()}
    assert reasons == {
        "success.tfrecord-00000-of-00002#1": "the new label is failure, but its split says successful",
        "success.tfrecord-00000-of-00002#2": "the new label is infeasible, but its split says successful",
        "failure.tfrecord-00000-of-00001#1": "the new label is successful, but its split says failure",
        "failure.tfrecord-00000-of-00001#2": "it is on the blacklist",
    }


def test_labels_follow_the_order_of_reading(tmp_path: Path) -> None:
    """17 records in the first file: TensorFlow Datasets gives 16 of them, then the second file, then the last."""
    record = _record("a")
    data_set(tmp_path, "soar_dataset", STEPS, {"success": [[record] * 17, [record]], "failure": [[record]]})
    (tmp_path / "labels.json").write_text(json.dumps({str(i): f"label {i}" for i in range(19)}))
    units = [entry.data["labels"] for entry in list_units("soar", str(tmp_path))]  # type: ignore[union-attr]
    assert units == [[f"label {i}" for i in [*range(16), 17]], ["label 16"], ["label 18"]]


def test_labels_that_are_missing_say_what_to_do(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "soar_label_corrections_full.json").unlink()
    with pytest.raises(
        FormatError, match=r"SOAR needs exactly one file \*label\*.json with new labels in .*; it has none"
    ):
        list(list_units("soar", str(tmp_path)))
