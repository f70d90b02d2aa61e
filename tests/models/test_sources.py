"""A checkpoint in a bucket is copied once into the cache, whole, and again when it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robometer.corpus.storage import Storage
from robometer.models import sources
from robometer.models.sources import for_workers, is_checkpoint_name, locate
from robometer.models.weights import CheckpointError

FILES = {
    "config.yaml": b"a",
    "model.safetensors": b"weights",
    "tokenizer/vocab.json": b"{}",
    "state/rank0.pt": b"pickle",
}


@pytest.fixture
def uri(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a folder with `FILES`; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, data in FILES.items():
        Storage(f"{bucket}/best").write_bytes(name, data)
    return f"{bucket}/best"


def test_it_is_copied_once_without_what_is_no_model(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locate(uri)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: data for name, data in FILES.items() if not name.startswith("state")}
    assert is_checkpoint_name(uri) and for_workers(uri) == uri
    monkeypatch.setattr(sources.shutil, "copyfileobj", None)
    assert locate(uri) == folder and os.listdir(folder.parent) == [folder.name]


def test_a_new_content_is_copied_anew(uri: str) -> None:
    old = locate(uri)
    Storage(uri).write_bytes("model.safetensors", b"others!")
    assert (locate(uri) / "model.safetensors").read_bytes() == b"others!"
    assert (old / "model.safetensors").read_bytes() == b"weights"


def test_one_that_changes_meanwhile_is_refused_and_leaves_nothing(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(uri)
    monkeypatch.setattr(sources.shutil, "copyfileobj", lambda *_: storage.write_bytes("config.yaml", b"longer"))
    with pytest.raises(CheckpointError, match="changed while it was copied"):
        locate(uri)
    assert not os.listdir(tmp_path / "robometer/checkpoints")


def test_a_folder_without_a_checkpoint_is_told_in_a_sentence(uri: str) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint: give"):
        locate(f"{uri}/absent")
