"""The cost of a training step: tokens, floating-point operations, and the share of the device's peak."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robometer.training.batch import Batch

PEAK_TFLOPS = {
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "RTX A6000": (155.0, 38.7),
    "RTX 4090": (165.0, 82.6),
}
"""Dense bf16 and fp32 (no TF32) TFLOPS by part of a device's name, from NVIDIA's data sheets; first match counts."""


@dataclass(frozen=True)
class Work:
    """The work of a batch, without padding.

    Attributes:
        tokens: tokens of the language model, or of ReWiND's transformer.
        token_pairs: sum of squared sequence lengths, which is what attention costs.
        patches: patches of the vision tower, for each distinct frame of the batch once.
        patch_pairs: sum of squared patches per image.
        frames: frames of all clips.
    """

    tokens: float = 0.0
    token_pairs: float = 0.0
    patches: float = 0.0
    patch_pairs: float = 0.0
    frames: float = 0.0

    @property
    def seen(self) -> float:
        """Tokens and patches of a vision-language model; frames of a model that reads embeddings."""
        return self.tokens + self.patches if self.patches else self.frames

    def tensor(self) -> Tensor:
        """The fields as float64 [5], to be summed over workers."""
        return torch.tensor(astuple(self), dtype=torch.float64)


def work(batch: Batch, model: nn.Module) -> Work:
    """The work that `batch` is for `model`."""
    inputs, frames = batch.inputs, float(batch.a.frame_mask.sum() + batch.b.frame_mask.sum())
    if "patches" in inputs:
        return Work(*_sums(inputs["sequence_length"]), *_sums(inputs["grid"].prod(1)), frames)
    per_frame = int(_members(model)[0].tokens_per_frame)
    lengths = 2 + per_frame * (batch.a.frame_mask.sum(1) + batch.b.frame_mask.sum(1))  # task, preference token
    return Work(*_sums(lengths), frames=frames)


def _sums(lengths: Tensor) -> tuple[float, float]:
    lengths = lengths.double()
    return float(lengths.sum()), float(lengths.square().sum())


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of forward and backward passes, per unit of `Work`.

    The forward pass costs a multiplication and an addition per weight and token, the backward pass twice that; gradient
    checkpointing adds another forward pass, and frozen parts have no backward pass. Attention adds 4 x width per layer
    and pair of tokens, half of that if it is causal. Embedding tables are lookups and cost nothing.
    """

    token: float
    token_pair: float
    frame: float
    patch: float = 0.0
    patch_pair: float = 0.0

    def flops(self, step: Work) -> float:
        """Floating-point operations of a training step with this work."""
        language = self.token * step.tokens + self.token_pair * step.token_pairs + self.frame * step.frames
        return language + self.patch * step.patches + self.patch_pair * step.patch_pairs


def cost(model: nn.Module, gradient_checkpointing: bool = False) -> Cost:
    """The cost of a Robometer or ReWiND model, also if ZeRO 3 has partitioned its parameters."""
    times = 4.0 if gradient_checkpointing else 3.0
    if not hasattr(model, "vision_parts"):
        return _rewind_cost(model)
    robometer: Any = model
    config, language = robometer.model.config, _weights(robometer.language_model)
    text, vision = config.text_config, config.vision_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # Frozen weights under adapters need no gradient of their own, but pass one on.
    frozen = _numel(p for p in language if not p.requires_grad)
    tower = [(name, p) for name, p in robometer.model.named_parameters() if name.startswith(robometer.family.vision)]
    vision_times = times if any(p.requires_grad for _, p in tower) else 1.0
    # The merging layers work on groups of patches.
    merging = _numel(p for name, p in tower if "merger" in name or "connector" in name)
    tables = _numel(p for name, p in tower if "pos_embed" in name or "position_embedding" in name)
    patch = _numel(p for _, p in tower) - tables - merging * (1 - 1 / robometer.cutter.merge**2)
    return Cost(
        token=2.0 * (times * _numel(language) - frozen),
        token_pair=2.0 * times * text.num_hidden_layers * text.num_attention_heads * head_dim,
        frame=6.0 * (_numel(_weights(model)) - _numel(_weights(robometer.model))),  # the heads
        patch=2.0 * vision_times * patch,
        patch_pair=4.0 * vision_times * (getattr(vision, "depth", 0) or vision.num_hidden_layers) * vision.hidden_size,
    )


def _rewind_cost(model: nn.Module) -> Cost:
    members = _members(model)  # each sample trains only one member of an ensemble
    layers = members[0].transformer.layers
    token, every = _numel(_weights(members[0].transformer)), _numel(_weights(members[0]))
    pair = (6.0 if members[0].attention == "causal" else 12.0) * len(layers) * layers[0].self_attn.embed_dim
    return Cost(6.0 * token, pair, 6.0 * (every - token))


def _members(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "tokens_per_frame")]


def _weights(module: nn.Module) -> list[nn.Parameter]:
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return [parameter for parameter in module.parameters() if id(parameter) not in tables]


def _numel(parameters: Iterable[nn.Parameter]) -> int:
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in parameters)


def peak_flops(device: torch.device, precision: str, tflops: float = 0.0) -> float | None:
    """Peak operations per second of a device at `precision` (bf16 or fp32); None where unknown.

    Args:
        tflops: `train.peak_tflops`, which overrides the table; 0 for the table.
    """
    if tflops:
        return tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for part, peaks in PEAK_TFLOPS.items() if part in name), None)
    return None if peaks is None else peaks[0 if precision == "bf16" else 1] * 1e12
