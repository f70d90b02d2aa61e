"""The clips of the corpus page: which ones it shows, and the card of each."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from robometer.corpus.corpus import Corpus
from robometer.frames.video import encode_jpeg, thin_positions
from robometer.report.drawing import Span, place, points, spans
from robometer.sampling.columns import SUCCESSFUL_RANK, Columns
from robometer.sampling.strategies import Subject
from robometer.sampling.targets import is_partial, reached, success_labels
from robometer.trajectory import QUALITY_LABELS

MAX_FRAMES_SHOWN = 16
FRAME_HEIGHT, FRAME_WIDTH = 120, 240
"""A frame of a sprite is at most this large, in pixels."""

JPEG_QUALITY = 75
FRAMES_PER_LINE = 8
TARGET = "absolute_first_frame"


@dataclass(frozen=True)
class Chart:
    """The chart under a clip's frames. Lines are points of an SVG polyline in a box of 100 x 100, y down.

    Attributes:
        target: the progress target; empty if progress is not trained.
        reward: the simulator's reward, scaled to its range in this clip.
        cutoff: where the source's demonstrations count as done, in percent.
        success: frames that are positives of the success head.
        done: frames at which the simulator says that the task is done.
    """

    target: str
    reward: str
    cutoff: float | None
    success: list[Span]
    done: list[Span]


@dataclass(frozen=True)
class Card:
    """A clip of the page.

    Attributes:
        row: its manifest row, by column name.
        sprite: its frames as one JPEG data URI, `across` columns in `down` lines.
        ratio: width of a frame divided by its height.
        at: position of each frame on the chart, in percent.
        captions: what is known of each frame, in words.
        note: how its progress is trained, in words.
    """

    row: dict[str, Any]
    agent: str
    seconds: float
    sprite: str
    across: int
    down: int
    ratio: float
    at: list[float]
    captions: list[str]
    note: str
    chart: Chart


def spread(columns: Columns, rows: np.ndarray, max_clips: int) -> list[int]:
    """At most `max_clips` of `rows`: sources take turns, within a source its tasks, and within a task its qualities.

    If there are more tasks than clips, the tasks are arbitrary, and begin with different qualities, so that all
    qualities occur. The rows are sorted by source, task and quality, best first.
    """
    source, task, quality = columns.source[rows], columns.task_text[rows], columns.quality[rows]
    number = np.random.default_rng(0).permutation(len(columns.task_texts))[task]
    rotated = (SUCCESSFUL_RANK - quality + number) % len(QUALITY_LABELS)
    of_task = source.astype(np.int64) * max(1, len(columns.task_texts)) + number
    of_quality = of_task * len(QUALITY_LABELS) + quality
    turn = _places(of_quality)
    turn = _places(of_task, rotated, turn)
    turn = _places(source, number, turn)
    chosen = rows[np.lexsort((source, turn))[:max_clips]].tolist()
    return sorted(chosen, key=lambda r: (columns.source_of(r), columns.text_of(r), -int(columns.quality[r]), r))


def _places(groups: np.ndarray, *order: np.ndarray) -> np.ndarray:
    """Position of each row in its group, from 0, by `order` (most significant last, as in lexsort)."""
    ranked = np.lexsort((*order, groups))
    begins = np.flatnonzero(np.diff(groups[ranked], prepend=groups[ranked][:1] - 1))
    places = np.empty(len(groups), dtype=np.int64)
    places[ranked] = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    return places


def cards(corpus: Corpus, columns: Columns, rows: Sequence[int]) -> Iterator[Card]:
    """The cards of `rows`, one at a time."""
    for row in rows:
        yield _card(corpus, columns.subject(row), row)


def _card(corpus: Corpus, subject: Subject, row: int) -> Card:
    facts = corpus.manifest.slice(row, 1).to_pylist()[0]
    record = corpus.record(row)
    positions = thin_positions(subject.num_frames, MAX_FRAMES_SHOWN)
    sprite, across, ratio = _sprite(corpus.frames(row, positions))
    target, labels = _targets(subject)
    reward, done = record["env_reward"] or [], record["success"] or []
    seconds = [index / facts["source_fps"] for index in record["frame_index"]] if facts["source_fps"] else []
    return Card(
        row={**facts, "partial_success": subject.partial_success},
        agent="robot" if facts["is_robot"] else "human",
        seconds=facts["source_num_frames"] / facts["source_fps"] if facts["source_fps"] else 0.0,
        sprite=sprite,
        across=across,
        down=-(-len(positions) // across),
        ratio=ratio,
        at=[round(place(int(p), subject.num_frames), 2) for p in positions],
        captions=[_caption(int(p), subject.num_frames, seconds, target, labels, reward, done) for p in positions],
        note=_note(subject),
        chart=_chart(subject, target, labels, reward, done),
    )


def _targets(subject: Subject) -> tuple[np.ndarray | None, np.ndarray]:
    """Progress target (None if it is not trained) and success label of every stored frame of the whole clip."""
    path = np.arange(subject.num_frames)
    progress = reached(path, subject.num_frames, TARGET, subject.cutoff, subject.partial_success)
    return (progress if subject.supervised else None), success_labels(progress, subject.quality_label)


def _chart(
    subject: Subject, target: np.ndarray | None, labels: np.ndarray, reward: Sequence[float], done: Sequence[int]
) -> Chart:
    low, high = (min(reward), max(reward)) if reward else (0.0, 0.0)
    scaled = [(value - low) / ((high - low) or 1.0) for value in reward]
    has_cutoff = target is not None and not is_partial(subject.partial_success)
    done_at = max(1, int(subject.cutoff * subject.num_frames)) - 1
    return Chart(
        target="" if target is None else points(target),
        reward=points(scaled),
        cutoff=round(place(done_at, subject.num_frames), 2) if has_cutoff else None,
        success=spans(labels),
        done=spans(done),
    )


def _note(subject: Subject) -> str:
    """How a clip's progress is trained, in words."""
    if subject.preference_only:
        return "preference only"
    if not subject.supervised:
        return "progress not supervised"
    if is_partial(subject.partial_success):
        return "progress supervised up to partial success"
    return f"progress supervised, cut-off {subject.cutoff:.2f}"


def _caption(
    position: int,
    count: int,
    seconds: Sequence[float],
    target: np.ndarray | None,
    labels: np.ndarray,
    reward: Sequence[float],
    done: Sequence[int],
) -> str:
    """Two lines: the frame's position and flags, then its numbers."""
    first, second = [f"{position + 1} of {count}"], []
    if seconds:
        first.append(f"{seconds[position]:.1f} s")
    if labels[position]:
        first.append("success")
    if done and done[position]:
        first.append("done")
    if target is not None:
        second.append(f"target {target[position]:.2f}")
    if reward:
        second.append(f"reward {reward[position]:.2f}")
    return f"{' · '.join(first)}\n{' · '.join(second)}"


def _sprite(frames: np.ndarray) -> tuple[str, int, float]:
    """Frames in lines as one JPEG data URI, the number of columns, and a frame's width divided by its height."""
    height, width = frames.shape[1:3]
    scale = min(1.0, FRAME_HEIGHT / height, FRAME_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    lines = -(-len(frames) // FRAMES_PER_LINE)
    across = -(-len(frames) // lines)
    sheet = np.full((lines * size[1], across * size[0], 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        top, left = i // across * size[1], i % across * size[0]
        sheet[top : top + size[1], left : left + size[0]] = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    data = base64.b64encode(encode_jpeg(sheet, JPEG_QUALITY)).decode()
    return f"data:image/jpeg;base64,{data}", across, round(size[0] / size[1], 4)
