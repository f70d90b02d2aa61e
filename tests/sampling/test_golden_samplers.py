"""Training samples against those recorded from upstream (golden/f_samplers), replayed with their rows and segments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer.configs.schema import SamplingConfig
from robometer.sampling import ClipPlan, ManifestIndex, plan, targets
from robometer.sampling.segments import Triple
from robometer.sampling.strategies import Rules, Subject, clip_plan, pair_plan
from tests.sampling.manifest import manifest

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "f_samplers" / "samplers.json"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="golden vectors in ../shared are absent")

STRATEGY = {
    "forward_progress": "forward",
    "reverse_progress": "reverse",
    "different_task_instruction": "different_instruction",
}


def blocks() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return loaded


def rules_of(block: dict[str, Any]) -> Rules:
    return Rules(
        block["max_frames"],
        block["progress_pred_type"],
        0.5,
        pad_frames=True,
        fixed=False,
        last_frame_only=block["predict_last_frame_partial_progress"],
    )


def subject_of(block: dict[str, Any], row: dict[str, Any]) -> Subject:
    cutoff = block["success_cutoff_map"].get(row["data_source"], block["max_success"])
    # Supervision is not part of the recorded mask: the per-frame mask is compared alone.
    return Subject(row["num_frames"], row["quality_label"], cutoff, row["partial_success"], True, False)


@pytest.mark.parametrize("number", range(4))
def test_training_samples(number: int) -> None:
    block = blocks()[number]
    numbers = {row["id"]: i for i, row in enumerate(block["rows"])}
    replayed = 0
    for case in block["train_samples"]:
        sample = case["sample"]
        if sample is None:
            continue
        strategy = STRATEGY.get(sample["data_gen_strategy"], sample["data_gen_strategy"])
        triples: list[Triple] = [tuple(entry["start_middle_end"]) for entry in case["subsample_log"]]
        if case["sampler"] == "progress":
            recorded = [sample["trajectory"]]
            row = numbers[case["item"]]
            clips = [clip_plan(row, subject_of(block, block["rows"][row]), rules_of(block), strategy, triples[0])]
        else:
            recorded = [sample["chosen"], sample["rejected"]]
            first, second = (numbers[entry["id"]] for entry in recorded)
            subjects = subject_of(block, block["rows"][first]), subject_of(block, block["rows"][second])
            paths = (triples[0], triples[1]) if triples else (None, None)
            clips = list(pair_plan((first, second), subjects, rules_of(block), strategy, paths))
        for clip, entry in zip(clips, recorded, strict=True):
            check(block, clip, entry)
        replayed += 1
    assert replayed >= len(block["train_samples"]) - 1


def check(block: dict[str, Any], clip: ClipPlan, entry: dict[str, Any]) -> None:
    assert block["rows"][clip.row]["id"] == entry["id"]
    assert clip.positions.tolist() == entry["frame_ids"]
    got = clip.progress_target
    if block["progress_loss_type"] == "discrete":
        got = targets.two_hot(got, block["progress_discrete_bins"], "upstream")
    np.testing.assert_allclose(got, entry["target_progress"], atol=1e-6)
    assert clip.success_label.tolist() == entry["success_label"]
    assert clip.progress_mask.astype(float).tolist() == entry["predict_last_frame_mask"]


@pytest.mark.parametrize("number", [0, 2])
def test_plan_draws_the_recorded_pairs(number: int) -> None:
    """Every (strategy, chosen, rejected) that upstream drew is one that the plan draws from the same rows."""
    block = blocks()[number]
    ids = [row["id"] for row in block["rows"]]
    columns = ("task", "quality_label", "partial_success", "num_frames")
    rows = [{name: row[name] for name in columns} | {"source": row["data_source"]} for row in block["rows"]]
    config = SamplingConfig(max_frames=8, progress=0.0, min_frames_per_trajectory=2, compat="upstream")
    index = ManifestIndex.from_table(manifest(rows), config)
    drawn = set()
    for i in range(6000):
        sample = plan(index, config, 1, i)
        assert sample.rejected is not None
        drawn.add((sample.strategy, ids[sample.chosen.row], ids[sample.rejected.row]))
    for case in block["train_samples"]:
        sample = case["sample"]
        if case["sampler"] == "preference" and sample is not None:
            strategy = STRATEGY.get(sample["data_gen_strategy"], sample["data_gen_strategy"])
            graded = strategy == "suboptimal" and sample["chosen"]["partial_success"] is not None
            pair = ("partial_success" if graded else strategy, sample["chosen"]["id"], sample["rejected"]["id"])
            assert pair in drawn


@pytest.mark.parametrize("number", range(4))
def test_evaluation_samples(number: int) -> None:
    """Prefixes and whole clips of upstream's evaluation samplers, of the rows and frames that it lists."""
    block = blocks()[number]
    checked = 0
    for name, recorded in block["eval_samplers"].items():
        listed, samples = recorded["value"]["sample_indices"], recorded["value"]["first_samples"]
        assert len(listed) >= len(samples) > 0, name
        for entry, sample in zip(listed, samples, strict=False):
            for prefix in ("", "chosen_", "rejected_"):
                if f"{prefix}traj_idx" in entry:
                    clip = shown(block, entry[f"{prefix}traj_idx"], entry.get("frame_indices"))
                    check(block, clip, sample[prefix.rstrip("_") or "trajectory"])
                    checked += 1
    assert checked >= 60


def shown(block: dict[str, Any], row: int, frames: list[int] | None) -> ClipPlan:
    """A clip from its first frame to the last of `frames`, or whole."""
    triple = None if frames is None else (0, None, frames[-1])
    assert frames is None or frames == list(range(frames[-1] + 1))
    return clip_plan(row, subject_of(block, block["rows"][row]), rules_of(block), "forward", triple)
