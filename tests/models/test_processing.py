"""Prompts, tokens and positions of a packed batch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from robometer.configs.schema import Config
from robometer.models.config import ModelConfig
from robometer.models.processing import RobometerProcessor
from robometer.models.prompts import QWEN3_CHAT, SPECIAL_TOKENS, Control, preference_prompt, progress_prompt
from robometer.models.robometer import build_robometer, load_processor
from robometer.models.tiny import TINY
from robometer.training.batch import Batch
from tests.models.images import noise_clip

CONTROLS = QWEN3_CHAT.controls


def _processor(name: str = "tiny", tokens: bool = True) -> RobometerProcessor:
    model = ModelConfig(kind="robometer", base_model=name, per_frame_progress_token=tokens)
    return load_processor(Config(model=model))


@pytest.fixture(scope="module")
def processor() -> RobometerProcessor:
    return _processor()


def test_special_tokens_follow_the_base_vocabulary_in_the_contracts_order(processor: RobometerProcessor) -> None:
    ids = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(len(processor.tokenizer) - 5, len(processor.tokenizer)))
    again = RobometerProcessor(processor.tokenizer, processor.base)
    assert again.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == ids


@pytest.mark.parametrize("token", CONTROLS)
def test_a_task_that_spells_a_control_token_is_only_text(processor: RobometerProcessor, token: str) -> None:
    clips = noise_clip(0, 2, task="stack"), noise_clip(0, 2, task=str(token))
    control = [processor.tokenizer.convert_tokens_to_ids(str(name)) for name in CONTROLS]
    ids = [processor.collate_pairs([(clip, clip)]).inputs["input_ids"].numpy() for clip in clips]
    assert np.isin(ids[0], control).sum() == np.isin(ids[1], control).sum()


def test_braces_in_a_task_stay_as_they_are() -> None:
    assert "'put {task} in {0}'" in progress_prompt("put {task} in {0}", 1)[1]


def test_pictures_are_numbered_through_both_trajectories() -> None:
    text = "".join(preference_prompt("stack", 2, 1))
    assert [f"Picture {n}: " in text for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert text.index("<|split_token|>") < text.index("Picture 3: ")


@pytest.mark.parametrize("name", TINY)
def test_whole_prompt_and_its_parts_give_the_same_ids(name: str) -> None:
    processor = _processor(name)
    parts = processor.prompt("pick up the red block", 2, 3)
    whole = processor.tokenizer("".join(parts), add_special_tokens=False)["input_ids"]
    assert processor.tokenise(parts, np.ones((5, 2), dtype=np.int64)).ids.tolist() == whole


def test_each_family_writes_its_own_turn() -> None:
    qwen3, qwen2_5, smolvlm = ("".join(_processor(name).prompt("stack", 1)) for name in TINY)
    picture = "<|vision_start|><|image_pad|><|vision_end|><|prog_token|><|im_end|>\n"
    assert qwen3.startswith("<|im_start|>user\nThe task for") and qwen3.endswith("Picture 1: " + picture)
    assert qwen2_5 == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + qwen3
    square = "<fake_token_around_image><global-img><image><fake_token_around_image><|prog_token|><end_of_utterance>\n"
    assert smolvlm.startswith("<|im_start|>User: The task for") and smolvlm.endswith("0 progress." + square)


def _names(processor: RobometerProcessor, batch: Batch, at: torch.Tensor) -> set[str]:
    return set(processor.tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][at].flatten().tolist()))


@pytest.mark.parametrize("name", TINY)
def test_read_out_positions_point_at_their_tokens(name: str) -> None:
    pairs = [(noise_clip(0, 2), noise_clip(1, 3, 64, 96)), (noise_clip(2, 1), noise_clip(3, 1))]
    processor = _processor(name)
    batch = processor.collate_pairs(pairs)
    inputs = batch.inputs
    assert _names(processor, batch, inputs["frame_tokens"]) == {"<|prog_token|>"}
    assert _names(processor, batch, inputs["preference_token"]) == {"<|pref_token|>"}
    frames = [inputs[f"frames_{side}"][mask] for side, mask in (("a", batch.a.frame_mask), ("b", batch.b.frame_mask))]
    assert [row.tolist() for row in frames] == [[0, 1, 5], [2, 3, 4, 6]]
    pooled = _processor(name, tokens=False)
    batch = pooled.collate_pairs(pairs)
    tokens = batch.inputs["frame_tokens"]
    seen = _names(pooled, batch, tokens[tokens >= 0])
    assert seen == {str(processor.family.chat.image)} | ({"<global-img>"} if name == "tiny_smolvlm" else set())


@pytest.mark.parametrize("name", TINY)
def test_positions_are_those_that_the_backbone_would_search_for(name: str) -> None:
    processor = _processor(name)
    config = Config(model=ModelConfig(kind="robometer", base_model=name))
    backbone = build_robometer(config)[0].model
    batch = processor.collate_clips([noise_clip(0, 3, 64, 96), noise_clip(1, 1, 96, 64)])
    inputs, start = batch.inputs, 0
    grids = inputs["grid"][inputs["image"]].split([3, 1])
    for length, grid in zip(inputs["sequence_length"].tolist(), grids, strict=True):
        ids, places = (inputs[key][..., start : start + length] for key in ("input_ids", "position_ids"))
        assert places[0].tolist() == list(range(length))
        if processor.family.spatial_positions:
            kinds = (ids == backbone.config.image_token_id).long()[None]
            expected, _ = backbone.get_rope_index(ids[None], kinds, image_grid_thw=grid)
            assert torch.equal(places[1:], expected[:, 0])
        start += length


def test_each_distinct_frame_is_cut_once(processor: RobometerProcessor) -> None:
    clip = noise_clip(0, 4)
    batch = processor.collate_pairs([(clip, clip.take([0, 1, 3, 2, 1])), (clip.take([1, 2]), noise_clip(1, 1))])
    assert batch.inputs["image"].tolist() == [0, 1, 2, 3, 0, 1, 3, 2, 1, 1, 2, 4]
    assert len(batch.inputs["grid"]) == 5


def test_the_tiny_tokenizer_is_the_same_every_time(processor: RobometerProcessor) -> None:
    clip = noise_clip(0, 2, task="open the drawer")
    ids = [p.collate_clips([clip]).inputs["input_ids"] for p in (processor, _processor())]
    assert torch.equal(ids[0], ids[1])


def test_a_prompt_holds_no_text_twice_in_a_row(processor: RobometerProcessor) -> None:
    parts = processor.prompt("stack", 2, 2)
    assert all(isinstance(a, Control) or isinstance(b, Control) for a, b in pairwise(parts))
