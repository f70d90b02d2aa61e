"""d_rbm: upstream's tiny Qwen3-VL with its weights: raw frames in; ids, pixels, positions, states and logits out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.tiny_model import load
from parity.upstream.losses import upstream_losses
from robometer.models.collate import collate_targets
from robometer.models.processing import RobometerProcessor, Sample
from robometer.models.robometer import Robometer
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import Clip
from robometer.training.batch import Batch, RewardOutput, progress_from_logits
from robometer.training.config import LossConfig

LOGITS, PIXELS, EXACT, LOSS, GRADIENT = 1e-4, 1e-6, 0.0, 1e-5, 1e-4

_VIDEO = (
    "video mode reads Qwen3-VL's states at the wrong tokens: each temporal patch has a start token of its own, which "
    "upstream takes for the start of trajectory B, and its averages begin one token early"
)
_RAGGED = "upstream stacks clips of one length only; ours may differ in length"


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    for case in json.loads((recorded_set.folder / "d_rbm" / "cases.json").read_text())["cases"]:
        if case["kind"] == "train_loss":
            yield from _training(case, recorded_set.folder)
        elif "error" in case:
            yield _ragged(case, recorded_set.folder)
        elif not case["config"].get("multi", True):
            yield _video(case, recorded_set.folder)
        else:
            yield from _inference(case, recorded_set.folder)


def _load(case: dict[str, Any], folder: Path) -> tuple[Robometer, RobometerProcessor]:
    asked = case["config"]
    return load(
        folder,
        case.get("weights", "weights_discrete10.safetensors"),
        train_vision_encoder=True,
        ask_progress=asked.get("prog_pref", True),
        per_frame_progress_token=asked.get("per_frame", True),
        frame_pooling=asked.get("pooling", "mean"),
        frame_pooling_temperature=asked.get("temp", 1.0),
    )


def _arrays(case: dict[str, Any], folder: Path) -> Any:
    return np.load(folder / "d_rbm" / case["file"])


def _clips(case: dict[str, Any], arrays: Any) -> list[tuple[Clip, Clip | None]]:
    if case["kind"] == "progress":
        return [(Clip(arrays[f"frames_{i}"], task), None) for i, task in enumerate(case["tasks"])]
    return [
        (Clip(arrays[f"chosen_{i}"], task), Clip(arrays[f"rejected_{i}"], task)) for i, task in enumerate(case["tasks"])
    ]


def _batch(pairs: list[tuple[Clip, Clip | None]], processor: RobometerProcessor) -> Batch:
    whole = [(a, b) for a, b in pairs if b is not None]
    return processor.collate_pairs(whole) if whole else processor.collate_clips([a for a, _ in pairs])


def _inference(case: dict[str, Any], folder: Path) -> Iterator[Row]:
    name, arrays = f"d_rbm/{case['name']}", _arrays(case, folder)
    model, processor = _load(case, folder)
    batch = _batch(_clips(case, arrays), processor)
    inputs, there = batch.inputs, arrays["in_attention_mask"].astype(bool)
    yield Row(name, "token ids", _exact(inputs["input_ids"], arrays["in_input_ids"][there]), EXACT)
    yield Row(name, "image grids", _exact(inputs["grid"][inputs["image"]], arrays["in_image_grid_thw"]), EXACT)
    yield Row(name, "positions", _exact(inputs["position_ids"][1:], arrays["position_ids"][:, there]), EXACT)
    if "in_pixel_values" in arrays.files:
        yield Row(name, "pixel values", _error(_pixels(model, inputs), arrays["in_pixel_values"]), PIXELS)
    with torch.no_grad():
        output = model(batch)
        if "last_hidden_state" in arrays.files:
            states = model.hidden_states(inputs)
            yield Row(name, "last hidden states", _error(states, arrays["last_hidden_state"][there]), LOGITS)
    for what, key, ours in _outputs(output):
        if key in arrays.files:
            yield Row(name, what, _error(ours, arrays[key]), LOGITS)


def _outputs(output: RewardOutput) -> list[tuple[str, str, Tensor | None]]:
    return [
        ("progress logits A", "out_progress_A", output.progress_logits),
        ("progress logits B", "out_progress_B", output.progress_logits_b),
        ("success logits A", "out_success_A", output.success_logits),
        ("success logits B", "out_success_B", output.success_logits_b),
        ("preference logit", "out_pref", output.preference_logits),
    ]


def _pixels(model: Robometer, inputs: dict[str, Tensor]) -> Tensor:
    """Pixel values of all shown frames, of which the batch holds the distinct ones."""
    sizes = inputs["grid"].prod(1).tolist()
    distinct = model.cutter.pixels(inputs["patches"]).split(sizes)
    return torch.cat([distinct[i] for i in inputs["image"].tolist()])


def _exact(ours: Tensor, theirs: np.ndarray) -> float:
    return float(ours.numpy().shape != theirs.shape or not np.array_equal(ours.numpy(), theirs))


def _error(ours: Tensor | None, theirs: np.ndarray) -> float:
    """Largest difference; upstream drops the axes of single frames and single outputs."""
    if ours is None or ours.numel() != theirs.size:
        return float("inf")
    return float(np.abs(ours.detach().numpy().reshape(theirs.shape) - theirs).max())


def _shown(output: RewardOutput) -> str:
    progress = progress_from_logits(output.progress_logits)[0].tolist()
    return "progress of the first clip " + ", ".join(f"{value:.3f}" for value in progress)


def _ragged(case: dict[str, Any], folder: Path) -> Row:
    """Upstream raises; ours answers."""
    rng = np.random.default_rng(0)
    size = (case["h"], case["w"], 3)
    short, long = (Clip(rng.integers(0, 256, (t, *size), dtype=np.uint8), "stack") for t in (case["T"], case["T"] + 1))
    model, processor = _load(case, folder)
    pairs: list[tuple[Clip, Clip | None]] = [(short, None), (long, None)]
    pairs = [(short, long)] if case["kind"] == "preference" else pairs
    with torch.no_grad():
        output = model(_batch(pairs, processor))
    return Row(
        f"d_rbm/{case['name']}", "clips of two lengths", 0.0, 0.0, f"{_RAGGED} ({case['error']})", _shown(output)
    )


def _video(case: dict[str, Any], folder: Path) -> Row:
    """Ours reads the same frames as images, at the progress tokens."""
    images = case | {"config": {k: v for k, v in case["config"].items() if k not in ("multi", "per_frame", "avg")}}
    model, processor = _load(images, folder)
    with torch.no_grad():
        output = model(_batch(_clips(case, _arrays(case, folder)), processor))
    return Row(f"d_rbm/{case['name']}", "video mode", 0.0, 0.0, _VIDEO, "frames as images: " + _shown(output))


def _training(case: dict[str, Any], folder: Path) -> Iterator[Row]:
    """Upstream's loss and its gradients of a mixed training batch, without dropout."""
    name = f"d_rbm/{case['name']}"
    model, processor = _load(case, folder)
    batch = _training_batch(case, _arrays(case, folder), processor)
    loss = case["config"].get("loss", "discrete")
    total = upstream_losses(model(batch), batch, LossConfig(), loss)
    yield Row(name, "training loss", abs(total.total.item() - case["total_loss"]), LOSS)
    total.total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    yield Row(name, "parameters without a gradient", float(without != case["no_grad"]), EXACT)
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    worst = max(abs(norms[n] - norm) / max(norm, 1e-2) for n, norm in case["grad_l2"].items())
    yield Row(name, "gradient norms (relative)", worst, 1e-3)
    if case["grads"]:
        recorded = load_file(folder / "d_rbm" / case["grads"])
        errors = [_relative(model.get_parameter(n).grad, value) for n, value in recorded.items()]
        yield Row(name, "gradients (relative to each tensor's largest)", max(errors), GRADIENT)


def _relative(ours: Tensor | None, theirs: Tensor) -> float:
    if ours is None:
        return float("inf")
    # Some true gradients are 0 (a key's bias): against rounding noise, nothing is relative.
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3))


def _training_batch(case: dict[str, Any], arrays: Any, processor: RobometerProcessor) -> Batch:
    frames: dict[Any, np.ndarray] = {}

    def named(key: str) -> list[Any]:
        names = [(key, t) for t in range(len(arrays[key]))]
        frames.update(zip(names, arrays[key], strict=True))
        return names

    samples, plans = [], []
    for i, (task, label) in enumerate(zip(case["tasks_pref"], case["preference_labels"], strict=True)):
        order = ("chosen", "rejected") if label else ("rejected", "chosen")
        samples.append(Sample(task, *(named(f"pref_{side}_{i}") for side in order)))
        good = case["pref_non_tensor"]["trajectory_A_quality_label"][i] == "successful"
        a = _target(samples[-1], good, arrays["prefin_target_progress_A_mask"][i])
        plans.append(SamplePlan(i, "preference", "suboptimal", task, a, replace(a), label))
    for i, task in enumerate(case["tasks_prog"]):
        samples.append(Sample(task, named(f"prog_{i}")))
        a = _target(samples[-1], True, np.ones(1))
        plans.append(SamplePlan(len(plans), "progress", "forward", task, a, None, 0.0))
    return collate_targets(plans, processor.collate(samples, frames))


def _target(sample: Sample, good: bool, mask: np.ndarray) -> ClipPlan:
    """What upstream's collator asks of these clips: a ramp, and of failures only that no frame is a success."""
    ramp = np.linspace(0, 1, len(sample.a), dtype=np.float32)
    label = (ramp >= 1.0).astype(np.float32) * good
    supervised = np.full(len(ramp), bool(np.max(mask) > 0))
    return ClipPlan(0, np.arange(len(ramp)), ramp, supervised, label, (ramp < 0.5) | (label > 0.5) | (not good))
