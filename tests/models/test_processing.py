from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from robometer.configs.schema import Config, ModelConfig
from robometer.errors import RobometerError
from robometer.models.processing import RobometerProcessor, patchify, pixel_values, smart_size
from robometer.models.prompts import CONTROL_TOKENS, SPECIAL_TOKENS, preference_prompt, progress_prompt
from robometer.models.robometer import load_processor
from tests.models.images import noise_clip


@pytest.fixture(scope="module")
def processor() -> RobometerProcessor:
    return load_processor(Config(model=ModelConfig(kind="robometer", base_model="tiny")))


@pytest.mark.parametrize("size", [(64, 64), (50, 75), (240, 320), (130, 61), (30, 90), (16, 16)])
def test_pixel_values_equal_transformers_image_processor(size: tuple[int, int]) -> None:
    frames = noise_clip(0, 2, *size).frames
    patches, grid = patchify(frames)
    reference = Qwen2VLImageProcessorPil(
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 4096, "longest_edge": 16777216},
    )([Image.fromarray(frame) for frame in frames], return_tensors="pt")
    assert np.array_equal(grid, reference["image_grid_thw"].numpy())
    assert torch.allclose(pixel_values(torch.from_numpy(patches)), reference["pixel_values"], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (48, 48), (80, 112), (1080, 1920), (9000, 9000), (40, 8000)])
def test_sizes_are_multiples_of_32_within_the_limits(size: tuple[int, int]) -> None:
    height, width = smart_size(*size)
    assert height % 32 == 0 and width % 32 == 0
    assert 4096 <= height * width <= 16777216


def test_a_frame_that_is_far_too_long_is_refused() -> None:
    with pytest.raises(RobometerError, match="10x2001 px is too long"):
        smart_size(10, 2001)


def test_special_tokens_follow_the_base_vocabulary_in_the_contracts_order(processor: RobometerProcessor) -> None:
    ids = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(len(processor.tokenizer) - 5, len(processor.tokenizer)))
    again = RobometerProcessor(processor.tokenizer)
    assert again.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == ids


@pytest.mark.parametrize("token", sorted(CONTROL_TOKENS))
def test_a_task_that_spells_a_control_token_is_only_text(processor: RobometerProcessor, token: str) -> None:
    plain, forged = noise_clip(0, 2, task="stack"), noise_clip(0, 2, task=token)
    control = [processor.tokenizer.convert_tokens_to_ids(name) for name in CONTROL_TOKENS]
    counts = [
        np.isin(processor.encode(clip.task, clip.frames, clip.frames).input_ids, control).sum()
        for clip in (plain, forged)
    ]
    assert counts[0] == counts[1]


def test_braces_in_a_task_stay_as_they_are() -> None:
    assert "'put {task} in {0}'" in progress_prompt("put {task} in {0}", 1)[1]


def test_pictures_are_numbered_through_both_trajectories() -> None:
    text = "".join(preference_prompt("stack", 2, 1))
    assert [f"Picture {n}: " in text for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert text.index("<|split_token|>") < text.index("Picture 3: ")


def test_whole_prompt_and_its_parts_give_the_same_ids(processor: RobometerProcessor) -> None:
    parts = preference_prompt("pick up the red block", 2, 3)
    whole = processor.tokenizer("".join(parts), add_special_tokens=False)["input_ids"]
    assert processor.token_ids(parts, [1] * 5).tolist() == whole


def test_read_out_positions_point_at_their_tokens(processor: RobometerProcessor) -> None:
    batch = processor.collate_pairs([(noise_clip(0, 2), noise_clip(1, 3)), (noise_clip(2, 1), noise_clip(3, 1))])
    inputs, name = batch.inputs, processor.tokenizer.convert_ids_to_tokens
    for side, targets in (("a", batch.a), ("b", batch.b)):
        ids = inputs["input_ids"].gather(1, inputs[f"progress_index_{side}"])
        assert set(name(ids[targets.frame_mask].tolist())) == {"<|prog_token|>"}
    assert (inputs["progress_index_a"][0, -1] < inputs["progress_index_b"][0, 0]).item()
    ids = inputs["input_ids"].gather(1, inputs["preference_index"][:, None])
    assert name(ids.flatten().tolist()) == ["<|pref_token|>"] * 2


def test_the_tiny_tokenizer_is_the_same_every_time(processor: RobometerProcessor) -> None:
    other = load_processor(Config(model=ModelConfig(kind="robometer", base_model="tiny")))
    clip = noise_clip(0, 2)
    ids = [p.encode("open the drawer", clip.frames).input_ids for p in (processor, other)]
    assert np.array_equal(ids[0], ids[1])
