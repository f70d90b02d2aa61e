"""Ask a scorer the planned queries. The same code runs in a Ray worker and inside a training process."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from robometer.corpus.corpus import Corpus, CorpusError
from robometer.evaluation.plan import Query
from robometer.evaluation.predictions import ClipPrediction, InstructionPrediction, PairPrediction, Prediction
from robometer.evaluation.views import FORWARD, MEMORY, REVERSED, VIEWS
from robometer.runs.redaction import redacted
from robometer.scoring import Clip, ClipScore, Scorer, score_prefixes

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class ClipSource:
    """Clips of a corpus for one scorer: only embeddings if it can use them, else decoded frames.

    Args:
        corpus: the corpus.
        image_encoder: name of the embeddings that the scorer takes instead of frames, or None.
    """

    def __init__(self, corpus: Corpus, image_encoder: str | None) -> None:
        self.corpus, self._encoder = corpus, image_encoder

    @classmethod
    def for_scorer(cls, corpus: Corpus, scorer: Scorer) -> ClipSource:
        """A source of what `scorer` reads: embeddings or frames."""
        return cls(corpus, scorer.info.image_encoder)

    def clip(self, row: int, task: str) -> Clip:
        """A row's clip under `task`. With embeddings, its frames are a blank view that takes no memory."""
        if self._encoder is not None:
            try:
                features = self.corpus.embeddings(self._encoder, row)
            except CorpusError as error:
                logger.warning("scoring frames instead of embeddings, which is slower: %s", error)
                self._encoder = None
            else:
                blank = np.broadcast_to(np.zeros((1, 1, 1, 3), dtype=np.uint8), (len(features), 1, 1, 3))
                return Clip(blank, task, {self._encoder: features})
        return Clip(self.corpus.frames(row), task)

    def truth(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The simulator's reward and success flag per frame, float32 [T] each; empty if unknown."""
        record = self.corpus.record(row)
        reward, success = (np.asarray(record[n] or (), dtype=np.float32) for n in ("env_reward", "success"))
        return reward, success

    def num_frames(self, row: int) -> int:
        """Stored frames of a clip."""
        return int(self.corpus.manifest["num_frames"][row].as_py())

    def text(self, name: str, row: int) -> str:
        """The text of a manifest column."""
        return str(self.corpus.manifest[name][row].as_py())


def predict(
    scorer: Scorer, source: ClipSource, queries: Sequence[Query], batch_size: int, mode: str = "whole"
) -> list[Prediction]:
    """The predictions for all queries. At most `batch_size` clips or pairs are scored at once. Errors are raised.

    Args:
        scorer: the scorer.
        source: the clips.
        queries: what to ask.
        batch_size: clips or pairs.
        mode: how views are scored: `whole` shows all frames at once, `prefix` each frame with those before it.
    """
    clips = [query for query in queries if not query.pair_kind]
    pairs = [query for query in queries if query.pair_kind]
    return _predict_clips(scorer, source, clips, batch_size, mode) + _predict_pairs(scorer, source, pairs, batch_size)


def predict_each(
    scorer: Scorer, source: ClipSource, queries: Sequence[Query], batch_size: int, mode: str = "whole"
) -> list[Prediction]:
    """As `predict`, but a query that fails becomes a prediction with an error, and affects no other of its batch."""
    try:
        return predict(scorer, source, queries, batch_size, mode)
    except Exception as error:  # noqa: BLE001  one bad clip must not end an evaluation of thousands
        if len(queries) == 1:
            logger.warning("row %d was not scored: %s", queries[0].row, error)
            return [failed(source, queries[0], f"{type(error).__name__}: {error}")]
    half = len(queries) // 2
    return [
        r for part in (queries[:half], queries[half:]) for r in predict_each(scorer, source, part, batch_size, mode)
    ]


def _predict_clips(
    scorer: Scorer, source: ClipSource, queries: Sequence[Query], batch_size: int, mode: str
) -> list[Prediction]:
    clips = [_clips_of(source, query) for query in queries]
    score = partial(score_prefixes, scorer) if mode == "prefix" else scorer.score
    of_views = iter(_chunked(score, [clip for views, _ in clips for clip in views], batch_size))
    # Only the last frame counts, which sees the whole clip in either mode.
    of_instructions = iter(_chunked(scorer.score, [clip for _, others in clips for clip in others], batch_size))
    records: list[Prediction] = []
    for query in queries:
        scores = [next(of_views) for _ in query.views]
        records += [_clip_record(source, query, view, score) for view, score in zip(query.views, scores, strict=True)]
        if query.instructions:
            kinds, texts = ("own", *query.instruction_kinds), (query.task, *query.instructions)
            answers = (scores[0], *(next(of_instructions) for _ in query.instructions))
            records += [
                _instruction_record(source, query, kind, text, answer)
                for kind, text, answer in zip(kinds, texts, answers, strict=True)
            ]
    return records


def _clips_of(source: ClipSource, query: Query) -> tuple[list[Clip], list[Clip]]:
    """A query's clip in its views (the first is the forward one), and under its other instructions."""
    own = source.clip(query.row, query.task)
    after = source.clip(query.second, query.second_task) if query.second >= 0 else None
    views = [
        own.followed_by(after) if view == MEMORY and after else own.take(VIEWS[view](len(own))) for view in query.views
    ]
    return views, [own.with_task(text) for text in query.instructions]


def _predict_pairs(scorer: Scorer, source: ClipSource, queries: Sequence[Query], batch_size: int) -> list[Prediction]:
    pairs: list[tuple[Clip, Clip]] = []
    for query in queries:
        chosen = source.clip(query.row, query.task)
        rejected = chosen.reversed() if query.pair_kind == "reversed" else source.clip(query.second, query.task)
        pairs += [(chosen, rejected), (rejected, chosen)]
    answers = [float(p) for p in _chunked(lambda some: list(scorer.compare(some)), pairs, batch_size)]
    return [
        _pair_record(source, query, first, 1 - second)
        for query, first, second in zip(queries, answers[0::2], answers[1::2], strict=True)
    ]


def _chunked(ask: Callable[[Sequence[Item]], Sequence[Answer]], items: Sequence[Item], size: int) -> list[Answer]:
    return [answer for i in range(0, len(items), size) for answer in ask(items[i : i + size])]


def _clip_record(source: ClipSource, query: Query, view: str, score: ClipScore) -> ClipPrediction:
    if not (np.isfinite(score.progress).all() and np.isfinite(score.success).all()):
        raise ValueError(f"the scorer returned a value that is not finite for clip {source.text('id', query.row)}")
    truth = source.truth(query.row)
    if view == MEMORY:
        reward = success = np.zeros(0, dtype=np.float32)
    else:
        reward, success = (values[VIEWS[view](len(values))] if len(values) else values for values in truth)
    return ClipPrediction(
        **_identity(source, query),
        view=view,
        progress=np.asarray(score.progress, dtype=np.float32),
        success=np.asarray(score.success, dtype=np.float32),
        env_reward=reward,
        env_success=success,
        reward=score.reward,
        coverage=score.coverage,
        num_frames=source.num_frames(query.row),
    )


def _identity(source: ClipSource, query: Query) -> dict[str, Any]:
    names = ("id", "source", "quality_label")
    judged = source.corpus.manifest["partial_success"][query.row].as_py()
    return {
        "split": query.split,
        "row": query.row,
        "task": query.task,
        "partial_success": math.nan if judged is None else float(judged),
    } | {n: source.text(n, query.row) for n in names}


def _instruction_record(
    source: ClipSource, query: Query, kind: str, text: str, score: ClipScore
) -> InstructionPrediction:
    final = float(score.progress[-1])
    return InstructionPrediction(query.split, source.text("id", query.row), query.row, query.task, text, final, kind)


def _pair_record(
    source: ClipSource, query: Query, chosen_first: float, chosen_second: float, error: str = ""
) -> PairPrediction:
    backwards = query.pair_kind == "reversed"
    return PairPrediction(
        split=query.split,
        kind=query.pair_kind,
        task=query.task,
        chosen_id=source.text("id", query.row),
        rejected_id=source.text("id", query.second),
        chosen_quality=source.text("quality_label", query.row),
        rejected_quality=REVERSED if backwards else source.text("quality_label", query.second),
        chosen_first=chosen_first,
        chosen_second=chosen_second,
        error=error,
    )


def failed(source: ClipSource, query: Query, error: str) -> Prediction:
    """The prediction for a query that was not scored: its error."""
    error = redacted(error)
    if query.pair_kind:
        return _pair_record(source, query, math.nan, math.nan, error)
    none = np.zeros(0, dtype=np.float32)
    return ClipPrediction(**_identity(source, query), view=FORWARD, progress=none, success=none, env_reward=none,
                          env_success=none, error=error)  # fmt: skip
