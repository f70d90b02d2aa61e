"""Segments and targets against numbers recorded from upstream (golden/a_targets)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer.sampling import segments, targets
from robometer.sampling.strategies import Rules, Subject, clip_plan

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "a_targets"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="golden vectors in ../shared are absent")


def cases(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text())
    assert loaded, name
    return loaded


def test_segment_paths() -> None:
    for case in cases("segment_indices"):
        path = segments.segment_path(
            case["num_frames_total"], case["start_idx"], case["end_idx"], case["middle_idx"], case["max_frames"]
        )
        assert path.tolist() == case["value"], case


def test_linspace_subsample() -> None:
    for case in cases("linspace_subsample"):
        positions = segments.linspace_positions(case["total"], case["num_frames"], case["end_idx"])
        assert positions.tolist() == case["indices"], case


def test_padding() -> None:
    for case in cases("padding"):
        for given, wanted in (("frames", "out_frames"), ("progress", "out_progress")):
            padded = segments.pad(np.array(case[given]), case["max_frames"], case["pad_from"])
            assert padded.tolist() == case[wanted], case


def test_drawn_segments_have_the_recorded_form() -> None:
    """Upstream's own generator is not replayed: its triples must be ones that ours can draw."""
    for i, case in enumerate(cases("subsample_indices_rng")):
        total, most, recorded = case["num_frames_total"], case["max_frames"], case["start_middle_end"]
        kinds = segments.DIRECTIONS if case["direction"] == "bidirectional" else (case["direction"],)
        drawn = [segments.draw_triple(segments.Draws(i, n), total, kind, most) for kind in kinds for n in range(8)]
        if recorded is None:
            assert drawn == [None] * len(drawn), case
            continue
        signs = {_form(triple) for triple in drawn if triple is not None}
        start, middle, end = recorded
        is_rewind = middle is not None and end is not None and not min(start, end) < middle < max(start, end)
        assert _form((start, middle if is_rewind else None, end)) in signs, case


def _form(triple: segments.Triple) -> tuple[bool, bool | None]:
    start, middle, end = triple
    return middle is not None, None if end is None else end > start


def test_progress_targets() -> None:
    for case in cases("progress_targets"):
        values = targets.progress_targets(
            np.array(case["frame_indices"], dtype=np.int64),
            case["num_frames_total"],
            case["progress_pred_type"],
            case["success_cutoff"],
            case["partial_success"],
            compat="upstream",
        )
        np.testing.assert_allclose(values, case["value"], atol=1e-9, err_msg=str(case))


def test_success_labels() -> None:
    for case in cases("success_labels"):
        source, known = case["data_source"], case["dataset_success_percent"]
        threshold = known.get(source, case["max_success"]) if source is not None else case["max_success"]
        labels = targets.success_labels(np.array(case["target_progress"]), case["quality_label"], threshold)
        assert labels.tolist() == case["expected"], case


def test_progress_supervision() -> None:
    for case in cases("should_compute_progress"):
        if not case["ok"]:
            continue  # upstream raises where there is no source; that is no parity to keep
        source = case["data_source"]
        value = targets.supervises_progress(
            case["quality_label"],
            source,
            case["partial_success"],
            targets.source_facts(source or "", 1.0, "upstream").preference_only,
            rewind=case["data_gen_strategy"] == "rewind",
        )
        assert float(value) == case["value"], case


@pytest.mark.parametrize("bins", [2, 5, 10, 32, 100])
def test_two_hot(bins: int) -> None:
    with np.load(GOLDEN / f"cont_to_bins_{bins}.npz") as golden:
        np.testing.assert_allclose(targets.two_hot(golden["values"], bins), golden["two_hot"], atol=1e-6)
        np.testing.assert_array_equal(targets.nearest_bin(golden["hard_values"], bins), golden["hard_bin"])


@pytest.mark.parametrize("bins", [2, 5, 10, 32])
def test_decode_bins(bins: int) -> None:
    with np.load(GOLDEN / f"bins_to_cont_{bins}.npz") as golden:
        for name, logits in (("logits", True), ("mixed", True), ("two_hot", False), ("onehot", False)):
            decoded = targets.decode_bins(golden[name], logits=logits)
            np.testing.assert_allclose(decoded, golden[f"{name}_decoded"], atol=2e-6, err_msg=name)


def test_whole_pipeline() -> None:
    for case in cases("trajectory_pipeline"):
        check_pipeline(case)


def check_pipeline(case: dict[str, Any]) -> None:
    config, expected = case["config"], case["expected"]
    rules = Rules(
        config["max_frames"],
        config["progress_pred_type"],
        0.5,
        case["pad_frames"],
        fixed=False,
        last_frame_only=config["predict_last_frame_partial_progress"],
    )
    cutoff = case["success_cutoff_map"].get(case["data_source"], config["max_success"])
    subject = Subject(
        case["num_frames_total"],
        case["quality_label"],
        cutoff,
        case["partial_success"],
        True,
        case["is_preference_only"],
    )
    strategy = (case["strategy"] or "subsample_forward").removeprefix("subsample_")
    triple = tuple(case["start_middle_end"]) if case["start_middle_end"] else None
    clip = clip_plan(0, subject, rules, strategy, triple)
    assert clip.positions.tolist() == expected["frame_ids"], case
    wanted = np.array(expected["target_progress"])
    got = clip.progress_target
    if config["progress_loss_type"] == "discrete":
        got = targets.two_hot(got, config["progress_discrete_bins"], "upstream")
    np.testing.assert_allclose(got, wanted, atol=1e-6, err_msg=str(case))
    assert clip.success_label.tolist() == expected["success_label"], case
    assert clip.progress_mask.astype(float).tolist() == expected["predict_last_frame_mask"], case
