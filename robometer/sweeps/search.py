"""What the next trial of a sweep tries: a function of the seed, its number, and what became of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import optuna
import yaml
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from robometer.settings import ConfigError
from robometer.sweeps.journal import TrialRecord
from robometer.sweeps.space import Space, Values

Objectives = Sequence[tuple[str, str]]
"""Metrics with `max` or `min`, the first of which decides where only one can."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def check_search(kind: str, space: Space, objectives: Objectives, scheduler: str) -> None:
    """Raise `ConfigError` for what a search or a scheduler cannot do."""
    if kind == "optuna" and space.only_grids:
        raise ConfigError("sweep.search=optuna has nothing to learn on a grid: set sweep.search=random")
    if kind == "optuna" and len(space.grid) > 1:
        raise ConfigError("sweep.search=optuna knows no grid: write choice instead of grid, or set sweep.search=random")
    if len(objectives) > 1 and scheduler != "fifo":
        raise ConfigError(f"sweep.scheduler={scheduler} judges trials by one metric: with several, set fifo")
    if scheduler == "pbt" and (other := [key for key in space.keys if not key.startswith("loss.")]):
        raise ConfigError(f"sweep.scheduler=pbt changes settings of the loss in mid-training, not {other[0]}")
    if scheduler == "pbt" and any(entry.condition for entry in space.entries):
        raise ConfigError("sweep.scheduler=pbt has no entries that depend on a choice: leave out the ` if`")


def check_number(space: Space, num_trials: int, fixed: int) -> None:
    """Raise `ConfigError` if trials beside the `fixed` ones cannot be shared out evenly over the grids."""
    cells, drawn = len(space.grid), num_trials - fixed
    if drawn < 0:
        raise ConfigError(
            f"sweep.num_trials={num_trials} leaves out some of the {fixed} trials whose settings are given"
        )
    if space.only_grids and drawn != cells:
        raise ConfigError(
            f"sweep.num_trials={num_trials} must be {fixed + cells}: the grids have {cells} combinations, and "
            f"the settings of {fixed} trials are given"
        )
    if drawn % cells:
        raise ConfigError(
            f"sweep.num_trials={num_trials} must be {fixed} (trials whose settings are given) and a multiple of "
            f"{cells} (combinations of the grids)"
        )


def given_points(space: Space, texts: Sequence[str]) -> list[Values]:
    """The settings that `sweep.first` asks for, such as `loss.progress_weight=1;loss.success_weight=2`.

    Raises:
        ConfigError: one cannot be read, or lies outside the space.
    """
    return [_point(space, text) for text in texts]


def _point(space: Space, text: str) -> Values:
    pairs = [part.partition("=") for part in text.split(";")]
    values = {key.strip(): yaml.safe_load(value) for key, _, value in pairs}
    if unknown := [key for key in values if key not in space.keys]:
        raise ConfigError(f"sweep.first entry {text!r}: {unknown[0]} is no key of sweep.space")
    needed = [key for entry in space.entries if entry.active(values) for key in entry.dimension.keys]
    if missing := [key for key in needed if key not in values]:
        raise ConfigError(f"sweep.first entry {text!r} lacks {missing[0]}")
    if set(values) != set(needed) or space.drawn(values) is None:
        raise ConfigError(f"sweep.first entry {text!r} lies outside sweep.space")
    return values


def draw(
    space: Space,
    kind: str,
    objectives: Objectives,
    seed: int,
    index: int,
    number: int,
    others: Iterable[TrialRecord] = (),
) -> Values:
    """The settings of a trial.

    Args:
        index: of the trial among all of the sweep.
        number: of the trial among those that are drawn, which take the combinations of the grids in turn.
        others: the trials that are over, of which `optuna` learns.
    """
    own = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    grid = space.grid
    study = _study(RandomSampler(seed=own) if kind == "random" else TPESampler(seed=own), objectives)
    if kind == "optuna":
        study.add_trials([one for other in others if (one := _known(space, objectives, other))])
    return space.draw(study.ask(), grid[number % len(grid)])


def _study(sampler: BaseSampler, objectives: Objectives) -> Study:
    directions = [StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE for _, mode in objectives]
    return optuna.create_study(sampler=sampler, directions=directions)


def _known(space: Space, objectives: Objectives, record: TrialRecord) -> FrozenTrial | None:
    """A trial as Optuna knows it; None where its settings lie outside the space."""
    if (known := space.drawn(record.values)) is None:
        return None
    drawn, distributions = known
    best = record.best(*objectives[0])
    values = [float(best.get(metric, math.nan)) for metric, _ in objectives] if best else []
    if record.error or not values or not all(map(math.isfinite, values)):
        return create_trial(state=TrialState.FAIL, params=drawn, distributions=distributions)
    return create_trial(state=TrialState.COMPLETE, values=values, params=drawn, distributions=distributions)
