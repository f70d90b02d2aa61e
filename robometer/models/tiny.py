"""Random vision-language models of about 300,000 parameters, one per family, with a tokenizer: for tests, without a
download, in seconds on a CPU."""

from __future__ import annotations

from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)

from robometer.models.prompts import (
    QWEN2_5_CHAT,
    QWEN3_CHAT,
    SMOLVLM_CHAT,
    SPECIAL_TOKENS,
    Control,
    preference_prompt,
    progress_prompt,
)

TINY = {"tiny": "qwen3_vl", "tiny_qwen2_5_vl": "qwen2_5_vl", "tiny_smolvlm": "smolvlm"}
"""The families by the value of `model.base_model` that names such a model."""

_END_OF_TEXT = "<|endoftext|>"
_CHATS = (QWEN3_CHAT, QWEN2_5_CHAT, SMOLVLM_CHAT)
_TASKS = ("pick up the red block", "open the drawer", "close the window and push the green button slowly")
_VOCABULARY = 512


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with the families' control tokens, but not the reward model's: a base model's tokenizer."""
    texts = [
        part
        for task in _TASKS
        for part in (*progress_prompt(task, 32), *preference_prompt(task, 2, 2))
        if not isinstance(part, Control)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    controls = {str(token) for chat in _CHATS for token in chat.controls} - set(SPECIAL_TOKENS)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (_END_OF_TEXT, *sorted(controls))])
    fast = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=tokenizer, pad_token=_END_OF_TEXT, eos_token=str(QWEN3_CHAT.closing[0])
    )
    return cast(PreTrainedTokenizerBase, fast)


def tiny_config(name: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of one of `TINY`: small sizes, with every part of the real one."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    make = {"qwen3_vl": _qwen3_vl, "qwen2_5_vl": _qwen2_5_vl, "smolvlm": _smolvlm}[TINY[name]]
    return make(text, tokenizer)


def _ids(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> list[int]:
    return cast(list[int], tokenizer.convert_tokens_to_ids([str(token) for token in tokens]))


def _qwen3_vl(text: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    image, start, end = _ids(tokenizer, QWEN3_CHAT.image, *QWEN3_CHAT.before, *QWEN3_CHAT.after)
    rotary = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
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
        text_config=text | {"rope_parameters": rotary},
        vision_config=vision,
        image_token_id=image,
        video_token_id=len(tokenizer),  # videos go in as images, so no token may stand for a video
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )


def _qwen2_5_vl(text: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    image, start, end = _ids(tokenizer, QWEN2_5_CHAT.image, *QWEN2_5_CHAT.before, *QWEN2_5_CHAT.after)
    rotary = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rotary},
        vision_config=vision,
        image_token_id=image,
        video_token_id=len(tokenizer),
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )


def _smolvlm(text: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    return SmolVLMConfig(
        text_config=text | {"model_type": "llama"},
        vision_config=vision,
        image_token_id=_ids(tokenizer, SMOLVLM_CHAT.image)[0],
        scale_factor=2,
    )
