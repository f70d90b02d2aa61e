"""How weights are stepped: the learning rate of each step, which parameters decay, AdamW's constants."""

from __future__ import annotations

import math
from typing import Any

import torch

from robometer.configs.schema import Config, TrainConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, as upstream has them."""


def schedule(position: int, warmup: int, steps: int, kind: str) -> float:
    """Share of the full learning rate at `position` of a run of `steps`, as transformers' schedules have it.

    Linear warm-up over `warmup` steps, then `cosine` to 0, `linear` to 0, or `constant`.
    """
    if position < warmup:
        return position / warmup
    if kind == "constant":
        return 1.0
    done = (position - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else max(0.0, 1 - done)


def warmup_steps(train: TrainConfig) -> int:
    """Steps of warm-up; a part of one counts whole."""
    return math.ceil(train.warmup_ratio * train.steps)


def learning_rate(step: int, config: Config) -> float:
    """Rate of a step (1-based); a pure function, so that resume needs no state.

    The schedule is read after the step, so that the first one learns; transformers, and upstream with it, reads it
    before the step: with a warm-up its first step has rate 0, and ours its last. Its rate of step s is our schedule at
    s - 1.
    """
    train = config.train
    return train.learning_rate * schedule(step, max(1, warmup_steps(train)), train.steps, train.schedule)


def parameter_groups(model: torch.nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters by weight decay and learning rate, for AdamW; the groups that hold any.

    Biases and the weights of norms do not decay, everything else does, learned tokens too (as in upstream). What a
    model lists as its `vision_parts` has its own rate: a group's is `learning_rate(step, config)` times its `lr_scale`.
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
