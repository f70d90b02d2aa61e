from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, commit_shard
from robometer.models.attention import packed_attention
from robometer.models.checkpoint import CheckpointError, load_model, save_checkpoint
from robometer.models.config import ModelConfig
from robometer.models.processing import RobometerCollator, RobometerProcessor
from robometer.models.robometer import Robometer, build_robometer, load_processor
from robometer.models.robometer_scorer import RobometerScorer
from robometer.models.tiny import TINY
from robometer.sampling.config import SamplingConfig
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scorers import load_scorer
from robometer.scoring import Clip, Scorer, score_positions, score_prefixes
from robometer.settings import ConfigError
from robometer.training.batch import Batch, RewardOutput, progress_from_logits
from robometer.training.config import LossConfig, TrainConfig
from robometer.training.losses import compute_losses
from robometer.trajectory import SCHEMA_VERSION, SHARD_SCHEMA
from tests.models.images import jpeg, noise_clip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _config(**changes: object) -> Config:
    model = ModelConfig(kind="robometer", base_model="tiny", dropout=0.0)
    return replace(Config(model=model, sampling=SamplingConfig(max_frames=8)), **changes)  # type: ignore[arg-type]


def _model(config: Config | None = None) -> Robometer:
    torch.manual_seed(0)
    return build_robometer(config or _config())[0].eval()


@pytest.fixture(scope="module")
def model() -> Robometer:
    return _model()


@pytest.fixture(scope="module")
def processor() -> RobometerProcessor:
    return load_processor(_config())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three trajectories of 6 frames in one shard, in two sizes."""
    path = str(tmp_path_factory.mktemp("corpus"))
    storage, rng = Storage(path), np.random.default_rng(0)
    sizes = [(64, 64), (64, 96), (64, 64)]
    ids = [f"{i:032x}" for i in range(len(sizes))]
    records = [
        {
            "id": ids[i],
            "frame_index": list(range(6)),
            "env_reward": None,
            "success": None,
            "frames": [jpeg(rng, *size) for _ in range(6)],
        }
        for i, size in enumerate(sizes)
    ]
    blank = dict.fromkeys(SHARD_SCHEMA.names) | {"task": "open the drawer"}
    commit_shard(storage, "s", [Accepted(blank | record) for record in records])
    storage.write_bytes("corpus.json", f'{{"schema_version": {SCHEMA_VERSION}}}'.encode())
    return Corpus(path)


def _clip_plan(row: int, positions: list[int], success: bool) -> ClipPlan:
    progress = np.linspace(0, 1, len(positions), dtype=np.float32) * success
    labels = (progress >= 1.0).astype(np.float32)
    every = np.ones(len(positions), dtype=bool)
    return ClipPlan(row, np.array(positions, dtype=np.int32), progress, every, labels, every)


def _plans() -> list[SamplePlan]:
    """Two pairs with clips of different lengths, one of them a single frame, and a progress sample with a rewind."""
    good, bad = _clip_plan(0, [0, 2, 5], True), _clip_plan(1, [0, 3], False)
    return [
        SamplePlan(0, "preference", "suboptimal", "open the drawer", good, bad, 1.0),
        SamplePlan(1, "preference", "suboptimal", "open the drawer", _clip_plan(2, [4], False), good, 0.0),
        SamplePlan(2, "progress", "rewind", "open the drawer", _clip_plan(1, [0, 2, 4, 2], True), None, 0.0),
    ]


def _collator(config: Config, corpus: Corpus) -> RobometerCollator:
    return RobometerCollator(corpus, load_processor(config))


def _run(model: Robometer, batch: Batch) -> RewardOutput:
    with torch.no_grad():
        output: RewardOutput = model(batch)
    return output


def test_training_on_a_fixed_batch_lowers_its_loss(corpus: Corpus) -> None:
    config = _config()
    model = _model(config).train()
    batch = _collator(config, corpus)(_plans())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(15):
        loss = compute_losses(model(batch), batch, LossConfig(), "discrete").total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_every_trainable_parameter_has_a_gradient_and_the_frozen_have_none(corpus: Corpus) -> None:
    model = _model()
    batch = _collator(_config(), corpus)(_plans()[2:])  # progress only: no pair in the batch
    compute_losses(model(batch), batch, LossConfig(), "discrete").total.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"frame_pool_attn.weight"} | {n for n in model.state_dict() if n.startswith("model.visual.")}


def test_the_vision_tower_trains_when_asked(corpus: Corpus) -> None:
    config = _config(model=ModelConfig(kind="robometer", base_model="tiny", train_vision_encoder=True))
    model = _model(config)
    batch = _collator(config, corpus)(_plans())
    compute_losses(model(batch), batch, LossConfig(), "discrete").total.backward()
    gradient = model.get_parameter("model.visual.patch_embed.proj.weight").grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_gradient_checkpointing_changes_no_gradient(corpus: Corpus) -> None:
    gradients = []
    for checkpointing in (False, True):
        config = _config(train=TrainConfig(gradient_checkpointing=checkpointing))
        model = _model(config).train()
        assert model.model.is_gradient_checkpointing is checkpointing
        batch = _collator(config, corpus)(_plans())
        compute_losses(model(batch), batch, LossConfig(), "discrete").total.backward()
        gradient = model.get_parameter("model.language_model.embed_tokens.weight").grad
        assert gradient is not None
        gradients.append(gradient)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_bf16_trains_and_scores_in_float32_probabilities(corpus: Corpus) -> None:
    config = _config(train=TrainConfig(precision="bf16"))
    model = _model(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    frequencies = {name: buffer for name, buffer in model.named_buffers() if "inv_freq" in name}
    exact = dict(_model().named_buffers())
    assert frequencies and all(torch.equal(buffer, exact[name]) for name, buffer in frequencies.items())
    batch = _collator(config, corpus)(_plans())
    loss = compute_losses(model(batch), batch, LossConfig(), "discrete").total
    loss.backward()
    assert torch.isfinite(loss)
    score = RobometerScorer(model, load_processor(config), config).score([noise_clip(0, 3)])[0]
    assert score.progress.dtype == score.success.dtype == np.float32
    assert np.isfinite(score.progress).all() and np.isfinite(score.success).all()


def test_a_mixed_ragged_batch_equals_its_samples_one_by_one(model: Robometer, corpus: Corpus) -> None:
    collator = _collator(_config(), corpus)
    together = _run(model, collator(_plans()))
    assert together.progress_logits_b is not None and together.preference_logits is not None
    for i, plan in enumerate(_plans()):
        alone = _run(model, collator([plan]))
        length = len(plan.a)
        assert torch.allclose(alone.progress_logits[0], together.progress_logits[i, :length], atol=1e-5)
        assert torch.allclose(alone.success_logits[0], together.success_logits[i, :length], atol=1e-5)
        if plan.b is None:
            assert alone.progress_logits_b is None
            continue
        assert alone.progress_logits_b is not None and alone.preference_logits is not None
        assert torch.allclose(alone.progress_logits_b[0], together.progress_logits_b[i, : len(plan.b)], atol=1e-5)
        assert torch.allclose(alone.preference_logits[0], together.preference_logits[i], atol=1e-5)


def _padded(model: Robometer, batch: Batch) -> torch.Tensor:
    """States [N, H] by the backbone's own forward: samples are padded and masked, and every shown frame is encoded."""
    inputs, lengths = batch.inputs, batch.inputs["sequence_length"].tolist()
    patches, grid = inputs["patches"], inputs["grid"]
    pixels = model.cutter.pixels(patches).split([len(patches) * g // grid.prod(1).sum() for g in grid.prod(1)])
    pixels_of_frames = [pixels[i] for i in inputs["image"]]
    ids = [part for part in inputs["input_ids"].split(lengths)]
    rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in ids], batch_first=True)
    backbone: Any = model.model
    if model.family.spatial_positions:
        kinds = (rows == backbone.config.image_token_id).long() * mask
        images = {
            "pixel_values": torch.cat(pixels_of_frames),
            "image_grid_thw": grid[inputs["image"]],
            "mm_token_type_ids": kinds,
        }
    else:
        images = {"pixel_values": torch.cat(pixels_of_frames)[None]}
    backbone.set_attn_implementation("sdpa")
    states = backbone(input_ids=rows, attention_mask=mask, use_cache=False, **images).last_hidden_state
    return states[mask.bool()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("base", TINY)
def test_packed_states_with_shared_frames_equal_the_backbones_own_forward(base: str, implementation: str) -> None:
    model = _model(_config(model=ModelConfig(kind="robometer", base_model=base, attn_implementation=implementation)))
    clip = noise_clip(0, 4, 96, 64)
    processor = load_processor(_config(model=ModelConfig(kind="robometer", base_model=base)))
    batch = processor.collate_pairs([(clip, clip.take([3, 2, 1, 0])), (noise_clip(1, 1), clip.take([0, 1, 0]))])
    with torch.no_grad():
        ours = model.hidden_states(batch.inputs)
        assert torch.allclose(ours, _padded(model, batch), atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "boundary", "attention"])
@pytest.mark.parametrize("base", TINY)
def test_every_backbone_trains_with_pooled_frames(base: str, pooling: str, corpus: Corpus) -> None:
    pooled = ModelConfig(kind="robometer", base_model=base, frame_pooling=pooling, per_frame_progress_token=False)
    config = _config(model=pooled)
    model, batch = _model(config), _collator(config, corpus)(_plans())
    output = model(batch)
    assert output.progress_logits.shape == (3, 4, 10)
    compute_losses(output, batch, LossConfig(), "discrete").total.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_that_is_not_installed_is_one_sentence() -> None:
    config = _config(model=ModelConfig(kind="robometer", base_model="tiny", attn_implementation="flash_attention_2"))
    with pytest.raises(ConfigError, match="needs the package flash-attn"):
        build_robometer(config)


def test_attention_continues_from_a_cache() -> None:
    query, key, value = torch.randn(3, 1, 2, 7, 4, generator=torch.Generator().manual_seed(0))
    whole, _ = packed_attention(torch.nn.Module(), query, key, value, None)
    last, _ = packed_attention(torch.nn.Module(), query[:, :, 4:], key, value, None)
    assert torch.allclose(whole[:, 4:], last, atol=1e-6)


def test_later_frames_do_not_change_earlier_progress(model: Robometer, processor: RobometerProcessor) -> None:
    clip, other = noise_clip(1, 5), noise_clip(2, 5)
    changed = Clip(np.concatenate([clip.frames[:3], other.frames[3:]]), clip.task)
    a, b = (_run(model, processor.collate_clips([c])) for c in (clip, changed))
    assert torch.allclose(a.progress_logits[:, :3], b.progress_logits[:, :3], atol=1e-6)
    assert not torch.allclose(a.progress_logits[:, 3:], b.progress_logits[:, 3:], atol=1e-4)


def test_b_does_not_change_a_but_a_changes_b(model: Robometer, processor: RobometerProcessor) -> None:
    x, y, z = (noise_clip(seed, 3) for seed in range(3))
    xy, xz, zy = (_run(model, processor.collate_pairs([pair])) for pair in ((x, y), (x, z), (z, y)))
    assert torch.allclose(xy.progress_logits, xz.progress_logits, atol=1e-6)
    assert xy.progress_logits_b is not None and zy.progress_logits_b is not None
    assert not torch.allclose(xy.progress_logits_b, zy.progress_logits_b, atol=1e-4)


def test_the_batch_survives_its_flat_form(corpus: Corpus, model: Robometer) -> None:
    batch = _collator(_config(), corpus)(_plans())
    again = Batch.from_arrays(batch.to_arrays())
    assert torch.equal(_run(model, batch).progress_logits, _run(model, again).progress_logits)


def test_scorer_decodes_and_interpolates_long_clips(model: Robometer, processor: RobometerProcessor) -> None:
    scorer = RobometerScorer(model, processor, _config())
    assert isinstance(scorer, Scorer)
    clips = [noise_clip(1, 1), noise_clip(2, 15), noise_clip(3, 8)]
    scores = scorer.score(clips)
    assert [len(score.progress) for score in scores] == [len(score.success) for score in scores] == [1, 15, 8]
    thinned = _run(model, processor.collate_clips([clips[1].take(range(0, 15, 2))]))
    expected = progress_from_logits(thinned.progress_logits)[0].numpy()
    assert np.allclose(scores[1].progress[::2], expected, atol=1e-5)
    assert np.allclose(scores[1].progress[1::2], (expected[1:] + expected[:-1]) / 2, atol=1e-5)
    assert np.allclose(scores[2].success, scorer.score(clips[2:])[0].success, atol=1e-5)


def test_scorer_compares_in_batches_and_in_order(model: Robometer, processor: RobometerProcessor) -> None:
    scorer = RobometerScorer(model, processor, _config())
    pairs = [(noise_clip(i, 1 + i % 3), noise_clip(100 + i, 2)) for i in range(18)]  # more than evaluate.batch_size
    together = scorer.compare(pairs)
    assert together.shape == (18,) and together.dtype == np.float32
    assert np.allclose(together[17], scorer.compare(pairs[17:])[0], atol=1e-5)
    assert np.unique(together.round(5)).size > 9
    assert scorer.compare([]).shape == (0,) and scorer.score([]) == []


def test_a_session_ends_where_the_whole_clip_does(model: Robometer, processor: RobometerProcessor) -> None:
    scorer, clip = RobometerScorer(model, processor, _config()), noise_clip(4, 3)
    session = scorer.open_session(clip.task)
    pushed = [session.push(frame) for frame in clip.frames]
    score = scorer.score([clip])[0]
    assert np.allclose(pushed, np.stack([score.progress, score.success], 1), atol=1e-5)  # the model is causal


def test_prefixes_are_scored_with_fewer_forwards(
    model: Robometer, processor: RobometerProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, clips = RobometerScorer(model, processor, _config()), [noise_clip(5, 11), noise_clip(6, 3)]
    scored: list[int] = []
    score = scorer.score
    monkeypatch.setattr(scorer, "score", lambda clips: scored.extend(map(len, clips)) or score(clips))
    scores = score_prefixes(scorer, clips)
    assert scored == [8, 8, 8, 8, 3]  # the first eight prefixes at once, three longer ones, and a clip that fits
    for clip, prefixes in zip(clips, scores, strict=True):
        alone = [score([clip.up_to(n)])[0] for n in range(1, len(clip) + 1)]
        np.testing.assert_allclose(prefixes.progress, [one.progress[-1] for one in alone], atol=1e-5)
        np.testing.assert_allclose(prefixes.success, [one.success[-1] for one in alone], atol=1e-5)
    scored.clear()
    few = score_positions(scorer, clips[0], [10, 4])
    assert scored == [5, 11]
    np.testing.assert_allclose(few.progress, scores[0].progress[[10, 4]], atol=1e-5)


@pytest.mark.parametrize("loss", ["discrete", "l2"])
def test_a_checkpoint_folder_gives_the_same_scorer(tmp_path: Path, loss: str) -> None:
    config = _config(model=ModelConfig(kind="robometer", base_model="tiny", progress_loss=loss))
    model, clip = _model(config), noise_clip(5, 3)
    save_checkpoint(tmp_path, model.state_dict(), config, {})
    assert {"tokenizer.json", "config.json"} <= {path.name for path in tmp_path.iterdir()}
    before = RobometerScorer(model, load_processor(config), config).score([clip])[0]
    after = load_scorer(tmp_path).score([clip])[0]
    assert np.array_equal(before.progress, after.progress) and np.array_equal(before.success, after.success)


def test_a_saved_folder_can_be_the_base_model(tmp_path: Path) -> None:
    backbone = _model().model
    backbone.save_pretrained(tmp_path)
    load_processor(_config()).tokenizer.save_pretrained(tmp_path)
    config = _config(model=ModelConfig(kind="robometer", base_model=str(tmp_path)))
    again = build_robometer(config)[0].model
    assert backbone.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in backbone.state_dict().items())


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    state = _model().state_dict()
    state["progress_head.9.weight"] = state.pop("progress_head.0.weight")
    save_checkpoint(tmp_path, state, _config(), {})
    with pytest.raises(CheckpointError, match=r"progress_head\.0\.weight.*progress_head\.9\.weight"):
        load_model(tmp_path)


def test_a_base_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    config = _config(model=ModelConfig(kind="robometer", base_model=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match=r"model\.base_model=.*cannot be loaded.*give a hub id") as caught:
        build_robometer(config)
    assert "\n" not in str(caught.value)
