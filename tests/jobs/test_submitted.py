"""The command line, and every stage as a `ray job submit` job on a head that asks for a token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import free_port
from tests.conftest import TINY
from tests.screen import foreign

ROOT = Path(__file__).resolve().parents[2]


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "corpus.path={tmp}/none"], "no corpus at"),
        (["train", "train.stepz=5"], "There is no setting train.stepz. Did you mean train.steps?"),
        (["train", "--steps", "5"], "There is no option --steps. Settings have no dashes: train.steps=..."),
        (["ingest", "{tmp}/none"], "none"),
        (["ingest", "ingest.format=vhs"], "vhs"),
        (["evaluate", "baseline:clock", "--corpus", "{tmp}/none"], "no corpus at"),
        (["score", "{tmp}/none.mp4", "--task", "x", "--scorer", "{tmp}"], "none.mp4"),
        (["serve", "{tmp}/none"], "none"),
        (["dance"], "no command 'dance'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = _command(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr and "error:" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
def test_a_model_that_does_not_fit_the_corpus_is_one_sentence(tiny_corpus: str, tmp_path: Path) -> None:
    settings = [*TINY, f"corpus.path={tiny_corpus}", f"train.output={tmp_path}/run"]
    done = _command("train", *settings, "embed.image_encoder=dinov2_base")
    assert done.returncode == 2 and "robometer embed embed.image_encoder=dinov2_base" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A real head with token authentication; the environment with which one submits to it."""
    folder = tempfile.mkdtemp(prefix="head")  # pytest's own paths are too long for Ray's sockets
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": folder,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    dashboard = free_port()
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    ports = [f"--dashboard-port={dashboard}", *(f"--{name}={free_port()}" for name in names)]
    sizes = ["--num-cpus=4", "--object-store-memory=300000000"]
    start = ["ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1", *ports, *sizes]
    process = subprocess.Popen(
        start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # half a minute sooner than by its own stop
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _submit(head: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--working-dir", str(ROOT), "--", "python", "-m", *entrypoint]
    end = time.monotonic() + 90
    while True:
        done = subprocess.run(command, capture_output=True, text=True, env=head, timeout=300, check=False)
        # A head that has just started answers before its agent does.
        if "No available agent" not in done.stderr or time.monotonic() > end:
            return done
        time.sleep(2)


def _wait_until_up(head: dict[str, str]) -> None:
    end = time.monotonic() + 90
    while subprocess.run(["ray", "job", "list"], env=head, capture_output=True, check=False).returncode:
        assert time.monotonic() < end, "the head did not come up"
        time.sleep(1)


PLAN = """
output: {tmp}/out
stages:
  corpus: ingest {raw} --corpus {{here}}
  model: train --corpus {{corpus}} --output {{here}} model=tiny train.zero_stage=3 train.batch_size=4
  measured: evaluate {{model}}/best --corpus {{corpus}} --output {{here}} evaluate.bootstrap=50 evaluate.max_clips=24
settings: {settings}
"""
QUICK = {"train.steps": 4, "train.checkpoint_every": 2, "evaluate.pairs_per_task": 2}


def _robometer(head: dict[str, str], *line: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *line]
    return subprocess.run(command, capture_output=True, text=True, env=head, cwd=ROOT, timeout=400, check=False)


def _settings(*given: str) -> dict[str, object]:
    return dict(setting.split("=", 1) for setting in given) | QUICK


def _jobs(head: dict[str, str]) -> int:
    client = subprocess.run(["ray", "job", "list"], env=head, capture_output=True, text=True, check=True)
    return client.stdout.count("submission_id=")


@pytest.mark.slow
def test_a_pipeline_runs_as_jobs_goes_on_after_a_kill_and_does_nothing_twice(
    head: dict[str, str], raw_clips: Path, tmp_path: Path
) -> None:
    _wait_until_up(head)
    stranger = _robometer(head | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, "submit", "ingest")
    assert stranger.returncode == 2 and "RAY_AUTH_TOKEN" in stranger.stderr and "Traceback" not in stranger.stderr

    settings = _settings(*(one for one in TINY if not one.startswith("train.batch_size")))
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.format(tmp=tmp_path, raw=raw_clips, settings=json.dumps(settings)))
    command = [sys.executable, "-m", "jobs.cli", "pipeline", str(plan)]
    with subprocess.Popen(command, env=head, cwd=ROOT, stderr=subprocess.PIPE, text=True) as killed:
        end = time.monotonic() + 200
        while not list((tmp_path / "out").glob("model-*/run.json")):  # which the running job writes
            assert killed.poll() is None and time.monotonic() < end, killed.stderr and killed.stderr.read()
            time.sleep(0.2)
        killed.kill()
    [model] = (tmp_path / "out/stages").glob("model-*.json")
    record = json.loads(model.read_text())

    done = _robometer(head, "pipeline", str(plan))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"model: still runs since {record['started']}, as job {record['job']}" in done.stderr
    assert "corpus: done before" in done.stderr and not foreign(done.stdout, done.stderr)
    [measured] = (tmp_path / "out").glob("measured-*")
    assert set(json.loads((measured / "metrics.json").read_text())["metrics"]) == {"seen", "held_out"}
    assert (measured / "report.html").stat().st_size > 50_000

    count = _jobs(head)
    again = _robometer(head, "submit", "pipeline", str(plan))  # a job, which submits none
    assert again.returncode == 0 and again.stdout.count("done before") == 3, again.stdout + again.stderr
    assert "measured  done" in again.stdout and _jobs(head) == count + 1

    lost = _robometer(head, "submit", "train", "--output", "run")  # in a copy of the checkout, which Ray deletes
    assert lost.returncode == 2 and "error: train.output=run is relative" in lost.stdout
    assert _jobs(head) == count + 2


@pytest.mark.slow
def test_a_job_is_stopped(head: dict[str, str], tmp_path: Path) -> None:
    """And what a checkout holds besides code is not uploaded: Ray refuses more than 100 MiB."""
    _wait_until_up(head)
    checkout = tmp_path / "checkout"
    for package in ("robometer", "pipelines", "jobs"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("outputs", ".git"):
        (checkout / folder).mkdir()
        (checkout / folder / "large").write_bytes(os.urandom(110 * 2**20))
    simulate = ["simulate", "--output", f"{tmp_path}/raw"]
    begun = _robometer(head, "submit", "--detach", "--env", "HOME", "--working-dir", str(checkout), *simulate)
    assert begun.returncode == 0, begun.stderr
    stopped = _robometer(head, "submit", "--stop", begun.stdout.strip())
    assert stopped.returncode == 0 and begun.stdout.strip() in stopped.stdout
    nobody = _robometer(head, "submit", "--stop", "nobody")
    assert nobody.returncode == 2 and "there is no job nobody" in nobody.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "overrides"),
    [
        (["ingest", "train", "evaluate"], ["model=tiny", "train.zero_stage=3", "train.batch_size=4"]),
        (["ingest", "embed", "train", "sweep", "evaluate"], []),
    ],
)
def test_every_stage_runs_as_a_submitted_job(
    head: dict[str, str], raw_clips: Path, tmp_path: Path, stages: list[str], overrides: list[str]
) -> None:
    _wait_until_up(head)
    stranger = _submit(head | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, "jobs.ingest")
    assert stranger.returncode != 0

    base = [*TINY, *overrides, f"corpus.path={tmp_path}/corpus", f"ingest.input={raw_clips}"]
    base += [f"train.output={tmp_path}/run", f"sweep.output={tmp_path}/sweep", f"evaluate.output={tmp_path}/evaluation"]
    base += ["train.steps=4", "train.checkpoint_every=2", "sweep.num_trials=2", "evaluate.bootstrap=50"]
    base += [f"evaluate.scorer={tmp_path}/{'sweep' if 'sweep' in stages else 'run'}/best"]
    base += ["evaluate.max_clips=24", "evaluate.pairs_per_task=2"]
    for stage in stages:
        done = _submit(head, f"jobs.{stage}", *base)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        assert not foreign(done.stdout, done.stderr)
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())["metrics"]
    assert set(metrics) == {"seen", "held_out"}
    assert (tmp_path / "evaluation/report.html").stat().st_size > 50_000

    lost = _submit(head, "jobs.train", *base, "train.output=run")  # in a copy of the folder, which Ray deletes
    assert lost.returncode != 0 and "error: train.output=run is relative" in lost.stdout + lost.stderr
