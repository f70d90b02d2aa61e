"""A random Qwen3-VL of some 300 thousand parameters and a tokenizer to match: no download, seconds on a CPU."""

from __future__ import annotations

from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3VLConfig

from robometer.models.prompts import (
    CONTROL_TOKENS,
    IMAGE,
    TURN_END,
    TURN_START,
    VISION_END,
    VISION_START,
    preference_prompt,
    progress_prompt,
)

TINY = "tiny"
"""The `model.base_model` that names this model."""

_END_OF_TEXT = "<|endoftext|>"
_QWEN_TOKENS = (_END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE)
_TASKS = ("pick up the red block", "open the drawer", "close the window and push the green button slowly")
_VOCABULARY = 512


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with Qwen's control tokens and without the reward model's own, as a base model has it."""
    texts = [
        part
        for task in _TASKS
        for part in (*progress_prompt(task, 32), *preference_prompt(task, 2, 2))
        if part not in CONTROL_TOKENS
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _QWEN_TOKENS])
    fast = cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer, pad_token=_END_OF_TEXT, eos_token=TURN_END)
    return cast(PreTrainedTokenizerBase, fast)


def tiny_config(tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    """Qwen3-VL with every part of the real one (deepstack, grouped queries, interleaved 3-D rotary) and small sizes."""
    image, start, end = cast(list[int], tokenizer.convert_tokens_to_ids([IMAGE, VISION_START, VISION_END]))
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=len(tokenizer),  # videos go in as images, so that no token may mean a video
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
