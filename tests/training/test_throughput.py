"""Work and cost of a step against hand-counted batches and PyTorch's own count of operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from robometer.configs import Config, load
from robometer.models.rewind import Rewind
from robometer.models.robometer import build_robometer, load_processor
from robometer.scoring import Clip
from robometer.training.batch import Batch, ClipTargets
from robometer.training.throughput import Work, cost, peak_flops, work

FRAMES = 6


def _robometer(*overrides: str) -> tuple[nn.Module, Batch]:
    config: Config = load(["model=tiny", *overrides])
    rng = np.random.default_rng(0)
    clips = [Clip(rng.integers(0, 255, (FRAMES, 128, 96, 3), dtype=np.uint8), "open the drawer") for _ in range(4)]
    return build_robometer(config)[0], load_processor(config).collate_pairs(
        [(clips[0], clips[1]), (clips[2], clips[3])]
    )


def _rewind() -> tuple[nn.Module, Batch]:
    def targets(length: int) -> ClipTargets:
        zeros, ones = torch.zeros(3, length), torch.ones(3, length, dtype=torch.bool)
        return ClipTargets(ones, zeros, ones, zeros, ones)

    torch.manual_seed(0)
    inputs = {
        "text": torch.randn(3, 64),
        "embeddings_a": torch.randn(3, 16, 64),
        "embeddings_b": torch.randn(3, 16, 64),
    }
    nothing = torch.zeros(3)
    batch = Batch(torch.arange(3), inputs, targets(16), targets(16), nothing, nothing.bool(), nothing.long())
    return Rewind(64, 64, 64, 3, 4, 16, 10), batch


def _forward_flops(model: nn.Module, batch: Batch) -> float:
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # it counts no fused attention
        model(batch)
    return float(counter.get_total_flops())


def test_work_of_both_kinds_of_model() -> None:
    model, batch = _rewind()
    tokens = 2 + 2 * (16 + 16)
    assert work(batch, model) == Work(3 * tokens, 3 * tokens**2, frames=3 * 32)
    assert work(batch, model).seen == 96
    model, batch = _robometer()
    done = work(batch, model)
    patches = (128 // 16) * (96 // 16)
    assert (done.frames, done.patches, done.patch_pairs) == (24, 24 * patches, 24 * patches**2)
    assert done.seen == done.tokens + done.patches > 24 * patches * 1.25


def _smolvlm() -> tuple[nn.Module, Batch]:
    return _robometer("model.base_model=tiny_smolvlm")


@pytest.mark.parametrize("make", [_robometer, _smolvlm, _rewind])
def test_cost_agrees_with_the_operations_that_pytorch_counts(make: object) -> None:
    model, batch = make()  # type: ignore[operator]
    done = work(batch, model)
    # PyTorch counts attention as if it were not causal, and forward only.
    counted = cost(model.requires_grad_(True)).flops(replace(done, token_pairs=2 * done.token_pairs)) / 3
    assert counted == pytest.approx(_forward_flops(model, batch), rel=0.05)


def test_frozen_parts_and_recomputed_activations_are_told_apart() -> None:
    model, batch = _robometer()
    done = work(batch, model)
    vision, language = (
        replace(done, tokens=0, token_pairs=0, frames=0),
        replace(done, patches=0, patch_pairs=0, frames=0),
    )
    plain, checkpointed = cost(model), cost(model, gradient_checkpointing=True)
    assert checkpointed.flops(language) / plain.flops(language) == pytest.approx(4 / 3)
    assert checkpointed.flops(vision) == plain.flops(vision)
    assert cost(model.requires_grad_(True)).flops(vision) / plain.flops(vision) == pytest.approx(3)


def test_a_device_that_nobody_knows_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), "bf16") is None
    assert peak_flops(torch.device("cpu"), "bf16", tflops=2.5) == 2.5e12
