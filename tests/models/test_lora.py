"""LoRA trains only its part, starts as the base model, and gives the same numbers after merging."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robometer.configs import Config, load
from robometer.models.checkpoint import (
    CheckpointError,
    build_model,
    checkpoint_hash,
    load_model,
    save_checkpoint,
)
from robometer.models.lora import add_lora, merge, trained_names
from robometer.models.robometer import Robometer, build_robometer, load_processor
from robometer.models.robometer_scorer import RobometerScorer
from robometer.models.sharing import share_weights
from robometer.runs.publishing import prepare, to_folder
from robometer.scorers import load_scorer
from robometer.scoring import Clip
from robometer.training.losses import compute_losses
from tests.models.images import noise_clip


@pytest.fixture(scope="module")
def config() -> Config:
    return load(["model=tiny", "model.lora.rank=4", "model.lora.dropout=0", "model.dropout=0"])


def _trained(config: Config) -> Robometer:
    """A tiny model whose adapters were trained for some steps."""
    torch.manual_seed(0)
    model, tokenizer = build_robometer(config)
    add_lora(model, config.model.lora, tokenizer)
    batch = load_processor(config).collate_pairs([(noise_clip(0, 3), noise_clip(1, 2))])
    batch.a.progress_mask[:] = True
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        compute_losses(model(batch), batch, config.loss, "discrete").total.backward()
        optimizer.step()
    return model.eval()


def test_adapters_heads_and_the_models_own_tokens_train_and_nothing_else(config: Config) -> None:
    torch.manual_seed(0)
    model, tokenizer = build_robometer(config)
    heads = {name for name in trained_names(model) if "head" in name}
    add_lora(model, config.model.lora, tokenizer)
    adapters = trained_names(model) - heads
    assert heads <= trained_names(model)
    assert all(".lora_A." in name or ".lora_B." in name or "trainable_tokens_delta" in name for name in adapters)
    assert len([name for name in adapters if ".lora_A." in name]) == 3 * 7  # layers x projections


def test_fresh_adapters_change_nothing_and_trained_ones_do(config: Config) -> None:
    batch = load_processor(config).collate_clips([noise_clip(2, 3)])
    trained = _trained(config)
    torch.manual_seed(0)
    model, tokenizer = build_robometer(config)
    with torch.no_grad():
        before = model.eval().hidden_states(batch.inputs)
        add_lora(model, config.model.lora, tokenizer)
        assert torch.equal(model.eval().hidden_states(batch.inputs), before)
        assert not torch.allclose(trained.hidden_states(batch.inputs), before, atol=1e-3)


def test_merged_adapters_answer_alike_in_the_public_layout(config: Config) -> None:
    model = _trained(config)
    public = set(build_robometer(config)[0].state_dict())
    batch = load_processor(config).collate_pairs([(noise_clip(0, 3), noise_clip(1, 2))])
    with torch.no_grad():
        before = model(batch)
        merge(model)
        after = model(batch)
    assert set(model.state_dict()) == public
    assert torch.allclose(before.progress_logits, after.progress_logits, atol=1e-5)
    assert torch.allclose(before.preference_logits, after.preference_logits, atol=1e-5)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint to start from, in the public layout."""
    config = load(["model=tiny", "train.seed=7"])
    torch.manual_seed(7)
    save_checkpoint(tmp_path / "base", build_robometer(config)[0].state_dict(), config, {})
    return tmp_path / "base"


def _saved(config: Config, base: Path, folder: Path) -> torch.nn.Module:
    """A model on `base` with changed adapters, saved in `folder`."""
    model = build_model(config, None)  # type: ignore[arg-type]  # a vision-language model needs no corpus
    generator = torch.Generator().manual_seed(1)
    names = trained_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    state = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    save_checkpoint(folder, state, config, {"base": checkpoint_hash(base)})
    return model.eval()


def test_a_saved_adapter_answers_as_before_and_holds_only_what_was_trained(base: Path, tmp_path: Path) -> None:
    config = load(["model=tiny", "model.lora.rank=4", f"train.load_from_checkpoint={base}"])
    model = _saved(config, base, tmp_path / "lora")
    assert (tmp_path / "lora/model.safetensors").stat().st_size < 0.4 * (base / "model.safetensors").stat().st_size
    again = load_model(tmp_path / "lora")[0].eval()
    batch = load_processor(config, base).collate_pairs([(noise_clip(0, 3), noise_clip(1, 2))])
    with torch.no_grad():
        for ours, theirs in zip(model(batch), again(batch), strict=True):
            assert torch.equal(ours, theirs)
    score = load_scorer(tmp_path / "lora").score([noise_clip(0, 3)])[0]
    assert score.progress.shape == (3,)


def test_adapters_of_other_weights_or_without_a_tensor_are_refused(base: Path, tmp_path: Path) -> None:
    config = load(["model=tiny", "model.lora.rank=4", f"train.load_from_checkpoint={base}"])
    _saved(config, base, tmp_path / "lora")
    state = load_file(tmp_path / "lora/model.safetensors")
    gone = next(name for name in state if "lora_A" in name)
    save_checkpoint(tmp_path / "short", {n: t for n, t in state.items() if n != gone}, config, {})
    with pytest.raises(CheckpointError, match=r"missing: .*lora_A"):
        load_model(tmp_path / "short")
    with pytest.raises(CheckpointError, match=r"publish .* --merge"):
        build_model(load(["model=tiny", f"train.load_from_checkpoint={tmp_path / 'lora'}"]), None)  # type: ignore[arg-type]
    other = load(["model=tiny"])
    save_checkpoint(base, build_robometer(other)[0].state_dict(), other, {})
    with pytest.raises(CheckpointError, match="adapters for other weights"):
        load_model(tmp_path / "lora")


def test_published_adapters_are_a_model_in_the_public_layout(base: Path, tmp_path: Path) -> None:
    config = load(["model=tiny", "model.lora.rank=4", f"train.load_from_checkpoint={base}"])
    model = _saved(config, base, tmp_path / "lora")
    to_folder(prepare(str(tmp_path / "lora"), merge=True), str(tmp_path / "published"))
    assert set(load_file(tmp_path / "published/model.safetensors")) == set(load_file(base / "model.safetensors"))
    shutil.rmtree(base)  # neither the base nor the adapters are needed any more
    batch = load_processor(config, tmp_path / "published").collate_clips([noise_clip(0, 3)])
    with torch.no_grad():
        ours, published = model(batch), load_model(tmp_path / "published")[0].eval()(batch)
    assert torch.allclose(ours.progress_logits, published.progress_logits, atol=1e-5)


def test_two_adapters_and_their_base_share_its_weights_and_answer_as_before(config: Config) -> None:
    torch.manual_seed(0)
    base = build_robometer(config)[0].eval()
    one, two = _trained(config), _trained(config)
    with torch.no_grad():
        for name, parameter in two.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-1)
    processor = load_processor(config)
    scorers = [RobometerScorer(model, processor, config, str(i)) for i, model in enumerate((base, one, two))]
    clips = [Clip(noise_clip(4, 3).frames, "open the drawer")]
    before = [scorer.score(clips)[0].progress for scorer in scorers]
    whole = sum(parameter.nbytes for parameter in base.parameters())
    for scorer, others in ((scorers[1], scorers[:1]), (scorers[2], scorers[:2])):
        freed = sum(share_weights(scorer, other) for other in others)
        assert freed > 0.5 * whole
        assert sum(share_weights(scorer, other) for other in others) == 0
    for scorer, progress in zip(scorers, before, strict=True):
        assert (scorer.score(clips)[0].progress == progress).all()
    assert (before[1] != before[2]).any()
