"""LoRA: what it trains, that it starts as the base model, and that merging it changes nothing."""

from __future__ import annotations

import pytest
import torch

from robometer.configs import Config, load
from robometer.losses import compute_losses
from robometer.models.lora import add_lora, merge, trained_names
from robometer.models.prompts import SPECIAL_TOKENS
from robometer.models.robometer import Robometer, build_robometer, load_processor
from tests.models.images import noise_clip


@pytest.fixture(scope="module")
def config() -> Config:
    return load(["model=tiny", "model.lora.rank=4", "model.lora.dropout=0", "model.dropout=0"])


def _trained(config: Config) -> tuple[Robometer, object]:
    """A tiny model whose adapters took some steps."""
    torch.manual_seed(0)
    model, tokenizer = build_robometer(config)
    wrapper = add_lora(model, config.model.lora, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    batch = load_processor(config).collate_pairs([(noise_clip(0, 3), noise_clip(1, 2))])
    batch.a.progress_mask[:] = True
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        compute_losses(model(batch), batch, config.loss, "discrete").total.backward()
        optimizer.step()
    return model.eval(), wrapper


def test_adapters_heads_and_the_models_own_tokens_train_and_nothing_else(config: Config) -> None:
    torch.manual_seed(0)
    model, tokenizer = build_robometer(config)
    heads = {name for name in trained_names(model) if "head" in name}
    add_lora(model, config.model.lora, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    adapters = trained_names(model) - heads
    assert heads <= trained_names(model)
    assert all(".lora_A." in name or ".lora_B." in name or "trainable_tokens_delta" in name for name in adapters)
    assert len([name for name in adapters if ".lora_A." in name]) == 3 * 7  # layers x projections


def test_fresh_adapters_change_nothing_and_trained_ones_do(config: Config) -> None:
    batch = load_processor(config).collate_clips([noise_clip(2, 3)])
    trained = _trained(config)[0]
    torch.manual_seed(0)
    model, tokenizer = build_robometer(config)
    with torch.no_grad():
        before = model.eval().hidden_states(batch.inputs)
        add_lora(model, config.model.lora, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
        assert torch.equal(model.eval().hidden_states(batch.inputs), before)
        assert not torch.allclose(trained.hidden_states(batch.inputs), before, atol=1e-3)


def test_merged_adapters_answer_alike_in_the_public_layout(config: Config) -> None:
    model, wrapper = _trained(config)
    public = set(build_robometer(config)[0].state_dict())
    batch = load_processor(config).collate_pairs([(noise_clip(0, 3), noise_clip(1, 2))])
    with torch.no_grad():
        before = model(batch)
        merge(model, wrapper)  # type: ignore[arg-type]
        after = model(batch)
    assert set(model.state_dict()) == public
    assert torch.allclose(before.progress_logits, after.progress_logits, atol=1e-5)
    assert torch.allclose(before.preference_logits, after.preference_logits, atol=1e-5)
