"""Humanoid Everyday: archives read in place, the same unpacked, and archives that are broken or hostile."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

Files = dict[str, bytes]


def _png(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "png")
    return content.getvalue()


def _episode(folder: str, number: int) -> Files:
    # The alphabetical order of these names is not that of time, which data.json tells.
    names = [f"color/{i}.png" for i in range(12)]
    images = {f"{folder}/{name}": _png(frame) for name, frame in zip(names, roll_out(number).frames, strict=False)}
    frames = [{"time": i, "image": name, "depth": "x"} for i, name in enumerate(names)]
    return {f"{folder}/data.json": json.dumps(frames).encode(), **images}


def _zip(path: Path, files: Files) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_archives_and_folders(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    described = {"push_a_button/metadata.json": b'{"description": "push the button"}'}
    bad = {
        "push_a_button/outside/data.json": b'[{"image": "../../secret.png"}]',
        "push_a_button/malformed/data.json": b"[",
        "push_a_button/no_image/data.json": b'[{"depth": "x"}]',
        "push_a_button/gone/data.json": b'[{"image": "color/0.png"}]',
        "__MACOSX/push_a_button/episode_0/data.json": b"",
    }
    good = _episode("push_a_button/episode_0", 0) | _episode("push_a_button/episode_1", 1)
    _zip(raw / "push_a_button.zip", good | described | bad)
    _zip(raw / "open_drawer.zip", _episode("episode_0", 2))
    _zip(raw / "pull_out_tissue_from_tissue_box_h1.zip", _episode("e", 0))
    (raw / "broken.zip").write_bytes((raw / "open_drawer.zip").read_bytes()[:-100])
    _zip(raw / "empty.zip", {"readme.txt": b""})
    for name, content in (_episode("wipe_table/episode_0", 3) | _episode("push_a_button/episode_0", 0)).items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(content)
    _zip(raw / "odd\udcff.zip", _episode("episode_0", 4))
    (raw / "tasks.json").write_text('{"wipe_table": "Wipe the table clean"}')
    corpus = ingest(tmp_path, "humanoid_everyday")
    columns = ("source", "episode_key", "view", "task", "quality_label", "is_robot", "source_fps", "source_num_frames")
    assert rows(corpus, *columns) == [
        ("humanoid_everyday_rfm", key, "ego", task, "successful", True, 30.0, 12)
        for key, task in (
            ("open_drawer.zip/episode_0", "open drawer"),
            ("push_a_button.zip/push_a_button/episode_0", "push the button"),
            ("push_a_button.zip/push_a_button/episode_1", "push the button"),
            ("wipe_table/episode_0", "Wipe the table clean"),
        )
    ]
    for key, number in (("push_a_button.zip/push_a_button/episode_1", 1), ("wipe_table/episode_0", 3)):
        assert shows(corpus, row_of(corpus, episode_key=key), roll_out(number).frames)
    reasons = {key.split("/")[-1].removesuffix(" ego"): value for key, value in refusals(corpus).items()}
    assert "secret.png lies outside the episode's folder" in reasons["outside"]
    assert (
        "cannot be read (Expecting value" in reasons["malformed"] and "must be a list of frames" in reasons["no_image"]
    )
    assert "There is no item named" in reasons["gone"]
    text = "\n".join(row["error"] for row in corpus.quarantine().to_pylist())
    for reason in ("the archive cannot be opened", "the archive holds no data.json", "known to be wrong"):
        assert reason in text, reason
    stages = [row["stage"] for row in corpus.quarantine().to_pylist()]
    assert stages.count("skip") == 2 and len(stages) == 9
    assert "a text is not UTF-8" in text
    _zip(raw / "wave.zip", _episode("episode_0", 4))
    assert len(ingest(tmp_path, "humanoid_everyday")) == 5


def test_a_flipped_byte_spoils_one_episode_only(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "open.zip"
    _zip(path, _episode("episode_0", 0) | _episode("episode_1", 1))
    content = bytearray(path.read_bytes())
    content[content.index(b"episode_1/color/0.png") + 500] ^= 0xFF
    path.write_bytes(bytes(content))
    corpus = ingest(tmp_path, "humanoid_everyday")
    assert rows(corpus, "episode_key") == [("open.zip/episode_0",)]
    (reason,) = refusals(corpus).values()
    assert reason.startswith("frame 0 of 12 cannot be read (BadZipFile: Bad CRC-32")


def test_what_is_no_humanoid_everyday_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no zip and no data.json"):
        list(list_units("humanoid_everyday", str(tmp_path)))
