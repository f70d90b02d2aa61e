"""Population based training: trials that fall behind go on from the training state of better ones, with other weights.

Ray Tune's own scheduler draws from Python's global generator, keeps its state in memory and moves checkpoints through
Tune's storage. Here all trials are compared at the same steps, and who goes on from whom is a function of the journal:
a killed sweep goes on as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robometer.sweeps.journal import TrialRecord, generation_of
from robometer.sweeps.space import Space, Values

SHARE = 0.25
"""Of the population: so many of the last trials go on from so many of the first ones (Ray Tune's `quantile_fraction`;
Jaderberg et al., arXiv 1711.09846, appendix A.1: 0.2)."""


@dataclass(frozen=True)
class Heir:
    """A run of the next generation.

    Attributes:
        source: the run whose training state it starts with.
    """

    name: str
    source: str
    values: Values


def boundaries(every: int, steps: int) -> list[int]:
    """The steps at which the generations end."""
    return [*range(every, steps, every), steps]


def heirs(
    space: Space, seed: int, generation: int, parents: Sequence[TrialRecord], metric: str, mode: str
) -> list[Heir]:
    """The runs that follow the runs of one generation, in their order; none where all of these went wrong.

    The worst quarter by the last validation, and every run that went wrong, go on from one of the best quarter each,
    with perturbed values. The others go on from themselves.

    Args:
        seed: decides, with the generation and a trial's place, what is drawn.
        generation: the number of the next one, from 1.
        parents: the runs of the last one.
        mode: `max` or `min`.
    """
    sign = -1.0 if mode == "min" else 1.0
    scores = {one.name: sign * one.reports[-1].get(metric, math.nan) if one.reports else math.nan for one in parents}
    good = [one for one in parents if not one.error and math.isfinite(scores[one.name])]
    ranked = sorted(good, key=lambda one: (-scores[one.name], one.name))
    count = min(math.ceil(SHARE * len(parents)), len(parents) // 2)
    best, last = ranked[:count], max(count - (len(parents) - len(good)), 0)
    kept = {one.name for one in ranked[: len(ranked) - last]}
    runs = []
    for place, parent in enumerate(parents if best else []):
        name = generation_of(parent.name, generation)
        if parent.name in kept:
            runs.append(Heir(name, parent.name, parent.values))
            continue
        generator = np.random.default_rng([seed, generation, place])
        source = best[int(generator.integers(len(best)))]
        runs.append(Heir(name, source.name, space.perturbed(source.values, generator)))
    return runs
