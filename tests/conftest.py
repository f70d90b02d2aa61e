"""Shared fixtures: a local Ray for the session, and the folder of recorded upstream numbers where it exists."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.serving.front import ENVIRONMENT
from tests import object_store

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch collapses where its threads outnumber the cores
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(ENVIRONMENT)

SHARED = Path(__file__).resolve().parents[2] / "shared"


HERE = Path(__file__).parent
WITH_RAY = {HERE / "docs/test_pages.py", HERE / "pipelines", HERE / "runs/test_publishing.py", "ray_local", "head"}
"""Tests that start Ray: their files, the folders directly above, or their fixtures. They run one after another."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests an hour, so that a busy machine does not fail them, and group the tests for `make test`.

    Its two processes share the tests file by file, except those that start Ray.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))
        known_by = {item.path, item.path.parent, *getattr(item, "fixturenames", ())}
        item.add_marker(pytest.mark.xdist_group("ray" if known_by & WITH_RAY else str(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """Groups hold, or nothing runs: with pytest 9.2, pytest-xdist 3.8 shares out single tests and says nothing.

    Two processes would then start Ray beside each other, and a file's endpoint anew for each of its tests
    (pytest-xdist issue 1386).
    """
    if not all("@" in test for test in ids):
        pytest.exit(
            "with -n, add --dist loadgroup; if it is there, `make install` brings a pytest that groups", returncode=4
        )


_running = set[str]()


@pytest.fixture(scope="session")
def ray_local(object_store_address: str) -> Iterator[None]:
    """A local Ray of 4 logical CPUs, whose workers can reach the S3 server."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        for name, value in object_store.environment(object_store_address).items():
            environment.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=512 * 1024 * 1024,
        )
    _running.add("ray_local")
    yield
    _running.clear()
    ray.shutdown()


@pytest.fixture(autouse=True)
def session_ray_stays() -> Iterator[None]:
    """A test that ends the session's Ray fails itself: those after it would each start their own, or hang."""
    yield
    if "ray_local" in _running:
        import ray

        assert ray.is_initialized(), "this test ended the Ray of all tests"


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """SVT-AV1 gives the thread that encodes real-time priority where root runs it: Ray would hardly run beside it."""
    yield
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def taken(cpus: int) -> Iterator[None]:
    """So many CPUs of the cluster belong to somebody else for the duration of the block."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([{"CPU": 1}] * cpus)
    assert group.wait(60)
    yield
    remove_placement_group(group)


@pytest.fixture(scope="session")
def object_store_address() -> Iterator[str]:
    """The address of an S3 server."""
    with object_store.server() as address:
        yield address


@pytest.fixture
def bucket(object_store_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket, which this process can reach."""
    for name, value in object_store.environment(object_store_address).items():
        monkeypatch.setenv(name, value)
    return object_store.new_bucket(object_store_address)


TINY = (
    "embed.image_encoder=random_image",
    "embed.text_encoder=random_text",
    "ingest.short_edge=32",
    "ingest.max_frames=12",
    "ingest.shard_size=16",
    "sampling.max_frames=6",
    "model.hidden_dim=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.dropout=0.0",
    "train.batch_size=8",
    "train.learning_rate=1e-3",
    "train.validation_clips=24",
    "train.log_every=1",
    "tracking.uri=none",
)
"""Overrides under which every stage runs in seconds, without any optional package."""


@pytest.fixture(scope="session")
def raw_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the mp4_jsonl format: 8 tasks of the bundled corpus, two of them held out, 66 clips."""
    bundled = Path(__file__).resolve().parents[1] / "robometer/data/metaworld"
    rows = [json.loads(line) for line in (bundled / "trajectories.jsonl").read_text().splitlines()]
    tasks = ["drawer-open", "drawer-close", "door-open", "door-close", "reach", "push", "window-open", "window-close"]
    kept = [
        row
        for row in rows
        if row["episode_key"].split("-v3")[0] in tasks and row["episode_key"][-3:] in ("003", "004", "014")
    ]
    folder = tmp_path_factory.mktemp("raw")
    (folder / "videos").symlink_to(bundled / "videos")
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(ray_local: None, raw_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`raw_clips` as an embedded corpus; read it, do not write into it."""
    from pipelines.embed import run_embed
    from pipelines.ingest import run_ingest
    from robometer.configs import load

    path = str(tmp_path_factory.mktemp("corpus"))
    config = load([*TINY, f"corpus.path={path}", f"ingest.input={raw_clips}"])
    run_ingest(config)
    run_embed(config)
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of numbers recorded from upstream; a test that asks for it skips where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden is absent: upstream's recorded numbers are not part of the project")
    return SHARED / "golden"
