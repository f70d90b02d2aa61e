"""Storage that fails at each operation in turn: readers never see a partial result, and running the same work again
gives the result of an undisturbed run."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robometer.corpus.corpus import Corpus
from robometer.corpus.maintenance import join_shards, plan_joins
from robometer.corpus.manifest import latest, read_ledgers, read_schemas
from robometer.corpus.storage import Storage, StorageError
from robometer.corpus.writer import Accepted, Quarantined, ShardPlan, commit_shard
from robometer.trajectory import SCHEMA_VERSION
from tests.corpus.test_corpus import rejected, stored

INFO = b'{"schema_version": %d, "state": "complete", "settings": {}}' % SCHEMA_VERSION

UNITS: dict[str, list[Accepted | Quarantined]] = {
    "u0": [Accepted(stored(0).record, "u0")],
    "u7": [rejected(7, "corrupt at frame 7")],
    "u1": [Accepted(stored(1).record, "u1"), Accepted(stored(2).record, "u1")],
}
"""A listing: one unit gives a trajectory, one is refused, one gives two."""

READS = {"get_file_info", "open_input_stream", "open_input_file"}


class Failing(Storage):
    """A folder that fails at one change, or from that change on, as with a full disk or a killed process."""

    def __init__(self, path: str, at: int, for_good: bool) -> None:
        super().__init__(path)
        self._at, self._for_good, self.done = at, for_good, 0
        self.fs: Any = _Counted(self.fs, self.count)

    def count(self) -> None:
        """Count one more requested change."""
        self.done += 1
        if self.done == self._at or (self._for_good and self.done > self._at):
            raise OSError(28, "No space left on device")


class _Counted:
    """A file system, or one of its files, that counts its changes."""

    def __init__(self, inner: Any, count: Callable[[], None]) -> None:
        self._inner, self._count = inner, count

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name in READS or not callable(attribute):
            return attribute

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._count()
            result = attribute(*args, **kwargs)
            return _Stream(result, self._count) if name == "open_output_stream" else result

        return counted


class _Stream(io.RawIOBase):
    def __init__(self, inner: Any, count: Callable[[], None]) -> None:
        self._inner, self._count = inner, count

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._count()
        self._inner.write(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._inner.close()


def ingest(storage: Storage) -> None:
    """Store the units that no committed shard covers in a new shard, as an ingest does."""
    readings = latest(read_ledgers(storage))
    todo = [unit for unit in UNITS if unit not in readings]
    if todo:
        commit_shard(storage, "shard", [entry for unit in todo for entry in UNITS[unit]], job(*todo))


def job(*units: str) -> ShardPlan:
    """The plan of a shard of units that are read for the first time."""
    return ShardPlan(dict.fromkeys(units, "seal"))


def content(path: str) -> tuple[str, list[str], list[list[bytes]]]:
    """All that a reader sees: the rows, the rejections, and every frame."""
    corpus = Corpus(path)
    frames = [[bytes(frame) for frame in corpus.encoded_frames(row)] for row in range(len(corpus))]
    return corpus.content_hash, corpus.quarantine()["error"].to_pylist(), frames


def faults(make: Callable[[], Storage], work: Callable[[Storage], object], for_good: bool) -> Iterator[Storage]:
    """Yield, for n = 1, 2, ..., a folder of `make` in which `work` failed at its nth change, until it succeeds."""
    for n in range(1, 1000):
        storage = make()
        failing = Failing(storage.path, n, for_good)
        try:
            work(failing)
        except (OSError, StorageError):
            yield storage
        if failing.done < n:
            assert n > 10, "the work changed next to nothing"
            return


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["once", "for good"])
def for_good(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Storage]:
    """Makes empty corpora."""
    numbers = iter(range(10_000))

    def make() -> Storage:
        storage = Storage(str(tmp_path / str(next(numbers))))
        storage.write_bytes("corpus.json", INFO)
        return storage

    return make


def copies(of: Storage, fresh: Callable[[], Storage]) -> Callable[[], Storage]:
    """Makes copies of a corpus."""

    def make() -> Storage:
        storage = fresh()
        shutil.copytree(of.path, storage.path, dirs_exist_ok=True)
        return storage

    return make


def check_ingest(fresh: Callable[[], Storage], for_good: bool) -> None:
    """An ingest that fails anywhere, once or for good, changes all or nothing, and ends the same when it is rerun."""
    whole, empty = fresh(), fresh()
    ingest(whole)
    expected, nothing = content(whole.path), content(empty.path)
    assert len(expected[2]) == 3 and expected[1] == ["corrupt at frame 7"]
    for storage in faults(fresh, ingest, for_good):
        assert content(storage.path) in (nothing, expected)  # at once, or not at all
        ingest(storage)
        assert content(storage.path) == expected


def test_an_ingest_that_fails_anywhere_ends_the_same_when_it_is_run_again(
    fresh: Callable[[], Storage], for_good: bool
) -> None:
    check_ingest(fresh, for_good)


def test_a_second_ingest_of_the_same_shard_that_fails_takes_nothing_away(
    fresh: Callable[[], Storage], for_good: bool
) -> None:
    whole = fresh()
    ingest(whole)

    def again(storage: Storage) -> None:
        commit_shard(storage, "shard", [entry for entries in UNITS.values() for entry in entries], job(*UNITS))

    expected = content(whole.path)
    for storage in faults(copies(whole, fresh), again, for_good):
        assert content(storage.path) == expected


def test_a_join_that_fails_anywhere_ends_the_same_when_it_is_run_again(
    fresh: Callable[[], Storage], for_good: bool
) -> None:
    """Two shards share a trajectory: the first shard's row is kept, the second's is deleted."""

    whole = fresh()
    commit_shard(whole, "b", [stored(0, task="the second's"), stored(1)], job("u1"))
    commit_shard(whole, "a", [stored(0, task="the first's"), rejected(7, "corrupt at frame 7")], job("u0", "u7"))

    def join(storage: Storage) -> None:
        for shards in plan_joins(storage, 2**20):
            join_shards(storage, shards)

    expected = content(whole.path)
    for storage in faults(copies(whole, fresh), join, for_good):
        assert content(storage.path) == expected
        join(storage)
        (shard,) = read_schemas(storage)
        assert content(storage.path) == expected
        assert storage.open_arrow(f"shards/{shard}.arrow").num_record_batches == 2
        assert sorted(storage.read_parquet(f"manifest/{shard}.parquet")["task"].to_pylist()) == [
            "task 1",
            "the first's",
        ]
