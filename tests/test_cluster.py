"""Which Ray a job runs on, and that its own workers find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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


def test_a_local_ray_is_not_mistaken_for_one_that_was_started_here_before() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # pytest's own paths are too long for Ray's sockets
    (folder / "ray").mkdir()
    (folder / "ray/ray_current_cluster").write_text("127.0.0.1:1")  # where `ray start` leaves its address
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_TMPDIR"] = str(folder)
    try:
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert "answer None" in done.stdout, done.stderr[-2000:]
