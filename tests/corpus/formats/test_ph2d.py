"""PH2D: encoded images of two eyes in HDF5 files, through the real job."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from robometer.frames.video import encode_jpeg
from tests.corpus.formats.hdf5_files import cut_off, write
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

COLUMNS = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot")


def _images(number: int, quality: str = "successful") -> list[np.ndarray]:
    return [np.frombuffer(encode_jpeg(frame, 90), np.uint8) for frame in roll_out(number, quality).frames]


def _ph2d(path: Path, description: str, **eyes: list[np.ndarray]) -> None:
    """Images of the right eye as rows padded with zeros, those of the left as byte strings of their own length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["description"] = description
        for eye, images in eyes.items():
            name, size = f"observation.image.{eye}", max(map(len, images))
            if eye == "right":
                file[name] = np.stack([np.pad(image, (0, size - len(image))) for image in images])
            else:
                file.create_dataset(name, len(images), h5py.vlen_dtype(np.uint8))[:] = images


def test_ph2d(ray_local: None, tmp_path: Path) -> None:
    raw, frames = tmp_path / "raw", roll_out(0).frames
    kinds = {"1-pour": "human_avp", "2-pour": "h1_inspire", "3-pour": "humanoid", "4-gone": "human_zed", "5-what": ""}
    _ph2d(raw / "1-pour" / "e_0.hdf5", "pour water", right=_images(0), left=_images(0, "suboptimal"))
    _ph2d(raw / "2-pour" / "e_0.hdf5", "pour water", left=_images(1))
    _ph2d(raw / "3-pour" / "e_0.hdf5", "pour water", right=_images(2))
    _ph2d(raw / "5-what" / "e_0.hdf5", "pour water", right=_images(2))
    _ph2d(raw / "6-new" / "e_0.hdf5", "pour water", right=_images(2))
    _ph2d(raw / "2-pour" / "e_1.hdf5", "", right=_images(2))
    _ph2d(raw / "2-pour" / "e_2.hdf5", "pour water")
    _ph2d(raw / "2-pour" / "e_3.hdf5", "pour water", right=[image[200:] for image in _images(2)])
    write(raw / "2-pour" / "e_4.hdf5", {"observation.image.right": frames[:0]}, description="pour water")
    cut_off(write(raw / "2-pour" / "e_5.hdf5", {"observation.image.right": frames}, description="pour water"))
    (raw / "notes").mkdir()
    (raw / "ph2d_metadata.json").write_text(
        json.dumps({"per_task_attributes": {name: {"embodiment_type": kind} for name, kind in kinds.items()}})
    )
    corpus = ingest(tmp_path, "ph2d")

    assert rows(corpus, *COLUMNS) == [
        ("ph2d", "1-pour/e_0", "left", "pour water", "successful", 1.0, False),
        ("ph2d", "1-pour/e_0", "right", "pour water", "successful", 1.0, False),
        ("ph2d", "2-pour/e_0", "left", "pour water", "successful", 1.0, True),
        ("ph2d", "3-pour/e_0", "right", "pour water", "successful", 1.0, True),
    ]
    right = row_of(corpus, episode_key="1-pour/e_0", view="right")
    assert shows(corpus, right, frames)
    assert not shows(corpus, right, frames[..., ::-1])
    left = row_of(corpus, episode_key="1-pour/e_0", view="left")
    assert shows(corpus, left, roll_out(0, "suboptimal").frames)
    expected = {
        "4-gone 4-gone": "holds no *.hdf5 file",
        "5-what 5-what": "names no embodiment_type",
        "6-new 6-new": "names no embodiment_type",
        "e_1.hdf5 2-pour/e_1 right": "no task text",
        "e_2.hdf5 2-pour/e_2": "neither observation.image.right nor",
        "e_3.hdf5 2-pour/e_3 right": "as an image",
        "e_4.hdf5 2-pour/e_4 right": "no frames",
        "e_5.hdf5 2-pour/e_5": "truncated file",
    }
    reasons = refusals(corpus)
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items()), reasons

    _ph2d(raw / "1-pour" / "e_1.hdf5", "pour water", right=_images(3))
    again = ingest(tmp_path, "ph2d")
    assert set(rows(again, "episode_key")) - set(rows(corpus, "episode_key")) == {("1-pour/e_1",)}
    assert len(again.manifest) == len(corpus.manifest) + 1
