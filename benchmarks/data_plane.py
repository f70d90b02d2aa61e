"""Training's way to its data at the size of a large run: `python -m benchmarks.data_plane`.

A corpus of a million trajectories in 4,000 shards lies on an S3 server of this machine, which counts what it is asked
for. The job's own stream (plans, data actors, collator) feeds W consumers, whose model is a sleep. Printed: time from
the corpus to the first step and to a resumed one, samples, bytes and requests, and memory by process.

The manifest has the size of a real one and the frames the size of real JPEGs. All shards are one file, whose ids the
server replaces; a shard of 250 trajectories is 80 MB, and 4,000 of them would not fit here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch
from ray.data import DataContext, DataIterator

from benchmarks import corpora
from pipelines.cluster import connected, free_port
from pipelines.sample_stream import MicroBatches, share, stream
from robometer.configs import load
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.manifest import write_snapshot
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, commit_shard, write_manifest
from robometer.frames.video import encode_jpeg
from robometer.models.checkpoint import build_collator
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.trajectory import MANIFEST_SCHEMA, SCHEMA_VERSION, SHARD_SCHEMA

BUCKET = "corpora"
PREFIX_LENGTH = 20
"""Characters of an id that name its shard; the others are its row's."""


def main() -> None:
    """Make the corpus, train on it in pretence, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="trajectories")
    parser.add_argument("--shards", type=int, default=4000, help="shards that hold them")
    parser.add_argument("--consumers", type=int, nargs="+", default=[8, 32], help="workers that are fed")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2], help="data actors that feed them")
    parser.add_argument("--batch-size", type=int, default=32, help="samples a step")
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="time to a shard's first byte")
    parser.add_argument("--step-s", type=float, default=0.2, help="seconds that the model takes for a step")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory(prefix="robometer-benchmark-") as folder, store(Path(folder), options) as counts:
        path = f"s3://{BUCKET}/corpus"
        size = write_corpus(Path(folder), path, options.rows, options.shards)
        print(f"{options.rows:,} rows in {options.shards:,} shards, whose manifest files have {size / 2**20:.0f} MiB")
        counts()
        alone("from the files of the shards", path, counts)
        started = time.monotonic()
        write_snapshot(Storage(path))
        print(f"an ingest copies them into one file in {time.monotonic() - started:.1f} s")
        counts()
        alone("from the copy", path, counts)
        for consumers in options.consumers:
            for actors in options.actors:
                pretend(path, counts, options, consumers, actors)


# The store


@contextmanager
def store(folder: Path, options: argparse.Namespace) -> Iterator[Callable[[], Counter[str]]]:
    """A server; a function that gives what it was asked for since the last call. The environment leads to it."""
    port, shard = free_port(), folder / "shard.arrow"
    write_shard(folder, options.rows // options.shards).rename(shard)
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(port, str(shard), options.latency_ms / 1e3), daemon=True
    )
    process.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }

    def ask(method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path)
        answer: bytes = connection.getresponse().read()
        connection.close()
        return answer

    deadline = time.monotonic() + 60
    while True:
        try:
            ask("PUT", f"/{BUCKET}")
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    try:
        yield lambda: Counter(json.loads(ask("GET", "/counts")))
    finally:
        process.kill()
        process.join()


def serve(port: int, shard: str, latency_s: float) -> None:
    """Moto's S3 server, but for shards: each is the file `shard` under the ids of its own name."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    moto = DomainDispatcherApplication(create_backend_app)
    image = np.memmap(shard, np.uint8, "r")
    places = id_places(image)
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        kind = next((name for name in ("manifest", "shards", "embeddings") if f"/{name}" in path), "other")
        if path == "/counts":
            start_response("200 OK", [("Content-Type", "application/json")])
            with lock:
                answer = json.dumps(counts).encode()
                counts.clear()
            return [answer]
        if kind == "shards" and method in ("GET", "HEAD"):
            time.sleep(latency_s)
            status, headers, answers = shard_part(
                image, places, path, environ.get("HTTP_RANGE", ""), with_body=method == "GET"
            )
            start_response(status, headers)
            size = sum(map(len, answers))
        else:
            answers = [b"".join(moto(environ, start_response))]
            size = len(answers[0])
        with lock:
            counts[f"{kind} requests"] += 1
            counts[f"{kind} bytes"] += size
        return answers

    class Silent(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            """Nothing."""

    make_server("127.0.0.1", port, application, threaded=True, request_handler=Silent).serve_forever()


def shard_part(
    image: np.ndarray, places: np.ndarray, path: str, asked: str, with_body: bool
) -> tuple[str, list[tuple[str, str]], list[bytes]]:
    """Status, headers and body, if any, of a request for a range of the shard at `path`, or all of it."""
    first, last = 0, len(image) - 1
    if asked:
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        first, last = (int(begin), min(int(end or last), last)) if begin else (len(image) - int(end), last)
    size = last + 1 - first
    part = np.array(image[first : last + 1 if with_body else first])
    name = np.frombuffer(Path(path).stem.encode(), np.uint8)
    for place in places[(places > first - PREFIX_LENGTH) & (places <= last) & with_body]:
        for offset, character in enumerate(name, int(place) - first):
            if 0 <= offset < len(part):
                part[offset] = character
    headers = [("Content-Length", str(size)), ("ETag", '"1"'), ("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT"),
               ("Accept-Ranges", "bytes"), ("Content-Range", f"bytes {first}-{last}/{len(image)}")]  # fmt: skip
    return (
        ("206 Partial Content" if asked else "200 OK"),
        headers[: 5 if asked else 4],
        [part.tobytes()] if with_body else [],
    )


def id_places(image: np.ndarray) -> np.ndarray:
    """Where the ids begin, int64 [N]."""
    content, places, start = bytes(image), [], 0
    while (found := content.find(b"-" * PREFIX_LENGTH, start)) >= 0:
        places.append(found)
        start = found + PREFIX_LENGTH
    return np.array(places)


# The corpus


def write_shard(folder: Path, rows: int) -> Path:
    """A shard with `rows` trajectories of 32 frames of 240 x 320 px; ids begin with dashes."""
    frames = [[encode_jpeg(frame, 95) for frame in corpora._frames(number, 0)] for number in range(8)]
    blank, count = dict.fromkeys(SHARD_SCHEMA.names), corpora.NUM_FRAMES
    size = {"num_frames": count, "frame_index": list(range(count)), "height": corpora.HEIGHT, "width": corpora.WIDTH}
    records = (
        Accepted(blank | size | {"id": f"{'-' * PREFIX_LENGTH}{row:012x}", "frames": frames[row % 8]})
        for row in range(rows)
    )
    commit_shard(Storage(str(folder)), "shard", records)
    return folder / "shards/shard.arrow"


def write_corpus(folder: Path, path: str, rows: int, shards: int) -> int:
    """Write everything but the shards; bytes of the manifest's files."""
    local, remote = Storage(str(folder)), Storage(path)
    info = {"schema_version": SCHEMA_VERSION, "state": "complete", "settings": {}}
    remote.put_bytes("corpus.json", json.dumps(info).encode())
    table, per_shard, size = corpora.manifest(rows), rows // shards, 0
    for number in range(shards):
        name = f"{number:0{PREFIX_LENGTH}x}"
        write_manifest(local, name, part_of(table.slice(number * per_shard, per_shard), name, number), {})
        content = local.read_bytes(file := f"manifest/{name}.parquet")
        remote.put_bytes(file, content)
        size += len(content)
    return size


def part_of(rows: pa.Table, name: str, number: int) -> pa.Table:
    """The manifest of one shard: rows of `corpora.manifest` with texts as long as real ones."""
    rng, count = np.random.default_rng(number), len(rows)
    sources = rows["source"].to_pylist()
    columns: dict[str, Any] = {
        "id": [f"{name}{row:012x}" for row in range(count)],
        "episode_key": [f"data-{number:05d}-of-10000/record_{row}" for row in range(count)],
        "view": ["image_0"] * count,
        "num_frames": [corpora.NUM_FRAMES] * count,
        "height": [corpora.HEIGHT] * count,
        "width": [corpora.WIDTH] * count,
        "source_fps": [10.0] * count,
        "source_num_frames": [100] * count,
        "size_bytes": [300_000] * count,
        "uri": [f"/data/raw/{source}/1.0.0/data-train.tfrecord-{number:05d}-of-10000" for source in sources],
        "content_hash": [rng.bytes(16).hex() for _ in range(count)],
        "labels_hash": [rng.bytes(16).hex() for _ in range(count)],
        "settings_hash": ["0123456789abcdef"] * count,
        "revision": [0] * count,
        "shard": [name] * count,
        "row": list(range(count)),
    }
    for place, field in enumerate(MANIFEST_SCHEMA):
        if field.name in columns:
            rows = rows.set_column(place, field, pa.array(columns[field.name], field.type))
    return rows


# What is measured


def alone(how: str, path: str, counts: Callable[[], Counter[str]]) -> None:
    """What it costs a process to open the corpus by itself."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, before, after = pool.apply(open_corpus, (path,))
    asked = counts()
    requests = asked["manifest requests"] + asked["other requests"]
    size = (asked["manifest bytes"] + asked["other bytes"]) / 2**20
    print(
        f"a process that opens the corpus {how}: {seconds:.1f} s, {requests:,} requests, {size:.0f} MiB read, "
        f"{after - before} MiB of memory of its own"
    )


def open_corpus(path: str) -> tuple[float, int, int]:
    """(seconds, MiB before, MiB after) of opening a corpus."""
    before, started = own_memory(), time.monotonic()
    corpus = Corpus(path)
    seconds = time.monotonic() - started
    assert len(corpus)
    return seconds, before, own_memory()


def own_memory(process: psutil.Process | None = None) -> int:
    """MiB that a process shares with nobody."""
    return int((process or psutil.Process()).memory_full_info().uss) >> 20


def pretend(
    path: str, counts: Callable[[], Counter[str]], options: argparse.Namespace, consumers: int, actors: int
) -> None:
    """Feed `consumers` threads from the corpus, as the job feeds its workers; print what it took."""
    overrides = [
        "model=tiny", f"corpus.path={path}", "sampling.max_frames=8", f"train.num_workers={consumers}",
        f"train.data_actors={actors}", f"train.batch_size={max(options.batch_size, consumers)}", "train.steps=100000",
        "train.micro_batch_size=1", "train.validation_splits=[train]",
    ]  # fmt: skip
    config = load(overrides)
    with connected(config):
        counts()
        started = time.monotonic()
        corpus = Corpus(path)
        opening = counts()
        opened = time.monotonic()
        index = ManifestIndex.from_table(corpus.manifest, config.sampling)
        indexed = time.monotonic()
        samples = config.train.batch_size
        counts()
        bare = in_a_loop(config, corpus, index, samples)
        asked = counts()  # here, where it is known how many samples were read; each shard is new
        shared = share(corpus, index)
        first, _, _ = feed(config, shared, 0, consumers, 1, 0.0)
        resumed, _, _ = feed(config, shared, 500, consumers, 1, 0.0)
        _, times, memory = feed(config, shared, 0, consumers, options.steps, options.step_s)
    step_s = statistics.median(times)
    print(
        f"\n{consumers} consumers, {actors} data actors, {samples} samples a step: first step after "
        f"{first + indexed - started:.1f} s (manifest {opened - started:.1f}, index {indexed - opened:.1f}), with "
        f"{opening['manifest requests']:,} requests for the manifest; a resumed one after {resumed:.1f} s\n"
        f"  {samples / step_s:.0f} samples/s ({step_s:.2f} s a step, of which the model sleeps {options.step_s}), "
        f"{bare:.0f} in a plain loop; "
        f"per sample {asked['shards requests'] / samples:.1f} requests and "
        f"{asked['shards bytes'] / samples / 1e3:.0f} kB\n"
        f"  memory of their own, MiB: {memory}"
    )


def in_a_loop(config: Config, corpus: Corpus, index: ManifestIndex, samples: int) -> float:
    """Samples a second by the same collator in this process, one after another, without Ray."""
    torch.set_num_threads(1)
    collate = build_collator(config, corpus)
    started = time.monotonic()
    for number in range(samples):
        collate([plan(index, config.sampling, config.train.seed, number)])
    return samples / (time.monotonic() - started)


def feed(
    config: Config, shared: Any, start: int, consumers: int, steps: int, step_s: float
) -> tuple[float, list[float], dict[str, int]]:
    """Seconds to the first step, seconds of each later step, and MiB by process, of `consumers` in step."""
    started = time.monotonic()
    dataset = stream(config, start, shared)
    dataset.context.execution_options.preserve_order = True
    together = threading.Barrier(consumers, timeout=600)  # seconds; if one fails, so do all
    ends: list[float] = []
    memory: dict[str, int] = {}

    def work(rank: int, shard: DataIterator) -> None:
        batches = MicroBatches(shard, config, start, rank, consumers)
        for step in range(start, start + steps):
            batches.take(step)
            time.sleep(step_s)
            if step == start + steps - 1 and rank == 0:
                memory.update(memory_by_process())
            if together.wait() == 0:
                ends.append(time.monotonic())
        batches.close()

    with ThreadPoolExecutor(consumers) as threads:
        list(threads.map(work, range(consumers), dataset.streaming_split(consumers, equal=True)))
    return ends[0] - started, np.diff(ends)[:-1].tolist(), memory  # measuring takes time of the last


def memory_by_process() -> dict[str, int]:
    """MiB of this process and of Ray's workers, of their own; data actors are the largest workers."""
    sizes = [0]
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::"):
                sizes.append(own_memory(process))
    store = ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0)
    return {"driver": own_memory(), "largest worker": max(sizes), "object store": int(store) >> 20}


if __name__ == "__main__":
    main()
