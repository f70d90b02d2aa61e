"""What the optimizer is told: the learning rate of a step, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

import torch

from robometer.configs.schema import Config


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then cosine to 0; a pure function of the step (1-based), so that resume needs no state."""
    train = config.train
    warmup = max(1, round(train.warmup_ratio * train.steps))
    if step <= warmup:
        return train.learning_rate * step / warmup
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, train.steps - warmup)))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; biases, norms and single tokens carry no weight decay."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in trained if p.ndim >= 2 and "norm" not in name]
    plain = [p for name, p in trained if p.ndim < 2 or "norm" in name]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
