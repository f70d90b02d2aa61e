"""The Ray that a job runs on, and how work waits for it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipelines import cluster
from pipelines.cluster import ClusterError, Needs, Stalled, check_room, connected, watched
from robometer.configs import ConfigError, load

SCRIPT = """
import ray
from pipelines.cluster import connected
from robometer.configs import load

@ray.remote
def ask():
    from ray.util.state import get_actor
    return get_actor("a" * 32)

with connected(load([])):
    print("answer", ray.get(ask.remote()))
"""


@pytest.mark.slow
def test_a_local_ray_is_not_mistaken_for_one_that_was_started_here_before() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # pytest's own paths are too long for Ray's sockets
    (folder / "ray").mkdir()
    (folder / "ray/ray_current_cluster").write_text("127.0.0.1:1")  # where `ray start` leaves its address
    environment = dict(os.environ)
    environment |= {"RAY_TMPDIR": str(folder), "RAY_ADDRESS": "http://127.0.0.1:1"}  # where one would submit jobs
    try:
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert "answer None" in done.stdout, done.stderr[-2000:]


LINGERING = """
import threading, time
import ray
from pipelines.cluster import connected
from robometer.configs import load

def drop(references):
    while references:
        references.pop()
        time.sleep(0.0005)

drop.__globals__["__name__"] = "ray.data"  # as a thread of Ray Data that is not quite done
with connected(load([])):
    references = [ray.put(number) for number in range(2000)]
    threading.Thread(target=drop, args=[references], daemon=True).start()
print(len(references), ray.is_initialized())
"""


@pytest.mark.slow
def test_ray_is_not_shut_down_under_a_thread_that_uses_it() -> None:
    """Otherwise Ray ends the process with status 1 and no message."""
    environment = {name: value for name, value in os.environ.items() if name != cluster.ADDRESS}
    command = [sys.executable, "-c", LINGERING]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "0 False\n"), done.stderr[-2000:]


SLOW_SOURCE = """
import time
from pathlib import Path
from robometer.corpus.formats import Unit

def units(input, source):
    yield Unit("a", "slow", input)

def episodes(unit):
    Path(unit.uri, "begun").touch()
    time.sleep(100)
    yield from ()
"""


def test_ctrl_c_is_one_line_and_joins_no_other_ray(ray_local: None, tmp_path: Path) -> None:
    """The thread that takes results is inside Ray Data, which goes on and calls Ray after its end."""
    (tmp_path / "slow_source.py").write_text(SLOW_SOURCE)
    overrides = [f"corpus.path={tmp_path}/corpus", f"ingest.input={tmp_path}", "ingest.format=slow_source"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), cluster.ADDRESS: "local"}
    # Shells start what runs in the background with SIGINT ignored, and so do these tests where they run there.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "jobs.ingest", *overrides]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[2])
    deadline_s = time.monotonic() + 100
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    last = [line for line in errors.splitlines() if line][-1]
    assert (job.returncode, last) == (130, "Interrupted. Rerun the same command to continue."), errors


def test_what_waits_for_ever_ends_and_says_what_is_lacking(ray_local: None) -> None:
    waiting = ray.remote(num_cpus=9)(lambda: 0).remote()
    lacking = r"the work made no step for 2 s: it needs 9 CPUs; the cluster has 1 node with 4 CPUs, \d in use"
    with connected(load(["ray.stall_timeout_s=2"])), pytest.raises(Stalled, match=lacking):
        list(watched(map(ray.get, [waiting]), "the work", Needs(cpus=9)))
    ray.cancel(waiting)


def _slow(seconds: list[float]) -> Iterator[float]:
    for second in seconds:
        time.sleep(second)
        yield second


def test_a_step_is_a_result_or_a_pulse(ray_local: None) -> None:
    with connected(load(["ray.stall_timeout_s=2.5"])):
        assert list(watched(_slow([1.3, 1.3, 1.3]), "work")) == [1.3] * 3
        assert list(watched(_slow([4.5]), "work", pulse=lambda: str(time.monotonic() // 2))) == [4.5]
        with pytest.raises(Stalled, match=r"no step for . s .since step 7.: it needs 2 times 0.5 CPUs"):
            list(watched(_slow([0.1, 30]), "work", Needs(2, 0.5), pulse=lambda: "step 7"))
    with connected(load(["ray.stall_timeout_s=0"])), pytest.raises(ZeroDivisionError):
        list(watched((1 / n for n in (1, 0)), "work"))


def test_places_must_fit_into_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": resources} for resources in ({"CPU": 3.0}, {"CPU": 1.0, "GPU": 1.0}, {})]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0}}])
    assert [Needs(n, 1).fit() for n in (1, 2, 3, 4, 5)] == [4, 2, 1, 1, 0]
    assert Needs(2, 2).fit() == 0 and Needs(1, 2).fit() == 1 and Needs(1, 0.5).fit() == 8
    assert Needs(1, 1, 1).fit() == 1 and Needs(1, 2, 1).fit() == 0 and Needs(1, 0, 1).fit() == 1


def test_a_ray_of_its_own_that_is_too_small_is_said_at_once(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = "raining needs 2 times 3 CPUs; .* has 1 node with 4 CPUs, . in use. "
    check_room("training", Needs(2, 3), "ask for less")  # a cluster may grow
    assert re.search(f"T{lacking}Waiting for more", caplog.text)
    monkeypatch.setattr("pipelines.cluster._started_here", True)
    with pytest.raises(ConfigError, match=f"t{lacking}Set ray.num_cpus higher, or ask for less"):
        check_room("training", Needs(2, 3), "ask for less")
    check_room("training", Needs(4, 1), "ask for less")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:{closed}", "nothing answers at RAY_ADDRESS=127.0.0.1:"),
        ("no.such.host.invalid:6379", "nothing answers"),
        ("127.0.0.1:99999", "nothing answers"),
        ("ray://127.0.0.1:10001", "ray job submit"),
        ("nonsense", "cannot be joined"),
        ("head:port", "cannot be joined"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_sentence(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by another test of this process, whose Ray stays
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", address.format(closed=cluster.free_port()))
    with pytest.raises(ClusterError, match=sentence) as caught, connected(load()):
        pytest.fail("there is no such cluster")
    assert "RAY_ADDRESS" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head/", "local", ""])
def test_where_jobs_are_submitted_is_no_cluster_to_run_on(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster.cluster_address() == ""


def test_a_ray_that_cannot_start_is_one_sentence_and_leaves_the_environment_as_it_was() -> None:
    code = """
import os
from pipelines.cluster import API_SERVER, ClusterError, connected
from robometer.configs import load

try:
    with connected(load(["ray.object_store_mb=1"])):
        pass
except ClusterError as error:
    print(error, API_SERVER in os.environ)
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in (cluster.ADDRESS, cluster.API_SERVER)
    }
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert ran.stdout.startswith("Ray did not start on this machine (ValueError: ") and ran.stdout.endswith(" False\n")
