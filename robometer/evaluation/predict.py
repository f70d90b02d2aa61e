"""Put planned units before a scorer. The same code runs in a Ray worker and inside a training process."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from robometer.corpus.corpus import Corpus, CorpusError
from robometer.evaluation.plan import Unit
from robometer.evaluation.predictions import ClipPrediction, InstructionPrediction, PairPrediction, Record
from robometer.evaluation.views import FORWARD, MEMORY, REVERSED, VIEWS
from robometer.runs.redaction import redacted
from robometer.scoring import Clip, ClipScore, Scorer, score_prefixes

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class ClipSource:
    """Clips of a corpus as one scorer wants them: embeddings alone where it can use them, else decoded frames.

    Args:
        image_encoder: name of the corpus embeddings that the scorer takes in place of frames, or None.
    """

    def __init__(self, corpus: Corpus, image_encoder: str | None) -> None:
        self.corpus, self._encoder = corpus, image_encoder

    @classmethod
    def for_scorer(cls, corpus: Corpus, scorer: Scorer) -> ClipSource:
        """A source that fits `scorer.image_encoder`, which a scorer of frames need not have."""
        return cls(corpus, getattr(scorer, "image_encoder", None))

    def clip(self, row: int, task: str) -> Clip:
        """A row's clip under `task`; with embeddings its frames are a blank view that takes no memory."""
        if self._encoder is not None:
            try:
                features = self.corpus.embeddings(self._encoder, row)
            except CorpusError as error:
                logger.warning("scoring from frames, which is slower: %s", error)
                self._encoder = None
            else:
                blank = np.broadcast_to(np.zeros((1, 1, 1, 3), dtype=np.uint8), (len(features), 1, 1, 3))
                return Clip(blank, task, {self._encoder: features})
        return Clip(self.corpus.frames(row), task)

    def truth(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The simulator's reward and success flag per frame, float32 [T] each; empty where unknown."""
        record = self.corpus.record(row)
        reward, success = (np.asarray(record[n] or (), dtype=np.float32) for n in ("env_reward", "success"))
        return reward, success

    def num_frames(self, row: int) -> int:
        """Stored frames of a clip."""
        return int(self.corpus.manifest["num_frames"][row].as_py())

    def text(self, name: str, row: int) -> str:
        """A string of the manifest."""
        return str(self.corpus.manifest[name][row].as_py())


def predict(
    scorer: Scorer, source: ClipSource, units: Sequence[Unit], batch_size: int, mode: str = "whole"
) -> list[Record]:
    """Records of all units; at most `batch_size` clips or pairs are scored at once. Errors are raised.

    Args:
        mode: of clips in their views, `whole`: all frames are seen at once, or `prefix`: each with those before it.
    """
    clips = [unit for unit in units if not unit.pair_kind]
    pairs = [unit for unit in units if unit.pair_kind]
    return _predict_clips(scorer, source, clips, batch_size, mode) + _predict_pairs(scorer, source, pairs, batch_size)


def predict_each(
    scorer: Scorer, source: ClipSource, units: Sequence[Unit], batch_size: int, mode: str = "whole"
) -> list[Record]:
    """As `predict`, but a unit that fails becomes a record with its error; the others of its batch are kept."""
    try:
        return predict(scorer, source, units, batch_size, mode)
    except Exception as error:  # the border of a worker: one bad clip must not end an evaluation of thousands
        if len(units) == 1:
            logger.warning("row %d was not scored: %s", units[0].row, error)
            return [failed(source, units[0], f"{type(error).__name__}: {error}")]
    half = len(units) // 2
    return [r for part in (units[:half], units[half:]) for r in predict_each(scorer, source, part, batch_size, mode)]


def _predict_clips(
    scorer: Scorer, source: ClipSource, units: Sequence[Unit], batch_size: int, mode: str
) -> list[Record]:
    shown = [_shown(source, unit) for unit in units]
    ask = partial(score_prefixes, scorer) if mode == "prefix" else scorer.score
    views = iter(_chunked(ask, [clip for of_unit, _ in shown for clip in of_unit], batch_size))
    # the last frame of a clip has seen it whole in either mode
    said = iter(_chunked(scorer.score, [clip for _, of_unit in shown for clip in of_unit], batch_size))
    records: list[Record] = []
    for unit, (clips, _) in zip(units, shown, strict=True):
        scores = [next(views) for _ in clips]
        viewed = zip(unit.views, scores, strict=True)
        records += [_clip_record(source, unit, view, score) for view, score in viewed]
        if unit.instructions:
            kinds, texts = ("own", *unit.instruction_kinds), (unit.task, *unit.instructions)
            asked = zip(kinds, texts, (scores[0], *(next(said) for _ in unit.instructions)), strict=True)
            records += [_instruction_record(source, unit, kind, text, score) for kind, text, score in asked]
    return records


def _shown(source: ClipSource, unit: Unit) -> tuple[list[Clip], list[Clip]]:
    """A unit's clip in its views (the first is the forward one), and under its other instructions."""
    own = source.clip(unit.row, unit.task)
    after = source.clip(unit.second, unit.second_task) if unit.second >= 0 else None
    views = [
        own.followed_by(after) if view == MEMORY and after else own.take(VIEWS[view](len(own))) for view in unit.views
    ]
    return views, [own.with_task(text) for text in unit.instructions]


def _predict_pairs(scorer: Scorer, source: ClipSource, units: Sequence[Unit], batch_size: int) -> list[Record]:
    shown: list[tuple[Clip, Clip]] = []
    for unit in units:
        chosen = source.clip(unit.row, unit.task)
        rejected = chosen.reversed() if unit.pair_kind == "reversed" else source.clip(unit.second, unit.task)
        shown += [(chosen, rejected), (rejected, chosen)]
    answers = [float(p) for p in _chunked(lambda pairs: list(scorer.compare(pairs)), shown, batch_size)]
    return [
        _pair_record(source, unit, first, 1 - second)
        for unit, first, second in zip(units, answers[0::2], answers[1::2], strict=True)
    ]


def _chunked(ask: Callable[[Sequence[Item]], Sequence[Answer]], items: Sequence[Item], size: int) -> list[Answer]:
    return [answer for i in range(0, len(items), size) for answer in ask(items[i : i + size])]


def _clip_record(source: ClipSource, unit: Unit, view: str, score: ClipScore) -> ClipPrediction:
    if not (np.isfinite(score.progress).all() and np.isfinite(score.success).all()):
        raise ValueError(f"the scorer gave a value that is not finite for clip {source.text('id', unit.row)}")
    truth = source.truth(unit.row)
    if view == MEMORY:
        reward = success = np.zeros(0, dtype=np.float32)
    else:
        reward, success = (values[VIEWS[view](len(values))] if len(values) else values for values in truth)
    return ClipPrediction(
        **_identity(source, unit),
        view=view,
        progress=np.asarray(score.progress, dtype=np.float32),
        success=np.asarray(score.success, dtype=np.float32),
        env_reward=reward,
        success_label=success,
        reward=score.reward,
        coverage=score.coverage,
        num_frames=source.num_frames(unit.row),
    )


def _identity(source: ClipSource, unit: Unit) -> dict[str, Any]:
    names = ("id", "source", "quality_label")
    known = source.corpus.manifest["partial_success"][unit.row].as_py()
    return {
        "split": unit.split,
        "row": unit.row,
        "task": unit.task,
        "partial_success": math.nan if known is None else float(known),
    } | {n: source.text(n, unit.row) for n in names}


def _instruction_record(
    source: ClipSource, unit: Unit, kind: str, text: str, score: ClipScore
) -> InstructionPrediction:
    final = float(score.progress[-1])
    return InstructionPrediction(unit.split, source.text("id", unit.row), unit.row, unit.task, text, final, kind)


def _pair_record(
    source: ClipSource, unit: Unit, chosen_first: float, chosen_second: float, error: str = ""
) -> PairPrediction:
    backwards = unit.pair_kind == "reversed"
    return PairPrediction(
        split=unit.split,
        kind=unit.pair_kind,
        task=unit.task,
        chosen_id=source.text("id", unit.row),
        rejected_id=source.text("id", unit.second),
        chosen_quality=source.text("quality_label", unit.row),
        rejected_quality=REVERSED if backwards else source.text("quality_label", unit.second),
        chosen_first=chosen_first,
        chosen_second=chosen_second,
        error=error,
    )


def failed(source: ClipSource, unit: Unit, error: str) -> Record:
    """The record of a unit that was not scored, and why."""
    error = redacted(error)
    if unit.pair_kind:
        return _pair_record(source, unit, math.nan, math.nan, error)
    none = np.zeros(0, dtype=np.float32)
    return ClipPrediction(**_identity(source, unit), view=FORWARD, progress=none, success=none, env_reward=none,
                          success_label=none, error=error)  # fmt: skip
