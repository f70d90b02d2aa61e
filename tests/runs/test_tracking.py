"""Tracked runs: their content and final status, unusable stores, and secrets that must never be written."""

from __future__ import annotations

import http.server
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient

from pipelines.cluster import free_port
from robometer.configs import Config, load
from robometer.configs.stages import ServeConfig
from robometer.corpus.storage import Storage
from robometer.models.sources import locate
from robometer.runs import tracking
from robometer.runs.config import TrackingConfig
from robometer.runs.tracking import TrackingError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


def _run(store: str, run_id: str) -> Any:
    return MlflowClient(store).get_run(run_id)


def test_a_run_ends_as_its_block_does_and_can_go_on(store: str, tmp_path: Path) -> None:
    config = load([f"tracking.uri={store}", "loss.success_weight=0.25"])
    with pytest.raises(ZeroDivisionError), tracking.start(config, "train", parent_run_id="a sweep") as run:
        assert _run(store, run.run_id).info.status == "RUNNING"
        run.metrics({"train/loss": 0.5, "train/grad_norm": 2.0}, 3)
        raise ZeroDivisionError
    failed = _run(store, run.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.params["loss.success_weight"] == "0.25"
    assert failed.data.tags["robometer.kind"] == "train" and failed.data.tags["mlflow.parentRunId"] == "a sweep"
    with tracking.start(config, "train", run_id=run.run_id) as again:
        assert again.run_id == run.run_id and _run(store, run.run_id).info.status == "RUNNING"
        again.metrics({"train/loss": 0.25}, 4)
    assert _run(store, run.run_id).info.status == "FINISHED"
    history = MlflowClient(store).get_metric_history(run.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(3, 0.5), (4, 0.25)]


def test_only_a_run_that_still_counts_as_running_is_closed(store: str) -> None:
    config = load([f"tracking.uri={store}"])
    with tracking.start(config, "train") as run:
        pass
    tracking.close_open_run(config, run.run_id)
    assert _run(store, run.run_id).info.status == "FINISHED"
    MlflowClient(store).update_run(run.run_id, status="RUNNING")
    tracking.close_open_run(config, run.run_id)
    assert _run(store, run.run_id).info.status == "KILLED"


def _config(uri: str, **serve: str) -> Config:
    return Config(tracking=TrackingConfig(uri=uri), serve=ServeConfig(**serve))


@pytest.fixture
def no_mlflow() -> Iterator[str]:
    """A web server that is not MLflow."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:password@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield f"http://user:password@127.0.0.1:{listener.getsockname()[1]}"


def _refused(uri: str) -> str:
    started = time.monotonic()
    with pytest.raises(TrackingError) as refused, tracking.start(_config(uri), "train"):
        pytest.fail("there is no such store")
    assert time.monotonic() - started < 30  # rather than the minutes of MLflow's own retries
    sentence = str(refused.value)
    assert "tracking.uri=" in sentence and "\n" not in sentence and "password" not in sentence
    return sentence


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:password@127.0.0.1:1",
        "http://user:password@no.such.host.invalid:5000",
        "http://127.0.0.1:99999",
        "postgresql://user:password@127.0.0.1:1/runs",
        "mysql+nodriver://user:password@127.0.0.1:1/runs",
    ],
)
def test_a_store_that_does_not_answer_is_one_sentence_within_seconds(uri: str) -> None:
    assert "start that store" in _refused(uri)


def test_a_server_of_something_else_or_that_says_nothing_is_one_sentence(
    no_mlflow: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "404" in _refused(no_mlflow)
    monkeypatch.setattr(tracking, "PATIENCE_S", 2.0)
    _refused(silent)


def test_a_file_that_is_no_store_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("this is no database, and long enough to be read as one " * 20)
    assert "not a database" in _refused(f"sqlite:///{tmp_path}/notes.db")
    _refused(f"sqlite:///{tmp_path}")


def test_a_run_that_the_store_has_lost_goes_on_as_a_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = _config(f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.start(config, "train") as run:
        run.metrics({"train/loss": 1.0}, step=3)
    assert tracking.continued(config, run.run_id) == run.run_id
    assert tracking.continued(_config("none"), run.run_id) == run.run_id
    with caplog.at_level(logging.WARNING):
        assert tracking.continued(config, "0" * 32) == ""
    assert "does not have run" in caplog.text
    tracking.client_of(config.tracking.uri).delete_run(run.run_id)
    assert tracking.continued(config, run.run_id) == ""


def test_no_secret_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    config = _config(f"sqlite:///{tmp_path}/mlflow.db", token="of-the-endpoint")
    config.baseline.base_url = "https://user:of-the-api@host/v1?api_key=of-the-query"
    config.corpus.path = "s3://AKIA:of-the-bucket@bucket/corpus"
    config.baseline.prompt = "sk-of-the-environment.txt"
    with tracking.start(config, "train") as run:
        pass
    params = tracking.client_of(config.tracking.uri).get_run(run.run_id).data.params
    assert (params["serve.token"], params["corpus.path"]) == ("***", "s3://***@bucket/corpus")
    assert params["baseline.base_url"] == "https://***@host/v1?api_key=***"
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"serve.token" in everything
    assert not [secret for secret in (b"of-the-", b"AKIA") if secret in everything]


TRACK = """
import sys
from robometer.runs import tracking
from robometer.configs import Config
from robometer.runs.config import TrackingConfig
config = Config(tracking=TrackingConfig(uri=sys.argv[1]))
with tracking.start(config, "train") as run:
    run.metrics({"train/loss": 1.0})
    run.artifact(sys.argv[2])
    print("version", run.register_model("note.txt", {"voc": 1.0}))
"""


@pytest.mark.slow
def test_the_password_of_a_server_is_nowhere(tmp_path: Path) -> None:
    port, note = free_port(), tmp_path / "note.txt"
    note.write_text("a note")
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db", f"--artifacts-destination={tmp_path}/artifacts"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.5)
        # A server that has just started is slow to answer its first request.
        httpx.get(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1", timeout=240)
        uri = f"http://someone:of-the-server@127.0.0.1:{port}"
        tracked = subprocess.run([sys.executable, "-c", TRACK, uri, str(note)], capture_output=True, text=True)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert "version 1" in tracked.stdout, tracked.stderr
    assert "of-the-server" not in tracked.stdout + tracked.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3 and not [path for path in written if b"of-the-server" in path.read_bytes()]


@pytest.mark.slow
def test_a_server_keeps_artifacts_in_a_bucket_and_this_process_needs_no_credentials(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", f"{bucket}/mlflow"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([*command, *stores], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        config = _config(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 300
        while True:
            try:
                tracking.client_of(config.tracking.uri)
                break
            except TrackingError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(1)
        storage = Storage(f"{bucket}/mlflow")
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        (tmp_path / "best").mkdir()
        (tmp_path / "best" / "model.safetensors").write_bytes(b"weights")
        with tracking.start(config, "train") as run:
            run.artifact(tmp_path / "best")
            version = run.register_model("best", {"seen/voc": 0.5}, "in-a-bucket")
        copy = locate(f"models:/in-a-bucket/{version}", config.tracking.uri)
        assert (copy / "model.safetensors").read_bytes() == b"weights"
        assert [name for name in storage.tree("") if name.endswith("best/model.safetensors")]
        assert secret.encode() not in (tmp_path / "mlflow.db").read_bytes() + (tmp_path / "log").read_bytes()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
