"""The manifest's snapshot: readers see the rows of the shards' own files, whatever became of these or of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from robometer.corpus.corpus import Corpus
from robometer.corpus.maintenance import join_shards, plan_joins
from robometer.corpus.manifest import SNAPSHOT, SNAPSHOT_OF, read_manifest, write_snapshot
from robometer.corpus.storage import Storage
from robometer.corpus.writer import commit_shard
from robometer.trajectory import SCHEMA_VERSION
from tests.corpus.test_corpus import stored


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Six shards of two trajectories; one that `b` and `e` both have counts in `b`."""
    folder = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    storage = Storage(f"{folder}/corpus")
    storage.write_bytes("corpus.json", b'{"schema_version": %d, "state": "complete", "settings": {}}' % SCHEMA_VERSION)
    for i, name in enumerate("abcdef"):
        commit_shard(storage, name, [stored(2 * i), stored(2 * i + 1)])
    commit_shard(storage, "e", [stored(3, task="of another ingest"), stored(9)])
    return storage


def from_files(storage: Storage) -> pa.Table:
    """The manifest as it is without a snapshot."""
    kept = storage.read_bytes(SNAPSHOT) if storage.exists(SNAPSHOT) else None
    storage.remove(SNAPSHOT)
    rows = read_manifest(storage)
    if kept is not None:
        storage.write_bytes(SNAPSHOT, kept)
    return rows


def commit_over(storage: Storage) -> None:
    commit_shard(storage, "c", [stored(4, task="changed"), stored(5)])


def commit_first(storage: Storage) -> None:
    """A shard that comes first by its name, with a row of `b`."""
    commit_shard(storage, "0", [stored(2, task="first"), stored(20)])


def commit_before_and_after(storage: Storage) -> None:
    commit_over(storage)
    commit_first(storage)


def commit_last(storage: Storage) -> None:
    commit_shard(storage, "g", [stored(2, task="last"), stored(20)])


def drop_one(storage: Storage) -> None:
    storage.remove("manifest/b.parquet")


def join_some(storage: Storage) -> None:
    """With what a join that is killed before the end leaves."""
    [join] = plan_joins(storage, 2**30)
    join.shards = [shard for shard in join.shards if shard in "bc"]
    files = {name: storage.read_bytes(name) for name in ("manifest/b.parquet", "manifest/c.parquet")}
    join_shards(storage, join)
    for name, content in files.items():
        storage.write_bytes(name, content)


@pytest.mark.parametrize(
    "change", [lambda _: None, commit_over, commit_first, commit_before_and_after, commit_last, drop_one, join_some]
)
@pytest.mark.parametrize("again", [False, True])
def test_rows_are_those_of_the_files(storage: Storage, change: Callable[[Storage], None], again: bool) -> None:
    before = read_manifest(storage)
    assert write_snapshot(storage, 2, 0.0) and read_manifest(storage).equals(before)
    change(storage)
    if again:
        write_snapshot(storage, 1, 0.0)
    assert read_manifest(storage).equals(from_files(storage))
    tasks = read_manifest(storage, ["task", "shard"])
    assert tasks.equals(from_files(storage).select(["task", "shard"]))
    for row in range(len(before) if change is commit_last else 0):
        Corpus(storage.path).record(row)  # its place is the one in the manifest


def test_files_in_the_snapshot_are_not_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(storage, 2, 0.0)
    commit_first(storage)
    read, opened = Storage.read_parquet, list[str]()

    def seen(self: Storage, name: str, *args: object) -> pa.Table:
        opened.append(name)
        return read(self, name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Storage, "read_parquet", seen)
    read_manifest(storage)
    assert sorted(opened) == [SNAPSHOT, "manifest/0.parquet"]


def test_a_snapshot_is_made_for_many_files_and_renewed_after_many(storage: Storage) -> None:
    assert not write_snapshot(storage, 7, 0.0) and not storage.exists(SNAPSHOT)
    assert write_snapshot(storage, 6, 0.0)
    commit_first(storage)
    commit_over(storage)
    assert not write_snapshot(storage, 3, 0.0)  # one is new, and one has changed
    assert write_snapshot(storage, 2, 0.0) and not write_snapshot(storage, 1, 0.0)
    entries = json.loads(storage.read_parquet_schema(SNAPSHOT).metadata[SNAPSHOT_OF])
    assert list(entries) == [f"manifest/{name}.parquet" for name in "0abcdef"]
    assert [entry[1:3] for entry in entries.values()] == [[2 * i, 2] for i in range(7)]


@pytest.mark.parametrize("content", [b"", b"no table", b"cut"])
def test_a_damaged_snapshot_is_told_and_not_used(
    storage: Storage, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before = from_files(storage)
    write_snapshot(storage, 2, 0.0)
    storage.write_bytes(SNAPSHOT, storage.read_bytes(SNAPSHOT)[:200] if content == b"cut" else content)
    with caplog.at_level(logging.WARNING):
        assert read_manifest(storage).equals(before)
    assert "cannot be read" in caplog.text and SNAPSHOT in caplog.text


def test_a_file_that_changes_meanwhile_is_in_no_snapshot(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket, times are whole seconds: a file of the same size might change within one."""
    if storage.is_local:
        pytest.skip("times on a disk are finer than a change takes")
    monkeypatch.setattr("time.sleep", lambda _: commit_over(storage))
    assert write_snapshot(storage, 2)
    assert "manifest/c.parquet" not in json.loads(storage.read_parquet_schema(SNAPSHOT).metadata[SNAPSHOT_OF])
    assert read_manifest(storage).equals(from_files(storage))
