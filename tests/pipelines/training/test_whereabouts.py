"""Where workers wait: who writes it down, and what the driver makes of it."""

from __future__ import annotations

import json
import time
from contextlib import closing

import pytest

from pipelines.training.whereabouts import FOLDER, Whereabouts, _ranks, explain
from robometer.corpus.storage import Storage


@pytest.fixture(params=["tmp_path", "bucket"])
def output(request: pytest.FixtureRequest) -> Storage:
    """The folder of a run."""
    return Storage(f"{request.getfixturevalue(request.param)}/run")


def _note(output: Storage, rank: int, step: int, doing: str, since: float, size: int = 4) -> None:
    note = {"step": step, "doing": doing, "since": since, "world_size": size, "host": f"host-{rank}", "pid": 100 + rank}
    output.write_bytes(f"{FOLDER}/{rank}.json", json.dumps(note).encode())


def _wait_for_note(output: Storage, rank: int) -> dict[str, object]:
    end = time.monotonic() + 20
    while not output.exists(f"{FOLDER}/{rank}.json"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return dict(json.loads(output.read_bytes(f"{FOLDER}/{rank}.json")))


def test_a_worker_that_stays_writes_where_it_is_and_one_that_moves_writes_nothing(output: Storage) -> None:
    with closing(Whereabouts(output, 1, 2, after_s=0.4)) as worker:
        for step in range(20):
            worker.at(step, "waits for its batch")
            time.sleep(0.05)
        assert explain(output) == ""
        before = time.time()
        worker.at(21, "sums the losses with the others")
        note = _wait_for_note(output, 1)
        worker.at(22, "waits for its batch")
        end = time.monotonic() + 20
        while output.exists(f"{FOLDER}/1.json"):  # it has gone on
            assert time.monotonic() < end
        worker.at(23, "sums the losses with the others")
        assert _wait_for_note(output, 1)["step"] == 23
        worker.at(24, "waits for its batch")
    assert explain(output) == "", "it went on, and ended"
    with closing(Whereabouts(output, 1, 2, after_s=0.4)) as worker:
        worker.at(21, "sums the losses with the others")
        _wait_for_note(output, 1)
    assert (note["step"], note["doing"], note["world_size"]) == (21, "sums the losses with the others", 2)
    assert abs(float(str(note["since"])) - before) < 0.2
    assert explain(output).startswith(
        "Where the workers were: rank 0: no word, so its process is frozen or gone; rank 1"
    )


def test_notes_of_an_earlier_attempt_are_gone_also_those_of_ranks_that_there_are_no_more(output: Storage) -> None:
    for rank in range(5):
        _note(output, rank, 3, "waits for its batch", 0.0)
    with closing(Whereabouts(output, 1, 2)):
        assert output.list(FOLDER, ".json") == [f"{FOLDER}/{rank}.json" for rank in (0, 2, 4)]
    with closing(Whereabouts(output, 0, 2)):
        assert output.list(FOLDER, ".json") == []


def test_the_one_for_whom_the_others_wait_comes_first(output: Storage) -> None:
    noon = time.mktime((2026, 12, 1, 12, 0, 0, 0, 0, -1))
    for rank in (0, 1, 3, 6, 5):
        _note(output, rank, 41, "sums the losses with the others", noon + 10 - rank, 8)
    _note(output, 2, 41, "waits for its batch", noon, 8)
    assert explain(output) == (
        "Where the workers were: ranks 4, 7: no word, so their processes are frozen or gone; "
        "rank 2 (on host-2, process 102): step 41, waits for its batch, since 12:00:00; "
        "ranks 0-1, 3, 5-6 (the first on host-6): step 41, sums the losses with the others, since 12:00:04."
    )
    output.write_bytes(f"{FOLDER}/2.json", b"{")
    assert "ranks 2, 4, 7: no word" in explain(output)


def test_ranks_in_a_row_are_joined() -> None:
    assert _ranks([3]) == "rank 3"
    assert _ranks([9, 1, 2, 3, 5]) == "ranks 1-3, 5, 9"
