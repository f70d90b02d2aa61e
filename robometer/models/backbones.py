"""The families of vision-language models that Robometer can build on: their inputs and their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, Qwen2_5_VLModel, Qwen3VLModel, SmolVLMModel

from robometer.models.images import Cutter, QwenCutter, SquareCutter
from robometer.models.prompts import QWEN2_5_CHAT, QWEN3_CHAT, SMOLVLM_CHAT, Chat
from robometer.settings import ConfigError

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Backbone:
    """One family of vision-language models.

    Attributes:
        model: transformers' class, without a language-modelling head.
        vision: names of the modules that turn pixels into features.
        language: name of the language model.
        chat: how the family writes a turn.
        cutter: makes the cutter for a configuration of the family.
        features: from (model, pixels, grid) to features, one entry per image, as the model's forward takes them.
        spatial_positions: whether image tokens have positions in rows and columns (M-RoPE).
    """

    model: Any
    vision: tuple[str, ...]
    language: str
    chat: Chat
    cutter: Callable[[Any], Cutter]
    features: Callable[[Any, Tensor, Tensor], Any]
    spatial_positions: bool

    def positions(self, size: int, rows: int, columns: int, start: int) -> tuple[np.ndarray, int]:
        """Positions int64 [3, size] of the tokens of an image or a text, and by how much the next position advances."""
        if rows * columns != size or not self.spatial_positions:
            return np.tile(np.arange(start, start + size), (3, 1)), size
        row, column = np.divmod(np.arange(size), columns)
        return np.stack([np.full(size, start), start + row, start + column]), max(rows, columns)


def _qwen_cutter(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Callable[[Any], Cutter]:
    def cutter(config: Any) -> Cutter:
        vision = config.vision_config
        return QwenCutter(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, mean, std)

    return cutter


def _qwen_features(model: Any, pixels: Tensor, grid: Tensor) -> Any:
    return model.get_image_features(pixels, grid, return_dict=True)


def _smolvlm_cutter(config: Any) -> Cutter:
    return SquareCutter(config.vision_config.image_size, config.vision_config.patch_size, config.scale_factor)


def _smolvlm_features(model: Any, pixels: Tensor, grid: Tensor) -> Any:
    features = model.get_image_features(pixels[None], return_dict=True)
    features.pooler_output = torch.cat(list(features.pooler_output)).split(model.image_seq_len)
    return features


BACKBONES = {
    "qwen3_vl": Backbone(
        Qwen3VLModel,
        ("visual",),
        "language_model",
        QWEN3_CHAT,
        _qwen_cutter(_HALF, _HALF),
        _qwen_features,
        spatial_positions=True,
    ),
    "qwen2_5_vl": Backbone(
        Qwen2_5_VLModel,
        ("visual",),
        "language_model",
        QWEN2_5_CHAT,
        _qwen_cutter(_CLIP_MEAN, _CLIP_STD),
        _qwen_features,
        spatial_positions=True,
    ),
    "smolvlm": Backbone(
        SmolVLMModel,
        ("vision_model", "connector"),
        "text_model",
        SMOLVLM_CHAT,
        _smolvlm_cutter,
        _smolvlm_features,
        spatial_positions=False,
    ),
}
"""The families by `model_type` of the base model's configuration."""


def backbone_of(config: PretrainedConfig) -> Backbone:
    """The family of a base model's configuration.

    Raises:
        ConfigError: the configuration is of no family in `BACKBONES`.
    """
    kind = str(config.model_type)
    if kind not in BACKBONES:
        raise ConfigError(
            f"the base model has type {kind!r}, which is not supported: use one of {', '.join(BACKBONES)}"
        )
    return BACKBONES[kind]
