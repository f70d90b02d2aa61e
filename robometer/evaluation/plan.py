"""Which clips, instructions and pairs of a split a scorer is asked about: a pure function of (manifest, settings)."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.corpus.corpus import Corpus
from robometer.evaluation.views import (
    CYCLE,
    FORWARD,
    HESITATION,
    MEMORY,
    RETRY,
    REVERSED,
    REWOUND,
    counterfactual,
    paraphrases,
)
from robometer.sampling.groups import resolve
from robometer.trajectory import QUALITY_LABELS, SUCCESSFUL, normalise_task

Rows = Sequence[int] | np.ndarray

EXTRA_VIEWS = {
    "reward_alignment": (REVERSED, REWOUND),
    "robustness": (RETRY, CYCLE, HESITATION, MEMORY),
}
"""Views of successful clips that an evaluation needs besides the forward one."""


@dataclass(frozen=True)
class Query:
    """One question to a scorer: a clip in some views and under other instructions, or a pair in both orders.

    Attributes:
        row: manifest row of the clip, or of the chosen clip of a pair.
        task: the instruction, in the spelling of its task's first row.
        views: of a clip, how to show it.
        instructions: of a clip, the other instructions to score it under.
        instruction_kinds: the kind of each of these (see `InstructionPrediction`).
        second: of a pair, manifest row of the rejected clip (if it is the same row, played backwards); of a clip with
            the view `memory`, the row of the clip that follows it; else -1.
        second_task: the task of the clip that follows.
        pair_kind: one of `predictions.PAIR_KINDS`; empty for a clip.
    """

    split: str
    row: int
    task: str
    views: Sequence[str] = (FORWARD,)
    instructions: Sequence[str] = ()
    instruction_kinds: Sequence[str] = ()
    second: int = -1
    second_task: str = ""
    pair_kind: str = ""


@dataclass(frozen=True)
class _Labels:
    """Task (as its instruction) and quality of the selected rows."""

    task: dict[int, str]
    quality: dict[int, str]

    @classmethod
    def of(cls, corpus: Corpus, rows: np.ndarray) -> _Labels:
        texts = corpus.manifest["task"].take(pa.array(rows)).to_pylist()
        spelling: dict[str, str] = {}
        for text in sorted(texts):
            spelling.setdefault(normalise_task(text), text)
        quality = corpus.manifest["quality_label"].take(pa.array(rows)).to_pylist()
        names = [spelling[normalise_task(text)] for text in texts]
        numbers = [int(row) for row in rows]
        return cls(dict(zip(numbers, names, strict=True)), dict(zip(numbers, quality, strict=True)))

    def by_task(self, *qualities: str) -> dict[str, list[int]]:
        """Rows of these qualities by task: every task, in sorted order, even without rows."""
        groups: dict[str, list[int]] = {name: [] for name in sorted(set(self.task.values()))}
        for row, task in self.task.items():
            if self.quality[row] in qualities:
                groups[task].append(row)
        return groups


def plan_split(
    corpus: Corpus,
    split: str,
    max_clips: int,
    pairs_per_task: int,
    seed: int,
    evaluations: Sequence[str],
    sources: Sequence[str] = (),
) -> list[Query]:
    """Everything to predict for a split.

    That is at most `max_clips` clips of the `sources` (and groups of them; all sources if there are none), balanced
    over tasks and qualities, in the forward view. Successful clips are also shown as the evaluations need: in other
    views, under every instruction of the split (`confusion_matrix`: clips x tasks scorings), and under their own
    instruction reversed and paraphrased (`instruction_grounding`). With `preference`, up to `pairs_per_task` pairs of
    each kind per task follow.

    Raises:
        SamplingError: the corpus lacks a source, or a member of a group.
    """
    labels = _Labels.of(corpus, select_rows(corpus, split, max_clips, seed, sources))
    tasks = sorted(set(labels.task.values()))
    views = [FORWARD, *(view for name in evaluations for view in EXTRA_VIEWS.get(name, ()))]
    following = _following(corpus, labels, seed) if MEMORY in views else {}

    def clip(row: int, task: str) -> Query:
        if labels.quality[row] != SUCCESSFUL:
            return Query(split, row, task)
        variants = [(text, "other") for text in tasks if text != task and "confusion_matrix" in evaluations]
        if "instruction_grounding" in evaluations:
            opposite = counterfactual(task)
            variants += [(opposite, "counterfactual")] if opposite else []
            variants += [(text, "paraphrase") for text in paraphrases(task)]
        second = following.get(row, -1)
        possible = tuple(view for view in views if view != MEMORY or second >= 0)
        texts, kinds = tuple(text for text, _ in variants), tuple(kind for _, kind in variants)
        return Query(split, row, task, possible, texts, kinds, second, labels.task.get(second, ""))

    clips = [clip(row, task) for row, task in labels.task.items()]
    pairs = _pairs(labels, split, pairs_per_task, seed) if "preference" in evaluations else []
    return clips + pairs


def _following(corpus: Corpus, labels: _Labels, seed: int) -> dict[int, int]:
    """For each successful clip, one of another task that can follow it: of the same source, camera and size."""
    alike: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    rows = sorted(row for row, quality in labels.quality.items() if quality == SUCCESSFUL)
    kinds = corpus.manifest.select(["source", "view", "height", "width"]).take(pa.array(rows, pa.int64()))
    for row, kind in zip(rows, zip(*(column.to_pylist() for column in kinds.columns), strict=True), strict=True):
        alike[tuple(map(str, kind))][labels.task[row]].append(row)
    following = {}
    for key, by_task in alike.items():
        for task, others in _others(by_task):
            for row in by_task[task] if len(others) else ():
                following[row] = int(others[_rng(seed, *key, str(row)).integers(len(others))])
    return following


def _others(by_task: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, np.ndarray]]:
    """Every task, and the rows of all other tasks, int64."""
    every_row = np.array([row for rows in by_task.values() for row in rows], dtype=np.int64)
    start = 0
    for task, rows in by_task.items():
        yield task, np.delete(every_row, np.s_[start : start + len(rows)])
        start += len(rows)


def select_rows(corpus: Corpus, split: str, max_clips: int, seed: int, sources: Sequence[str] = ()) -> np.ndarray:
    """At most `max_clips` rows of a split and of `sources`, int64, ascending; every (task, quality) takes its turn.

    Raises:
        SamplingError: the corpus lacks a source, or a member of a group.
    """
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    rows, names = corpus.rows(split), corpus.manifest["source"]
    if sources:
        resolved = pa.array(resolve(sources, names.unique().to_pylist()))
        rows = rows[pc.is_in(names, resolved).to_numpy()[rows]]
    chosen = corpus.manifest.select(["task", "quality_label"]).take(pa.array(rows))
    for row, task, quality in zip(rows.tolist(), *(column.to_pylist() for column in chosen.columns), strict=True):
        cells[normalise_task(task), quality].append(row)
    turns = []
    for (task, quality), members in sorted(cells.items()):
        order = _rng(seed, task, quality).permutation(len(members))
        turns += [(turn, task, quality, members[i]) for turn, i in enumerate(order)]
    return np.sort(np.array([row for *_, row in sorted(turns)[:max_clips]], dtype=np.int64))


def _pairs(labels: _Labels, split: str, limit: int, seed: int) -> list[Query]:
    cells = {quality: labels.by_task(quality) for quality in QUALITY_LABELS}
    queries = []
    for task, foreign in _others(cells[SUCCESSFUL]):
        successes = cells[SUCCESSFUL][task]
        ranked = [cells[quality][task] for quality in QUALITY_LABELS]
        blocks: dict[str, list[tuple[Rows, Rows]]] = {
            "quality": [(high, low) for i, low in enumerate(ranked) for high in ranked[i + 1 :]],
            "task": [(successes, foreign)],
            "reversed": [([row], [row]) for row in successes],
        }
        for kind, of_kind in blocks.items():
            pairs = _draw_pairs(of_kind, limit, _rng(seed, task, kind))
            queries += [Query(split, chosen, task, second=rejected, pair_kind=kind) for chosen, rejected in pairs]
    return queries


def _draw_pairs(blocks: Sequence[tuple[Rows, Rows]], limit: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """At most `limit` different pairs of rows from the products of the blocks, which are never enumerated."""
    ends = np.cumsum([len(chosen) * len(rejected) for chosen, rejected in blocks], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    pairs = []
    for number in np.sort(rng.choice(total, min(limit, total), replace=False)):
        block = int(np.searchsorted(ends, number, side="right"))
        chosen, rejected = blocks[block]
        first, second = divmod(int(number - ends[block]) + len(chosen) * len(rejected), len(rejected))
        pairs.append((int(chosen[first]), int(rejected[second])))
    return pairs


def _rng(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])
