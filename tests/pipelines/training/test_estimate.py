"""The estimate of memory: figures worked out by hand, and against what DeepSpeed holds in one process."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from jobs import train as job
from pipelines.training.deepspeed_settings import deepspeed_config
from pipelines.training.engine import import_deepspeed
from pipelines.training.estimate import Sizes, _hours, activations, empty_model, largest_batch, model_states, sizes_of
from robometer.configs import Config, load
from robometer.models.checkpoint import build_model
from robometer.training.activations import LiveTensors, peak_bytes

BF16 = Sizes(total=1000, trained=600, layer=100, width=2)
BUCKET = "train.deepspeed.zero_optimization.reduce_bucket_size"


def _config(*overrides: str) -> Config:
    return load(["model=tiny", "corpus.path=/nowhere", *overrides])


@pytest.mark.parametrize(("overrides", "gpus", "expected"), [
    (["train.zero_stage=1"], 4, (2000, 2400, 1800, 4 * 7, 600)),  # float32 sums of whole gradients
    (["train.zero_stage=2"], 4, (2000, 600, 1800, 2 * 7, 600)),
    (["train.zero_stage=2", "train.deepspeed.zero_optimization.overlap_comm=true"], 4, (2000, 600, 1800, 4 * 7, 600)),
    (["train.zero_stage=3"], 4, (500, 600, 1800, 2 * 7 + 2000, 0)),
    (["train.zero_stage=3", "train.deepspeed.zero_optimization.stage3_max_live_parameters=30"], 1,
     (2000, 2400, 7200, 2 * 7 + 60, 0)),
    (["train.zero_stage=3", "train.offload=parameters"], 4, (0, 0, 0, 2 * 7 + 2000, 0)),
])  # fmt: skip
def test_states_by_hand(overrides: list[str], gpus: int, expected: tuple[float, ...]) -> None:
    """600 of 1000 weights are trained, in bf16, with buckets of 7 elements."""
    states = model_states(BF16, _config("train.precision=bf16", f"{BUCKET}=7", *overrides), gpus)
    assert (states.weights, states.gradients, states.optimizer, states.buffers, states.step) == expected
    assert states.host == (0 if states.weights else 500 + 150 * (12 + 8))
    assert states.peak(10_000) == sum(expected[:3]) + expected[3] + 10_000
    assert states.peak(0) == sum(expected[:3]) + max(expected[3:])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (2, "bf16"),
        *(pytest.param(stage, "fp32", marks=pytest.mark.slow) for stage in (0, 1, 2, 3)),
        *(pytest.param(stage, "bf16", marks=pytest.mark.slow) for stage in (1, 3)),
    ],
)
def test_deepspeed_holds_what_is_estimated(stage: int, precision: str) -> None:
    """Before the optimizer's second step, when all states are there; half of the layers are frozen."""
    more = "train.deepspeed.zero_optimization={reduce_bucket_size: 80000, stage3_param_persistence_threshold: 0}"
    scale = ["train.batch_size=8", "train.micro_batch_size=2"]
    config = _config(f"train.zero_stage={stage}", f"train.precision={precision}", *scale, more)
    deepspeed = import_deepspeed(config)
    gc.collect()
    with LiveTensors([]) as made:
        model = nn.Sequential(nn.Linear(256, 128, bias=False), nn.Linear(128, 512, bias=False))
        model.to(torch.bfloat16 if precision == "bf16" else torch.float32)[0].requires_grad_(False)
        sizes = sizes_of(model)
        assert (sizes.total, sizes.trained, sizes.layer) == (98_304, 65_536, 65_536)
        settings = deepspeed_config(config, 1)
        trained = list(model[1].parameters())
        engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=settings)
        for last in (False, True):
            for micro_batch in range(4):
                engine.backward(engine(torch.ones(2, 256, dtype=model[0].weight.dtype)).sum())
                if not last or micro_batch < 3:
                    engine.step()
        gc.collect()
        live = made.live
    states = model_states(sizes, config, 1)
    expected = states.lasting
    if stage == 3:  # whose bucket stays, beside no whole weights between passes
        expected += 80_000 * sizes.width
    elif stage:  # DeepSpeed keeps the shapes as tensors on the meta device, which take nothing
        live -= sizes.trained * sizes.width
    assert live == pytest.approx(expected, rel=0.02)


def test_activations_grow_by_the_same_for_each_sample() -> None:
    config = _config("sampling.max_frames=3", "ingest.short_edge=48")
    counted = activations(config, None)
    three = peak_bytes(empty_model(config, None), largest_batch(config, None, 3), config.loss, "discrete")
    assert counted(3) == pytest.approx(three, rel=0.01)
    assert counted.per_sample > 0


def test_the_command_prints_tables_without_a_corpus_or_ray(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wanted = ["model=tiny", "model.lora.rank=4", "train.precision=bf16", "train.num_workers=3", "train.batch_size=12"]
    short = ["sampling.max_frames=2", "ingest.short_edge=32", f"corpus.path={tmp_path}/none"]
    assert job.main(["--estimate", *wanted, *short]) == 0
    printed = capsys.readouterr().out
    model = build_model(load([*wanted, *short]), None)  # type: ignore[arg-type]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"Model: robometer, {total:,} parameters, {trained:,} of them trained, bf16" in printed
    rows = [line.split() for line in printed.splitlines() if line[:5].strip().isdigit()]
    assert [row[:2] for row in rows[:15]] == [[str(s), str(n)] for s in (1, 2, 3) for n in (1, 2, 3, 4, 8)]
    assert "A sample is a pair of clips of 2 frames of 32 x 42 px, as an ingest makes them" in printed
    assert "This run: train.zero_stage=2, 3 GPUs, 4 samples a micro-batch" in printed


def test_hours_are_the_work_of_all_samples_at_a_share_of_the_peak() -> None:
    config = load(["model=tiny", "sampling.max_frames=2", "train.steps=1000000000", "train.precision=bf16"])
    text = _hours(config, None)
    match = re.search(r"Time: (\S+) TFLOP for a sample, (\S+) EFLOP for 1,000,000,000 steps of 32 samples", text)
    assert match
    sample, total = float(match[1]) * 1e12, float(match[2]) * 1e18
    assert total == pytest.approx(sample * 32e9, rel=0.01)
    hours = {name: float(value.replace(",", "")) for value, name in re.findall(r"([\d.,]+) on (\w+)", text)}
    assert hours["A100"] == pytest.approx(total / (312e12 * 0.4 * 3600), rel=0.01)
    assert hours["H100"] == pytest.approx(total / (989e12 * 0.4 * 3600), rel=0.01)
