"""Ingest: what is committed, what is refused, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.ingest import IngestError, run_ingest
from robometer.configs import Config, load
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.corpus.formats import FormatError, Refused, Unit, list_units, read_unit
from robometer.frames.recording import VideoFile
from robometer.frames.video import thin_positions
from robometer.trajectory import Episode, trajectory_id
from tests.frames.test_video import corruptions, moving_square, video_bytes

FRAMES = 12
MAX_FRAMES = 8


def write_data(folder: Path, count: int, rows: list[dict[str, Any]] | None = None) -> Path:
    """A folder of `count` clips with their `trajectories.jsonl`; `rows` are further lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        (folder / f"{i}.mp4").write_bytes(video_bytes(moving_square(FRAMES, seed=i)))
        quality = ("successful", "suboptimal", "failed")[i % 3]
        truth = {"env_reward": [j / FRAMES for j in range(FRAMES)], "success": [0] * (FRAMES - 1) + [1]}
        lines.append({"video": f"{i}.mp4", "task": f"do  task {i % 2}", "quality_label": quality, **truth})
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines + (rows or [])))
    return folder


def config(tmp_path: Path, *overrides: str, data: str = "data", corpus: str = "corpus") -> Config:
    return load(
        [
            f"corpus.path={tmp_path / corpus}",
            f"ingest.input={tmp_path / data}",
            f"ingest.max_frames={MAX_FRAMES}",
            "ingest.short_edge=32",
            "ingest.shard_size=3",
            *overrides,
        ]
    )


def files(corpus: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every data file."""
    paths = [path for path in sorted(corpus.rglob("*")) if path.suffix in (".arrow", ".parquet")]
    return {str(path.relative_to(corpus)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_what_goes_in_comes_out(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 7)
    report = run_ingest(config(tmp_path))
    assert (report.listed, report.new, report.present, report.quarantined) == (7, 7, 0, 0)
    corpus = Corpus(str(tmp_path / "corpus"))
    assert corpus.info["state"] == "complete" and corpus.info["counts"]["trajectories"] == 7
    row = corpus.manifest["id"].to_pylist().index(trajectory_id("data", "2.mp4", "main"))
    record = corpus.manifest.slice(row, 1).to_pylist()[0]
    assert (record["quality_label"], record["raw_quality_label"], record["task"]) == ("failure", "failed", "do task 0")
    assert (record["num_frames"], record["source_num_frames"], record["source_fps"]) == (MAX_FRAMES, FRAMES, 10.0)
    assert (record["height"], record["width"]) == (32, 42)
    index = thin_positions(FRAMES, MAX_FRAMES)
    stored = corpus.record(row)
    assert stored["frame_index"] == index.tolist()
    assert stored["env_reward"] == pytest.approx([i / FRAMES for i in index])
    assert stored["success"] == [0] * (MAX_FRAMES - 1) + [1]
    square = corpus.frames(row)[:, 8, :, 0].argmax(axis=1)  # the bright square moves to the right
    assert (np.diff(square) > 0).all()


def test_a_second_ingest_changes_nothing(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 5, rows=[{"video": "none.mp4", "task": "t"}])
    run_ingest(config(tmp_path))
    before, content = files(tmp_path / "corpus"), Corpus(str(tmp_path / "corpus")).content_hash
    report = run_ingest(config(tmp_path))
    assert (report.new, report.present, report.quarantined) == (0, 5, 1)
    assert files(tmp_path / "corpus") == before
    run_ingest(config(tmp_path, "ingest.shard_size=4", corpus="other"))
    assert Corpus(str(tmp_path / "other")).content_hash == content


def test_new_lines_are_added_to_what_is_there(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 4)
    run_ingest(config(tmp_path))
    before = files(tmp_path / "corpus")
    write_data(tmp_path / "data", 8)
    report = run_ingest(config(tmp_path))
    assert (report.new, report.present) == (4, 4)
    assert before.items() <= files(tmp_path / "corpus").items()
    assert len(Corpus(str(tmp_path / "corpus"))) == 8


def test_exactly_the_bad_ones_are_quarantined_with_their_reason(ray_local: None, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 6)
    bad = corruptions(video_bytes(moving_square(FRAMES, 96, 128)))
    rows: list[dict[str, Any]] = [{"video": f"bad_{kind}.mp4", "task": "t"} for kind in bad]
    for kind, content in bad.items():
        (data / f"bad_{kind}.mp4").write_bytes(content)
    rows += [
        {"video": "0.mp4", "task": "again", "episode_key": "0.mp4"},
        {"video": "0.mp4", "task": " ", "view": "no task"},
        {"video": "0.mp4", "task": "t", "view": "odd label", "quality_label": "great"},
        {"video": "0.mp4", "task": "t", "view": "short truth", "env_reward": [0.5]},
    ]
    with (data / "trajectories.jsonl").open("a") as lines:
        lines.write("".join(json.dumps(row) + "\n" for row in rows) + "{half a line\n")
    report = run_ingest(config(tmp_path, "ingest.max_bad_fraction=0.7"))
    assert (report.listed, report.new, report.quarantined) == (16, 6, 10)
    refused = Corpus(str(tmp_path / "corpus")).quarantine().to_pylist()
    videos = {row["episode_key"] for row in refused if row["stage"] == "video"}
    assert videos == {f"bad_{kind}.mp4" for kind in bad}
    labels = sorted(row["error"] for row in refused if row["stage"] == "labels")
    assert labels[0] == "env_reward has 1 values for a video of 12 frames" and labels[1] == "no task text"
    assert labels[2].startswith("quality label 'great'")
    listed = sorted(row["error"] for row in refused if row["stage"] == "list")
    assert listed[0] == "duplicate: 0.mp4, main of source 'data' came before"
    assert listed[1].startswith("line 16 of trajectories.jsonl is malformed")
    assert len(refused) == 10


def test_too_many_bad_ones_end_in_an_error_after_the_commit(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 2, rows=[{"video": f"none{i}.mp4", "task": "t"} for i in range(3)])
    with pytest.raises(IngestError, match="3 of 5 episodes"):
        run_ingest(config(tmp_path))
    assert len(Corpus(str(tmp_path / "corpus"))) == 2
    with pytest.raises(IngestError, match="3 of 5 episodes"):
        run_ingest(config(tmp_path))


def test_a_mended_video_enters_by_itself(ray_local: None, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 3, rows=[{"video": "late.mp4", "task": "t"}])
    run_ingest(config(tmp_path))
    (data / "late.mp4").write_bytes(video_bytes(moving_square(FRAMES)))
    report = run_ingest(config(tmp_path))
    assert (report.new, report.present, report.quarantined) == (1, 3, 0)
    assert Corpus(str(tmp_path / "corpus")).quarantine().num_rows == 0


def test_what_was_refused_and_has_not_changed_is_tried_again_on_retry_only(ray_local: None, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 3, rows=[{"video": "long.mp4", "task": "t"}])
    (data / "long.mp4").write_bytes(video_bytes(moving_square(FRAMES + 1)))
    assert run_ingest(config(tmp_path, f"ingest.max_source_frames={FRAMES}")).quarantined == 1
    report = run_ingest(config(tmp_path))
    assert (report.new, report.present, report.quarantined) == (0, 3, 1)
    report = run_ingest(config(tmp_path, "ingest.retry_quarantined=true"))
    assert (report.new, report.present, report.quarantined) == (1, 3, 0)
    assert Corpus(str(tmp_path / "corpus")).quarantine().num_rows == 0


def test_one_corpus_has_one_choice_of_settings(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 2)
    run_ingest(config(tmp_path))
    with pytest.raises(CorpusError, match="made with short_edge=32, not 48"):
        run_ingest(config(tmp_path, "ingest.short_edge=48"))


def test_a_lost_commit_is_made_again_under_the_same_name(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 7, rows=[{"video": "none.mp4", "task": "t"}])
    run_ingest(config(tmp_path))
    before = {name: content for name, (_, content) in files(tmp_path / "corpus").items()}
    for path in (tmp_path / "corpus" / "manifest").iterdir():
        path.unlink()
    report = run_ingest(config(tmp_path))
    assert (report.new, report.present, report.quarantined) == (7, 0, 1)
    assert {name: content for name, (_, content) in files(tmp_path / "corpus").items()} == before


def test_files_of_a_crashed_run_go_at_the_next_start(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 2)
    run_ingest(config(tmp_path))
    left = [tmp_path / "corpus" / "shards" / ".x.arrow.12345678.tmp", tmp_path / "corpus" / "shards" / "orphan.arrow"]
    for path in left:
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    run_ingest(config(tmp_path))
    assert not any(path.exists() for path in left)
    assert len(Corpus(str(tmp_path / "corpus"))) == 2


def test_marks_of_shards_that_were_begun_go_when_all_is_done(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 2)
    run_ingest(config(tmp_path))
    (shard,) = (tmp_path / "corpus" / "manifest").iterdir()
    marks = [tmp_path / "corpus" / "attempts" / name for name in (shard.stem, "unwanted", "new")]
    for mark in marks:
        mark.write_bytes(b"")
    os.utime(marks[1], (0, 0))
    run_ingest(config(tmp_path))
    assert [mark.exists() for mark in marks] == [False, False, True]


def test_a_unit_that_kills_its_process_is_quarantined_and_the_others_are_in(ray_local: None, tmp_path: Path) -> None:
    report = run_ingest(config(tmp_path, "ingest.format=tests.corpus.formats.deadly", "ingest.shard_size=4"))
    assert (report.new, report.quarantined) == (5, 1)
    corpus = Corpus(str(tmp_path / "corpus"))
    assert corpus.manifest["episode_key"].to_pylist().count("deadly") == 0
    (refused,) = corpus.quarantine().to_pylist()
    assert refused["uri"] == "memory:deadly" and "it killed the process that read it" in refused["error"]
    assert not list((tmp_path / "corpus" / "attempts").iterdir())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"task": "t"}', "no 'video'"),
        ('{"video": "a.mp4"}', "no 'task'"),
        ('{"video": "a.mp4", "task": "t", "quality": "failure"}', "unknown key 'quality'"),
        ('{"video": "a.mp4", "task": 3}', "'task' is int, not str"),
        ('{"video": "a.mp4", "task": "t", "is_robot": 1}', "'is_robot' is int, not bool"),
        ('{"video": "a.mp4", "task": "t", "fps": 0}', "'fps' must be above 0"),
        ('{"video": "a.mp4", "task": "t", "success": [0, 2]}', "neither 0 nor 1"),
        ('{"video": "a.mp4", "task": "t", "env_reward": [0, NaN]}', "not a number"),
        ('["video"]', "not an object"),
        ("\udcff", "malformed"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(line: str, reason: str, tmp_path: Path) -> None:
    good = '{"video": "a.mp4", "task": "t", "partial_success": null}'
    content = f"{good}\n\n{line}\n".encode(errors="surrogateescape")
    (tmp_path / "trajectories.jsonl").write_bytes(content)
    first, second = list_units("mp4_jsonl", str(tmp_path))
    assert isinstance(first, Unit) and isinstance(second, Refused)
    assert reason in second.error and second.uri.endswith(":3")


def test_defaults_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").write_text('{"video": "a/b.mp4", "task": "t"}\n')
    (unit,) = list_units("mp4_jsonl", str(tmp_path / "trajectories.jsonl"))
    assert isinstance(unit, Unit)
    uri = str(tmp_path.resolve() / "a" / "b.mp4")
    (episode,) = read_unit("mp4_jsonl", unit)
    assert episode == Episode(tmp_path.name, "a/b.mp4", "main", "t", VideoFile(uri), uri)


def test_missing_data_and_unknown_formats_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"^There is no folder or file '.*/data'\.$"):
        run_ingest(config(tmp_path))
    (tmp_path / "data").mkdir()
    with pytest.raises(FormatError, match=r"^no trajectories.jsonl at .*/data"):
        run_ingest(config(tmp_path))
    with pytest.raises(FormatError, match=r"^ingest\.format='mp4jsonl' is none of .* Did you mean mp4_jsonl\?"):
        run_ingest(config(tmp_path, "ingest.format=mp4jsonl"))
    assert not (tmp_path / "corpus").exists()


def test_the_packaged_corpus_is_listed_whole() -> None:
    units = list(list_units("mp4_jsonl", "bundled"))
    assert len(units) > 100
    assert all(isinstance(entry, Unit) and Path(entry.uri).is_file() for entry in units)
    assert {entry.data["split"] for entry in units if isinstance(entry, Unit)} == {"train", "seen", "held_out"}


def test_storage_that_cannot_be_written_is_one_sentence(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 2)
    run_ingest(config(tmp_path))
    for path in (tmp_path / "corpus" / "manifest").iterdir():
        path.unlink()
    (shard,) = (tmp_path / "corpus" / "shards").iterdir()
    shard.unlink()
    shard.mkdir()  # no file can be moved there
    with pytest.raises(IngestError) as failed:
        run_ingest(config(tmp_path))
    message = str(failed.value)
    assert re.fullmatch(
        r"a worker failed: cannot write .*shards/.*\. Fix the cause, then rerun the same command\.", message
    )
    shard.rmdir()
    assert run_ingest(config(tmp_path)).new == 2
