"""The plan of one training sample: a pure function of (index, config, seed, sample index)."""

from __future__ import annotations

import numpy as np

from robometer.sampling.config import SamplingConfig
from robometer.sampling.eligible import PREFERENCE_KINDS, PROGRESS_KINDS
from robometer.sampling.index import ManifestIndex
from robometer.sampling.partners import GAP_TOLERANCE, Groups
from robometer.sampling.segments import Draws, Triple, draw_triple
from robometer.sampling.strategies import clip_plan, pair_plan
from robometer.sampling.types import SamplePlan, SamplingError
from robometer.trajectory import QUALITY_LABELS


def plan(index: ManifestIndex, config: SamplingConfig, seed: int, sample_index: int) -> SamplePlan:
    """The rows, frames and targets of sample `sample_index` of the stream `seed`.

    The same arguments give the same plan in any process and order. Preference and progress samples alternate in their
    exact ratio. In mode trajectory_first each kind visits all its rows (with source weights: all rows of a source)
    before it visits any again, in a new order. For mode strategy_first see `StrategyFirst`.

    Raises:
        SamplingError: `sample_index` is negative, or `index` was built with other settings.
    """
    if sample_index < 0:
        raise SamplingError(f"sample_index {sample_index} is negative: samples are numbered from 0")
    if config is not index.config and config != index.config:
        raise SamplingError("the index was built with other sampling settings: build a new one with these")
    draws = Draws(seed, sample_index)
    kind, strategy, row = _item(index, config, seed, sample_index, draws)
    if kind == "progress":
        return _progress_sample(index, config, sample_index, row, strategy, draws)
    return _preference_sample(index, config, sample_index, row, strategy, draws)


def _item(index: ManifestIndex, config: SamplingConfig, seed: int, i: int, draws: Draws) -> tuple[str, str | None, int]:
    """Kind, strategy (None: to be drawn from those that the row can serve) and row of sample `i`."""
    share = config.preference / (config.preference + config.progress)
    before = int(i * share)
    pair = int((i + 1) * share) > before
    kind = "preference" if pair else "progress"
    if index.strategy_first is not None:
        return kind, *index.strategy_first.draw(kind, draws)
    if pair:
        return kind, None, index.preference_walk.row(seed, before)
    return kind, None, index.progress_walk.row(~seed, i - before)


def _progress_sample(
    index: ManifestIndex, config: SamplingConfig, i: int, row: int, strategy: str | None, draws: Draws
) -> SamplePlan:
    strategy = strategy or PROGRESS_KINDS[draws.choose(index.progress_weights[index.has_other_task(row)])]
    clip_row = row
    if strategy == "different_instruction":
        clip_row = _other_task_row(index, config, row, draws)
    subject = index.columns.subject(clip_row)
    triple = draw_triple(draws, subject.num_frames, strategy, config.max_frames)
    clip = clip_plan(clip_row, subject, index.rules, strategy, triple)
    return SamplePlan(i, "progress", strategy, index.columns.text_of(row), clip, None, 0.0)


def _preference_sample(
    index: ManifestIndex, config: SamplingConfig, i: int, row: int, strategy: str | None, draws: Draws
) -> SamplePlan:
    columns = index.columns
    ungraded = not columns.successful_row(row) and columns.partial_of(row) is None
    whole = ungraded and index.partners.successes.size(int(columns.task[row])) > 0
    if whole:
        chosen, rejected = _graded(index, config, row, draws)
        strategy = "suboptimal"
    else:
        strategy = strategy or PREFERENCE_KINDS[draws.choose(index.preference_weights[index.options[row]])]
        chosen, rejected, strategy = _pair(index, config, strategy, row, draws)
    subjects = columns.subject(chosen), columns.subject(rejected)
    direction = "rewind" if strategy == "paired" else strategy
    triples: tuple[Triple | None, Triple | None] = (None, None)
    if not whole:
        triples = (
            draw_triple(draws, subjects[0].num_frames, "forward", config.max_frames),
            draw_triple(draws, subjects[1].num_frames, direction, config.max_frames),
        )
    better, worse = pair_plan((chosen, rejected), subjects, index.rules, direction, triples)
    chosen_first = draws.uniform() < 0.5
    a, b = (better, worse) if chosen_first else (worse, better)
    return SamplePlan(i, "preference", strategy, columns.text_of(row), a, b, float(chosen_first))


def _graded(index: ManifestIndex, config: SamplingConfig, row: int, draws: Draws) -> tuple[int, int]:
    """Chosen and rejected row where the drawn row is unsuccessful: a success of its task beats it.

    A share `graded_pairs` of these rows is paired with the other unsuccessful grade: suboptimal beats failure.
    """
    if config.graded_pairs > 0 and draws.uniform() < config.graded_pairs:
        failed = QUALITY_LABELS[index.columns.quality[row]] == "failure"
        others = index.partners.grades["suboptimal" if failed else "failure"]
        if others.size(int(index.columns.task[row])):
            other = _of_task(others, index, row, draws)
            return (other, row) if failed else (row, other)
    return _of_task(index.partners.successes, index, row, draws), row


def _pair(index: ManifestIndex, config: SamplingConfig, strategy: str, row: int, draws: Draws) -> tuple[int, int, str]:
    """Chosen row, rejected row and the name of the strategy."""
    if strategy == "different_task":
        return row, _other_task_row(index, config, row, draws), strategy
    if strategy == "paired":
        return row, index.partners.embodied.member(index.columns.embodied_task_of(row) ^ 1, draws), strategy
    if strategy != "suboptimal":
        return row, row, strategy
    value = index.columns.partial_of(row)
    if value is None:
        return row, _of_task(index.partners.others, index, row, draws), strategy
    partner = _partner_by_gap(index, config, row, value, draws)
    higher = float(index.columns.partial_success[partner]) > value
    return (partner, row, "partial_success") if higher else (row, partner, "partial_success")


def _of_task(groups: Groups, index: ManifestIndex, row: int, draws: Draws) -> int:
    return groups.member(int(index.columns.task[row]), draws)


def _partner_by_gap(index: ManifestIndex, config: SamplingConfig, row: int, value: float, draws: Draws) -> int:
    """A row of the same task whose partial success differs by at least the threshold, by two binary searches."""
    first, last = index.partners.partial.span(int(index.columns.task[row]))
    values = index.partners.partial_values[first:last]
    gap = config.partial_success_threshold - GAP_TOLERANCE
    below = int(values.searchsorted(value - gap, side="right"))
    above = int(values.searchsorted(value + gap, side="left"))
    pick = draws.below(below + len(values) - above)
    return int(index.partners.partial.rows[first + (pick if pick < below else above + pick - below)])


def _other_task_row(index: ManifestIndex, config: SamplingConfig, row: int, draws: Draws) -> int:
    """A success of another task, all tasks equally likely; with `same_source_probability` of the row's own source."""
    task, partners = int(index.columns.task[row]), index.partners
    if draws.uniform() < config.same_source_probability:
        places = partners.places.group(int(index.columns.source[row]))
        place = _another(partners.place_task[places], task, draws)
        if place is not None:
            return partners.place_rows.member(int(places[place]), draws)
    other = _another(partners.tasks, task, draws)
    assert other is not None, "a row without another task never gets this strategy"
    return partners.successes.member(int(partners.tasks[other]), draws)


def _another(values: np.ndarray, value: int, draws: Draws) -> int | None:
    """Position in `values` (ascending) of a random one other than `value`; None if there is none."""
    place = int(values.searchsorted(value))
    present = place < len(values) and int(values[place]) == value
    count = len(values) - present
    if count == 0:
        return None
    pick = draws.below(count)
    return pick + (present and pick >= place)
