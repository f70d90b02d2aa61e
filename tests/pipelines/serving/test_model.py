"""One replica of the model, without Ray: what is at fault in a failure, and when the replica must be replaced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.serving.backend import CompareRequest, ModelRequest, Outcome, ScoreRequest
from pipelines.serving.model import Model
from robometer.baselines.trivial import Clock
from robometer.configs.stages import ServeConfig
from robometer.errors import InputError, RobometerError
from robometer.scoring import Clip, ClipScore
from tests.made_scorer import Made


class Ailing(Clock):
    """A scorer that raises a given error for clips of a task, or for all."""

    def __init__(self) -> None:
        self.task, self.error, self.threads = "", Exception(), list[threading.Thread]()

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        self.threads.append(threading.current_thread())
        if any(self.task in ("any", clip.task) for clip in clips):
            raise self.error
        return super().score(clips)


def answers(scorer: Ailing, *tasks: str) -> tuple[list[Outcome], Model]:
    """The outcomes of a batch of clips of these tasks, as Ray Serve's queue would ask for them, and the replica."""
    model = Model(Made(lambda word: scorer), ServeConfig())
    return ask(model, *tasks), model


def ask(model: Model, *tasks: str) -> list[Outcome]:
    clips = [Clip(np.zeros((2, 8, 8, 3), np.uint8), task) for task in tasks]
    return model._thread.submit(model._first.answerer.answer, [ScoreRequest(clip) for clip in clips]).result()


@pytest.mark.parametrize("error", [ValueError("a shape"), RuntimeError("a shape"), RobometerError("no answer")])
def test_what_the_model_raises_is_its_own_fault_and_no_reason_to_replace_it(error: Exception) -> None:
    scorer = Ailing()
    scorer.task, scorer.error = "hard", error
    [fine, failed], model = answers(scorer, "easy", "hard")
    assert not fine.error and fine.value is not None
    assert not failed.rejected and failed.error == f"the model failed on this input ({type(error).__name__})"
    asyncio.run(model.check_health())


def test_what_the_input_caused_is_told_to_the_client() -> None:
    scorer = Ailing()
    scorer.task, scorer.error = "hard", InputError("the frames are too long")
    [failed], _ = answers(scorer, "hard")
    assert failed.rejected and failed.error == "the frames are too long"
    assert len(scorer.threads) == 2  # at the start, and for the request: nothing made the model suspect


def test_a_model_that_fails_on_any_clip_is_replaced() -> None:
    scorer = Ailing()
    _, model = answers(scorer, "easy")
    scorer.task, scorer.error = "any", RuntimeError("the device is gone")
    asyncio.run(model.check_health())  # nobody has noticed
    assert ask(model, "easy")[0].error
    with pytest.raises(RuntimeError, match="fails on any clip"):
        asyncio.run(model.check_health())


def test_batches_and_the_clip_that_must_work_are_scored_in_one_thread() -> None:
    scorer = Ailing()
    scorer.task, scorer.error = "hard", RuntimeError()
    _, model = answers(scorer, "easy", "hard", "easy")
    asyncio.run(model.check_health())
    # At the start; the batch, its three clips alone, and the clip that must work.
    assert len(scorer.threads) == 1 + 1 + 3 + 1 and len(set(scorer.threads[1:])) == 1


def test_a_batch_of_all_kinds_is_answered_in_its_order() -> None:
    """The model scores first and compares then, in any order of the requests; each request gets its own answer."""

    class Lengths(Clock):
        def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
            return [ClipScore(np.zeros(len(clip)), np.full(len(clip), len(clip))) for clip in clips]

        def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
            return np.array([len(a) / (len(a) + len(b)) for a, b in pairs], dtype=np.float32)

    model = Model(Made(lambda word: Lengths()), ServeConfig())
    one, two, three = (Clip(np.zeros((n, 8, 8, 3), np.uint8), "task") for n in (1, 2, 3))
    requests: list[ModelRequest] = [
        ScoreRequest(three, "prefix"),
        CompareRequest(one, three),
        ScoreRequest(two),
        CompareRequest(three, one),
        ScoreRequest(three),
    ]
    outcomes = model._thread.submit(model._first.answerer.answer, requests).result()
    values = [outcome.value for outcome in outcomes]
    assert [values[1], values[3]] == [0.25, 0.75]
    # Each frame of a whole clip is scored from all its frames, each of the first clip from those up to it.
    assert [v.success.tolist() for v in values if isinstance(v, ClipScore)] == [[1, 2, 3], [2, 2], [3, 3, 3]]
    assert [outcome.first for outcome in outcomes] == [True, *[False] * 4]
    assert {outcome.batch_size for outcome in outcomes} == {5}


@pytest.mark.parametrize("answer", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_none(answer: float) -> None:
    class Ill(Clock):
        def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
            values = [np.full(len(clip), answer if clip.task == "task" else 0, np.float32) for clip in clips]
            return [ClipScore(value, value * 0) for value in values]

        def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
            return np.full(len(pairs), answer, dtype=np.float32)

    model = Model(Made(lambda word: Ill()), ServeConfig())
    clip = Clip(np.zeros((2, 8, 8, 3), np.uint8), "task")
    for request in (ScoreRequest(clip), CompareRequest(clip, clip)):
        (outcome,) = model._thread.submit(model._first.answerer.answer, [request]).result()
        assert outcome.value is None and outcome.error == "the model failed on this input (ArithmeticError)"
