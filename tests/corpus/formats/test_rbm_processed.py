"""Upstream's processed data sets: folders, tars and split tars, and what is refused, through the real job."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from robometer.corpus.formats import FormatError
from robometer.corpus.formats.rbm_processed import _Frames
from robometer.frames.video import VideoError
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

LABELS = ("successful", "failed", "optimal")


def record(n: int, **fields: Any) -> dict[str, Any]:
    """A row as upstream writes it."""
    clip = roll_out(n)
    return {
        "id": f"id-{n}",
        "task": clip.task,
        "lang_vector": [0.0] * 4,
        "data_source": "soar_rfm",
        "frames": f"processed_datasets/some_rfm/frames/trajectory_id-{n}.npz",
        "is_robot": n != 1,
        "quality_label": LABELS[n % 3],
        "partial_success": None,
        "frames_shape": list(clip.frames.shape),
        "num_frames": len(clip.frames),
        "frames_processed": True,
        "frames_path": f"some_rfm/frames/trajectory_id-{n}.npz",
        **fields,
    }


def write(root: Path, tables: list[list[dict[str, Any]]]) -> None:
    """A processed data set of one arrow file per table, three rows a batch, and all npz."""
    (root / "processed_dataset").mkdir(parents=True, exist_ok=True)
    (root / "frames").mkdir(exist_ok=True)
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "task", "data_source", "frames", "quality_label", "frames_path")),
            *((name, pa.bool_()) for name in ("is_robot", "frames_processed")),
            ("lang_vector", pa.list_(pa.float32())),
            ("partial_success", pa.float32()),
            ("frames_shape", pa.list_(pa.int32())),
            ("num_frames", pa.int32()),
        ]
    )
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(str(root / "processed_dataset" / name), schema) as writer:
            writer.write_table(pa.Table.from_pylist(table, schema), max_chunksize=3)
        for row in table:
            frames = roll_out(int(row["id"].split("-")[1])).frames
            path = root / "frames" / f"trajectory_{row['id']}.npz"
            np.savez_compressed(path, frames=frames, shape=frames.shape, num_frames=len(frames))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (root / "processed_dataset/state.json").write_text(json.dumps(state))
    (root / "dataset_info.json").write_text("{}")


def tar(root: Path, *parts: str) -> bytes:
    """The folder, or parts of it, as an uncompressed tar, with its own name in front."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for part in parts or (".",):
            archive.add(root / part, f"{root.name}/{part}")
    return buffer.getvalue()


EXPECTED = [
    ("metaworld_eval", "id-3", "main", roll_out(3).task, "successful", None, True),
    ("soar_rfm", "id-0", "main", roll_out(0).task, "successful", None, True),
    ("soar_rfm", "id-1", "main", roll_out(1).task, "failure", 0.25, False),
    ("soar_rfm", "id-2", "main", roll_out(2).task, "successful", None, True),
]
FIELDS = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot")


@pytest.mark.parametrize("form", ["folder", "folders", "tar", "partaa", "part-aa"])
def test_rows_come_from_folders_and_from_tars(ray_local: None, tmp_path: Path, form: str) -> None:
    folder, raw = tmp_path / "made/some_rfm", tmp_path / "raw"
    metaworld = record(3, data_source="metaworld_eval", partial_success=0.0)  # no grade: metaworld rows all say 0
    tables = [[record(0), record(1, partial_success=0.25)], [record(2), metaworld]]
    write(folder, tables)
    raw.mkdir()
    if form == "folder":
        raw = folder
    elif form == "folders":
        raw = folder.parent
    else:
        content = tar(folder)
        size = len(content) if form == "tar" else len(content) // 3 + 7  # cuts headers and arrays anywhere
        for i in range(0, len(content), size):
            suffix = "" if form == "tar" else f".{form[:-1]}{chr(ord('a') + i // size)}"
            (raw / f"some_rfm.tar{suffix}").write_bytes(content[i : i + size])
    corpus = ingest(tmp_path, "rbm_processed", input=raw)
    assert rows(corpus, *FIELDS) == EXPECTED
    for n in range(4):
        assert shows(corpus, row_of(corpus, episode_key=f"id-{n}"), roll_out(n).frames, tolerance=2)
    assert not refusals(corpus)

    if form == "folder":
        write(folder, [*tables, [record(4)]])
        more = ingest(tmp_path, "rbm_processed", input=raw)
        assert set(more.manifest["id"].to_pylist()) > set(corpus.manifest["id"].to_pylist())
        assert len(more) == len(corpus) + 1


def test_what_is_broken_is_refused_and_the_rest_is_in(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    outside = record(5, frames_path="../../../outside/trajectory_id-5.npz")
    odd = [record(6, num_frames=3), record(7, quality_label=None), record(8, frames=None, frames_path=None), outside]
    write(raw / "a", [[record(n) for n in range(5)], odd])
    frames = raw / "a/frames"
    (frames / "trajectory_id-0.npz").unlink()
    cut = (frames / "trajectory_id-1.npz").read_bytes()
    (frames / "trajectory_id-1.npz").write_bytes(cut[: len(cut) // 2])
    flipped = bytearray((frames / "trajectory_id-2.npz").read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    (frames / "trajectory_id-2.npz").write_bytes(bytes(flipped))
    np.savez_compressed(frames / "trajectory_id-3.npz", frames=np.array([{"a": 1}], dtype=object))
    state = json.loads((raw / "a/processed_dataset/state.json").read_text())
    state["_data_files"].append({"filename": "data-00009-of-00010.arrow"})
    (raw / "a/processed_dataset/state.json").write_text(json.dumps(state))
    corpus = ingest(tmp_path, "rbm_processed", input=raw)
    assert rows(corpus, "episode_key") == [("id-4",), ("id-5",)]
    reasons = refusals(corpus)
    assert "but it is missing" in reasons["trajectory_id-0.npz id-0"]
    assert "the npz cannot be read (BadZipFile" in reasons["trajectory_id-1.npz id-1"]
    assert "cannot be read" in reasons["trajectory_id-2.npz id-2 main"]
    assert "object" in reasons["trajectory_id-3.npz id-3"]
    assert "its row says 3" in reasons["trajectory_id-6.npz id-6"]
    assert "quality label ''" in reasons["trajectory_id-7.npz id-7 main"]
    assert reasons["a id-8"] == "a row has no frames_path"
    assert "it is missing" in reasons["data-00009-of-00010.arrow"]


def test_broken_tables_and_tars_keep_what_came_before(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(tmp_path / "made", [[record(n) for n in range(10, 13)]])
    content = tar(tmp_path / "made", "processed_dataset", "frames")
    (raw / "cut.tar").parent.mkdir()
    (raw / "cut.tar").write_bytes(content[: content.rindex(b"trajectory_id-12.npz") + 2000])
    content = tar(tmp_path / "made", "frames", "processed_dataset")
    (raw / "split.tar.partaa").write_bytes(content[: len(content) // 3])
    write(raw / "whole", [[record(n) for n in range(6)]])
    table = raw / "whole/processed_dataset/data-00000-of-00001.arrow"
    table.write_bytes(table.read_bytes()[:-1500])  # inside the second batch
    corpus = ingest(tmp_path, "rbm_processed", "ingest.source_name=mine")
    assert rows(corpus, "source", "episode_key") == [("mine", f"id-{n}") for n in (0, 1, 10, 11, 2)]
    reasons = refusals(corpus)
    assert "is a part missing?" in reasons["cut.tar"]
    assert "npz cannot be read" in reasons["trajectory_id-12.npz id-12"]
    assert "the rest of the table cannot be read" in reasons[table.name]
    assert "is a part missing?" in reasons["split.tar.partaa"]


def test_one_frame_is_in_memory_at_a_time() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (400, 64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=frames)
    reader = _Frames(buffer)
    assert reader.count == 400
    for i in (0, 17, 399, 3):
        assert np.array_equal(reader.get(i), frames[i])
    np.savez(buffer := io.BytesIO(), frames=frames.astype(np.float32))
    with pytest.raises(VideoError, match="float32"):
        _Frames(buffer)


def test_a_place_without_data_ends_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no file or folder"):
        ingest(tmp_path, "rbm_processed", input=tmp_path / "none")
    with pytest.raises(FormatError, match="no processed_dataset/ and no tar"):
        ingest(tmp_path, "rbm_processed", input=tmp_path)
