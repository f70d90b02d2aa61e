"""The optimiser: the learning rate of each step, the parameters that decay, and AdamW's constants."""

from __future__ import annotations

import math
from typing import Any

import torch

from robometer.configs.schema import Config
from robometer.training.config import TrainConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's constants, as upstream sets them."""


def schedule(position: int, warmup: int, steps: int, kind: str) -> float:
    """Share of the full learning rate at `position` in a run of `steps`, as in transformers' schedules.

    A linear warm-up over `warmup` steps, then `cosine` to 0, `linear` to 0, or `constant`.
    """
    if position < warmup:
        return position / warmup
    if kind == "constant":
        return 1.0
    fraction = (position - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * fraction)) if kind == "cosine" else max(0.0, 1 - fraction)


def warmup_steps(train: TrainConfig) -> int:
    """Number of warm-up steps, rounded up."""
    return math.ceil(train.warmup_ratio * train.steps)


def learning_rate(step: int, config: Config) -> float:
    """Learning rate of a step, counted from 1; a pure function, so that resuming needs no state.

    The schedule is read at `step`, so that the first step learns. Transformers (and upstream) reads it at `step - 1`:
    with a warm-up, its first step has rate 0, and ours has rate 0 in the last one.
    """
    train = config.train
    return train.learning_rate * schedule(step, max(1, warmup_steps(train)), train.steps, train.schedule)


def parameter_groups(model: torch.nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters by weight decay and learning rate, for AdamW; only groups with parameters.

    Biases and norm weights do not decay; all other parameters do, also learned tokens (as upstream). The modules in a
    model's `vision_parts` have their own rate: a group's rate is `learning_rate(step, config)` times its `lr_scale`.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    vision = {id(parameter) for part in getattr(model, "vision_parts", []) for parameter in part.parameters()}
    groups = []
    for rate, is_vision in ((train.learning_rate, False), (train.vision_learning_rate, True)):
        for decay, is_decayed in ((train.weight_decay, True), (0.0, False)):
            members = [p for name, p in trained if (id(p) in vision) == is_vision and decays(name, p) == is_decayed]
            scale = rate / train.learning_rate
            groups.append({"params": members, "weight_decay": decay, "lr": rate, "lr_scale": scale})
    return [group for group in groups if group["params"]]


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.ndim >= 2 and "norm" not in name
