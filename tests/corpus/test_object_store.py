"""Storage in a bucket, on a real S3 server: files appear whole or not at all there too."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread

import numpy as np
import pytest

from robometer.corpus.corpus import MAX_OPEN_OBJECTS, Corpus
from robometer.corpus.maintenance import join_shards, plan_joins
from robometer.corpus.storage import Storage, StorageError
from robometer.corpus.writer import commit_shard
from tests.corpus.test_corpus import stored
from tests.corpus.test_storage import INFO, check_ingest, content, job


def test_a_file_appears_when_its_block_ends_and_not_before(bucket: str) -> None:
    storage = Storage(f"{bucket}/corpus")
    with storage.write("a/b.bin") as stream:
        stream.write(b"half")
        stream.flush()
        assert not storage.exists("a/b.bin") and storage.list("a", ".bin") == []
        stream.write(b" and half")
    assert storage.read_bytes("a/b.bin") == b"half and half" and storage.list("a", ".bin") == ["a/b.bin"]
    assert storage.hidden("a") == []


def test_a_block_that_fails_changes_nothing(bucket: str) -> None:
    storage = Storage(f"{bucket}/corpus")
    storage.write_bytes("a/old.bin", b"old")
    for name in ("a/old.bin", "a/new.bin"):
        with pytest.raises(RuntimeError), storage.write(name) as stream:
            stream.write(b"half")
            raise RuntimeError
    assert storage.list("a", "") == ["a/old.bin"] and storage.read_bytes("a/old.bin") == b"old"
    assert storage.hidden("a") == []


def test_a_missing_file_and_a_missing_bucket_are_told_in_a_sentence(bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        Storage(bucket).read_bytes("absent")
    assert Storage(f"{bucket}/absent").list("shards", ".arrow") == []
    with pytest.raises(StorageError, match=r"cannot write .*does not exist"):
        Storage(f"{bucket}-absent/x").write_bytes("a", b"")


class _Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_storage_that_refuses_us_is_told_in_a_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    storage = Storage(f"{bucket}/corpus")
    for read in (lambda: storage.exists("a"), lambda: storage.list("a", "")):
        with pytest.raises(StorageError, match=r"cannot be read .*ACCESS_DENIED.*check the address, and the rights"):
            read()
    server.shutdown()
    server.server_close()


def test_what_a_killed_process_leaves_is_removed(bucket: str) -> None:
    storage = Storage(f"{bucket}/corpus")
    storage.write_bytes("shards/.a.arrow.elsewhere.1.0123abcd.tmp", b"")
    assert storage.remove_stale("shards") == 0  # it may be alive
    assert storage.remove_stale("shards", age_s=-60) == 1


@pytest.fixture
def fresh(bucket: str) -> Callable[[], Storage]:
    """Makes empty corpora."""
    numbers = iter(range(1000))

    def make() -> Storage:
        storage = Storage(f"{bucket}/{next(numbers)}")
        storage.write_bytes("corpus.json", INFO)
        return storage

    return make


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_an_ingest_that_fails_anywhere_ends_the_same_when_it_is_run_again(
    fresh: Callable[[], Storage], for_good: bool
) -> None:
    check_ingest(fresh, for_good)


def test_trajectories_are_read_ahead_side_by_side(fresh: Callable[[], Storage]) -> None:
    """As many requests are under way at a time as there are shards to read; what was read is not asked for again."""
    storage = fresh()
    for number in range(4):
        commit_shard(storage, f"shard{number}", [stored(number), stored(number + 4)])
    corpus, wanted = Corpus(storage.path), [0, 2, 3, 5, 6]
    expected = [corpus.frames(row) for row in wanted]
    assert corpus._shard.cache_info().maxsize == MAX_OPEN_OBJECTS

    shards = {corpus.manifest["shard"][row].as_py() for row in wanted}
    together, opened = Barrier(len(shards), timeout=20), list[str]()

    def open_together(name: str) -> object:
        together.wait()  # breaks where one waits for another
        opened.append(name)
        return storage.open_arrow(name)

    corpus._shard = lru_cache(open_together)
    corpus.read_ahead(wanted)
    for row in (*wanted, *wanted):
        assert np.array_equal(corpus.frames(row), expected[wanted.index(row)])
        storage.remove(f"shards/{corpus.manifest['shard'][row].as_py()}.arrow")
        corpus.read_ahead([row, wanted[0]] if row in wanted[:1] else wanted)  # a part of these, or all
    assert sorted(opened) == [f"shards/{shard}.arrow" for shard in sorted(shards)]


def test_a_shard_that_cannot_be_read_ahead_is_an_error_where_it_is_needed(fresh: Callable[[], Storage]) -> None:
    storage = fresh()
    commit_shard(storage, "good", [stored(0)])
    commit_shard(storage, "lost", [stored(1)])
    corpus = Corpus(storage.path)
    storage.remove("shards/lost.arrow")
    corpus.read_ahead([0, 1])
    good = corpus.manifest["shard"].to_pylist().index("good")
    assert len(corpus.frames(good)) == 5
    with pytest.raises(FileNotFoundError, match="lost"):
        corpus.frames(1 - good)


def test_shards_are_joined(fresh: Callable[[], Storage]) -> None:
    storage = fresh()
    for name, number in (("a", 0), ("b", 1)):
        commit_shard(storage, name, [stored(number)], job(f"u{number}"))
    before = content(storage.path)
    for shards in plan_joins(storage, 2**20):
        join_shards(storage, shards)
    assert content(storage.path) == before and len(storage.list("manifest", ".parquet")) == 1


def test_a_folder_takes_the_place_of_another_and_what_it_needs_is_written_last(bucket: str) -> None:
    storage = Storage(f"{bucket}/run")
    storage.write_bytes("best/model.safetensors", b"old")
    storage.write_bytes("best/left-over.json", b"old")
    written: list[str] = []
    move = storage.fs.move

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def move(self, source: str, target: str) -> None:
            assert not storage.exists("best/left-over.json") and not storage.exists("best/model.safetensors")
            written.append(target.rpartition("/")[2])
            move(source, target)

    real, storage.fs = storage.fs, Watched()  # type: ignore[assignment]
    with storage.write_folder("best", last=("model.safetensors", "absent")) as staging:
        assert storage.read_bytes("best/model.safetensors") == b"old"
        (staging / "tokenizer").mkdir(parents=True)
        for name in ("model.safetensors", "tokenizer/z.json", "config.yaml"):
            (staging / name).write_text(name)
    assert written == ["config.yaml", "z.json", "model.safetensors"]
    with storage.local_copy("best") as copy:
        assert {path.name: path.read_text() for path in copy.rglob("*") if path.is_file()} == {
            "model.safetensors": "model.safetensors",
            "z.json": "tokenizer/z.json",
            "config.yaml": "config.yaml",
        }
    assert not copy.exists()
    with storage.local_copy("best/config.yaml") as file:
        assert (file.name, file.read_text()) == ("config.yaml", "config.yaml")


def test_a_folder_that_fails_leaves_the_old_one(bucket: str) -> None:
    storage = Storage(f"{bucket}/run")
    storage.write_bytes("best/model.safetensors", b"old")
    with pytest.raises(RuntimeError), storage.write_folder("best", last=()) as staging:
        staging.mkdir()
        raise RuntimeError
    assert storage.read_bytes("best/model.safetensors") == b"old"
    with pytest.raises(FileNotFoundError), storage.local_copy("absent"):
        pytest.fail("a copy of nothing")
