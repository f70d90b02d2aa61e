"""RLDS data sets: cameras, tasks, splits and damaged files, through the real job."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer.corpus.formats import FormatError, Unit, list_units, rlds
from robometer.corpus.identity import Sealer
from robometer.corpus.readers.tfds import reading_order
from robometer.corpus.writer import Accepted, Quarantined
from robometer.frames.video import encode_jpeg
from tests.conftest import SHARED
from tests.corpus.formats.raw import ingest, read, refusals, roll_out, row_of, rows, shows
from tests.corpus.formats.tfrecords import IMAGE, TEXT, data_set, example, framed, jpegs, tensor

LABELS = ("source", "view", "task", "quality_label", "partial_success", "is_robot", "split")


def _frames(number: int, count: int = 5) -> np.ndarray:
    return roll_out(number).frames[:count, ::4, ::4]


def _episode(number: int, *views: str, task: str = "do it", **more: object) -> bytes:
    images = {f"steps/observation/{view}": jpegs(_frames(number)) for view in views}
    return example(
        {**images, "steps/language_instruction": [task.encode()] * 5, "steps/is_first": [1, 0, 0, 0, 0], **more}
    )  # type: ignore[dict-item]


def test_a_data_set_becomes_a_trajectory_per_camera(ray_local: None, tmp_path: Path) -> None:
    steps = {"observation/image": IMAGE, "observation/side": IMAGE, "observation/wrist_image": IMAGE}
    steps |= {"observation/depth": tensor("uint8", 8, 8, 3), "language_instruction": TEXT}
    views = ("image", "side", "wrist_image")
    first, second = _episode(0, *views, task="open it"), _episode(1, *views, task="close it")
    black = example(
        {
            "steps/observation/image": jpegs(_frames(2)),
            "steps/observation/side": [encode_jpeg(np.zeros((16, 16, 3), np.uint8), 95)] * 5,
            "steps/language_instruction": [b"shut it"] * 5,
        }
    )
    folder = tmp_path / "raw" / "toto" / "0.1.0"
    data_set(folder, "toto", steps, {"train": [[first, black]], "test": [[second]]})
    corpus = ingest(tmp_path, "rlds")
    train, test = ("successful", None, True, "train"), ("successful", None, True, "test")
    assert rows(corpus, *LABELS) == [
        ("oxe_toto", "image", "open it", *train),
        ("oxe_toto", "side", "open it", *train),
        ("oxe_toto", "image", "shut it", *train),
        ("oxe_toto_eval", "image", "close it", *test),
        ("oxe_toto_eval", "side", "close it", *test),
    ]
    row = row_of(corpus, task="open it", view="side")
    assert corpus.manifest["episode_key"][row].as_py() == "toto/0.1.0/toto-train.tfrecord-00000-of-00001#0"
    assert shows(corpus, row_of(corpus, task="open it", view="side"), _frames(0))
    assert not shows(corpus, row_of(corpus, task="open it", view="side"), _frames(0)[..., ::-1])
    skipped = corpus.quarantine().to_pylist()
    assert {row["stage"] for row in skipped} == {"skip"}
    assert {row["view"]: row["error"] for row in skipped} == {
        "wrist_image": "a wrist camera",
        "side": "the first frame is black: the camera was not connected",
    }

    third = _episode(3, *views, task="lift it")
    data_set(folder, "toto", steps, {"train": [[first, black]], "test": [[second]], "val": [[third]]})
    before = set(corpus.manifest["id"].to_pylist())
    again = ingest(tmp_path, "rlds").manifest.to_pylist()
    assert [row["task"] for row in again if row["id"] not in before] == ["lift it"] * 2
    assert before < {row["id"] for row in again}


def test_tasks_tensors_and_the_only_camera(ray_local: None, tmp_path: Path) -> None:
    codes = np.zeros((5, 24), int)
    for step, text in enumerate(["push the star"] * 5):
        codes[step, : len(text)] = list(text.encode())
    table = example({"steps/observation/rgb": jpegs(_frames(0)), "steps/observation/instruction": codes})
    steps = {"observation/rgb": IMAGE, "observation/instruction": tensor("int32", 24)}
    data_set(tmp_path / "raw/language_table/0.0.1", "language_table", steps, {"train": [[table]]})

    name = "berkeley_mvp_converted_externally_to_rlds"
    data_set(
        tmp_path / "raw/mvp/1.0.0", name, {"observation/hand_image": IMAGE}, {"train": [[_episode(1, "hand_image")]]}
    )

    name = "nyu_rot_dataset_converted_externally_to_rlds"
    swapped = _frames(2)[..., ::-1]
    plain = example(
        {
            "steps/observation/image": swapped,
            "steps/observation/natural_language_instruction": [b"hang it"] * 5,
            "steps/language_instruction": [b"not this"] * 5,
            "steps/is_first": [1, 0, 0, 0, 0],
        }
    )
    data_set(
        tmp_path / "raw/rot/1.0.0",
        name,
        {"observation/image": tensor("uint8", *swapped.shape[1:])},
        {"train": [[plain]]},
    )

    packed = {"steps/observation/image": [zlib.compress(frame.tobytes()) for frame in _frames(3)]}
    packed["steps/language_instruction"] = [b"", b" "]
    packed["steps/language_instruction_2"] = [b"unzip it"]
    leaf = tensor("uint8", *swapped.shape[1:])
    leaf["tensor"]["encoding"] = "zlib"
    data_set(tmp_path / "raw/zip/1.0.0", "zip", {"observation/image": leaf}, {"train": [[example(packed)]]})

    corpus = ingest(tmp_path, "rlds")
    assert rows(corpus, "source", "view", "task") == [
        ("oxe_berkeley_mvp_converted_externally_to_rlds", "hand_image", "do it"),
        ("oxe_language_table", "rgb", "push the star"),
        ("oxe_nyu_rot_dataset_converted_externally_to_rlds", "image", "hang it"),
        ("oxe_zip", "image", "unzip it"),
    ]
    assert shows(corpus, row_of(corpus, task="unzip it"), _frames(3))
    assert shows(corpus, row_of(corpus, task="hang it"), _frames(2))
    named = ingest(tmp_path, "rlds", "ingest.source_name=mine", input=tmp_path / "raw/mvp")
    assert "mine" in named.manifest["source"].to_pylist()


def test_damaged_files_keep_what_can_be_read(ray_local: None, tmp_path: Path) -> None:
    steps = {"observation/image": IMAGE, "language_instruction": TEXT}
    good = [_episode(i, "image", task=f"task {i}") for i in range(4)]
    garbage = example({"steps/observation/image": [b"\x89PNG nothing"] * 3, "steps/language_instruction": [b"a"]})
    silent = example({"steps/observation/image": jpegs(_frames(0)), "steps/language_instruction": [b" "]})
    not_utf8 = example({"steps/observation/image": jpegs(_frames(0)), "steps/language_instruction": [b"\xff\xfe"]})
    blind = example({"steps/language_instruction": [b"a"]})
    files = [
        [good[0], garbage, b"no example", silent, not_utf8, blind, good[1]],
        [good[2]] * 2,
        [good[3]] * 3,
        [b""],
        [good[0]],
    ]
    folder = tmp_path / "raw"
    data_set(folder, "toto", steps, {"train": files})
    paths = sorted(folder.glob("*.tfrecord*"))
    flipped = bytearray(paths[1].read_bytes())
    flipped[len(framed(good[2])) + 50] ^= 4
    paths[1].write_bytes(flipped)
    paths[2].write_bytes(paths[2].read_bytes()[: -len(good[3]) // 2])
    paths[3].write_bytes(b"")
    paths[4].write_bytes(framed(good[0])[:-6] + b"xx")
    corpus = ingest(tmp_path, "rlds")
    assert [task for (task,) in rows(corpus, "task")] == ["task 0", "task 1", "task 2", "task 3", "task 3"]
    reasons = {uri.split(" ")[0].removeprefix("toto-train.tfrecord-"): error for uri, error in refusals(corpus).items()}
    assert reasons.pop("00000-of-00005#1").startswith("these 12 bytes cannot be read as an image")
    assert reasons.pop("00000-of-00005#3") == (
        "no task text: there is no natural_language_instruction, language_instruction, instruction ... in "
        "steps/observation, steps, episode_metadata, the record's root; the record has steps/language_instruction"
    )
    assert reasons == {
        "00000-of-00005#2": "the record is not a tf.train.Example",
        "00000-of-00005#4": "a text is not UTF-8 (byte 0)",
        "00000-of-00005#5": "the recording has no frames",
        "00001-of-00005#1": "record 1 has a wrong checksum: it is damaged",
        "00002-of-00005": "the file breaks off in record 2; 2 records were read before it",
        "00003-of-00005": "the file is empty; 0 records were read before it",
        "00004-of-00005": "the file breaks off in record 0; 0 records were read before it",
    }


def test_a_cap_counts_over_files_and_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rlds.CAPS, "language_table", 3)
    record = example({"steps/observation/rgb": jpegs(_frames(0)), "steps/observation/instruction": [97, 0]})
    steps = {"observation/rgb": IMAGE, "observation/instruction": tensor("int32", 2)}
    data_set(tmp_path, "language_table", steps, {"train": [[record] * 2, [record] * 2, [record] * 2]})
    entries = list(list_units("rlds", str(tmp_path)))
    counts = [
        len([e for e in rlds.episodes(unit) if not hasattr(e, "error")]) for unit in entries if isinstance(unit, Unit)
    ]
    assert counts == [2, 1]
    assert [e.error for e in entries if not isinstance(e, Unit)] == ["2 episodes above the cap of 3"]
    (tmp_path / "language_table-train.tfrecord-00000-of-00003").unlink()
    assert "1 of 3 files of the split train are missing" in [
        getattr(e, "error", "") for e in list_units("rlds", str(tmp_path))
    ]


def test_folders_that_are_no_data_set_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no record files beside a features.json"):
        list(list_units("rlds", str(tmp_path)))
    for version in ("1.0.0", "1.0.1"):
        data_set(tmp_path / "toto" / version, "toto", {"observation/image": IMAGE}, {"train": [[b""]]})
    with pytest.raises(FormatError, match=r"are both toto: give ingest.input one of them"):
        list(list_units("rlds", str(tmp_path)))
    data_set(tmp_path / "soar/1.0.0", "soar_dataset", {"observation/image_0": IMAGE}, {"failure": [[b""]]})
    with pytest.raises(FormatError, match=r"ingest.format=soar"):
        list(list_units("rlds", str(tmp_path / "soar")))


@pytest.mark.parametrize("content", ["{", '{"featuresDict": {"features": []}}', '{"sequence": 1}'])
def test_a_malformed_description_is_named(tmp_path: Path, content: str) -> None:
    data_set(tmp_path, "toto", {"observation/image": IMAGE}, {"train": [[b""]]})
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(FormatError, match=r"features.json (is malformed|does not describe)"):
        list(list_units("rlds", str(tmp_path)))


def test_the_reading_order_is_that_of_tensorflow_datasets() -> None:
    assert reading_order([3, 2]) == [[0, 1, 2], [3, 4]]
    assert reading_order([20, 17, 1]) == [[*range(16), 34 - 1, 34, 35, 36], [*range(16, 32), 37], [32]]
    many = reading_order([1] * 16 + [40, 1])
    assert many[15] == [15] and many[16] == [*range(16, 32), *range(33, 49), *range(49, 57)] and many[17] == [32]


@pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="../shared/data is absent: real data is not part of the project"
)
def test_real_bridge_trajectories(ray_local: None, tmp_path: Path) -> None:
    corpus = ingest(tmp_path, "rlds", input=SHARED / "data/octo_bridge_rlds")
    assert corpus.manifest["source"].to_pylist() == ["oxe_bridge_v2"] * 75
    assert sorted(set(corpus.manifest["view"].to_pylist())) == ["image_0", "image_1", "image_2"]
    tasks = corpus.manifest["task"].to_pylist()
    assert len(set(tasks)) == 4 and "put carrot on plate" in tasks
    assert corpus.manifest["source_num_frames"].to_pylist() == [10] * 75
    assert sorted(row["error"] for row in corpus.quarantine().to_pylist()) == [
        "1 of 1 files of the split val are missing",
        "a camera that is not taken from this data set",
    ]


def task_or_error(folder: Path, **features: Any) -> tuple[str, str]:
    """(task, quality label) of one record with these features beside its images, or ("", why it is refused)."""
    content = {"steps/observation/image": jpegs(_frames(0)), **{k.replace("__", "/"): v for k, v in features.items()}}
    data_set(folder / "toto/1.0.0", "toto", {"observation/image": IMAGE}, {"train": [[example(content)]]})
    (entry,) = read("rlds", folder)
    if isinstance(entry, Accepted):
        return entry.record["task"], entry.record["quality_label"]
    return "", entry.row["error"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("metadata", "quality"),
    [
        ({"file_path": [b"gs://x/LAB/failure/2023/a/trajectory.h5"]}, "failure"),
        ({"file_path": [b"gs://x/LAB/success/2023/a/trajectory.h5"]}, "successful"),
        ({"file_path": [b"C:\\\\data\\\\Failed\\\\a.h5"]}, "failure"),
        ({"recording_folderpath": [b"/raw/failures/a"]}, "failure"),
        ({"file_path": [b"/raw/failsafe_success_story/0/a"]}, "successful"),
        ({"success": [0]}, "failure"),
        ({"success": [1]}, "successful"),
        ({"is_success": np.array([0.0])}, "failure"),
        ({"success": [b"False"]}, "failure"),
        ({"success": [0], "file_path": [b"/raw/success/a"]}, "failure"),
        ({}, "successful"),
    ],
)
def test_the_outcome_stands_in_the_metadata(tmp_path: Path, metadata: dict[str, Any], quality: str) -> None:
    outcome = task_or_error(
        tmp_path, steps__language_instruction=[b"t"] * 5, **{f"episode_metadata__{k}": v for k, v in metadata.items()}
    )
    assert outcome == ("t", quality)


def test_a_path_of_two_outcomes_is_refused_alone(tmp_path: Path) -> None:
    path = {"episode_metadata/file_path": [b"/raw/success/failure/a"]}
    records = [_episode(0, "image"), _episode(1, "image", **path), _episode(2, "image")]
    data_set(tmp_path / "toto/1.0.0", "toto", {"observation/image": IMAGE}, {"train": [records]})
    first, second, third = read("rlds", tmp_path)
    assert isinstance(first, Accepted) and isinstance(third, Accepted) and not isinstance(second, Accepted)
    assert third.record["episode_key"].endswith("#2")
    assert "names both success and failure" in second.row["error"]  # type: ignore[union-attr]


def test_another_description_of_the_features_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "toto/1.0.0"
    data_set(folder, "toto", {"observation/image": IMAGE}, {"train": [[_episode(0, "image")]]})

    def seals() -> list[str]:
        return Sealer("train").seals([unit for unit in list_units("rlds", str(tmp_path)) if isinstance(unit, Unit)])

    before = seals()
    assert seals() == before and len(before) == 1
    with (folder / "features.json").open("a") as file:
        file.write("\n")
    assert seals() != before


@pytest.mark.parametrize(
    ("features", "task"),
    [
        ({"episode_metadata__language_instruction": [b"lift it"]}, "lift it"),
        ({"language_instruction": [b"lift it"]}, "lift it"),
        ({"steps__language_instruction": [b""] * 5, "episode_metadata__instruction": [b"lift it"]}, "lift it"),
        ({"steps__language_instruction__ragged_flat_values": [b"", b"lift it", b"raise it"] * 5,
          "steps__language_instruction__ragged_row_lengths_0": [3] * 5}, "lift it"),
        ({"steps__language_instruction__ragged_flat_values": [b"go", b"lift it", b"lift it", b"raise it", b"lift it"],
          "steps__language_instruction__ragged_row_lengths_0": [0, 1, 1, 2, 1]}, "lift it"),
        ({"steps__language_instruction": [b"lift it"] * 4 + [b"drop it"]}, "lift it"),
        ({"steps__language_instruction": [b"", b"lift it", b"lift it", b"lift it", b""]}, "lift it"),
        ({"steps__language_instruction": [b"lift it"] * 3 + [b"drop it"] * 2}, ""),
        ({"steps__language_instruction": [b""] * 5}, ""),
    ],
)  # fmt: skip
def test_where_instructions_are_found(tmp_path: Path, features: dict[str, Any], task: str) -> None:
    instruction, other = task_or_error(tmp_path, **features)
    assert instruction == task
    if not task:
        assert "'lift it' (3), 'drop it' (2)" in other or "there is no natural_language_instruction" in other


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_files_that_are_compressed_as_a_whole_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    records = [_episode(n, "image", task=f"task {n}") for n in range(3)]
    data_set(tmp_path / "toto/1.0.0", "toto", {"observation/image": IMAGE}, {"train": [records]})
    plain = [entry.record["content_hash"] for entry in read("rlds", tmp_path) if isinstance(entry, Accepted)]
    (file,) = tmp_path.rglob("*.tfrecord*")
    packed = pack(file.read_bytes())
    file.write_bytes(packed)
    assert [entry.record["content_hash"] for entry in read("rlds", tmp_path) if isinstance(entry, Accepted)] == plain
    file.write_bytes(packed[: len(packed) * 2 // 3])
    *_, last = read("rlds", tmp_path)
    assert isinstance(last, Quarantined) and "breaks off or is damaged" in last.row["error"]
