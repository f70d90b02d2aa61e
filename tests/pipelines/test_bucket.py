"""Stages whose every path is in a bucket: killed in the middle and started again, they end as on a disk.

`python -m pytest tests/pipelines/test_bucket.py -m slow -s`. Others: ingest under more kills in `test_ingest_kills`,
training in `test_train_kills`, a sweep in `test_sweep`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from tests.corpus.formats.raw import BUNDLED
from tests.object_store import upload
from tests.pipelines.test_node_kills import CLIPS, LARGER
from tests.pipelines.training_runs import driving

EMBEDDINGS = "embeddings/random_image"


def kill_and_rerun(job: str, overrides: list[str], log: Path, done: Callable[[], int]) -> None:
    """Run a job, kill it once it has done something, and run it again to its end."""
    with driving(overrides, log, job=job) as driver:
        driver.wait_until(lambda: done() > 0)
        driver.kill(set())
    before = done()
    with driving(overrides, log, job=job) as driver:
        driver.finish()
    print(f"  {job}: {before} of {done()} done when its driver was killed")
    assert before < done(), "it was killed too late"


@pytest.mark.slow
def test_stages_in_a_bucket_end_as_on_a_disk(tmp_path: Path, bucket: str) -> None:
    raw, log = tmp_path / "raw", tmp_path / "log"
    raw.mkdir()
    (raw / "videos").symlink_to(BUNDLED / "videos")
    lines = (BUNDLED / "trajectories.jsonl").read_text().splitlines()[:CLIPS]
    (raw / "trajectories.jsonl").write_text("\n".join(lines))
    upload(raw, f"{bucket}/raw", ["trajectories.jsonl", *(json.loads(line)["video"] for line in lines)])
    disk, there = f"{tmp_path}/corpus", f"{bucket}/corpus"
    stored = Storage(there)

    def run(job: str, overrides: list[str]) -> None:
        with driving(overrides, log, job=job) as driver:
            driver.finish()

    run("ingest", [*LARGER, f"ingest.input={raw}", f"corpus.path={disk}"])
    ingest = [*LARGER, f"ingest.input={bucket}/raw", f"corpus.path={there}"]
    kill_and_rerun("ingest", ingest, log, lambda: len(stored.list("manifest", ".parquet")))
    assert Corpus(there).content_hash == Corpus(disk).content_hash

    run("embed", [*LARGER, f"corpus.path={disk}"])
    embed = [*LARGER, f"corpus.path={there}"]
    kill_and_rerun("embed", embed, log, lambda: len(stored.list(EMBEDDINGS, ".arrow")))
    assert not stored.hidden(EMBEDDINGS)
    one, other = Corpus(disk), Corpus(there)
    for row in range(len(one)):
        assert np.array_equal(one.embeddings("random_image", row), other.embeddings("random_image", row))

    for path in (disk, there):
        for command in ("compact", "verify"):
            call = [sys.executable, "-m", "jobs.corpus", command, path]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    assert len(stored.list("manifest", ".parquet")) == 1
    assert Corpus(there).content_hash == Corpus(disk).content_hash

    scoring = ["evaluate.scorer=baseline:frame_difference", "evaluate.splits=[train]", "evaluate.bootstrap=50"]
    run("evaluate", [*LARGER, *scoring, f"corpus.path={disk}", f"evaluate.output={tmp_path}/evaluation"])
    evaluation = Storage(f"{bucket}/evaluation")
    overrides = [*LARGER, *scoring, f"corpus.path={there}", f"evaluate.output={bucket}/evaluation"]
    kill_and_rerun("evaluate", overrides, log, lambda: len(evaluation.list("parts", ".parquet")))
    metrics = [json.loads(place.read_bytes("metrics.json"))["metrics"] for place in
               (Storage(f"{tmp_path}/evaluation"), evaluation)]  # fmt: skip
    assert metrics[0] == metrics[1]
