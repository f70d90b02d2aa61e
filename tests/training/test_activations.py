"""Memory of activations: figures worked out by hand, and the meta device against real steps on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from robometer.configs import load
from robometer.models.collate import collate_targets
from robometer.models.lora import add_lora
from robometer.models.rewind import Rewind
from robometer.models.robometer import build_robometer, load_processor
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import Clip
from robometer.training.activations import peak_bytes
from robometer.training.batch import Batch, RewardOutput
from robometer.training.config import LossConfig

MIB = 2**20


def _pairs(count: int, frames: int) -> Batch:
    clip = ClipPlan.unlabelled(frames)
    plans = [SamplePlan(i, "preference", "forward", "open", clip, clip, 0.0) for i in range(count)]
    embeddings = {f"embeddings_{side}": torch.zeros(count, frames, 40) for side in "ab"}
    return collate_targets(plans, {"text": torch.zeros(count, 24)} | embeddings)


class _Wide(nn.Module):
    """Makes 1 MiB of each frame and squares it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch) -> RewardOutput:
        wide = self.weight.expand(batch.a.frame_mask.numel() * MIB // 4) * 2.0
        out = (wide * wide).sum().expand(batch.a.frame_mask.shape)
        return RewardOutput(out[..., None], out)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_square_needs_itself_and_the_gradients_of_both_its_factors(device: str) -> None:
    """Forward makes two (the factor and its square); backward keeps the factor until it has both gradients."""
    model = _Wide().to(device)
    assert peak_bytes(model, _pairs(2, 3), LossConfig(), "l1") == pytest.approx(3 * 6 * MIB, rel=1e-3)
    assert model.training and model.weight.grad is None


def _robometer(*overrides: str) -> tuple[Callable[[], nn.Module], Batch]:
    config, rng = load(["model=tiny", "model.dropout=0", *overrides]), np.random.default_rng(0)
    clips = [Clip(rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8), "open the drawer") for _ in range(2)]

    def make() -> nn.Module:
        model, tokenizer = build_robometer(config, weights=False)
        if config.model.lora.rank:
            add_lora(model, config.model.lora, tokenizer)
        return model

    return make, load_processor(config).collate_pairs([(clips[0], clips[1])])


def _rewind() -> tuple[Callable[[], nn.Module], Batch]:
    return partial(Rewind, 40, 24, 64, 3, 4, 16, 10, dropout=0.0), _pairs(4, 16)


@pytest.mark.parametrize(("kind", "overrides", "tolerance"), [
    (_robometer, (), 1e-3),
    pytest.param(_robometer, ("train.gradient_checkpointing=true",), 1e-3, marks=pytest.mark.slow),
    pytest.param(_robometer, ("model.lora.rank=4", "model.lora.dropout=0"), 1e-3, marks=pytest.mark.slow),
    pytest.param(_robometer, ("model.base_model=tiny_smolvlm", "train.precision=bf16"), 1e-3, marks=pytest.mark.slow),
    (_rewind, (), 0.1),  # kernels differ in how they keep a mask
])  # fmt: skip
def test_the_meta_device_counts_what_a_real_step_takes(
    kind: Callable[..., tuple[Callable[[], nn.Module], Batch]], overrides: tuple[str, ...], tolerance: float
) -> None:
    make, batch = kind(*overrides)
    with torch.device("meta"):
        empty = make()
    counted = peak_bytes(empty, batch, LossConfig(), "discrete")
    assert counted == pytest.approx(peak_bytes(make(), batch, LossConfig(), "discrete"), rel=tolerance)
