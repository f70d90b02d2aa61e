"""The same file gives the same numbers everywhere: `evaluate`, `robometer score`, `RemoteScorer` and `/v1/score`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from jobs import compare, score
from pipelines.embed import run_embed
from pipelines.evaluate import run_evaluate
from pipelines.ingest import run_ingest
from robometer.client import RemoteScorer
from robometer.configs import Config, load
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation.predictions import Predictions
from robometer.frames import FrameSettings, read_frames
from robometer.models.checkpoint import build_model, save_checkpoint
from robometer.models.rewind_scorer import RewindScorer
from robometer.runs.provenance import provenance_of
from robometer.runs.publishing import prepare, to_folder
from robometer.scorers import load_scorer
from robometer.scoring import Clip, Scorer
from tests.conftest import TINY
from tests.frames.odd_files import joined, shown_as, trimmed, written
from tests.frames.test_video import moving_square
from tests.local_endpoint import endpoint

SETTINGS = FrameSettings(max_frames=6, short_edge=40, jpeg_quality=10)
TASK = "push the square to the right"
MODELS = {
    "rewind": (),
    "robometer": ("model=tiny", "evaluate.batch_size=2"),
}


def odd_videos() -> dict[str, bytes]:
    """An ordinary clip, a turned one, one with an edit list, and one whose second stream is shown."""
    return {
        "ordinary.mp4": written(moving_square(20, 96, 128, seed=1)),
        "turned.mp4": shown_as(written(moving_square(20, 96, 128, seed=2)), 0, 1, -1, 0),
        "trimmed.mp4": trimmed(written(moving_square(20, 96, 128, seed=3), **{"x264-params": "bframes=2"}), 7),
        "streams.mkv": joined([(moving_square(9, 48, 64), 5, False), (moving_square(20, 96, 128, seed=4), 10, True)]),
    }


@pytest.fixture(scope="module")
def folder(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos in `raw`, and a corpus of them in `corpus`."""
    place = tmp_path_factory.mktemp("pixels")
    (place / "raw").mkdir()
    lines = []
    for name, content in odd_videos().items():
        (place / "raw" / name).write_bytes(content)
        lines.append(json.dumps({"video": name, "task": TASK, "split": "seen"}))
    (place / "raw/trajectories.jsonl").write_text("\n".join(lines))
    run_ingest(config_of(place))
    run_embed(config_of(place))
    return place


def config_of(place: Path, *overrides: str) -> Config:
    frames = [f"ingest.{name}={value}" for name, value in SETTINGS.as_dict().items()]
    where = [f"corpus.path={place}/corpus", f"ingest.input={place}/raw", "train.seed=3", "evaluate.actors=1"]
    return load([*TINY, *frames, *where, "evaluate.splits=[seen]", "evaluate.bootstrap=0", *overrides])


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A checkpoint of random weights, as training on the corpus writes it."""
    config, corpus, path = config_of(folder, *MODELS[request.param]), Corpus(f"{folder}/corpus"), folder / request.param
    save_checkpoint(path, build_model(config, corpus).state_dict(), config, provenance_of(corpus))
    return path


@pytest.fixture(scope="module")
def scorer(checkpoint: Path) -> Scorer:
    return load_scorer(checkpoint)


@pytest.fixture(scope="module")
def url(scorer: Scorer) -> Iterator[str]:
    with endpoint(scorer) as address:
        yield address


@pytest.fixture(scope="module")
def evaluated(folder: Path, checkpoint: Path) -> dict[str, list[float]]:
    """Progress of each video by `evaluate`."""
    output = f"{folder}/{checkpoint.name}-evaluation"
    overrides = [*MODELS[checkpoint.name], f"evaluate.scorer={checkpoint}", f"evaluate.output={output}"]
    run_evaluate(config_of(folder, *overrides, "evaluate.evaluations=[reward_alignment]"))
    names = Corpus(f"{folder}/corpus").manifest["episode_key"].to_pylist()
    shown = [clip for clip in Predictions.load(Storage(output)).clips if clip.view == "forward"]
    return {names[clip.row]: clip.progress.tolist() for clip in shown}


@pytest.mark.parametrize("name", odd_videos())
def test_a_file_gives_the_same_numbers_everywhere(
    folder: Path, checkpoint: Path, scorer: Scorer, url: str, evaluated: dict[str, list[float]], name: str
) -> None:
    video, numbers, expected = folder / "raw" / name, folder / "score.json", evaluated[name]
    assert len(expected) == SETTINGS.max_frames == len(set(expected))
    flags = [str(video), "--task", TASK, "--json", str(numbers)]
    assert score.main([*flags, "--scorer", str(checkpoint)]) == 0
    np.testing.assert_allclose(json.loads(numbers.read_text())["progress"], expected, atol=1e-6, rtol=0)
    with RemoteScorer(url) as remote:
        assert remote.info.frames == SETTINGS
        np.testing.assert_allclose(remote.score_video(video, TASK).progress, expected, atol=1e-5, rtol=0)
        clip = Clip(read_frames(video, remote.info.frames).frames, TASK)
        np.testing.assert_allclose(remote.score([clip])[0].progress, expected, atol=1e-5, rtol=0)
    assert score.main([*flags, "--scorer", url]) == 0
    np.testing.assert_allclose(json.loads(numbers.read_text())["progress"], expected, atol=1e-5, rtol=0)
    answer = httpx.post(f"{url}/v1/score", data={"task": TASK}, files={"video": video.read_bytes()}).json()
    np.testing.assert_allclose(answer["progress"], expected, atol=1e-5, rtol=0)
    other = Clip(read_frames(video, replace(SETTINGS, jpeg_quality=0)).frames, TASK)  # what all did before
    assert np.abs(scorer.score([other])[0].progress - expected).max() > 2e-5


def test_rewind_is_shown_features_as_a_corpus_keeps_them(folder: Path, checkpoint: Path, scorer: Scorer) -> None:
    if not isinstance(scorer, RewindScorer):
        pytest.skip("the vision-language model reads frames")
    corpus = Corpus(f"{folder}/corpus")
    stored, shown = corpus.clip(0, "random_image"), corpus.clip(0)
    own, kept = (scorer._features(clip, np.arange(len(clip))) for clip in (shown, stored))
    assert np.mean((own == kept).numpy()) > 0.99  # a rounding may fall on the other side


def test_two_files_compare_alike(folder: Path, checkpoint: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(folder / "raw" / name) for name in ("turned.mp4", "trimmed.mp4")]
    flags = [*paths, "--task", TASK]
    answers = []
    for where in (["--scorer", str(checkpoint)], ["--scorer", url]):
        assert compare.main([*flags, *where]) == 0
        answers.append(capsys.readouterr().out.split(", by ")[0])
    assert answers[0] == answers[1] and "P(A better)" in answers[0]


def test_frames_that_are_asked_for_are_shown_and_warned_about(
    folder: Path, checkpoint: Path, url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flags = [str(folder / "raw/ordinary.mp4"), "--task", TASK, "--max-frames", "3"]
    for where in (["--scorer", str(checkpoint)], ["--scorer", url]):
        caplog.clear()
        assert score.main([*flags, *where]) == 0
        assert "last of 3 frames, of 20" in capsys.readouterr().out
        assert "was trained on at most 6 frames, short edge 40 px, JPEG quality 10 and gets" in caplog.text


def test_what_is_published_keeps_its_frames(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    published = Path(to_folder(prepare(str(checkpoint)), str(tmp_path / "published")))
    assert load_scorer(published).info.frames == SETTINGS
    assert "at most 6 frames, short edge 40 px, JPEG quality 10" in (published / "README.md").read_text()


def test_an_evaluation_on_other_frames_is_warned_about(
    folder: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pipelines.evaluate import scorer_of, warn_of_other_frames

    corpus = Corpus(f"{folder}/corpus")
    config = config_of(folder, f"evaluate.scorer={checkpoint}")
    warn_of_other_frames(scorer_of(config), corpus, "the model")
    assert not caplog.records
    corpus.info["settings"]["short_edge"] = 64
    warn_of_other_frames(scorer_of(config), corpus, "the model")
    assert "short edge 64 px" in caplog.text
