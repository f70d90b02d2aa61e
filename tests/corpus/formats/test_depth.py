"""Depth images in every format, told by name or by a single channel of more than 8 bits: skipped, not rejected."""

from __future__ import annotations

import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from robometer.corpus.config import IngestConfig
from robometer.corpus.encode import entries
from robometer.corpus.formats import Unit, list_units
from robometer.corpus.formats.common import is_depth
from robometer.corpus.manifest import SKIP
from robometer.corpus.writer import Accepted, Quarantined
from tests.corpus.formats import images
from tests.corpus.formats.raw import read, roll_out


def test_names_that_mean_depth() -> None:
    assert all(map(is_depth, ("depth", "front_depth", "camera/depth/image", "Depth-2", "depth_0", "head.depth")))
    assert all(map(is_depth, ("wristDepth", "DepthImage", "leftDepthMap", "depthmap_0", "head2Depth", "DEPTH")))
    assert not any(map(is_depth, ("front", "indepth", "depths", "deep", "depthless_cam", "wrist", "depthai_rgb")))


def test_a_view_of_that_name_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/task.txt").write_text("t")
    for view in ("front", "front_depth"):
        images.write(tmp_path / "1" / view, roll_out(0).frames)
    accepted, left = read("image_folders", tmp_path)
    assert isinstance(accepted, Accepted) and accepted.record["view"] == "front"
    assert isinstance(left, Quarantined) and (left.row["view"], left.row["stage"]) == ("front_depth", SKIP)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.uint8])
def test_images_of_one_channel_and_many_bits_are_left_out(tmp_path: Path, dtype: type) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/task.txt").write_text("t")
    for i in range(3):
        suffix = "tiff.png" if dtype == np.float32 else "png"
        _, data = cv2.imencode(f".{suffix.split('.')[0]}", np.full((16, 16), 100 * i, dtype))
        (tmp_path / f"1/{i}.png").write_bytes(data.tobytes())
    (entry,) = read("image_folders", tmp_path)
    if dtype == np.uint8:  # grey, as from a monochrome camera
        assert isinstance(entry, Accepted)
    else:
        assert isinstance(entry, Quarantined) and entry.row["stage"] == SKIP and "depth" in entry.row["error"]


def test_a_video_of_one_channel_and_many_bits_is_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "gray16le"
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32), 9000 * i, np.uint16), format="gray16le")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    (tmp_path / "a.mkv").write_bytes(buffer.getvalue())
    (tmp_path / "trajectories.jsonl").write_text('{"video": "a.mkv", "task": "t"}')
    (unit,) = list_units("mp4_jsonl", str(tmp_path))
    assert isinstance(unit, Unit)
    (entry,) = entries([unit], IngestConfig())
    assert (
        isinstance(entry, Quarantined) and entry.row["stage"] == SKIP and "one channel (gray16le)" in entry.row["error"]
    )
