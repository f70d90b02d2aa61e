"""Distributed evaluation on a local Ray: files, counts of failures, and metrics without the model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.evaluate import recompute, run_evaluate, run_evaluations
from pipelines.predict import EvaluationFailed, Part, what_it_took
from robometer.baselines.trivial import Clock, FrameDifference
from robometer.configs.loading import load
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation.predictions import PairPrediction, Predictions
from robometer.runs.outputs import InUseError, exclusive_folder
from robometer.scoring import Scorer
from robometer.settings import ConfigError
from tests.evaluation.corpora import build_corpus
from tests.made_scorer import Made


def frame_difference(folder: str) -> Scorer:
    return FrameDifference()


def clock(folder: str) -> Scorer:
    return Clock()


SECRETS = ("serve.token=secret-of-the-endpoint", "baseline.base_url=https://user:secret-of-the-api@host/v1")


def config_for(folder: Path, *overrides: str) -> Config:
    return load(
        [
            f"corpus.path={folder}/corpus",
            f"evaluate.output={folder}/out",
            "evaluate.bootstrap=20",
            "evaluate.batch_size=8",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            *overrides,
        ]
    )


def test_evaluation_on_ray_is_counted_tracked_and_repeatable(ray_local: None, tmp_path: Path) -> None:
    build_corpus(tmp_path / "corpus", clips_per_quality=1, broken=True)
    config = config_for(tmp_path, *SECRETS)
    metrics = run_evaluate(config, Made(frame_difference))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {f"{name}.parquet" for name in ("predictions", "pairs", "instructions", "metrics")}
    assert files == tables | {"metrics.json", "report.html", "parts"}
    provenance = metrics["provenance"]
    assert provenance["model"] == "frame_difference" and provenance["failed"] > 0
    assert provenance["splits"]["seen"] == "14 of 15 clips, 5 tasks"
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = store.get_experiment_by_name("robometer")
    assert experiment is not None
    tracked = store.search_runs([experiment.experiment_id])[0]
    voc = metrics["metrics"]["seen"]["reward_alignment"]["voc"]["value"]
    assert tracked.data.metrics["seen/reward_alignment/voc"] == pytest.approx(voc)
    again = recompute(config)
    assert json.dumps(again) == json.dumps(json.loads((tmp_path / "out/metrics.json").read_text()))
    assert again["metrics"] == json.loads(json.dumps(metrics["metrics"]))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"secret-of-the-" in path.read_bytes()]
    assert b"***@host/v1" in (tmp_path / "out/metrics.json").read_bytes()
    with (
        exclusive_folder("evaluate.output", tmp_path / "out"),
        pytest.raises(InUseError, match=r"evaluate.output=.* is in use"),
    ):
        run_evaluate(config, Made(frame_difference))


def test_nothing_to_evaluate_is_one_sentence(tmp_path: Path) -> None:
    build_corpus(tmp_path / "corpus", clips_per_quality=1)
    with pytest.raises(ConfigError, match=r"has \['held_out', 'seen'\]"):
        run_evaluate(config_for(tmp_path, "evaluate.splits=[nowhere]"), Made(clock))
    with pytest.raises(ConfigError, match="is none of reward_alignment, "):
        run_evaluate(config_for(tmp_path, "evaluate.evaluations=[voc]"), Made(clock))
    with pytest.raises(ConfigError, match="There is no baseline 'nobody': clock"):
        run_evaluate(config_for(tmp_path, "evaluate.scorer=baseline:nobody"))
    with pytest.raises(ConfigError, match="run `robometer evaluate` first"):
        recompute(config_for(tmp_path))


@pytest.mark.slow
def test_models_side_by_side_share_one_report(ray_local: None, tmp_path: Path) -> None:
    build_corpus(tmp_path / "corpus", clips_per_quality=1)
    config = config_for(
        tmp_path,
        "tracking.uri=none",
        "evaluate.scorer=baseline:clock",
        "evaluate.against=[baseline:frame_difference,baseline:constant]",
        "evaluate.evaluations=[reward_alignment,policy_ranking]",
    )
    pages = run_evaluations(config)
    assert [one["provenance"]["model"] for one in pages] == ["clock", "frame_difference", "constant"]
    assert "answers in" in pages[0]["provenance"]["scoring"]
    written = (tmp_path / "out/report.csv").read_text()
    assert all(name in written for name in ("clock", "frame_difference", "constant"))
    parts = sorted((tmp_path / "out").rglob("parts/*.parquet"))
    stamps = [path.stat().st_mtime_ns for path in parts]
    assert len({path.parent for path in parts}) == 3
    again = run_evaluations(config)
    assert [path.stat().st_mtime_ns for path in parts] == stamps  # a second run asks no model
    anew = run_evaluations(config, without_models=True)
    assert [one["metrics"] for one in again] == [one["metrics"] for one in anew] == [one["metrics"] for one in pages]


def test_what_the_scoring_took_is_added_up_over_parts() -> None:
    spent = {"busy_seconds": 2.0, "requests": 3, "retries": 0, "input_tokens": 100}
    pair = PairPrediction("seen", "quality", "open the door", "a", "b", "successful", "failure", 0.7, 0.2)
    parts = [Part("gvl", spent, [pair, pair])] * 2
    assert what_it_took(parts) == "4 answers in 4.0 s of actors' time, 1 a second, requests 6, input tokens 200"


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("baseline:random,baseline:random", "names one model twice"),
        ("baseline:random,baseline:nobody", "There is no baseline 'nobody': clock"),
    ],
)
def test_a_wrong_list_of_models_ends_before_the_first_is_asked(against: str, message: str, tmp_path: Path) -> None:
    build_corpus(tmp_path / "corpus", clips_per_quality=1)
    with pytest.raises(ConfigError, match=message):
        run_evaluations(config_for(tmp_path, "evaluate.scorer=baseline:clock", f"evaluate.against=[{against}]"))
    assert not (tmp_path / "out").exists()


class Mortal(FrameDifference):
    """Kills its process once."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.mark = Path(folder) / "deadly"

    def score(self, clips):  # type: ignore[no-untyped-def]
        if self.mark.exists():
            self.mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(clips)


def mortal(folder: str) -> Scorer:
    return Mortal(folder)


@pytest.mark.slow
def test_killed_workers_and_drivers_lose_nothing_and_repeat_nothing(ray_local: None, tmp_path: Path) -> None:
    build_corpus(tmp_path / "corpus", clips_per_quality=8)
    settings = ("tracking.uri=none", "evaluate.scorer=baseline:frame_difference", "evaluate.bootstrap=0")
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "jobs.evaluate", f"corpus.path={tmp_path}/corpus", f"evaluate.output={output}"]
    with subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while len(list(output.glob("parts/*.parquet"))) < 2:
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
    assert not (output / "predictions.parquet").exists()
    time.sleep(1)  # its worker goes on for a moment
    first = {path.name: path.stat().st_mtime_ns for path in output.glob("parts/*.parquet")}

    run_evaluate(config_for(tmp_path, *settings, f"evaluate.output={output}"))
    parts = {path.name: path.stat().st_mtime_ns for path in output.glob("parts/*.parquet")}
    assert 2 <= len(first) < len(parts) and first.items() < parts.items()

    (tmp_path / "deadly").touch()
    whole = config_for(tmp_path, "tracking.uri=none", "evaluate.bootstrap=0")
    run_evaluate(whole, Made(mortal, str(tmp_path)))
    assert not (tmp_path / "deadly").exists()
    for name in ("predictions", "instructions", "pairs"):
        tables = [pq.read_table(folder / f"{name}.parquet") for folder in (output, tmp_path / "out")]
        assert str(tables[0].to_pylist()) == str(tables[1].to_pylist())  # as text: NaN is not equal to itself


class Deadly(FrameDifference):
    """Kills its process whenever it sees one clip."""

    def __init__(self, deadly: np.ndarray) -> None:
        super().__init__()
        self.deadly = deadly

    def score(self, clips):  # type: ignore[no-untyped-def]
        if any(np.array_equal(clip.frames, self.deadly) for clip in clips):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(clips)


def deadly(folder: str) -> Scorer:
    return Deadly(Corpus(f"{folder}/corpus").frames(3))


@pytest.mark.slow
def test_a_clip_that_kills_every_worker_costs_only_itself(ray_local: None, tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path / "corpus", clips_per_quality=1)
    config = config_for(tmp_path, "evaluate.evaluations=[success_detection]", "tracking.uri=none")
    assert run_evaluate(config, Made(deadly, str(tmp_path)))["provenance"]["failed"] == 1
    clips = Predictions.load(Storage(str(tmp_path / "out"))).clips
    assert sorted(clip.row for clip in clips) == list(range(len(corpus)))
    assert {clip.row: clip.error for clip in clips if clip.error} == {
        3: "the worker that scored it alone was killed twice"
    }
    assert not list((tmp_path / "out/parts").glob("*.begun"))


class Silent(Clock):
    def score(self, clips):  # type: ignore[no-untyped-def]
        raise OSError("the endpoint does not answer")


def silent(folder: str) -> Scorer:
    return Silent()


def test_a_scorer_that_always_fails_ends_the_job(ray_local: None, tmp_path: Path) -> None:
    build_corpus(tmp_path / "corpus", clips_per_quality=1)
    with pytest.raises(EvaluationFailed, match="the endpoint does not answer"):
        run_evaluate(config_for(tmp_path, "evaluate.evaluations=[reward_alignment]", "tracking.uri=none"), Made(silent))


def test_a_scorer_that_cannot_start_is_one_sentence(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    build_corpus(tmp_path / "corpus", clips_per_quality=1)
    message = "^a worker failed: .*needs its API key in GEMINI_API_KEY. Fix the cause"
    with pytest.raises(EvaluationFailed, match=message):
        run_evaluate(config_for(tmp_path, "evaluate.scorer=baseline:gvl", "tracking.uri=none"))
