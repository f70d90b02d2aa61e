"""Speed and memory of the corpus, as ratios within one run: `python -m benchmarks.corpus [--clips N] [--gb G]`.

Ingest     the real job on copies of the bundled clips, against plain processes that decode, resize and encode without
           Ray, and against a pipeline like upstream's (npz with deflate); memory at 1x and 10x
Manifest   opening a manifest of a million rows
Read       random trajectories of a corpus larger than caches, against plain reads of the same number of bytes
LeRobot    a v3 dataset whose episodes share a video, against one video per episode, and against opening the video for
           each frame; how often a video is opened for an episode (by strace)

Machines are noisy, so contenders take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa

from pipelines.cluster import connected
from pipelines.ingest import run_ingest
from robometer.configs import load
from robometer.corpus import export
from robometer.corpus.corpus import Corpus
from robometer.corpus.encode import entries
from robometer.corpus.formats import Refused, Unit, list_units
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, commit_shard, write_manifest
from robometer.frames.video import resize_short_edge, thin_positions
from robometer.trajectory import MANIFEST_SCHEMA, SCHEMA_VERSION, SHARD_SCHEMA

CORES = os.cpu_count() or 1
ROUNDS = 3


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4000, help="clips of the larger ingest")
    parser.add_argument("--gb", type=float, default=10.0, help="size of the corpus that is read at random")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the manifest that is opened")
    parser.add_argument("--only", choices=("ingest", "manifest", "read", "lerobot"), help="run only this part")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="robometer-benchmark-") as folder:
        parts: dict[str, Callable[[], None]] = {
            "ingest": lambda: ingest(Path(folder), options.clips),
            "manifest": lambda: manifest(Path(folder), options.rows),
            "read": lambda: read(Path(folder), options.gb),
            "lerobot": lambda: lerobot(Path(folder), options.clips // 40),
        }
        for name, run in parts.items():
            if options.only in (None, name):
                run()


# Ingest


def ingest(folder: Path, clips: int) -> None:
    """Throughput of the job and its contenders, and the job's memory."""
    raw = write_raw(folder / "raw", clips)
    small = write_raw(folder / "small", clips // 10)
    units = [unit for unit in list_units("mp4_jsonl", str(raw)) if isinstance(unit, Unit)]
    times: dict[str, list[float]] = {"small": [], "ingest": [], "bare": [], "npz": []}
    peaks = []
    with connected(load()):
        run_job(small, folder / "warm")  # starts the workers
        for name, data in (("small", small), ("large", raw)):  # not in the timed runs: measuring memory takes a core
            with peak_memory() as peak:
                run_job(data, folder / f"{name}-watched", "ingest.shard_size=64")  # so that both have all workers
            peaks.append(peak[0] / 2**20)
        for number in range(ROUNDS):
            times["small"].append(run_job(small, folder / f"small{number}"))
            times["ingest"].append(run_job(raw, folder / f"large{number}"))
            times["bare"].append(in_processes(bare, units))
            times["npz"].append(in_processes(deflate, units[: clips // 10]) * 10)
    frames = Corpus(str(folder / "large0")).info["counts"]["frames"]
    seconds = {name: statistics.median(values) for name, values in times.items()}
    per_clip = {"steady": (seconds["ingest"] - seconds["small"]) / (clips - clips // 10)}
    per_clip |= {name: seconds[name] / clips for name in ("ingest", "bare", "npz")}
    print(f"\ningest of {clips} clips ({frames} frames at 240 px) on {CORES} cores, median of {ROUNDS} rounds")
    print(f"{'':28}{'trajectories/s':>16}{'frames/s/core':>16}{'ratio to ingest':>18}")
    labels = {
        "ingest": "robometer ingest",
        "steady": "the same without its start",
        "bare": "bare, no Ray, not stored",
        "npz": "decord, npz with deflate",
    }
    for name, label in labels.items():
        rate, ratio = 1 / per_clip[name], per_clip["ingest"] / per_clip[name]
        print(f"{label:28}{rate:16.1f}{rate * frames / clips / CORES:16.0f}{ratio:18.2f}")
    print(
        f"ingest reaches {per_clip['bare'] / per_clip['steady']:.0%} of the bare limit (target 90 %; with its start "
        f"{per_clip['bare'] / per_clip['ingest']:.0%}), {per_clip['npz'] / per_clip['ingest']:.1f} times npz (target 5)"
    )
    low, high = peaks
    print(
        f"peak memory of all processes (PSS, with Ray's): {low:.0f} MiB at {clips // 10} clips, {high:.0f} at {clips}"
    )


def write_raw(folder: Path, clips: int) -> Path:
    """A raw folder of `clips` trajectories over the bundled videos."""
    bundled = Path(__file__).resolve().parents[1] / "robometer/data/metaworld"
    lines = [json.loads(line) for line in (bundled / "trajectories.jsonl").read_text().splitlines()]
    folder.mkdir()
    (folder / "videos").symlink_to(bundled / "videos")
    with (folder / "trajectories.jsonl").open("w") as file:
        for i in range(clips):
            file.write(json.dumps({**lines[i % len(lines)], "episode_key": f"{i:07d}"}) + "\n")
    return folder


def run_job(raw: Path, corpus: Path, *settings: str) -> float:
    """Seconds of the real job, on a running Ray."""
    started = time.perf_counter()
    run_ingest(load([f"ingest.input={raw}", f"corpus.path={corpus}", *settings]))
    return time.perf_counter() - started


def in_processes(work: Callable[[list[Unit]], int], units: list[Unit]) -> float:
    """Seconds that one plain process per core needs for all units, without the start-up."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(CORES) as pool:
        pool.map(work, [units[:1]] * CORES, chunksize=1)  # imports
        started = time.perf_counter()
        parts = [units[i : i + 64] for i in range(0, len(units), 64)]
        num_processed = sum(pool.map(work, parts, chunksize=1))
        assert num_processed == len(units)
        return time.perf_counter() - started


def bare(units: list[Unit]) -> int:
    """Decode, thin, resize and encode as JPEG, and drop the result."""
    return sum(isinstance(entry, Accepted) for entry in entries(units, load().ingest))


def deflate(units: list[Unit]) -> int:
    """Decode with decord, resize, and write an npz with deflate, as upstream's preprocessing does."""
    import decord

    for unit in units:
        reader = decord.VideoReader(unit.uri, num_threads=1)
        frames = np.stack(
            [resize_short_edge(f, 240) for f in reader.get_batch(thin_positions(len(reader), 32)).asnumpy()]
        )
        np.savez_compressed(io.BytesIO(), frames=frames, shape=frames.shape, num_frames=len(frames))
    return len(units)


# LeRobot


def lerobot(folder: Path, episodes: int) -> None:
    """Time for an episode of 16 frames, and how often its video is opened."""
    with connected(load()):
        run_job(write_raw(folder / "raw", episodes), folder / "corpus")
    corpus = Corpus(str(folder / "corpus"))
    for name, megabytes in (("joined", export.VIDEO_MB), ("single", 0)):
        export.VIDEO_MB = megabytes
        export.export_lerobot(corpus, folder / name)
    units = {
        name: [unit for unit in list_units("lerobot", str(folder / name)) if isinstance(unit, Unit)]
        for name in ("joined", "single")
    }
    work: dict[str, Callable[[], int]] = {
        "episodes that share a video": lambda: bare_lerobot(units["joined"]),
        "a video for each episode": lambda: bare_lerobot(units["single"]),
        "the shared video, opened for each frame": lambda: frame_by_frame(units["joined"][:4]),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            started = time.perf_counter()
            count = run()
            times[name].append(1000 * (time.perf_counter() - started) / count)
    print(f"\n{episodes} episodes of 16 frames of 160 x 160 px, one process, median of {ROUNDS} rounds")
    for name, values in times.items():
        print(f"{name:42}{statistics.median(values):8.1f} ms an episode")
    if strace := shutil.which("strace"):
        code = f"from benchmarks.corpus import *; bare_lerobot(list_units('lerobot', {str(folder / 'joined')!r}))"
        command = [strace, "-f", "-e", "trace=open,openat", "-o", str(folder / "opened"), sys.executable, "-c", code]
        subprocess.run(command, check=True)
        opened = sum('.mp4"' in line for line in (folder / "opened").read_text().splitlines())
        print(f"a shared video was opened {opened / episodes:.2f} times for each of its episodes")


def bare_lerobot(units: Iterable[Unit | Refused]) -> int:
    """Read, decode, resize and encode episodes, and drop the result."""
    read = [unit for unit in units if isinstance(unit, Unit)]
    made = [*entries(read, load(["ingest.format=lerobot"]).ingest)]
    assert all(isinstance(entry, Accepted) for entry in made)
    return len(made)


def frame_by_frame(units: list[Unit]) -> int:
    """Decode every frame of episodes with a decoder of its own, sought by time."""
    for unit in units:
        [(video, (first, *_))] = unit.data["videos"].values()
        for frame in range(first, first + unit.data["length"]):
            with av.open(str(Path(unit.uri, video))) as container:
                stream = container.streams.video[0]
                at = round(frame / unit.data["fps"] / stream.time_base)
                container.seek(at, stream=stream)
                next(shown for shown in container.decode(stream) if shown.pts >= at).to_ndarray(format="rgb24")
    return len(units)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """After the block, the peak memory in bytes of this process and its descendants (sum of proportional set sizes)."""
    peak, stopped = [0.0], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.2):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


# Manifest


def manifest(folder: Path, rows: int) -> None:
    """Time and memory of opening a large manifest, in a separate process."""
    path = folder / "million"
    storage = corpus_folder(path)
    per_shard = 2048
    for start in range(0, rows, per_shard):
        count = min(per_shard, rows - start)
        write_manifest(storage, f"{start:020x}", manifest_table(start, count), {})
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, before, after = pool.apply(open_corpus, (str(path),))
    size = sum(file.stat().st_size for file in (path / "manifest").iterdir()) / 2**20
    print(
        f"\nmanifest of {rows} rows, {size:.0f} MiB in {-(-rows // per_shard)} files: opened in {seconds:.1f} s "
        f"(target 5), peak memory of the process {before} -> {after} MiB (target 1024)"
    )
    shutil.rmtree(path)


def open_corpus(path: str) -> tuple[float, int, int]:
    """(seconds, peak MiB before, peak MiB after) of opening a corpus."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    corpus = Corpus(path)
    seconds = time.perf_counter() - started
    assert len(corpus) > 0
    return seconds, before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def corpus_folder(path: Path) -> Storage:
    """An empty corpus."""
    storage = Storage(str(path))
    info = {"schema_version": SCHEMA_VERSION, "state": "complete", "settings": {}}
    storage.write_bytes("corpus.json", json.dumps(info).encode())
    return storage


def manifest_table(start: int, count: int) -> pa.Table:
    """Rows like those of a corpus with 50 sources and 20,000 tasks."""
    rng = np.random.default_rng(start)
    numbers = range(start, start + count)
    words: dict[str, Any] = dict.fromkeys(MANIFEST_SCHEMA.names)
    rows = [
        words
        | {
            "id": rng.bytes(16).hex(),
            "source": f"oxe_data_set_{i % 50}",
            "episode_key": f"data-{i // 100:05d}-of-10000/record_{i % 100}",
            "view": "image_0",
            "task": f"put the object number {i % 20_000} on the shelf beside the door",
            "is_robot": True,
            "quality_label": "successful",
            "raw_quality_label": "successful",
            "split": "train",
            "num_frames": 32,
            "height": 240,
            "width": 320,
            "source_fps": 10.0,
            "source_num_frames": 100,
            "size_bytes": 300_000,
            "uri": f"/data/raw/oxe_data_set_{i % 50}/1.0.0/data-train.tfrecord-{i // 100:05d}-of-10000",
            "content_hash": rng.bytes(16).hex(),
            "settings_hash": "0123456789abcdef",
            "shard": f"{start:020x}",
            "row": i - start,
        }
        for i in numbers
    ]
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


# Read


def read(folder: Path, gigabytes: float, reads: int = 2000) -> None:
    """Random trajectories through `Corpus`, and plain reads of the same size from the same files, in turn."""
    path = folder / "large"
    storage = corpus_folder(path)
    rng = np.random.default_rng(0)
    frame_bytes, num_frames, per_shard = 10_000, 32, 1600
    count = max(1, round(gigabytes * 1e9 / (frame_bytes * num_frames * per_shard)))
    pool = rng.bytes(50_000_000)
    for shard in range(count):
        table = manifest_table(shard * per_shard, per_shard).to_pylist()
        records = (record_of(row, pool, rng, num_frames, frame_bytes) for row in table)
        commit_shard(storage, f"{shard:020x}", map(Accepted, records))
    corpus = Corpus(str(path))
    files = sorted((path / "shards").iterdir())
    times: dict[str, list[float]] = {"corpus": [], "plain": []}
    size = frame_bytes * num_frames
    for _ in range(5):
        order = rng.integers(0, len(corpus), reads)
        started = time.perf_counter()
        for row in order:
            assert len(b"".join(corpus.encoded_frames(int(row)))) == size
        times["corpus"].append((time.perf_counter() - started) / reads)
        last = files[0].stat().st_size - size
        places = list(zip(rng.integers(len(files), size=reads), rng.integers(last, size=reads), strict=True))
        started = time.perf_counter()
        for file, offset in places:
            with files[file].open("rb", buffering=0) as stream:
                assert len(os.pread(stream.fileno(), size, int(offset))) == size
        times["plain"].append((time.perf_counter() - started) / reads)
    ours, plain = (statistics.median(times[name]) * 1e6 for name in ("corpus", "plain"))
    total = sum(file.stat().st_size for file in files) / 1e9
    print(
        f"\nrandom read of a trajectory ({num_frames} frames, {size // 1000} kB) of a corpus of {total:.1f} GB: "
        f"{ours:.0f} us, plain read of as many bytes {plain:.0f} us, ratio {ours / plain:.2f} (target 2)"
    )


def record_of(row: dict[str, Any], pool: bytes, rng: np.random.Generator, num_frames: int, size: int) -> dict[str, Any]:
    """A shard row whose frames are noise of a JPEG's size."""
    starts = rng.integers(0, len(pool) - size, num_frames)
    blank = dict.fromkeys(SHARD_SCHEMA.names)
    return blank | row | {"frame_index": list(range(num_frames)), "frames": [pool[s : s + size] for s in starts]}


if __name__ == "__main__":
    main()
