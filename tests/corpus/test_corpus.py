"""Storage, manifest, shards and summary, without Ray."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.corpus import main as show_corpus
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.corpus.formats import FormatError, find
from robometer.corpus.manifest import Reading, latest
from robometer.corpus.storage import Storage
from robometer.corpus.summary import render, summarise
from robometer.corpus.writer import Accepted, Quarantined, ShardPlan, commit_shard, content_hash
from robometer.frames.video import encode_jpeg
from robometer.trajectory import SCHEMA_VERSION, trajectory_id

QUALITIES = ("successful", "suboptimal", "failure")


def stored(number: int, num_frames: int = 5, **changes: Any) -> Accepted:
    """A trajectory whose frame i is of grey level 20 * i + number."""
    frames = [encode_jpeg(np.full((32, 48, 3), (20 * i + number) % 256, np.uint8), 95) for i in range(num_frames)]
    id = trajectory_id("toy", str(number), "main")
    row = {
        "id": id,
        "source": "toy",
        "episode_key": str(number),
        "view": "main",
        "task": f"task {number % 2}",
        "is_robot": True,
        "quality_label": QUALITIES[number % 3],
        "raw_quality_label": "x",
        "partial_success": None,
        "split": "train" if number < 4 else "held_out",
        "num_frames": num_frames,
        "height": 32,
        "width": 48,
        "source_fps": 10.0,
        "source_num_frames": num_frames,
        "size_bytes": sum(map(len, frames)),
        "uri": f"/raw/{number}.mp4",
        "content_hash": f"c{number}",
        "labels_hash": f"l{number}",
        "settings_hash": "s",
    }
    truth = {"env_reward": [float(i) for i in range(num_frames)], "success": [0] * (num_frames - 1) + [1]}
    return Accepted({**row, "frame_index": list(range(num_frames)), "frames": frames, **truth, **changes})


def rejected(number: int, error: str, stage: str = "video") -> Quarantined:
    key = str(number)
    row = {"id": trajectory_id("toy", key, "main"), "source": "toy", "episode_key": key, "uri": f"/raw/{key}.mp4"}
    return Quarantined({**row, "view": "main", "unit": f"u{key}", "stage": stage, "error": error})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path / "corpus"))
    storage.write_bytes("corpus.json", b'{"schema_version": %d, "state": "complete", "settings": {}}' % SCHEMA_VERSION)
    return storage


@pytest.fixture
def corpus(storage: Storage) -> Corpus:
    commit_shard(
        storage, "b", [stored(0), rejected(7, "corrupt at frame 7"), stored(1), stored(2)], ShardPlan({"u7": "s"})
    )
    commit_shard(storage, "a", [stored(3), stored(4), rejected(8, "corrupt at frame 31")], ShardPlan({"u8": "s"}))
    return Corpus(storage.path)


def test_a_file_appears_whole_or_not_at_all(storage: Storage) -> None:
    with pytest.raises(RuntimeError), storage.write("shards/x.arrow") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert storage.list("shards", "") == [] and list(Path(storage.path, "shards").iterdir()) == []
    storage.write_bytes("shards/x.arrow", b"one")
    storage.write_bytes("shards/x.arrow", b"two")
    assert storage.read_bytes("shards/x.arrow") == b"two"
    assert storage.list("shards", ".arrow") == ["shards/x.arrow"]


def test_storage_opens_filesystem_uris(tmp_path: Path) -> None:
    storage = Storage((tmp_path / "corpus").as_uri())
    storage.write_bytes("manifest/x", b"one")
    assert pickle.loads(pickle.dumps(storage)).list("manifest", "") == ["manifest/x"]


def test_a_reader_sees_frames_by_row_in_any_order(corpus: Corpus) -> None:
    for row in range(len(corpus)):
        number = int(corpus.manifest["episode_key"][row].as_py())
        frames = corpus.frames(row, [3, 0, 3])
        assert frames.shape == (3, 32, 48, 3)
        assert np.abs(frames.mean((1, 2, 3)) - (60 + number, number, 60 + number)).max() < 2
        assert corpus.record(row)["success"] == [0, 0, 0, 0, 1]
        assert len(corpus.clip(row)) == 5


def test_rows_are_sorted_by_id_and_split(corpus: Corpus) -> None:
    ids = corpus.manifest["id"].to_pylist()
    assert ids == sorted(ids) and len(ids) == 5
    held_out = [corpus.manifest["episode_key"][int(row)].as_py() for row in corpus.rows("held_out")]
    assert held_out == ["4"] and len(corpus.rows()) == 5


def test_a_corpus_reopens_in_another_process(corpus: Corpus) -> None:
    again = pickle.loads(pickle.dumps(corpus))
    assert again.content_hash == corpus.content_hash
    assert np.array_equal(again.frames(2), corpus.frames(2))


def test_the_hash_ignores_shards_and_sees_content(storage: Storage, corpus: Corpus, tmp_path: Path) -> None:
    other = Storage(str(tmp_path / "other"))
    other.write_bytes("corpus.json", storage.read_bytes("corpus.json"))
    commit_shard(other, "z", [stored(number) for number in (4, 2, 0, 1, 3)])
    assert Corpus(other.path).content_hash == corpus.content_hash
    commit_shard(other, "y", [stored(5, content_hash="changed")])
    assert Corpus(other.path).content_hash != corpus.content_hash


def test_of_two_rows_with_one_id_one_is_seen(storage: Storage, corpus: Corpus) -> None:
    commit_shard(storage, "c", [stored(0), stored(9)])
    again = Corpus(storage.path)
    assert len(again) == 6 and len(set(again.manifest["id"].to_pylist())) == 6


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_two_rows_with_one_id_the_first_shards_is_seen(storage: Storage, order: str) -> None:
    """Whichever shard was committed first; frames are read from the shard that the row comes from."""
    for shard in order:
        commit_shard(storage, shard, [stored(9), stored(0, task=f"of shard {shard}", num_frames=3 + (shard == "b"))])
    corpus = Corpus(storage.path)
    row = corpus.manifest["episode_key"].to_pylist().index("0")
    assert len(corpus) == 2 and corpus.manifest["task"][row].as_py() == "of shard a"
    assert len(corpus.frames(row)) == corpus.manifest["num_frames"][row].as_py() == 3


def test_ids_are_what_they_were_and_tell_their_parts_apart() -> None:
    """The first 32 digits of `printf 'data\\0372.mp4\\037main' | sha256sum`: corpora that exist depend on it."""
    assert trajectory_id("data", "2.mp4", "main") == "4b3273554ee41c230e25470899c7427f"
    parts = [("ab", "c", "d"), ("a", "bc", "d"), ("a", "b", "cd"), ("abc", "", "d"), ("", "abc", "d")]
    assert len({trajectory_id(*three) for three in parts}) == len(parts)


def test_the_content_hash_is_of_the_frames_and_of_which_they_are() -> None:
    frames = [b"one", b"two"]
    hashes = [content_hash([0, 4], frames), content_hash([0, 5], frames), content_hash([0, 4], [b"on", b"etwo"])]
    assert len(set(hashes)) == 3 and hashes[0] == content_hash([0, 4], frames)


def test_a_temporary_file_of_a_living_process_stays(storage: Storage) -> None:
    with storage.write("shards/x.arrow") as stream:
        stream.write(b"half")
        assert storage.remove_stale("shards") == 0
        stream.write(b" and half")
    assert storage.read_bytes("shards/x.arrow") == b"half and half"


def test_of_two_readings_of_a_unit_the_later_counts() -> None:
    first, later, other = Reading(1, 2, 3, "a"), Reading(3, 0, 3, "b", 1), Reading(5, 0, 0, "c")
    for order in (("x", "y"), ("y", "x")):
        shards = {"x": {"u": first}, "y": {"u": later, "v": other}}
        assert latest({name: shards[name] for name in order}) == {"u": (later, "y"), "v": (other, "y")}


def test_a_shard_without_manifest_is_not_seen(storage: Storage, corpus: Corpus) -> None:
    Path(storage.path, "manifest", "a.parquet").unlink()
    again = Corpus(storage.path)
    assert len(again) == 3
    assert again.quarantine()["error"].to_pylist() == ["corrupt at frame 7"]


def test_what_a_retry_committed_leaves_the_quarantine(storage: Storage, corpus: Corpus) -> None:
    commit_shard(storage, "c", [Accepted(stored(7).record, "u7")], ShardPlan({"u7": "s"}, {"u7": Reading(0, 1)}, 1))
    assert Corpus(storage.path).quarantine()["episode_key"].to_pylist() == ["8"]


def test_a_shard_of_another_corpus_is_refused(storage: Storage, corpus: Corpus) -> None:
    shards = Path(storage.path, "shards")
    (shards / "a.arrow").write_bytes((shards / "b.arrow").read_bytes())
    row = corpus.manifest["shard"].to_pylist().index("a")
    with pytest.raises(CorpusError, match="does not match the manifest"):
        Corpus(storage.path).frames(row)


def test_missing_parts_are_one_sentence_with_the_way_out(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="robometer ingest"):
        Corpus(str(tmp_path / "none"))
    with pytest.raises(CorpusError, match=r"robometer embed embed.image_encoder=random_image"):
        corpus.embeddings("random_image", 0)
    with pytest.raises(CorpusError, match=r"robometer embed embed.text_encoder=random_text"):
        corpus.text_embeddings("random_text")


def test_an_unfinished_ingest_is_said(storage: Storage, corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    storage.write_bytes("corpus.json", b'{"schema_version": %d, "state": "ingesting"}' % SCHEMA_VERSION)
    Corpus(storage.path)
    assert "did not finish" in caplog.text


def test_another_schema_version_is_refused(storage: Storage) -> None:
    storage.write_bytes("corpus.json", b'{"schema_version": 0}')
    with pytest.raises(CorpusError, match="schema version 0"):
        Corpus(storage.path)


def test_frames_lie_uncompressed_one_trajectory_per_record_batch(storage: Storage, corpus: Corpus) -> None:
    data = Path(storage.path, "shards", "b.arrow").read_bytes()
    reader = pa.ipc.open_file(io.BytesIO(data))
    assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [1, 1, 1]
    assert stored(1).record["frames"][2] in data


def test_stale_files_go_and_young_ones_stay(storage: Storage, corpus: Corpus) -> None:
    Path(storage.path, "shards", ".x.arrow.1234.tmp").write_bytes(b"half")
    Path(storage.path, "shards", "orphan.arrow").write_bytes(b"whole")
    assert storage.remove_stale("shards", {"a", "b"}) == 0
    assert storage.remove_stale("shards", {"a", "b"}, age_s=-1) == 2
    assert storage.list("shards", "") == ["shards/a.arrow", "shards/b.arrow"]


def test_summary_counts_what_there_is(corpus: Corpus) -> None:
    summary = summarise(corpus)
    assert (summary.trajectories, summary.frames) == (5, 25)
    assert summary.by_quality == {"failure": 1, "suboptimal": 2, "successful": 2}
    assert summary.by_task["task 0"] == {"failure": 1, "suboptimal": 1, "successful": 1}
    assert summary.by_split == {"train": 4, "held_out": 1}
    assert summary.refused == {("video", "corrupt at frame #"): 2}
    text = render(summary)
    assert re.search(r"held_out +1\n", text) and re.search(r"task 1 +0 +1 +1\n", text)
    assert "1 more tasks" in render(summary, max_tasks=1)


def test_the_command_shows_a_corpus_with_refused_clips(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, numbers = corpus.storage.path, tmp_path / "corpus.json"
    assert show_corpus(["show", path]) == 0
    assert re.search(r"video +corrupt at frame # +2", capsys.readouterr().out)
    assert show_corpus(["show", path, "--refused", "--json", str(numbers)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if re.match(r"video .*corrupt at frame \d+", line)]) == 2
    assert json.loads(numbers.read_text())["refused"] == [
        {"stage": "video", "reason": "corrupt at frame #", "count": 2}
    ]


@pytest.mark.parametrize("name", ["", "..", "no such"])
def test_a_format_that_is_no_name_is_one_sentence(name: str) -> None:
    with pytest.raises(FormatError, match="is none of "):
        find(name)
