"""Low-rank adapters (LoRA, by peft) on the language model: fine-tuning trains and stores about 1 % of its weights."""

from __future__ import annotations

from typing import Any, cast

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from robometer.models.config import LoraSettings
from robometer.models.prompts import SPECIAL_TOKENS
from robometer.models.robometer import Robometer


def add_lora(model: Robometer, settings: LoraSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Freeze the language model and add adapters; the embeddings of the reward model's own tokens train too.

    Layers are replaced in place: keys of the original weights gain `base_layer`, those of the adapters contain `lora_A`
    and `lora_B`. The heads stay as they are.

    Args:
        tokenizer: knows the ids of `SPECIAL_TOKENS`, whose embeddings the base model has never trained.
    """
    special = cast(list[int], tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        trainable_token_indices=cast(Any, {"embed_tokens": special}),
    )
    model.adapters = (get_peft_model(model.language_model, config),)


def merge(model: Robometer) -> None:
    """Merge the adapters into the weights that they adapt, so that the model has the public layout again."""
    merged = cast(Any, model.adapters[0]).merge_and_unload()
    parent, _, name = model.family.language.rpartition(".")
    setattr(model.model.get_submodule(parent), name, merged)
    model.adapters = ()


def trained_names(model: nn.Module) -> set[str]:
    """Names of the parameters that training changes: all that a checkpoint with adapters stores."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
