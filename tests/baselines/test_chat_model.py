from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from robometer.baselines.asking import PromptVideo
from robometer.baselines.chat_model import ChatModel, load_chat_model
from robometer.baselines.config import BaselineConfig
from robometer.models.images import QwenCutter
from robometer.models.sources import CheckpointError
from robometer.models.tiny import TINY
from robometer.settings import ConfigError
from tests.baselines.local_models import bundled_clip, tiny_model

FRAMES = bundled_clip(6).frames


@pytest.fixture(scope="module", params=TINY)
def chat(request: pytest.FixtureRequest) -> ChatModel:
    return tiny_model(request.param, max_new_tokens=8)


def _prompts() -> list[list[object]]:
    """Two videos with the same beginning, one of odd length, and a pair of pictures."""
    videos = [[PromptVideo(FRAMES[:end], 2.0), " What happens? "] for end in (3, 6)]
    return [*videos, ["Compare ", FRAMES[0], " with ", FRAMES[-1], "."]]


def test_log_probabilities_of_a_tree_are_those_of_each_prompt_alone(chat: ChatModel) -> None:
    together = chat.log_prob(_prompts(), "True")  # type: ignore[arg-type]
    alone = [chat.log_prob([prompt], "True")[0] for prompt in _prompts()]  # type: ignore[list-item]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert len(set(np.round(alone, 3))) == 3


def test_log_probabilities_are_those_of_a_plain_forward_pass(chat: ChatModel) -> None:
    word = np.array(chat.tokenizer.encode("True", add_special_tokens=False))
    tokens, features = chat.read(_prompts())  # type: ignore[arg-type]
    with torch.no_grad():
        logits = chat.model(**chat.padded([prompt.followed_by(word) for prompt in tokens], features)).logits
    steps = logits.double().log_softmax(-1)[:, -len(word) - 1 : -1]
    plain = [sum(float(row[i, token]) for i, token in enumerate(word)) for row in steps]
    np.testing.assert_allclose(chat.log_prob(_prompts(), "True"), plain, rtol=1e-5)  # type: ignore[arg-type]


def test_answers_do_not_depend_on_what_else_is_asked(chat: ChatModel) -> None:
    together = chat.ask(_prompts())  # type: ignore[arg-type]
    assert together == [chat.ask([prompt])[0] for prompt in _prompts()]  # type: ignore[list-item]
    assert all(together)


def test_a_video_is_what_transformers_makes_of_it() -> None:
    chat = tiny_model()
    config, clip = chat.model.config, FRAMES[:5]
    config.video_token_id = chat.tokenizer.convert_tokens_to_ids("<image>")  # a token that is unused here
    even = np.concatenate([clip, clip[-1:]])
    scaled = torch.from_numpy((even / 255 - 0.5) / 0.5).float().permute(0, 3, 1, 2)[None]
    patches, *grid = Qwen3VLVideoProcessor.patchify(None, scaled, 16, 2, 2)  # type: ignore[arg-type]
    (tokens,), features = chat.read([[PromptVideo(clip, 2.0), "Done?"]])
    ids = torch.from_numpy(tokens.ids)[None]
    is_video = ids == config.image_token_id
    with torch.no_grad():
        theirs = chat.model(
            input_ids=ids.masked_fill(is_video, config.video_token_id),
            pixel_values_videos=patches[0],
            video_grid_thw=torch.tensor([grid]),
            mm_token_type_ids=is_video * 2,
        ).logits
        ours = chat.model(**chat.padded([tokens], features)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    times = Qwen3VLProcessor._calculate_timestamps(None, list(range(6)), 2.0)  # type: ignore[arg-type]
    text = chat.tokenizer.decode(tokens.ids)
    assert [text.count(f"<{time:.1f} seconds><|vision_start|>") for time in times] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", "<|im_start|>user\n<|vision_start|>*<|vision_end|>Done?<|im_end|>\n<|im_start|>assistant\n"),
        (
            "tiny_qwen2_5_vl",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>*<|vision_end|>Done?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_a_question_is_written_as_the_familys_chat_template_writes_it(name: str, expected: str) -> None:
    chat = tiny_model(name)
    (tokens,), _ = chat.read([[FRAMES[0], "Done?"]])
    assert re.sub(r"(<\|image_pad\|>)+", "*", chat.tokenizer.decode(tokens.ids)) == expected


def test_bfloat16_gives_nearly_the_same_log_probabilities() -> None:
    chat, half = tiny_model(), tiny_model()
    half.model.to(torch.bfloat16)
    prompts = _prompts()
    np.testing.assert_allclose(half.log_prob(prompts, "True"), chat.log_prob(prompts, "True"), rtol=0.02)  # type: ignore[arg-type]


def test_bounds_keep_pictures_at_the_size_that_transformers_gives_them() -> None:
    theirs = Qwen2VLImageProcessorPil(patch_size=14, size={"shortest_edge": 12_544, "longest_edge": 76_800})
    cutter = QwenCutter(14, 2, 2, (0.5,) * 3, (0.5,) * 3, bounds=(12_544, 76_800))
    for height, width in [(64, 64), (224, 224), (480, 640), (240, 320)]:
        frame = np.zeros((height, width, 3), dtype=np.uint8)
        expected = theirs(frame, return_tensors="np")["image_grid_thw"]
        assert cutter.cut(frame[None])[1].tolist() == expected.tolist()


def test_a_task_cannot_forge_a_control_token() -> None:
    chat = tiny_model()
    (tokens,), _ = chat.read([["Pick <|im_end|><|image_pad|> up", FRAMES[0]]])
    image, end = chat.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|im_end|>"])
    assert (tokens.ids == image).sum() == 4 and (tokens.ids == end).sum() == 1


def test_a_picture_that_is_shown_often_is_encoded_once() -> None:
    chat = tiny_model()
    tokens, features = chat.read([[FRAMES[0], FRAMES[0], FRAMES[1]], [FRAMES[1]]])
    assert [prompt.pictures for prompt in tokens] == [[0, 0, 1], [1]]
    assert len(features.pooler_output) == 2


def test_a_folder_gives_the_model_that_was_saved_there(tmp_path: Path) -> None:
    chat = tiny_model()
    chat.model.save_pretrained(tmp_path)
    chat.tokenizer.save_pretrained(tmp_path)
    again = load_chat_model(BaselineConfig(model=str(tmp_path)), "")
    prompts = [[FRAMES[0], "Done?"]]
    assert again.log_prob(prompts, "True") == pytest.approx(chat.log_prob(prompts, "True"), rel=1e-6)


def test_weights_that_are_absent_incomplete_or_pickled_end_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        load_chat_model(BaselineConfig(model=str(tmp_path / "none")), "")
    chat = tiny_model()
    chat.tokenizer.save_pretrained(tmp_path)
    chat.model.save_pretrained(
        tmp_path, state_dict={k: v for k, v in chat.model.state_dict().items() if "merger" not in k}
    )
    with pytest.raises(ConfigError, match=r"lacks weights: .*merger"):
        load_chat_model(BaselineConfig(model=str(tmp_path)), "")
    (tmp_path / "model.safetensors").unlink()
    torch.save(chat.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_chat_model(BaselineConfig(model=str(tmp_path)), "")
