"""Verify finds and repairs damage to a corpus; compact changes its files and not its content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs import corpus as job
from pipelines.embed import run_embed
from pipelines.ingest import run_ingest
from pipelines.maintain import run_compact, run_verify
from robometer.configs import Config, load
from robometer.corpus.corpus import Corpus
from tests.pipelines.test_ingest import config, write_data

BAD = {"video": "none.mp4", "task": "t"}


@pytest.fixture
def ingested(ray_local: None, tmp_path: Path) -> Config:
    """A corpus of 10 trajectories in 4 shards, with one refused."""
    write_data(tmp_path / "data", 10, rows=[BAD])
    settings = config(tmp_path)
    run_ingest(settings)
    return settings


def content(settings: Config) -> tuple[str, list[str]]:
    corpus = Corpus(settings.corpus.path)
    return corpus.content_hash, corpus.quarantine()["uri"].to_pylist()


def shards(settings: Config) -> list[Path]:
    return sorted(Path(settings.corpus.path, "shards").glob("*.arrow"))


def test_a_corpus_in_order_is_said_to_be(ingested: Config) -> None:
    report = run_verify(ingested)
    assert (report.shards, report.trajectories, report.duplicates, report.wrong) == (4, 10, 0, [])


def test_a_lost_manifest_is_made_again_from_the_shards(ingested: Config) -> None:
    before = content(ingested)
    manifest = Path(ingested.corpus.path, "manifest")
    files = {path.name: path.read_bytes() for path in manifest.iterdir()}
    shutil.rmtree(manifest)
    assert [r.problems for r in run_verify(ingested).wrong] == [["its manifest file is missing"]] * 4
    assert [r.repair for r in run_verify(ingested, repair=True).wrong] == ["rebuilt"] * 4
    assert content(ingested) == before and not run_verify(ingested).wrong
    assert {path.name: path.read_bytes() for path in manifest.iterdir()} == files
    report = run_ingest(ingested)
    assert (report.new, report.present, report.quarantined) == (0, 10, 1)


def test_a_damaged_shard_is_found_dropped_and_made_again(ingested: Config, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(ingested)
    damaged, missing = shards(ingested)[0], shards(ingested)[1]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    missing.unlink()
    wrong = {report.shard: report.problems[0] for report in run_verify(ingested).wrong}
    assert wrong.keys() == {damaged.stem, missing.stem} and "cannot be read" in wrong[missing.stem]
    assert "have changed since" in wrong[damaged.stem]
    where = ingested.corpus.path
    assert job.main(["verify", where]) == 2
    assert "verify --repair" in capsys.readouterr().err
    assert job.main(["verify", "--repair", where]) == 0
    assert "dropped" in capsys.readouterr().out and len(Corpus(ingested.corpus.path)) < 10
    run_ingest(ingested)
    assert content(ingested) == before and not run_verify(ingested).wrong


def test_damaged_text_in_a_shard_is_found(ingested: Config) -> None:
    shard = shards(ingested)[0]
    shard.write_bytes(shard.read_bytes().replace(b"do task", b"do\xfftask"))
    (report,) = run_verify(ingested).wrong
    assert report.shard == shard.stem and "cannot be read" in report.problems[0]


def test_compact_keeps_rows_frames_embeddings_and_quarantine(ingested: Config, tmp_path: Path) -> None:
    settings = load(
        [f"corpus.path={ingested.corpus.path}", "embed.image_encoder=random_image", "embed.text_encoder=random_text"]
    )
    run_embed(settings)
    corpus, before = Corpus(ingested.corpus.path), content(ingested)
    frames = [corpus.frames(row) for row in range(10)]
    vectors = [corpus.embeddings("random_image", row) for row in range(10)]
    old = tmp_path / "old"
    shutil.copytree(ingested.corpus.path, old)
    assert run_compact(ingested, target_mb=1) == (4, 1)
    assert content(ingested) == before and not run_verify(ingested).wrong
    joined = Corpus(ingested.corpus.path)
    assert all(np.array_equal(joined.frames(row), frames[row]) for row in range(10))
    assert all(np.array_equal(joined.embeddings("random_image", row), vectors[row]) for row in range(10))
    assert run_embed(settings).shards == 0
    report = run_ingest(ingested)
    assert (report.new, report.present, report.quarantined) == (0, 10, 1)
    assert len(shards(ingested)) == len(list(Path(ingested.corpus.path, "manifest").iterdir())) == 1

    shutil.copytree(
        old, ingested.corpus.path, dirs_exist_ok=True
    )  # as if it had been killed before it deleted anything
    assert content(ingested) == before and len(Corpus(ingested.corpus.path)) == 10
    assert run_ingest(ingested).present == 10
    assert run_compact(ingested, target_mb=1) == (1, 1)
    assert len(shards(ingested)) == 1 and content(ingested) == before


def test_new_data_and_a_mended_video_enter_a_compacted_corpus(ingested: Config, tmp_path: Path) -> None:
    run_compact(ingested, target_mb=1)
    write_data(tmp_path / "data", 12, rows=[BAD])
    shutil.copy(tmp_path / "data" / "0.mp4", tmp_path / "data" / "none.mp4")
    report = run_ingest(config(tmp_path, "ingest.retry_quarantined=true"))
    assert (report.new, report.present, report.quarantined) == (3, 10, 0)
    assert run_compact(ingested, target_mb=1)[1] == 1
    assert len(Corpus(ingested.corpus.path)) == 13 and run_ingest(ingested).present == 13
    assert json.loads(Path(ingested.corpus.path, "corpus.json").read_text())["counts"]["trajectories"] == 13


def test_export_writes_a_dataset_that_ingest_reads(ingested: Config, tmp_path: Path) -> None:
    assert job.main(["export", ingested.corpus.path, "--output", str(tmp_path / "lerobot")]) == 0
    back = config(tmp_path, "ingest.format=lerobot", data="lerobot", corpus="back")
    assert run_ingest(back).new == 10
    tasks = [sorted(Corpus(c.corpus.path).manifest["task"].to_pylist()) for c in (ingested, back)]
    assert tasks[0] == tasks[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [([], "Missing option '--output'"), (["--output=x", "--scores=nowhere"], "no predictions in nowhere")],
)
def test_an_export_that_cannot_be_is_one_sentence(
    ingested: Config, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(["export", *arguments, f"corpus.path={ingested.corpus.path}"]) == 2
    assert reason in capsys.readouterr().err


def test_a_missing_corpus_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("verify", "compact"):
        assert job.main([action, f"corpus.path={tmp_path / 'none'}"]) == 2
        assert "no corpus at" in capsys.readouterr().err
