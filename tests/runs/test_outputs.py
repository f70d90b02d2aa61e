"""Output folders: one job at a time; a second job is told who holds the folder, and a dead holder blocks nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from robometer.corpus.storage import Storage
from robometer.runs import outputs
from robometer.runs.outputs import IN_USE, InUseError, exclusive_folder

HOLD = """
import sys, time
from robometer.runs.outputs import exclusive_folder
with exclusive_folder("train.output", sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    environment = os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "raysubmit_1"}}'}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def _change(folder: Path, **values: str) -> None:
    """Change what the holder recorded about itself."""
    (path,) = folder.glob(f"{IN_USE}*")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_second_job_is_told_of_the_first_and_follows_it_at_once_when_it_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as first:
        with pytest.raises(InUseError) as refused, exclusive_folder("train.output", tmp_path / "run"):
            pytest.fail("two jobs in one folder")
        for part in (
            f"train.output={tmp_path}/run",
            f"process {first.pid}",
            "raysubmit_1",
            outputs.socket.gethostname(),
        ):
            assert part in str(refused.value)
        first.send_signal(signal.SIGKILL)
        first.wait()
        started = time.monotonic()
        with exclusive_folder("train.output", tmp_path / "run"):
            assert time.monotonic() - started < 1
    assert not os.listdir(tmp_path / "run")


def test_a_killed_job_that_nobody_has_waited_for_is_dead_too(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.send_signal(signal.SIGKILL)  # a zombie until it is waited for
        time.sleep(0.3)
        with exclusive_folder("train.output", tmp_path):
            pass


def test_another_process_with_the_number_of_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path):
        _change(tmp_path, started="1")
        with exclusive_folder("train.output", tmp_path):
            pass


def test_a_folder_is_free_after_its_job_however_that_ends(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), exclusive_folder("train.output", tmp_path):
        assert len(os.listdir(tmp_path)) == 1
        raise RuntimeError("broken")
    assert not os.listdir(tmp_path)


def test_what_lives_on_another_machine_is_refused_and_what_is_lost_there_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.2)
    monkeypatch.setattr(outputs, "GONE_AFTER_S", 2.0)
    with exclusive_folder("train.output", tmp_path):
        monkeypatch.setattr(outputs, "_machine", lambda: "another")
        with pytest.raises(InUseError, match="is in use by"), exclusive_folder("train.output", tmp_path):
            pytest.fail("two jobs in one folder")
    monkeypatch.undo()
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.2)
    monkeypatch.setattr(outputs, "GONE_AFTER_S", 1.0)
    with holder(tmp_path) as lost:
        lost.send_signal(signal.SIGSTOP)
        _change(tmp_path, machine="another", host="node-7")
        started = time.monotonic()
        with exclusive_folder("train.output", tmp_path):
            assert 0.9 < time.monotonic() - started < 5


def test_a_job_that_was_taken_for_dead_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.1)
    with pytest.raises(InUseError, match=r"node-7.*took this one for dead"), exclusive_folder("train.output", tmp_path):
        (own,) = tmp_path.glob(f"{IN_USE}*")
        (tmp_path / f"{IN_USE}other.json").write_text(json.dumps({"host": "node-7", "holds": True}))
        own.unlink()
        time.sleep(30)
    assert os.listdir(tmp_path) == [f"{IN_USE}other.json"]


def test_a_job_whose_folder_is_deleted_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.1)
    with pytest.raises(InUseError, match="was deleted"), exclusive_folder("train.output", tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        time.sleep(30)


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    many = 8
    start, done = threading.Barrier(many), threading.Barrier(many)

    def take(_: int) -> str:
        start.wait()
        try:
            with exclusive_folder("train.output", tmp_path):
                done.wait()
                return "held"
        except InUseError:
            done.wait()
            return "refused"

    dead = {"holds": True, "machine": outputs._machine(), "pid": os.getpid(), "started": "1"}
    for _ in range(20):
        (tmp_path / f"{IN_USE}dead.json").write_text(json.dumps(dead))
        with ThreadPoolExecutor(many) as pool:
            assert sorted(pool.map(take, range(many))) == ["held", *["refused"] * (many - 1)]
        assert not os.listdir(tmp_path)


def test_a_bucket_has_one_writer_too(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.2)
    monkeypatch.setattr(outputs, "GONE_AFTER_S", 2.0)
    folder = f"{bucket}/run"
    with exclusive_folder("train.output", folder):
        for machine in (outputs._machine(), "another"):
            monkeypatch.setattr(outputs, "_machine", lambda machine=machine: machine)
            with pytest.raises(InUseError, match=f"{folder} is in use by"), exclusive_folder("train.output", folder):
                pytest.fail("two jobs in one folder")
    assert not Storage(folder).hidden("")


def test_a_job_that_was_taken_for_dead_ends_in_a_bucket_even_if_its_file_came_back(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is removed between the job's look at it and its renewal, which creates it anew."""
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.1)
    storage = Storage(f"{bucket}/run")
    with pytest.raises(InUseError, match=r"node-7.*took this one for dead"):
        with exclusive_folder("train.output", f"{bucket}/run"):
            (own,) = storage.hidden("")
            other = {"host": "node-7", "holds": True, "followed": [own]}
            storage.write_bytes(f"{IN_USE}other.json", json.dumps(other).encode())
            time.sleep(30)
    assert storage.hidden("") == [f"{IN_USE}other.json"]


def test_a_dead_job_on_another_machine_is_followed_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.1)
    monkeypatch.setattr(outputs, "GONE_AFTER_S", 0.5)
    storage = Storage(f"{bucket}/run")
    storage.write_bytes(f"{IN_USE}dead.json", json.dumps({"host": "node-7", "holds": True}).encode())
    with exclusive_folder("train.output", f"{bucket}/run"):
        (own,) = storage.hidden("")
        deadline = time.monotonic() + 10
        while json.loads(storage.read_bytes(own))["followed"] != [f"{IN_USE}dead.json"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_job_whose_folder_in_a_bucket_is_deleted_ends(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "RENEWED_EVERY_S", 0.1)
    storage = Storage(f"{bucket}/run")
    with pytest.raises(InUseError, match="was deleted"), exclusive_folder("train.output", f"{bucket}/run"):
        (own,) = storage.hidden("")
        storage.remove(own)
        time.sleep(30)
    assert not storage.hidden("")
