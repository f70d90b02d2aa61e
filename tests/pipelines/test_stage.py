"""A stage answers every item once, shows its progress, and fails in a sentence."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from pipelines.cluster import connected
from pipelines.stage import Actors, crash_mark, run_actors, run_stage, run_task
from robometer.configs import load
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.settings import ConfigError


class StageError(RobometerError):
    """The stage of these tests failed."""


def square(number: int) -> tuple[int, dict[str, int]]:
    """Any object may be an item or an answer."""
    if number < 0:
        raise ValueError(f"{number} is negative.")
    return number**2, {"pid": os.getpid()}


@pytest.mark.parametrize("max_tasks", [2, 1024])
def test_every_item_is_answered_once_and_the_progress_counts_sizes(
    ray_local: None, caplog: pytest.LogCaptureFixture, max_tasks: int
) -> None:
    total = 0
    caplog.set_level(logging.INFO, logger="pipelines.cluster")
    options = {"max_tasks": max_tasks, "size": lambda n: n, "values": lambda: {"sum": total}}
    answers = run_stage("square", [1, 2, 3], square, StageError, **options)
    with connected(load()):
        for answer, _ in answers:
            total += answer
    assert total == 14
    assert caplog.messages[-1].startswith("square 6/6") and caplog.messages[-1].endswith("sum 14")


def test_a_failure_says_its_cause_and_what_to_do(ray_local: None) -> None:
    message = "^a worker failed: ValueError: -1 is negative. Fix the cause, then rerun the same command.$"
    with connected(load()):
        with pytest.raises(StageError, match=message):
            list(run_stage("square", [1, -1], square, StageError))
        with pytest.raises(StageError, match=message):
            run_task("square", StageError, square, -1)
        assert run_task("square", StageError, square, 3)[0] == 9


def test_no_items_need_no_ray() -> None:
    assert list(run_stage("square", [], square, StageError)) == []
    assert list(run_actors("square", [], partial(Squares, "nowhere"), StageError, Actors())) == []


class Squares:
    """Kills its process at one number, once, and notes each start."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        with (self.folder / "starts").open("a") as file:
            file.write("x")

    def __call__(self, number: int) -> int:
        if number == 2 and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2


def test_an_actor_is_started_once_and_the_item_over_which_it_died_is_answered(ray_local: None, tmp_path: Path) -> None:
    with connected(load()):
        answers = run_actors("square", [0, 1, 2, 3, 4], partial(Squares, str(tmp_path)), StageError, Actors(1))
        assert sorted(answers) == [0, 1, 4, 9, 16]
    assert (tmp_path / "starts").read_text() == "xx"


def test_actors_that_no_ray_of_ours_can_hold_end_before_the_first(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipelines.cluster._started_here", True)
    with pytest.raises(ConfigError, match=r"square needs 1 CPU and 1 GPU; this Ray has .*or set square.num_gpus lower"):
        next(run_actors("square", [1], partial(Squares, str(tmp_path)), StageError, Actors(1, num_gpus=1)))


def test_a_crash_mark_stays_where_the_work_failed_and_tells_the_next(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(ZeroDivisionError), crash_mark(storage, "begun/a", b"first") as crashed:
        assert crashed is None and storage.read_bytes("begun/a") == b"first"
        raise ZeroDivisionError
    with crash_mark(storage, "begun/a", b"second") as crashed:
        assert crashed == b"first" == storage.read_bytes("begun/a")
    assert not storage.exists("begun/a")
