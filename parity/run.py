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

from parity.recorded_set import ParityError, RecordedSet
from parity.row import Row

logger = logging.getLogger(__name__)

GROUPS = {
    "a_targets": "targets",
    "b_losses": "losses",
    "c_metrics": "metrics",
    "d_rbm": "vlm",
    "d_rewind": "rewind",
    "e_http": "http",
    "f_samplers": "samplers",
    "g_video": "video",
    "h_prompts": "prompts",
    "i_training": "training",
}
"""Module of `parity.groups` that compares each group."""


@dataclass
class Comparison:
    """Rows of all groups that were there, and why each other group was not compared."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Row]:
        """Rows beyond their tolerance."""
        return [row for row in self.rows if not row.passed]


def compare(recorded: RecordedSet, only: Sequence[str] = ()) -> Comparison:
    """Compare all groups of a set, or those of `only`.

    A group whose comparison breaks off gives a failed row that says so; the others are still compared.

    Raises:
        ParityError: no such folder, no group in it, or a group of `only` that is unknown or not there.
    """
    groups = _chosen(recorded.folder, only)
    result = Comparison()
    for group in groups:
        if (recorded.folder / group).is_dir():
            started = time.perf_counter()
            result.rows += _rows(group, recorded)
            logger.info("%s compared in %.1f s", group, time.perf_counter() - started)
        else:
            result.left_out[group] = "no such folder in this set"
    return result


def _chosen(folder: Path, only: Sequence[str]) -> Sequence[str]:
    """The groups to compare; without `only` also those that the set lacks."""
    if not folder.is_dir():
        raise ParityError(f"There is no folder {folder}")
    if unknown := sorted(set(only) - set(GROUPS)):
        raise ParityError(f"--only names {', '.join(unknown)}: the groups are {', '.join(GROUPS)}")
    present = [group for group in GROUPS if (folder / group).is_dir()]
    if not present:
        raise ParityError(
            f"{folder} has none of the folders {', '.join(GROUPS)}: give the folder that holds the groups"
        )
    if absent := [group for group in only if group not in present]:
        raise ParityError(f"{folder} has no folder {', '.join(absent)}: it has {', '.join(present)}")
    return only or list(GROUPS)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As upstream was recorded; the models are so small that more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(group: str, recorded: RecordedSet) -> list[Row]:
    rows: list[Row] = []
    try:
        with _one_thread():
            rows.extend(importlib.import_module(f"parity.groups.{GROUPS[group]}").rows(recorded))
    except Exception as error:
        logger.exception("%s broke off", group)
        message = " ".join(str(error).split())[:240]
        rows.append(Row(group, f"broke off with {type(error).__name__}: {message}", math.inf, 0.0))
    return rows
