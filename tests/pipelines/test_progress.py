"""The progress of long work, and lines that are kept off the screen."""

from __future__ import annotations

import logging
import re

import pytest

from pipelines.cluster import progress_bar
from pipelines.foreign import PROGRESS, is_ours

SEEN = [
    "[2026-11-28 21:47:45,981 E 10116 10116] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches(E))' "
    "and ID: '25e0a1' has constructor arguments in the object store and max_restarts > 0. If the arguments in the",
    "Task ServeController.graceful_shutdown failed. There are infinite retries remaining, so the task will be retried.",
    "WARNING: 8 PYTHON worker processes have been started on node: ecdd with address: 192.0.2.2, which is 4x the",
    "Progress bars disabled. To enable, set `ray.data.DataContext.get_current().enable_progress_bars = True`.",
    "Detected that the Ray Train controller actor (ac4d) is dead. Cleaning up placement group = [PlacementGroupID(6)]",
    "Reporting training result 1: TrainingReport(checkpoint=Checkpoint(filesystem=local, path=/run), metrics={})",
    "Model weights successfully saved to /tmp/robometer-checkpoint-8jw1xvkr/model!",
    "Token authentication is enabled for this Ray cluster. Set RAY_AUTH_MODE=disabled to opt out. For more",
    'Started Serve in namespace "serve".',
    'Connecting to existing Serve app in namespace "serve". New http_options/controller_options will not be applied.',
    "Application 'robometer' is ready at http://127.0.0.1:51823/.",
    "[mutex.cc : 452] RAW: Lock blocking 0x5606fb1b4e20   @ 0x7efc4322b1a2 0x7efc422fb23c 0x7efc42bc2022",
    "`ray_remote_args` is deprecated and will be removed in Ray 2.64. Use the named remote parameters instead.",
    "Cluster resources are not enough to run any task from MapBatches. The job may hang forever unless the cluster",
]
"""As they were seen on the screen of a first run (Ray 2.60.0)."""

OTHERS = [
    "[2026-11-28 21:47:45,981 E 10116 10116] core_worker.cc:900: The raylet died",
    "Task EmbedShards failed. There are 3 retries remaining, so the task will be retried. Error: the node is dead",
    "Token authentication is disabled for this Ray cluster. Anyone with network access to the cluster can run code",
    "*** SIGABRT received at time=1795903086 on cpu 0 ***",
    "Controller failed to shut down within 30 s",
    "train 12/400, 4.00/s, about 01:37 left, loss 4.15",
]


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("ray", logging.WARNING, "", 1, text, None, None)


@pytest.mark.parametrize("line", SEEN)
def test_lines_that_are_nobodys_problem_are_kept_off_the_screen(line: str) -> None:
    assert not is_ours(_record(line))


@pytest.mark.parametrize("line", OTHERS)
def test_every_other_line_is_shown(line: str) -> None:
    assert is_ours(_record(line))


def lines_of(caplog: pytest.LogCaptureFixture, total: int, at: list[tuple[float, int]]) -> list[str]:
    """The log lines of work that begins at second 100; `at` are seconds since then and what is done by then."""
    times = iter([100.0, *(100.0 + seconds for seconds, _ in at)])
    caplog.set_level(logging.INFO, logger="pipelines.cluster")
    show = progress_bar("train", total, interactive=False, clock=lambda: next(times))
    for _, done in at:
        show(done, {"loss": 4.15})
    return caplog.messages


def test_a_line_every_ten_seconds_has_the_rate_and_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(caplog, 400, [(30, 1), (35, 2), (40, 6), (49, 30), (50, 81), (55, 400)]) == [
        "train 1/400, loss 4.15",  # the seconds before it were those of workers that start
        "train 6/400, 30/min, about 13:08 left, loss 4.15",  # 5 steps in 10 s: 394 steps of 2 s each
        "train 81/400, 4/s, about 01:20 left, loss 4.15",  # 80 in 20 s: 319 more
        "train 400/400, 16/s, took 00:55, loss 4.15",  # 399 in 25 s
    ]


def test_what_was_done_before_does_not_count_for_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(caplog, 7260, [(10, 50), (20, 60)])[1:] == ["train 60/7260, 1/s, about 2:00:00 left, loss 4.15"]


def test_work_that_is_done_at_once_says_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(caplog, 9, [(60.5, 4), (61, 9)])[1:] == ["train 9/9, took 01:01, loss 4.15"]


def test_ray_prints_each_of_our_lines() -> None:
    assert re.search(PROGRESS, "train 12/400, 4/s, about 01:37 left") and re.search(PROGRESS, "train 5/9")
    assert not re.search(PROGRESS, "sampling split train: 1761 of 2283 rows")
