"""What upstream's clients send and read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from parity.upstream.protocol import (
    Asked,
    EveryFrame,
    ProtocolError,
    answer,
    client_frames,
    frames_at_rate,
    prefixes,
    read_body,
    read_form,
    repeated_answer,
)
from robometer.baselines.trivial import Clock
from robometer.configs.schema import Config
from robometer.models.config import ModelConfig
from robometer.models.robometer import build_robometer, load_processor
from robometer.scoring import Clip


def _frames(count: int) -> np.ndarray:
    """uint8 [count, 4, 4, 3] in which frame i holds i."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3)).copy()


def _shown(frames: np.ndarray) -> list[int]:
    return [int(frame.flat[0]) for frame in frames]


def test_a_client_thins_a_long_video_and_repeats_the_last_frame_of_a_short_one() -> None:
    assert _shown(client_frames(_frames(20), 4)) == [0, 6, 13, 19]
    assert _shown(client_frames(_frames(2), 4)) == [0, 1, 1, 1]
    assert client_frames(_frames(3).transpose(0, 3, 1, 2), 4).shape == (4, 4, 4, 3)
    with pytest.raises(ProtocolError, match="at least one frame"):
        client_frames(_frames(0))


def test_prefixes_are_shown_as_four_frames_at_truncated_positions() -> None:
    shown = [_shown(clip.frames) for clip in prefixes(Clip(_frames(6), "t"))]
    assert shown == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 3, 5]]


def _sample(name: str = "sample_0_trajectory_frames") -> dict[str, Any]:
    return {"sample_type": "progress", "trajectory": {"frames": {"__numpy_file__": name}, "task": "t"}}


def test_samples_keep_the_order_of_their_numbers() -> None:
    fields = {f"sample_{i}": json.dumps(_sample(f"part {i}")) for i in (10, 2, 0)} | {"use_frame_steps": "true"}
    asked = read_form(fields, {f"part {i}": _frames(i + 1) for i in (0, 2, 10)})
    assert [len(sample) for sample in asked.samples] == [1, 3, 11] and asked.frame_steps


def test_frames_of_a_json_body_are_whole_numbers() -> None:
    sample = _sample() | {"trajectory": {"frames": _frames(2).tolist(), "task": "t"}}
    (clip,) = read_body({"samples": [sample]}).samples
    assert isinstance(clip, Clip) and np.array_equal(clip.frames, _frames(2))


def _broken(change: dict[str, Any]) -> dict[str, Any]:
    return {"samples": [_sample() | change]}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([], "no list of samples"),
        ({"use_frame_steps": True}, "no list of samples"),
        ({"samples": []}, "no samples"),
        ({"samples": ["text"]}, "sample 0 is of the type 'None'"),
        (_broken({"sample_type": "similarity"}), "of the type 'similarity'"),
        (_broken({"sample_type": "preference"}), "chosen_trajectory of sample 0 has no task"),
        (_broken({"trajectory": {"frames": [[[[0, 0, 0]]]]}}), "has no task"),
        (_broken({"trajectory": {"task": "t"}}), "has no frames that can be read"),
        (_broken({"trajectory": {"task": "t", "frames": [[[[0.5, 0, 0]]]]}}), "whole numbers from 0 to 255"),
        (_broken({"trajectory": {"task": "t", "frames": [[[[256, 0, 0]]]]}}), "whole numbers from 0 to 255"),
        (_broken({"trajectory": {"task": "t", "frames": [[0, 0, 0]]}}), "frames must be uint8"),
        (_broken({}), "refers to 'sample_0_trajectory_frames'"),
    ],
)
def test_a_bad_body_is_refused_with_a_sentence(body: Any, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        read_body(body)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sample_x": "{}"}, "'sample_x' is unknown"),
        ({"sample_" + "9" * 5000: "{}"}, "is unknown"),
        ({"sample_0": "{"}, "'sample_0' is not JSON"),
        ({}, "no samples"),
    ],
)
def test_a_bad_form_is_refused_with_a_sentence(fields: dict[str, str], sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        read_form(fields, {})


def test_pairs_do_not_shift_the_values_of_the_clips_behind_them() -> None:
    clip, single = Clip(_frames(3), "t"), Clip(_frames(1), "t")
    found = answer(Clock(), Asked([(clip, single), clip, single], frame_steps=True))
    assert found["outputs_progress"]["progress_pred"] == [[1.0, 1.0, 1.0], [1.0]]
    assert found["outputs_preference"]["predictions"] == [0]
    assert found["outputs_preference"]["preference_labels"] == [1.0]
    repeated = repeated_answer(Clock(), Asked([clip, single], frame_steps=True))
    assert repeated["outputs_progress"]["progress_pred"] == [[1.0, 1.0, 1.0], [0.25, 0.5, 0.75, 1.0]]


def test_heads_that_were_not_asked_are_null() -> None:
    found = answer(Clock(), Asked([(Clip(_frames(2), "t"), Clip(_frames(2), "t"))]))
    assert found["outputs_progress"] is found["outputs_success"] is None


def test_clips_of_unequal_length_are_answered_as_each_alone() -> None:
    config = Config(model=ModelConfig(kind="robometer", base_model="tiny"))
    judge = EveryFrame(build_robometer(config)[0], load_processor(config))
    clips = [Clip(np.random.default_rng(i).integers(0, 256, (2 + i, 32, 32, 3), dtype=np.uint8), "t") for i in range(2)]
    together = answer(judge, Asked(clips))["outputs_progress"]["progress_pred"]
    for values, clip in zip(together, clips, strict=True):
        assert values == pytest.approx(answer(judge, Asked([clip]))["outputs_progress"]["progress_pred"][0], abs=1e-5)


def test_frames_at_a_rate_are_spread_over_the_whole_video() -> None:
    assert frames_at_rate(10, 10.0, 3.0).tolist() == [0, 4, 9]
    assert frames_at_rate(3, 10.0, 1.0).tolist() == [0]
    assert frames_at_rate(4, 10.0, 0.0).tolist() == frames_at_rate(4, 0.0, 2.0).tolist() == [0, 1, 2, 3]
