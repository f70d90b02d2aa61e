"""Parity with upstream: the same tiny weights, raw frames in, upstream's ids, pixels and logits out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLConfig, Qwen3VLModel, Qwen3VLTextConfig

from robometer.batch import Batch
from robometer.configs.schema import Config, LossConfig, ModelConfig
from robometer.losses import compute_losses
from robometer.models.collate import collate_targets
from robometer.models.processing import RobometerProcessor, pixel_values
from robometer.models.prompts import SPECIAL_TOKENS, preference_prompt, progress_prompt
from robometer.models.robometer import Robometer, build_robometer, load_processor
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import Clip

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden" / "d_rbm"
QWEN = SHARED / "data" / "qwen3_vl_4b_instruct"
PROMPTS = SHARED / "golden" / "h_prompts" / "prompts.json"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not there")


def _cases() -> list[dict[str, Any]]:
    if not GOLDEN.is_dir():
        return []
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    names = ("default_", "l2_", "multi_resized")
    return [c for c in cases if c["name"].startswith(names) and c["kind"] != "train_loss"]


def _model(folder: Path, weights: str, loss: str) -> Robometer:
    config = Config(model=ModelConfig(kind="robometer", progress_loss=loss, train_vision_encoder=True))
    model, _ = build_robometer(config, folder)
    model.load_state_dict(load_file(GOLDEN / weights), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as upstream leaves it: processor files and the resized backbone configuration."""
    path = tmp_path_factory.mktemp("upstream")
    shutil.copytree(GOLDEN / "processor", path, dirs_exist_ok=True)
    shutil.copy(GOLDEN / "base_model_config_after_resize.json", path / "config.json")
    return path


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Robometer]:
    weights = {"weights_discrete10.safetensors": "discrete", "weights_l2.safetensors": "l2"}
    return {name: _model(folder, name, loss) for name, loss in weights.items()}


def _batch(case: dict[str, Any], arrays: Any, folder: Path) -> Batch:
    tokenizer = load_processor(Config(), folder).tokenizer
    processor = RobometerProcessor(tokenizer, case["config"].get("prog_pref", True))
    if case["kind"] == "progress":
        return processor.collate_clips([Clip(arrays[f"frames_{i}"], task) for i, task in enumerate(case["tasks"])])
    return processor.collate_pairs(
        [
            (Clip(arrays[f"chosen_{i}"], task), Clip(arrays[f"rejected_{i}"], task))
            for i, task in enumerate(case["tasks"])
        ]
    )


def _error(ours: torch.Tensor | None, arrays: Any, name: str) -> float:
    if name not in arrays.files:
        return 0.0
    assert ours is not None
    # Upstream drops the axis of single frames and of single outputs.
    return float(np.abs(ours.numpy().reshape(arrays[name].shape) - arrays[name]).max())


@pytest.mark.parametrize("case", [c for c in _cases() if "error" not in c], ids=lambda c: c["name"])
def test_upstream_outputs_are_reproduced_from_raw_frames(
    case: dict[str, Any], folder: Path, models: dict[str, Robometer]
) -> None:
    arrays = np.load(GOLDEN / case["file"])
    batch = _batch(case, arrays, folder)
    for name in ("input_ids", "attention_mask", "image_grid_thw"):
        assert np.array_equal(batch.inputs[name].numpy(), arrays[f"in_{name}"]), name
    if "in_pixel_values" in arrays.files:
        assert np.abs(pixel_values(batch.inputs["patches"]).numpy() - arrays["in_pixel_values"]).max() < 1e-6
    with torch.no_grad():
        output = models[case["weights"]](batch)
    errors = {
        "out_progress_A": _error(output.progress_logits, arrays, "out_progress_A"),
        "out_progress_B": _error(output.progress_logits_b, arrays, "out_progress_B"),
        "out_success_A": _error(output.success_logits, arrays, "out_success_A"),
        "out_success_B": _error(output.success_logits_b, arrays, "out_success_B"),
        "out_pref": _error(output.preference_logits, arrays, "out_pref"),
    }
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", [c for c in _cases() if "error" in c], ids=lambda c: c["name"])
def test_ragged_cases_that_upstream_refuses_work(
    case: dict[str, Any], folder: Path, models: dict[str, Robometer]
) -> None:
    rng = np.random.default_rng(0)
    short, long = (Clip(rng.integers(0, 256, (t, 64, 64, 3), dtype=np.uint8), "stack") for t in (2, 3))
    processor = load_processor(Config(), folder)
    pair = case["kind"] == "preference"
    batch = processor.collate_pairs([(short, long)]) if pair else processor.collate_clips([short, long])
    with torch.no_grad():
        output = models["weights_discrete10.safetensors"](batch)
    assert output.progress_logits.shape[:2] == batch.a.frame_mask.shape
    assert torch.isfinite(output.progress_logits).all()
    if pair:
        assert output.progress_logits_b is not None and output.progress_logits_b.shape[:2] == (1, 3)


def _target(good: bool, progress_mask: float) -> ClipPlan:
    """What upstream's collator asks of these clips: a ramp, and of failures only that no frame is a success."""
    ramp = np.linspace(0, 1, 4, dtype=np.float32)
    label = (ramp >= 1.0).astype(np.float32) * good
    return ClipPlan(
        0, np.arange(4), ramp, np.full(4, progress_mask > 0), label, (ramp < 0.5) | (label > 0.5) | (not good)
    )


def _training_batch(case: dict[str, Any], arrays: Any, processor: RobometerProcessor) -> Batch:
    samples, plans = [], []
    for i, (task, label) in enumerate(zip(case["tasks_pref"], case["preference_labels"], strict=True)):
        names = ("chosen", "rejected") if label else ("rejected", "chosen")
        samples.append(processor.encode(task, *(arrays[f"pref_{name}_{i}"] for name in names)))
        good = case["pref_non_tensor"]["trajectory_A_quality_label"][i] == "successful"
        a = _target(good, arrays["prefin_target_progress_A_mask"][i])
        plans.append(SamplePlan(i, "preference", "suboptimal", task, a, _target(True, 0.0), label))
    for i, task in enumerate(case["tasks_prog"]):
        samples.append(processor.encode(task, arrays[f"prog_{i}"]))
        plans.append(SamplePlan(2 + i, "progress", "forward", task, _target(True, 1.0), None, 0.0))
    return collate_targets(plans, processor.collate(samples))


@pytest.mark.parametrize("loss", ["discrete", "l2"])
def test_upstream_training_loss_and_gradients_of_one_mixed_batch(folder: Path, loss: str) -> None:
    name = "default_trainloss" if loss == "discrete" else "l2_trainloss"
    case = next(c for c in json.loads((GOLDEN / "cases.json").read_text())["cases"] if c["name"] == name)
    model = _model(folder, case["weights"], loss)
    batch = _training_batch(case, np.load(GOLDEN / case["file"]), load_processor(Config(), folder))
    total = compute_losses(model(batch), batch, LossConfig(compat="upstream"), loss).total
    assert abs(total.item() - case["total_loss"]) < 1e-5
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == case["no_grad"]
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(case["grad_l2"], rel=1e-3, abs=1e-5)
    gradients = load_file(GOLDEN / case["grads"]) if case["grads"] else {}
    for parameter, expected in gradients.items():
        ours = model.get_parameter(parameter).grad
        assert ours is not None and torch.allclose(ours, expected, rtol=1e-3, atol=1e-4), parameter


def _default_prompts() -> list[dict[str, Any]]:
    prompts = json.loads(PROMPTS.read_text())["prompts"] if PROMPTS.is_file() else []
    return [p for p in prompts if p["case"].startswith("default")]


def _parts(case: dict[str, Any]) -> list[str]:
    text = case["rendered"]
    if case["kind"].startswith("prog"):
        task = text.split("for the robot is '")[1].split("'. Given the trajectory")[0]
        return progress_prompt(task, text.count("<|image_pad|>"))
    task = text.split("for the task '")[1].split("', evaluate which")[0]
    a, b = (side.count("<|image_pad|>") for side in text.split("<|split_token|>"))
    return preference_prompt(task, a, b, " Also predict" in text)


def test_prompts_are_upstreams_bytes_and_ids() -> None:
    cases = _default_prompts()
    assert len(cases) > 10
    processor = load_processor(Config(), QWEN)
    for case in cases:
        parts = _parts(case)
        assert "".join(parts) == case["rendered"], case["case"]
        ids = processor.token_ids(parts, [1] * case["rendered"].count("<|image_pad|>"))
        assert ids.tolist() == case["qwen_bpe_ids"], case["case"]


@pytest.mark.skipif(not QWEN.is_dir(), reason="../shared/data/qwen3_vl_4b_instruct is not there")
def test_true_size_has_the_public_tensors() -> None:
    tokenizer = load_processor(Config(), QWEN).tokenizer
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(151669, 151674))
    config = Qwen3VLConfig.from_pretrained(QWEN)
    cast(Qwen3VLTextConfig, config.text_config).vocab_size = len(tokenizer)
    with torch.device("meta"):
        state = Robometer(Qwen3VLModel(config), "discrete", 10).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["model.language_model.embed_tokens.weight"] == (151674, 2560)
    assert shapes["model.language_model.norm.weight"] == (2560,)
    assert shapes["progress_head.0.weight"] == (1280, 2560) and shapes["progress_head.4.weight"] == (10, 1280)
    assert shapes["preference_head.4.weight"] == shapes["success_head.4.weight"] == (1, 1280)
    assert shapes["frame_pool_attn.weight"] == (1, 2560)
    assert "model.language_model.layers.35.mlp.up_proj.weight" in shapes
    heads = ("progress_head.", "preference_head.", "success_head.", "frame_pool_attn.")
    assert all(name.startswith(("model.visual.", "model.language_model.", *heads)) for name in shapes)
