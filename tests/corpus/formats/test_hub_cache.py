"""A data set in a hub cache, where each file is a link into `blobs`, reads the same as plain files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from robometer.corpus.config import IngestConfig
from robometer.corpus.encode import entries
from robometer.corpus.formats import Refused, list_units
from robometer.corpus.writer import Accepted
from tests.corpus.formats import images, test_lerobot, test_rlds
from tests.corpus.formats.hdf5_files import write as write_hdf5
from tests.corpus.formats.raw import hub_cache, roll_out
from tests.corpus.formats.tfrecords import IMAGE, TEXT, data_set


def _clips(raw: Path) -> None:
    raw.mkdir(parents=True)
    for number in range(2):
        (raw / f"clip {number} ü.mp4").write_bytes(roll_out(number).mp4)


def _mp4_jsonl(raw: Path) -> None:
    _clips(raw)
    rows = [{"video": f"clip {number} ü.mp4", "task": "t"} for number in range(2)]
    (raw / "trajectories.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _annotated_videos(raw: Path) -> None:
    _clips(raw)
    with (raw / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "task"], *([f"clip {number} ü.mp4", "t"] for number in range(2))])


def _ranking_videos(raw: Path) -> None:
    _clips(raw / "any")
    entry = {"filename": "clip 0 ü.mp4", "instruction": "t", "success": "success"}
    (raw / "any" / "fold_metadata.json").write_text(json.dumps([entry]))


def _image_folders(raw: Path) -> None:
    images.write(raw / "1", roll_out(0).frames)
    (raw / "1" / "task.txt").write_text("t")


def _lerobot(raw: Path) -> None:
    test_lerobot.write_v21(raw, [{"episode_index": 0}, {"episode_index": 1}])


def _rlds(raw: Path) -> None:
    steps = {"observation/image": IMAGE, "language_instruction": TEXT}
    data_set(raw / "toto" / "1.0.0", "toto", steps, {"train": [[test_rlds._episode(0, "image")]]})


def _libero(raw: Path) -> None:
    write_hdf5(raw / "x_demo.hdf5", {"data/demo_0/obs/agentview_rgb": roll_out(0).frames[:, ::-1]})


FORMATS: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "mp4_jsonl": (_mp4_jsonl, "given", 2),
    "annotated_videos": (_annotated_videos, "given", 2),
    "ranking_videos": (_ranking_videos, "given", 1),
    "image_folders": (_image_folders, "given", 1),
    "lerobot": (_lerobot, "given", 4),
    "rlds": (_rlds, "given", 1),
    "libero": (_libero, "libero_10", 1),
}


@pytest.mark.parametrize("format", FORMATS)
def test_links_change_nothing(format: str, tmp_path: Path) -> None:
    write, name, count = FORMATS[format]
    write(tmp_path / name)
    plain, linked = (_content(format, path) for path in (tmp_path / name, hub_cache(tmp_path / name, tmp_path / "hub")))
    assert linked == plain and len(plain) == count


@pytest.mark.parametrize(
    ("format", "file"), [("mp4_jsonl", "trajectories.jsonl"), ("annotated_videos", "annotations.csv")]
)
def test_a_table_that_is_a_link_finds_what_lies_beside_the_link(format: str, file: str, tmp_path: Path) -> None:
    FORMATS[format][0](tmp_path / "given")
    linked = hub_cache(tmp_path / "given", tmp_path / "hub") / file
    assert linked.is_symlink()
    assert len(_content(format, linked)) == 2


@pytest.mark.parametrize("format", ["image_folders", "lerobot", "rlds", "ranking_videos"])
def test_folders_that_are_links_change_nothing(format: str, tmp_path: Path) -> None:
    """Such links occur where the videos are stored on another disk."""
    FORMATS[format][0](tmp_path / "given")
    plain = _content(format, tmp_path / "given")
    (tmp_path / "disk").mkdir()
    for place in [path for path in (tmp_path / "given").iterdir() if path.is_dir()]:
        place.rename(tmp_path / "disk" / place.name)
        place.symlink_to(tmp_path / "disk" / place.name)
    assert _content(format, tmp_path / "given") == plain


@pytest.mark.parametrize("format", ["image_folders", "rlds"])
def test_a_link_beside_what_it_leads_to_adds_nothing(format: str, tmp_path: Path) -> None:
    FORMATS[format][0](tmp_path / "given" / "given")
    plain = _content(format, tmp_path / "given")
    (tmp_path / "given/0-latest").symlink_to(tmp_path / "given/given")
    (tmp_path / "given/loop").symlink_to(tmp_path / "given")
    assert _content(format, tmp_path / "given") == plain


def test_a_folder_of_hub_caches_names_its_datasets_without_their_revision(tmp_path: Path) -> None:
    _lerobot(tmp_path / "given")
    snapshot = hub_cache(tmp_path / "given", tmp_path / "hub")
    plain = _content("lerobot", tmp_path / "given")
    for above in (snapshot.parent, snapshot.parent.parent, tmp_path / "hub"):
        assert _content("lerobot", above) == plain


def _content(format: str, input: Path) -> list[tuple[str, ...]]:
    units = list(list_units(format, str(input)))
    assert not any(isinstance(unit, Refused) for unit in units), units
    outcomes = list(entries(units, IngestConfig(format=format)))  # type: ignore[arg-type]
    assert all(isinstance(entry, Accepted) for entry in outcomes), outcomes
    names = ("source", "episode_key", "view", "task", "content_hash")
    return [tuple(entry.record[name] for name in names) for entry in outcomes if isinstance(entry, Accepted)]
