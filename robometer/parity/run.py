"""Every group of recorded cases that a folder holds, computed by our code."""

from __future__ import annotations

import importlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from robometer.errors import RobometerError
from robometer.parity.table import Row

logger = logging.getLogger(__name__)

GROUPS = {
    "a_targets": "robometer.parity.targets",
    "b_losses": "robometer.parity.losses",
    "c_metrics": "robometer.parity.metrics",
    "d_rbm": "robometer.parity.robometer",
    "d_rewind": "robometer.parity.rewind",
    "e_http": "robometer.parity.http",
    "f_samplers": "robometer.parity.samplers",
    "g_video": "robometer.parity.video",
    "h_prompts": "robometer.parity.prompts",
    "i_training": "robometer.parity.training",
}
"""Module of each group; its `rows(folder)` yields every case of the group in the set at `folder`."""


class ParityError(RobometerError):
    """A comparison that cannot begin; the message says why."""


@dataclass
class Comparison:
    """Rows of all groups that were there, and why each other group was not compared."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Row]:
        """Rows beyond their tolerance."""
        return [row for row in self.rows if not row.passed]


def compare(folder: Path, only: Sequence[str] = ()) -> Comparison:
    """Compare all groups of a set (or those of `only`).

    A group whose comparison breaks off gives a failed row that says so, so that the others are still seen.

    Raises:
        ParityError: no such folder, no group in it, or a group of `only` that is unknown or not there.
    """
    if not folder.is_dir():
        raise ParityError(f"there is no folder {folder}")
    unknown = sorted(set(only) - set(GROUPS))
    if unknown:
        raise ParityError(f"--only names {', '.join(unknown)}: the groups are {', '.join(GROUPS)}")
    absent = [group for group in GROUPS if not (folder / group).is_dir()]
    if len(absent) == len(GROUPS) or set(only) & set(absent):
        wanted = ", ".join(sorted(set(only) & set(absent))) or f"any of {', '.join(GROUPS)}"
        raise ParityError(f"{folder} has no folder {wanted}: give the folder that holds the groups of recorded cases")
    result = Comparison()
    for group in only or GROUPS:
        if group in absent:
            result.left_out[group] = "no such folder in this set"
        else:
            started = time.perf_counter()
            result.rows += _rows(group, folder)
            logger.info("%s compared in %.1f s", group, time.perf_counter() - started)
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """As upstream was recorded; more threads would only wait for each other, so small are the models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(group: str, folder: Path) -> list[Row]:
    found: list[Row] = []
    try:
        with _one_thread():
            found.extend(importlib.import_module(GROUPS[group]).rows(folder))
    except Exception as error:
        logger.exception("%s broke off", group)
        message = " ".join(str(error).split())[:120]
        found.append(Row(group, f"broke off with {type(error).__name__}: {message}", math.inf, 0.0))
    return found
