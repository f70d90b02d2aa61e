"""The learning rate of each step, and the rate and decay of each parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from robometer.configs import load
from robometer.training.optimisation import learning_rate, parameter_groups, schedule


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(kind: str, warmup: int) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    theirs = getattr(transformers, f"get_{kind}_schedule_with_warmup")(optimizer, warmup, 10)
    for step in range(10):
        assert schedule(step, warmup, 10, kind) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_every_step_but_the_last_learns() -> None:
    config = load(["train.steps=20", "train.learning_rate=2", "train.warmup_ratio=0.1"])
    rates = [learning_rate(step, config) for step in range(1, 21)]
    assert rates[:2] == [1.0, 2.0] and rates[-1] == 0.0 and min(rates[:-1]) > 0
    assert rates[1:] == sorted(rates[1:], reverse=True)
    constant = load(["train.steps=20", "train.learning_rate=2", "train.schedule=constant", "train.warmup_ratio=0"])
    assert {learning_rate(step, constant) for step in range(1, 21)} == {2.0}


def test_the_vision_tower_has_its_own_rate_and_norms_and_biases_do_not_decay() -> None:
    towers = {
        name: nn.ModuleDict({"proj": nn.Linear(2, 2), "norm": nn.LayerNorm(2)}) for name in ("visual", "language_model")
    }
    model: Any = nn.ModuleDict({"model": nn.ModuleDict(towers)})
    model.vision_parts = [towers["visual"]]
    train = load(["train.learning_rate=2e-5", "train.vision_learning_rate=1e-5", "train.weight_decay=0.1"]).train
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        (group["lr_scale"], group["weight_decay"]): [names[id(p)] for p in group["params"]]
        for group in parameter_groups(model, train)
    }
    plain = ["proj.bias", "norm.weight", "norm.bias"]
    assert groups == {
        (1.0, 0.1): ["model.language_model.proj.weight"],
        (1.0, 0.0): [f"model.language_model.{name}" for name in plain],
        (0.5, 0.1): ["model.visual.proj.weight"],
        (0.5, 0.0): [f"model.visual.{name}" for name in plain],
    }
    towers["visual"].requires_grad_(False)
    assert [group["lr_scale"] for group in parameter_groups(model, train)] == [1.0, 1.0]
