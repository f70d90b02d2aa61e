"""Zarr stores: both formats and zip files, tasks per store and episode, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

zarr = pytest.importorskip("zarr", reason="the extra robometer[zarr] is not installed")

from robometer.corpus.formats import FormatError, list_units  # noqa: E402
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows  # noqa: E402
from tests.corpus.formats.test_pickle_sets import Touch  # noqa: E402

CLIPS = [roll_out(n).frames[:8] for n in range(3)]


def write(store: Any, version: int = 3, task: Any = None, ends: Any = (8, 16, 24), **views: np.ndarray) -> Any:
    group = zarr.open_group(store=store, mode="w", zarr_format=version)
    frames = np.concatenate(CLIPS)
    for name, pixels in (views or {"front": frames, "side": frames[:, :, ::-1].astype(np.float32)}).items():
        array = group.create_array(
            f"data/{name}", shape=pixels.shape, chunks=(5, *pixels.shape[1:]), dtype=pixels.dtype
        )
        array[:] = pixels
    for name, value in (("data/action", np.zeros((24, 7))), ("meta/episode_ends", np.array(ends))):
        group.create_array(name, shape=value.shape, dtype=value.dtype)[...] = value
    if task is not None:
        group.attrs["task"] = task
    return group


def test_zarr_stores(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw / "two.zarr", 2, "Push it")
    write(raw / "three.zarr", 3, ["One", {"task": "Two", "quality_label": "failure", "partial_success": 0.25}])
    store = zarr.storage.ZipStore(raw / "zipped.zarr.zip", mode="w")
    write(store, 3, ends=[4, 8, 9], front=CLIPS[0])
    store.close()
    (raw / "tasks.json").write_text(json.dumps({"zipped.zarr.zip": {"task": "Zip", "source": "mine"}}))
    corpus = ingest(tmp_path, "zarr")
    columns = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "source_num_frames")
    views = ("front", "side")
    assert rows(corpus, *columns) == [
        ("mine", "zipped.zarr.zip/0", "front", "Zip", "successful", None, 4),
        ("mine", "zipped.zarr.zip/1", "front", "Zip", "successful", None, 4),
        *(("three", "three.zarr/0", view, "One", "successful", None, 8) for view in views),
        *(("three", "three.zarr/1", view, "Two", "failure", 0.25, 8) for view in views),
        *(("two", f"two.zarr/{i}", view, "Push it", "successful", None, 8) for i in range(3) for view in views),
    ]
    for n in range(3):
        assert shows(corpus, row_of(corpus, episode_key=f"two.zarr/{n}", view="front"), CLIPS[n])
        assert shows(corpus, row_of(corpus, episode_key=f"two.zarr/{n}", view="side"), CLIPS[n][:, :, ::-1])
    assert shows(corpus, row_of(corpus, episode_key="zipped.zarr.zip/1"), CLIPS[0][4:])
    why = refusals(corpus)
    assert "no task text" in why["three.zarr#2 three.zarr/2"] and len(why) == 2
    assert "ends at 9, but the array has 8 frames" in why["front zipped.zarr.zip/2 front"]

    group = zarr.open_group(raw / "two.zarr", mode="r+")
    for name, added in (("data/front", CLIPS[0]), ("data/side", CLIPS[0]), ("meta/episode_ends", np.array([32]))):
        group[name].append(added.astype(group[name].dtype))
    assert len(ingest(tmp_path, "zarr").manifest) == len(corpus.manifest) + 2


def test_bad_and_hostile_stores_are_refused(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw / "good.zarr", task="It", front=np.concatenate(CLIPS))
    write(raw / "hostile.zarr", 2, task="It", front=np.concatenate(CLIPS))
    store = raw / "hostile.zarr/data/front"
    config = json.loads((store / ".zarray").read_text())
    config["compressor"] = {"id": "pickle", "protocol": 4}
    (store / ".zarray").write_text(json.dumps(config))
    for chunk in store.glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    write(raw / "other.zarr", 2, task="It", front=np.concatenate(CLIPS))
    settings = raw / "other.zarr/data/front/.zarray"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"compressor": {"id": "packbits"}}))
    write(raw / "ends.zarr", task="It", ends=[8, 8, 24])
    write(raw / "views.zarr", task="It", front=np.zeros((24, 4)))
    group = write(raw / "no_ends.zarr", task="It")
    del group["meta/episode_ends"]
    write(raw / "unit.zarr", task="It", front=np.concatenate(CLIPS) / 255, deep=np.concatenate(CLIPS).astype(np.uint16))
    (raw / "broken.zarr").mkdir()
    (raw / "broken.zarr/zarr.json").write_text("{")
    write(raw / "cut.zarr", task="It", front=np.concatenate(CLIPS))
    chunk = raw / "cut.zarr/data/front/c/0/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:50])
    corpus = ingest(tmp_path, "zarr")
    assert rows(corpus, "episode_key") == [
        ("cut.zarr/1",), ("cut.zarr/2",), ("good.zarr/0",), ("good.zarr/1",), ("good.zarr/2",),
    ]  # fmt: skip
    assert not (tmp_path / "ran").exists()
    why = refusals(corpus)
    assert "pickle" in why["hostile.zarr"] and "codec packbits" in why["front other.zarr/0 front"]
    assert (
        "ascending" in why["ends.zarr"]
        and "[N, H, W, 3]" in why["views.zarr"]
        and "episode_ends" in why["no_ends.zarr"]
    )
    assert "0 to 1" in why["front unit.zarr/0 front"] and "uint16" in why["deep unit.zarr/0 deep"]
    assert "cannot be read" in why["broken.zarr"] and "cannot be read" in why["front cut.zarr/0 front"]

    pickle.loads(next(store.glob("[0-9]*")).read_bytes())  # it really is hostile
    assert (tmp_path / "ran").exists()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FormatError):
            list(list_units("zarr", str(place)))
