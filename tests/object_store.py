"""An object store for tests: moto's S3 server, in a process of its own.

In this process it could not answer while pyarrow, which then holds Python's lock, closes a stream.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipelines.cluster import free_port
from robometer.corpus.storage import Storage

SECRET = "a-secret-of-the-object-store"
"""Secret key that `environment` gives."""


def environment(address: str) -> dict[str, str]:
    """The variables that lead to the server, and nowhere else."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "AKIAOFTHETESTS",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


@contextmanager
def server() -> Iterator[str]:
    """A running server; its address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                _open(f"{address}/moto-api/data.json")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "moto's server did not start"
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


def new_bucket(address: str) -> str:
    """The URI of a new, empty bucket."""
    name = f"tests-{uuid.uuid4().hex[:12]}"
    _open(urllib.request.Request(f"{address}/{name}", method="PUT"))
    return f"s3://{name}"


def upload(folder: Path, uri: str, names: Iterable[str]) -> None:
    """Copy some files of a folder to a URI."""
    storage = Storage(uri)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.put_bytes(name, (folder / name).read_bytes()), names))


def _open(request: str | urllib.request.Request) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(request, timeout=5).close()
    except urllib.error.HTTPError as error:
        raise OSError(str(error)) from error
