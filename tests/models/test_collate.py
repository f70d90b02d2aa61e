"""Both collators on a corpus with known frames and embeddings: two samples of three frames, by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.embed import IMAGE_SCHEMA, TEXT_SCHEMA
from robometer.configs import load
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.corpus.writer import commit_shard
from robometer.models.checkpoint import build_collator
from robometer.models.rewind_scorer import feature_statistics
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.training.batch import Batch
from robometer.trajectory import SCHEMA_VERSION
from tests.corpus.test_corpus import stored

FRAMES = 5
KEYS = ("0", "1", "4")
"""Episodes; 4 is held out. Frame i of episode n has grey level 20 i + n and embedding [n, i]."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    storage = Storage(str(tmp_path_factory.mktemp("corpus")))
    storage.write_bytes("corpus.json", b'{"schema_version": %d, "state": "complete", "settings": {}}' % SCHEMA_VERSION)
    entries = [stored(int(key), FRAMES) for key in KEYS]
    commit_shard(storage, "shard", entries)
    embeddings = [[float(v) for i in range(FRAMES) for v in (int(key), i)] for key in KEYS]
    ids = [entry.record["id"] for entry in entries]
    tables = {
        "random_image/shard": ([ids, [FRAMES] * len(KEYS), embeddings], IMAGE_SCHEMA),
        "random_text/tasks": ([["task 0", "task 1"], [[1.0, 0.0], [0.0, 1.0]]], TEXT_SCHEMA),
    }
    for name, (columns, schema) in tables.items():
        table = pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)
        with storage.write(f"embeddings/{name}.arrow") as stream, pa.ipc.new_file(stream, schema) as writer:
            for batch in table.to_batches(max_chunksize=1):
                writer.write_batch(batch)
    return Corpus(storage.path)


def _row(corpus: Corpus, key: str) -> int:
    return corpus.manifest["episode_key"].to_pylist().index(key)


def _plans(corpus: Corpus) -> list[SamplePlan]:
    """A pair with three frames and two, where A is rejected; and one clip of two frames."""

    def clip(key: str, positions: list[int], progress: list[float], supervised: bool, success: list[float]) -> ClipPlan:
        count = len(positions)
        return ClipPlan(
            _row(corpus, key),
            np.array(positions, dtype=np.int32),
            np.array(progress, dtype=np.float32),
            np.full(count, supervised),
            np.array(success, dtype=np.float32),
            np.array([True] * (count - 1) + [False]),
        )

    a, b = clip("0", [1, 3, 2], [0.25, 0.75, 0.5], False, [0, 0, 0]), clip("0", [0, 4], [0.0, 1.0], True, [0, 1])
    single = clip("1", [2, 4], [0.5, 1.0], True, [0, 1])
    return [
        SamplePlan(6, "preference", "rewind", "task 0", a, b, 0.0),
        SamplePlan(7, "progress", "forward", "task 1", single, None, 0.0),
    ]


def _collate(corpus: Corpus, *overrides: str) -> Batch:
    config = load(["embed.image_encoder=random_image", "embed.text_encoder=random_text", *overrides])
    return build_collator(config, corpus)(_plans(corpus))


@pytest.mark.parametrize("kind", ["rewind", "tiny"])
def test_targets_of_two_samples(corpus: Corpus, kind: str) -> None:
    batch = _collate(corpus, f"model={kind}")
    assert batch.sample_index.tolist() == [6, 7]
    assert batch.preference_label.tolist() == [0.0, 0.0] and batch.preference_mask.tolist() == [True, False]
    assert batch.strategy.tolist() == [2, 0]
    yes, no = True, False
    assert batch.a.frame_mask.tolist() == [[yes, yes, yes], [yes, yes, no]]
    assert batch.a.progress_target.tolist() == [[0.25, 0.75, 0.5], [0.5, 1.0, 0.0]]
    assert batch.a.progress_mask.tolist() == [[no, no, no], [yes, yes, no]]
    assert batch.a.success_label.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert batch.a.success_mask.tolist() == [[yes, yes, no], [yes, no, no]]
    assert batch.b.frame_mask.tolist() == [[yes, yes], [no, no]]
    assert batch.b.progress_target.tolist() == [[0, 1], [0, 0]]
    assert batch.b.progress_mask.tolist() == [[yes, yes], [no, no]]
    assert batch.b.success_label.tolist() == [[0, 1], [0, 0]]
    assert batch.b.success_mask.tolist() == [[yes, no], [no, no]]


def test_rewind_is_fed_the_embeddings_of_the_frames_shown(corpus: Corpus) -> None:
    inputs = _collate(corpus, "model=rewind").inputs
    assert inputs["text"].tolist() == [[1, 0], [0, 1]]
    assert inputs["embeddings_a"].tolist() == [[[0, 1], [0, 3], [0, 2]], [[1, 2], [1, 4], [0, 0]]]
    assert inputs["embeddings_b"].tolist() == [[[0, 0], [0, 4]], [[0, 0], [0, 0]]]


def test_robometer_is_fed_the_frames_shown(corpus: Corpus) -> None:
    inputs = _collate(corpus, "model=tiny").inputs
    assert inputs["frames_a"].tolist() == [[0, 1, 2], [5, 6, 0]]
    assert inputs["frames_b"].tolist() == [[3, 4], [0, 0]]
    patches = inputs["patches"].split(inputs["grid"].prod(1).tolist())
    grey = torch.stack([patches[i].float().mean() for i in inputs["image"].tolist()])
    expected = [20 * i + key for key, i in ((0, 1), (0, 3), (0, 2), (0, 0), (0, 4), (1, 2), (1, 4))]
    torch.testing.assert_close(grey, torch.tensor(expected).float(), atol=1.0, rtol=0)


def test_standardisation_sees_the_training_split_alone(corpus: Corpus) -> None:
    mean, std = feature_statistics(corpus, load(["embed.image_encoder=random_image"]))
    assert mean.tolist() == [0.5, 2.0]  # of episodes 0 and 1
    assert std.tolist() == pytest.approx([0.5 + 1e-3, 2**0.5 + 1e-3])


def test_embeddings_come_by_position(corpus: Corpus) -> None:
    row = _row(corpus, "4")
    assert corpus.embeddings("random_image", row).tolist() == [[4, i] for i in range(FRAMES)]
    assert corpus.embeddings("random_image", row, [3, 0, 3]).tolist() == [[4, 3], [4, 0], [4, 3]]
