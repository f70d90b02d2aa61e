"""Our full-size model has the tensors of the public weights, by name and shape."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLModel, Qwen3VLTextConfig

from robometer.configs.schema import Config
from robometer.models.prompts import SPECIAL_TOKENS
from robometer.models.robometer import Robometer, load_processor

QWEN = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "qwen3_vl_4b_instruct"


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
