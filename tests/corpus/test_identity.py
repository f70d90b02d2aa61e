"""The ingest job run again: what it recognises as already stored, as changed, and as another trajectory of that id."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.ingest import IngestError, IngestReport, _plan, run_ingest
from pipelines.maintain import run_compact, run_verify
from robometer.configs import load
from robometer.corpus.config import IngestConfig
from robometer.corpus.corpus import Corpus
from robometer.corpus.encode import entries
from robometer.corpus.formats import Unit, list_units
from robometer.corpus.identity import NO_ROWS, Sealer, StoredRows
from robometer.corpus.maintenance import check_shard
from robometer.corpus.manifest import clashes, read_ledgers
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, Present, ShardEntry, ShardPlan, commit_shard, content_hash
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode
from tests.corpus.formats.raw import hub_cache, roll_out
from tests.corpus.formats.test_lerobot import write_v21
from tests.corpus.test_corpus import stored

TASK = "open the drawer"


def write_clips(folder: Path, *numbers: int, **changes: Any) -> Path:
    """Clips 0.mp4, 1.mp4 ... that show these roll-outs; `changes` are fields of every line."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"video": f"{i}.mp4", "task": TASK, **changes} for i in range(len(numbers))]
    for row, number in zip(rows, numbers, strict=True):
        (folder / row["video"]).write_bytes(roll_out(number).mp4)
    write_rows(folder, rows)
    return folder


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_lerobot(folder: Path, *numbers: int, **changes: Any) -> Path:
    write_v21(folder, [{"episode_index": number, "tasks": [TASK], **changes} for number in numbers])
    return folder


def write_table(folder: Path, *numbers: int, **changes: Any) -> Path:
    write_clips(folder, *numbers)
    (folder / "trajectories.jsonl").unlink()
    with (folder / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "task"], *([f"{i}.mp4", TASK] for i in range(len(numbers)))])
    return folder


def ingest(corpus: Path, input: Path | str, *overrides: str) -> IngestReport:
    sizes = ("ingest.max_frames=4", "ingest.short_edge=32", "ingest.shard_size=2")
    return run_ingest(load([f"corpus.path={corpus}", f"ingest.input={input}", *sizes, *overrides]))


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    """New, updated, present, differing."""
    assert report.listed == report.new + report.updated + report.present + report.differing + report.quarantined
    return report.new, report.updated, report.present, report.differing


def labels(corpus: Path) -> dict[str, str]:
    """Quality label by episode."""
    table = Corpus(str(corpus)).manifest
    return dict(zip(table["episode_key"].to_pylist(), table["quality_label"].to_pylist(), strict=True))


@pytest.mark.parametrize(("format", "write"), [("mp4_jsonl", write_clips), ("annotated_videos", write_table)])
def test_two_data_sets_of_one_name_are_an_error_that_names_both(
    ray_local: None, tmp_path: Path, format: str, write: Callable[..., Path]
) -> None:
    alice, bob = write(tmp_path / "alice/videos", 0, 1, 2), write(tmp_path / "bob/videos", 3, 4, 5, 6)
    corpus, source = tmp_path / "corpus", f"ingest.format={format}"
    ingest(corpus, alice, source)
    with pytest.raises(IngestError, match=r"ingest.source_name=NAME") as caught:
        ingest(corpus, bob, source)
    assert f"{alice}/" in str(caught.value) and f"{bob}/" in str(caught.value)
    assert Corpus(str(corpus)).info["state"] == "complete" and len(Corpus(str(corpus))) == 3
    assert counts(ingest(corpus, bob, source, "ingest.source_name=bobs")) == (4, 0, 0, 0)
    assert counts(ingest(corpus, bob, source, "ingest.source_name=bobs")) == (0, 0, 4, 0)
    assert counts(ingest(corpus, alice, source)) == (0, 0, 3, 0)


def test_lerobot_data_sets_of_one_name_too(ray_local: None, tmp_path: Path) -> None:
    alice, bob = write_lerobot(tmp_path / "alice/cube", 0, 1), write_lerobot(tmp_path / "bob/cube", 0, 1)
    for video in bob.rglob("*.mp4"):
        video.write_bytes(roll_out(5).mp4)
    for data in bob.rglob("*.parquet"):
        data.unlink()
    info = json.loads((bob / "meta/info.json").read_text())
    info["features"] = {"observation.images.front": {"dtype": "video"}}
    (bob / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode_index": n, "tasks": [TASK], "length": len(roll_out(5).frames)} for n in (0, 1)]
    (bob / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ingest(tmp_path / "corpus", alice, "ingest.format=lerobot").new == 4
    with pytest.raises(IngestError, match="another data set 'cube'"):
        ingest(tmp_path / "corpus", bob, "ingest.format=lerobot")


def test_the_same_rows_wherever_the_data_lie(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, corpus = write_clips(tmp_path / "data", 0, 1, 2), tmp_path / "corpus"
    ingest(corpus, data)
    monkeypatch.chdir(tmp_path)
    assert counts(ingest(corpus, "data")) == (0, 0, 3, 0)
    shutil.copytree(data, tmp_path / "moved/data")  # keeps the times, as `mv` does
    assert counts(ingest(corpus, tmp_path / "moved/data")) == (0, 0, 3, 0)
    copied = hub_cache(data, tmp_path / "hub")
    for file in (copied.parent.parent / "blobs").iterdir():
        os.utime(file, (1, 1))
    assert counts(ingest(corpus, copied)) == (0, 0, 3, 0)
    before = {path: path.read_bytes() for path in corpus.rglob("*.parquet")}
    assert counts(ingest(corpus, copied)) == (0, 0, 3, 0)  # nothing is read again
    assert {path: path.read_bytes() for path in corpus.rglob("*.parquet")} == before
    assert len(Corpus(str(corpus))) == 3 and not run_verify(load([f"corpus.path={corpus}"])).wrong


def corrected(data: Path) -> list[dict[str, Any]]:
    """Clip 0 is replaced, clip 1 is a failure now, clip 2 as before, and 3 and 4 are new."""
    rows = [{"video": f"{i}.mp4", "task": TASK} for i in range(5)]
    rows[1]["quality_label"] = "failure"
    for i, number in ((0, 9), (3, 3), (4, 4)):
        (data / f"{i}.mp4").write_bytes(roll_out(number).mp4)
    write_rows(data, rows)
    return rows


def test_what_was_corrected_is_counted_and_taken_on_demand(
    ray_local: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, corpus = write_clips(tmp_path / "data", 0, 1, 2), tmp_path / "corpus"
    ingest(corpus, data)
    old = Corpus(str(corpus)).content_hash
    corrected(data)
    with caplog.at_level(logging.WARNING):
        assert counts(ingest(corpus, data)) == (2, 0, 1, 2)
    assert "2 trajectories of" in caplog.text and "ingest.update=true" in caplog.text
    assert "0.mp4: its frames differ" in caplog.text and "1.mp4: its labels differ" in caplog.text
    assert labels(corpus) == {f"{i}.mp4": "successful" for i in range(5)}
    assert counts(ingest(corpus, data)) == (0, 0, 3, 2)  # reported again until it is updated
    assert counts(ingest(corpus, data, "ingest.update=true")) == (0, 2, 3, 0)
    assert counts(ingest(corpus, data)) == (0, 0, 5, 0)
    assert labels(corpus) == {f"{i}.mp4": "failure" if i == 1 else "successful" for i in range(5)}
    fresh = tmp_path / "fresh"
    ingest(fresh, data)
    assert Corpus(str(corpus)).content_hash == Corpus(str(fresh)).content_hash != old
    settings = load([f"corpus.path={corpus}"])
    assert run_verify(settings).duplicates == 2
    run_compact(settings)
    assert run_verify(settings).trajectories == 5 and not run_verify(settings).duplicates
    assert Corpus(str(corpus)).content_hash == Corpus(str(fresh)).content_hash
    assert counts(ingest(corpus, data)) == (0, 0, 5, 0)


def test_compact_rewrites_a_large_shard_for_the_rows_that_nobody_sees(ray_local: None, tmp_path: Path) -> None:
    data, corpus = write_clips(tmp_path / "data", 0, 1, 2), tmp_path / "corpus"
    ingest(corpus, data)
    corrected(data)
    ingest(corpus, data, "ingest.update=true")
    settings = load([f"corpus.path={corpus}"])
    assert run_verify(settings).trajectories == 7
    run_compact(settings, target_mb=0)
    assert run_verify(settings).trajectories == 5 and labels(corpus)["1.mp4"] == "failure"


def test_an_update_that_was_killed_ends_as_one_that_was_not(ray_local: None, tmp_path: Path) -> None:
    data = write_clips(tmp_path / "data", 0, 1, 2)
    for corpus in (tmp_path / "whole", tmp_path / "killed"):
        ingest(corpus, data)
    corrected(data)
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    before = set((killed / "manifest").iterdir())
    ingest(whole, data, "ingest.update=true")
    ingest(killed, data, "ingest.update=true")
    commits = sorted(set((killed / "manifest").iterdir()) - before)
    commits[0].unlink()  # its commit did not happen
    ingest(killed, data, "ingest.update=true")
    assert Corpus(str(killed)).content_hash == Corpus(str(whole)).content_hash
    assert counts(ingest(killed, data)) == (0, 0, 5, 0)


@pytest.mark.parametrize(
    "change",
    [{"task": "close it"}, {"is_robot": False}, {"partial_success": 0.5}, {"split": "other"}, {"fps": 7}, "truth"],
)
def test_any_label_that_changed_is_seen(ray_local: None, tmp_path: Path, change: Any) -> None:
    data, corpus = write_clips(tmp_path / "data", 0, 1), tmp_path / "corpus"
    ingest(corpus, data)
    reward = {"env_reward": [0.0] * len(roll_out(0).frames)}
    write_rows(data, [{"video": "0.mp4", "task": TASK} | (reward if change == "truth" else change),
                      {"video": "1.mp4", "task": TASK}])  # fmt: skip
    assert counts(ingest(corpus, data)) == (0, 0, 1, 1)


def test_another_split_is_another_label(ray_local: None, tmp_path: Path) -> None:
    data, corpus = write_clips(tmp_path / "data", 0, 1), tmp_path / "corpus"
    ingest(corpus, data)
    assert counts(ingest(corpus, data, "ingest.split=held_out")) == (0, 0, 0, 2)


def test_labels_of_all_corrected_are_no_other_data_set(ray_local: None, tmp_path: Path) -> None:
    data, corpus = write_clips(tmp_path / "data", 0, 1), tmp_path / "corpus"
    ingest(corpus, data)
    write_clips(data, 0, 1, quality_label="failure")
    assert counts(ingest(corpus, data)) == (0, 0, 0, 2)


def test_ids_of_another_format_are_known(ray_local: None, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    ingest(corpus, write_clips(tmp_path / "alice/videos", 0, 1, 2))
    bob = write_table(tmp_path / "bob/videos", 0, 8, 9, 3)
    for _ in range(2):
        report = ingest(corpus, bob, "ingest.format=annotated_videos")
        assert (report.present, report.differing, len(Corpus(str(corpus)))) in ((1, 2, 4), (2, 2, 4))
    assert counts(ingest(corpus, bob, "ingest.format=annotated_videos", "ingest.update=true")) == (0, 2, 2, 0)


def test_more_clips_from_elsewhere_under_one_name_are_told(
    ray_local: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "corpus"
    ingest(corpus, write_clips(tmp_path / "alice/videos", 0, 1))
    bob = write_clips(tmp_path / "bob/videos", 3)
    (bob / "0.mp4").rename(bob / "bob.mp4")
    write_rows(bob, [{"video": "bob.mp4", "task": TASK}])
    with caplog.at_level(logging.WARNING):
        assert counts(ingest(corpus, bob)) == (1, 0, 0, 0)
    assert "'videos' from another place" in caplog.text and str(tmp_path / "alice/videos") in caplog.text
    caplog.clear()
    near = write_clips(tmp_path / "alice/vid", 4)  # its path begins as theirs does
    (near / "0.mp4").rename(near / "near.mp4")
    write_rows(near, [{"video": "near.mp4", "task": TASK, "source": "videos"}])
    with caplog.at_level(logging.WARNING):
        assert counts(ingest(corpus, near)) == (1, 0, 0, 0)
    assert "'videos' from another place" in caplog.text
    caplog.clear()
    (tmp_path / "alice/videos/more.jsonl").write_text(json.dumps({"video": "2.mp4", "task": TASK}) + "\n")
    shutil.copy(near / "near.mp4", tmp_path / "alice/videos/2.mp4")
    with caplog.at_level(logging.WARNING):
        assert counts(ingest(corpus, tmp_path / "alice/videos/more.jsonl")) == (1, 0, 0, 0)
    assert "another place" not in caplog.text


def test_two_ingests_at_once_under_one_name_are_told(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    commit_shard(storage, "a", [stored(0), stored(1)])
    commit_shard(storage, "b", [stored(1)])
    assert clashes(storage) == []
    commit_shard(storage, "c", [stored(0, labels_hash="other")])
    assert clashes(storage) == [stored(0).record["id"]]


def test_another_rate_is_seen_and_taken_on_demand(tmp_path: Path) -> None:
    """Pictures and tasks stay the same; the time between frames in info.json changes."""
    storage = Storage(str(tmp_path / "corpus"))

    def entry(have: StoredRows, update: bool = False) -> ShardEntry:
        (unit,) = list_units("lerobot", str(tmp_path / "arm"))
        assert isinstance(unit, Unit)
        return next(entries([unit], IngestConfig(format="lerobot", max_frames=4, short_edge=32, update=update), have))

    write_lerobot(tmp_path / "arm", 0)
    commit_shard(storage, "a", [entry(NO_ROWS)])
    have = StoredRows.read(storage)
    same = entry(have)
    assert isinstance(same, Present) and not same.differs
    info = tmp_path / "arm/meta/info.json"
    fps = json.loads(info.read_text())["fps"]
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": 2 * fps}))
    other = entry(have)
    assert (
        isinstance(other, Present)
        and f"its rate differs from the corpus (now {2 * fps:g}, not {fps:g}" in other.differs
    )
    updated = entry(have, update=True)
    assert isinstance(updated, Accepted) and updated.replaces and updated.record["source_fps"] == 2 * fps


def test_a_rebuilt_manifest_knows_how_late_its_rows_are(tmp_path: Path) -> None:
    """Otherwise the next update would be stored under an earlier revision and never be seen."""
    storage, seals = Storage(str(tmp_path)), {"u0": "s", "u1": "s"}
    records = [stored(number).record for number in (0, 1)]
    true = [{**row, "content_hash": content_hash(row["frame_index"], row["frames"])} for row in records]
    rows = [Accepted(row, unit) for row, unit in zip(true, seals, strict=True)]
    commit_shard(storage, "a", rows, ShardPlan(seals, revision=3))
    before = read_ledgers(storage)
    storage.remove("manifest/a.parquet")
    assert check_shard(storage, "a", repair=True).repair == "rebuilt"
    assert read_ledgers(storage) == before and before["a"]["u1"].revision == 3


def test_a_link_that_leads_nowhere_hides_no_change_beside_it(tmp_path: Path) -> None:
    folder, apart = tmp_path / "episode", tmp_path / "apart"
    (folder / "front").mkdir(parents=True)
    apart.mkdir()
    (folder / "gone.png").symlink_to(tmp_path / "gone")
    (folder / "side").symlink_to(apart)
    (folder / "loop").symlink_to(folder)

    def seal() -> str:
        return Sealer("train").seals([Unit("key", "source", str(folder))])[0]

    seen = [seal()]
    for file in (folder / "task.txt", folder / "front/0.png", apart / "0.png", tmp_path / "gone"):
        file.write_bytes(b"1")
        seen.append(seal())
    assert len(set(seen)) == 5 and seal() == seen[-1]


def units(input: str, source: str) -> Iterator[Unit]:
    """This module is a format whose unit is no file: its content changes without a trace."""
    yield Unit(input, "store", "row:0")


def episodes(unit: Unit) -> Iterator[Episode]:
    task = Path(unit.key, "task.txt").read_text()
    frames = ImageSequence(3, lambda i: np.full((32, 32, 3), 20 * i, np.uint8), fps=5.0)
    yield Episode(unit.source, "0", "main", task, frames, unit.uri)


def test_what_nobody_can_look_at_is_read_each_time(ray_local: None, tmp_path: Path) -> None:
    reports = []
    for task in ("open it", "open it", "close it"):
        (tmp_path / "task.txt").write_text(task)
        reports.append(counts(ingest(tmp_path / "corpus", tmp_path, f"ingest.format={__name__}")))
    assert reports == [(1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]


def test_a_seal_sees_data_and_files_and_no_folders(tmp_path: Path) -> None:
    def seal(folder: str, content: bytes = b"1" * 20_000, split: str = "train", time_s: int = 5, **data: Any) -> str:
        path = tmp_path / folder / "a.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (time_s, time_s))
        unit = Unit("key", "source", str(path), data={"path": str(path), **data})
        return Sealer(split).seals([unit])[0]

    same = seal("one")
    assert seal("two") == same
    changed = b"1" * 19_999 + b"2"
    others = [seal("x", changed), seal("x", b"1"), seal("x", split="val"), seal("x", task="t"), seal("x", time_s=6)]
    assert same not in others and len(set(others)) == 5
    inside = [Sealer("train").seals([Unit("k", "s", str(tmp_path / name))])[0] for name in ("one", "two")]
    assert inside[0] == inside[1] != Sealer("train").seals([Unit("k", "s", str(tmp_path / "none"))])[0]


def test_an_update_makes_shards_of_names_of_its_own(tmp_path: Path) -> None:
    """Otherwise a concurrent ingest, which stores no changed rows, would overwrite the shard of the update."""
    data, sizes = write_clips(tmp_path / "data", 0), ("ingest.max_frames=4", "ingest.short_edge=32")
    storage = Storage(str(tmp_path / "corpus"))

    def names(*overrides: str) -> list[str]:
        config = load([f"corpus.path={storage.path}", f"ingest.input={data}", *sizes, *overrides])
        return [task.name for task in _plan(storage, config.ingest).shards]

    (unit,) = list_units("mp4_jsonl", str(data))
    assert isinstance(unit, Unit)
    commit_shard(storage, "a", [stored(0)], ShardPlan({unit.digest("mp4_jsonl"): "another seal"}))
    assert names() == names() != names("ingest.update=true") == names("ingest.update=true")
