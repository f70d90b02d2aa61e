"""The pipeline that runs encoders over a corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.embed import encode_trajectories, run_embed
from pipelines.ingest import run_ingest
from robometer.configs import Config, load
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.models.encoders import image_encoder, text_encoder
from tests.models.test_encoders import frames
from tests.pipelines.test_ingest import config as ingest_config
from tests.pipelines.test_ingest import files, write_data


def config(tmp_path: Path) -> Config:
    return load(
        [
            f"corpus.path={tmp_path / 'corpus'}",
            "embed.image_encoder=random_image",
            "embed.text_encoder=random_text",
            "embed.batch_size=20",
            "embed.actors=1",
        ]
    )


def test_a_corpus_is_embedded_once_and_grows(ray_local: None, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 4)
    run_ingest(ingest_config(tmp_path))
    report = run_embed(config(tmp_path))
    assert (report.shards, report.frames, report.tasks) == (2, 32, 2)
    before = files(tmp_path / "corpus")
    report = run_embed(config(tmp_path))
    assert (report.shards, report.frames, report.tasks) == (0, 0, 0) and files(tmp_path / "corpus") == before
    write_data(tmp_path / "data", 6, rows=[{"video": "0.mp4", "task": "another task", "view": "x"}])
    run_ingest(ingest_config(tmp_path))
    report = run_embed(config(tmp_path))
    assert (report.frames, report.tasks) == (24, 1)

    corpus, encoder = Corpus(str(tmp_path / "corpus")), image_encoder("random_image")
    for row in range(len(corpus)):
        expected = encoder.encode(corpus.frames(row))
        found = corpus.embeddings("random_image", row)
        assert found.dtype == np.float32 and np.abs(found - expected).max() < 2e-3  # stored as float16
        assert np.array_equal(corpus.embeddings("random_image", row, [5, 0, 5]), found[[5, 0, 5]])
    texts = corpus.text_embeddings("random_text")
    assert set(texts) == {"do task 0", "do task 1", "another task"}
    assert np.allclose(texts["another task"], text_encoder("random_text").encode(["another task"])[0])


def test_an_empty_place_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="robometer ingest"):
        run_embed(config(tmp_path))


def test_batches_span_trajectories_of_any_size_and_keep_their_order() -> None:
    encoder = image_encoder("random_image")
    clips = [("a", frames(3)), ("b", frames(9, 1, 64, 64)), ("c", frames(1, 2, 50, 90)), ("d", frames(2, 3))]
    together = list(encode_trajectories(encoder, clips, batch_size=5))
    assert [id for id, _ in together] == ["a", "b", "c", "d"]
    for (_, vectors), (_, clip) in zip(together, clips, strict=True):
        assert np.allclose(vectors, encoder.encode(clip), atol=1e-6)
