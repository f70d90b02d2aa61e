"""Raw data in a bucket, on a real S3 server: the same corpus as from a disk, and only a unit's files at a time.

Every fixture of every format is compared too, wherever `tests.corpus.formats.raw.ingest` reads it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

import pytest

from pipelines.ingest import IngestReport, run_ingest
from robometer.configs import load
from robometer.corpus.corpus import Corpus
from robometer.corpus.formats import FormatError, Unit
from robometer.corpus.identity import Sealer
from robometer.corpus.remote_input import LocalUnits, listing
from robometer.corpus.storage import Storage, StorageError
from tests.object_store import upload
from tests.pipelines.test_ingest import write_data

NAMES = ["trajectories.jsonl", *(f"{i}.mp4" for i in range(5))]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders of this process go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def ingest(corpus: Path, input: str, *overrides: str) -> IngestReport:
    sizes = ("ingest.max_frames=8", "ingest.short_edge=32", "ingest.shard_size=3")
    return run_ingest(load([f"corpus.path={corpus}", f"ingest.input={input}", *sizes, *overrides]))


def test_a_corpus_from_a_bucket_is_the_corpus_from_a_disk(ray_local: None, tmp_path: Path, bucket: str) -> None:
    raw = write_data(tmp_path / "data", 5, [{"video": "absent.mp4", "task": "t"}, {"video": "bad.mp4", "task": "t"}])
    (raw / "bad.mp4").write_bytes(b"no video")
    upload(raw, f"{bucket}/of/data", [*NAMES, "bad.mp4"])
    uri = f"{bucket}/of/data"
    for input in (uri, f"{uri}/", f"{uri}/trajectories.jsonl"):
        corpus, there = tmp_path / f"from{len(input)}", tmp_path / f"disk{len(input)}"
        report = ingest(corpus, input)
        assert (report.new, report.quarantined) == (5, 2)
        ingest(there, str(raw / "trajectories.jsonl") if input.endswith("l") else str(raw))
        assert Corpus(str(corpus)).content_hash == Corpus(str(there)).content_hash
        assert sorted(Corpus(str(corpus)).manifest["uri"].to_pylist()) == [f"{uri}/{i}.mp4" for i in range(5)]
        refused = {row["uri"]: row["error"] for row in Corpus(str(corpus)).quarantine().to_pylist()}
        assert set(refused) == {f"{uri}/absent.mp4", f"{uri}/bad.mp4"} and "robometer-raw" not in str(refused)
        assert (ingest(corpus, input).present, ingest(corpus, input).new) == (5, 0)


def test_a_changed_object_is_read_again_and_data_from_another_place_is_told(
    ray_local: None, tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_data(tmp_path / "data", 5)
    upload(raw, f"{bucket}/data", NAMES)
    ingest(tmp_path / "corpus", f"{bucket}/data")
    write_data(tmp_path / "other/data", 6)
    changed = (tmp_path / "other/data/5.mp4").read_bytes()
    Storage(f"{bucket}/data").put_bytes("2.mp4", changed)
    assert ingest(tmp_path / "corpus", f"{bucket}/data").differing == 1
    assert ingest(tmp_path / "corpus", f"{bucket}/data", "ingest.update=true").updated == 1
    with caplog.at_level(logging.WARNING):
        lines = (raw / "trajectories.jsonl").read_text().replace('"video": "', '"video": "more')
        Storage(f"{bucket}/second/data").put_bytes("trajectories.jsonl", lines.encode())
        for name in NAMES[1:]:
            Storage(f"{bucket}/second/data").put_bytes(f"more{name}", changed)
        ingest(tmp_path / "corpus", f"{bucket}/second/data")
    assert "from another place" in caplog.text


def test_a_worker_has_the_files_of_two_units_at_most_and_leaves_none(
    tmp_path: Path, bucket: str, scratch: Path
) -> None:
    raw = write_data(tmp_path / "data", 5)
    upload(raw, f"{bucket}/data", NAMES)
    seals = []
    for _ in range(2):
        with listing("mp4_jsonl", f"{bucket}/data", "") as (entries, to_uris):
            local = list(entries)
            seals.append(Sealer("train").seals(local))
    assert seals[0] == seals[1], "the next ingest would read it all again"
    with listing("mp4_jsonl", f"{bucket}/data", "") as (entries, to_uris):
        local = list(entries)
        units = [to_uris(unit) for unit in local]
        hollow = Path(local[0].uri)
        assert hollow.stat().st_size == (raw / "0.mp4").stat().st_size and not any(hollow.read_bytes())
    assert not list(scratch.iterdir())
    assert [unit.uri for unit in units] == [f"{bucket}/data/{i}.mp4" for i in range(5)]
    for number, unit in enumerate(LocalUnits(units, "mp4_jsonl", f"{bucket}/data")):
        assert Path(unit.uri).read_bytes() == (raw / f"{number}.mp4").read_bytes()
        videos = {path.name for path in scratch.rglob("*.mp4")}
        assert {f"{number}.mp4"} <= videos <= {f"{number}.mp4", f"{number + 1}.mp4"}
    assert not list(scratch.iterdir())


def test_a_file_that_units_share_is_fetched_once(bucket: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a folder as a whole."""
    storage, fetched = Storage(f"{bucket}/data"), list[str]()
    for name in ("joined.mp4", "labels.json", "frames/0.png", "frames/sub/1.png"):
        storage.put_bytes(name, name.encode())
    fetch = Storage.fetch
    monkeypatch.setattr(Storage, "fetch", lambda self, name, path: (fetched.append(name), fetch(self, name, path)))
    at = f"{bucket}/data"
    shared = [f"{at}/joined.mp4", f"{at}/labels.json", f"{at}/optional.txt"]
    units = [
        Unit("0", "s", shared[0], data={"labels": shared[1]}, files=shared),
        Unit("1", "s", shared[0], files=shared),
        Unit("2", "s", f"{at}/frames"),
        Unit("3", "s", shared[0], files=shared),
    ]
    seen = []
    for unit in LocalUnits(units, "lerobot", at):
        seen.append(sorted(path.name for path in Path(unit.uri).parent.rglob("*") if path.is_file()))
        assert Path(unit.data.get("labels", unit.uri)).exists()
    assert [set(names) >= {"joined.mp4", "labels.json"} for names in (seen[0], seen[1], seen[3])] == [True] * 3
    assert {"0.png", "1.png"} <= set(seen[2])
    assert sorted(fetched) == sorted(
        ["data/joined.mp4", "data/labels.json"] * 2 + ["data/frames/0.png", "data/frames/sub/1.png"]
    )


def test_units_whose_folders_lie_in_each_other_have_all_their_files(bucket: str, scratch: Path) -> None:
    storage = Storage(f"{bucket}/data")
    for name in ("a/0.png", "a/1.png", "a/b/2.png", "a/b/c/3.png"):
        storage.put_bytes(name, name.encode())
    folders = ("a", "a/b", "a/b/c", "a/b", "a", "a/b/c", "a")
    units = [Unit(str(n), "s", f"{bucket}/data/{folder}") for n, folder in enumerate(folders)]
    expected = {"a": "0123", "a/b": "23", "a/b/c": "3"}
    for folder, unit in zip(folders, LocalUnits(units, "image_folders", f"{bucket}/data"), strict=True):
        there = sorted(Path(unit.uri).rglob("*.png"))
        assert sorted(path.stem for path in there) == list(expected[folder])
        assert all(path.read_bytes().decode() == str(path).partition("/data/")[2] for path in there)
    assert not list(scratch.iterdir())


def test_what_cannot_be_listed_is_told_in_a_sentence(bucket: str) -> None:
    def units(format: str, place: str) -> list[object]:
        with listing(format, f"{bucket}{place}", "") as (entries, _):
            return list(entries)

    for place in ("/absent", "-absent/x"):
        with pytest.raises(FormatError, match=rf"there is no file at {bucket}{place}: check ingest\.input"):
            units("mp4_jsonl", place)
    Storage(f"{bucket}/tars").put_bytes("a.tar", b"")
    with pytest.raises(FormatError, match=r"holds tars/a\.tar, which ingest\.format=rbm_processed must read to list"):
        units("rbm_processed", "/tars")
    Storage(f"{bucket}/plain").put_bytes("note.txt", b"")
    with pytest.raises(FormatError, match=rf"no trajectories\.jsonl at {bucket}/plain"):
        units("mp4_jsonl", "/plain")
    clash = Storage(f"{bucket}/clash")
    clash.put_bytes("a", b"")
    clash.put_bytes("a/b.json", json.dumps({}).encode())
    with pytest.raises(FormatError, match=r"a name that no file on a disk can have beside the others"):
        units("mp4_jsonl", "/clash")


def test_a_network_that_fails_ends_the_shard_instead_of_quarantining_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = Unit("0", "s", f"{bucket}/data/0.mp4")
    Storage(f"{bucket}/data").put_bytes("0.mp4", b"x")

    def fetch(*_: object) -> None:
        raise StorageError("gone")

    monkeypatch.setattr(Storage, "fetch", fetch)
    with pytest.raises(StorageError, match="gone"):
        list(LocalUnits([unit], "mp4_jsonl", f"{bucket}/data"))
