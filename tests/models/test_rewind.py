"""ReWiND: sizes, what each kind of attention sees, ragged batches and ensembles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from robometer import scoring
from robometer.configs import load
from robometer.errors import InputError
from robometer.models import rewind_scorer
from robometer.models.collate import collate_targets
from robometer.models.rewind import VALUE_OF_PROGRESS, VALUE_OF_SUCCESS, Rewind, RewindEnsemble, member_of
from robometer.models.rewind_scorer import RewindScorer, clip_inputs
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import Clip, score_prefixes
from robometer.training.batch import Batch, progress_from_logits


def _clip(length: int) -> ClipPlan:
    zeros, ones = np.zeros(length, dtype=np.float32), np.ones(length, dtype=bool)
    return ClipPlan(0, np.arange(length), zeros, ones, zeros, ones)


def _batch(text: torch.Tensor, a: list[torch.Tensor], b: list[torch.Tensor]) -> Batch:
    plans = [
        SamplePlan(i, "preference", "forward", "task", _clip(len(x)), _clip(len(y)) if len(y) else None, 1.0)
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    return collate_targets(plans, clip_inputs(text, a, b))


def _model(attention: str, tokens: bool = True) -> Rewind:
    torch.manual_seed(0)
    return Rewind(6, 5, 16, 2, 2, 8, 10, attention=attention, per_frame_progress_token=tokens, dropout=0.0).eval()


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int(np.prod(shape))))


@pytest.mark.parametrize(("name", "dim", "layers"), [("rewind", 512, 4), ("rewind_scaled", 1024, 32)])
def test_published_sizes_have_upstreams_tensors(name: str, dim: int, layers: int) -> None:
    m = load([f"model={name}"]).model
    with torch.device("meta"):
        model = Rewind(768, 384, m.hidden_dim, m.num_layers, m.num_heads, m.max_len, 10, attention=m.attention)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["video_proj.weight"] == (dim, 768) and shapes["text_proj.weight"] == (dim, 384)
    assert shapes["prog_token_A"] == shapes["prog_token_B"] == (1, 16, dim)
    assert shapes["progress_head.0.weight"] == (dim // 2, dim) and shapes["progress_head.4.weight"] == (10, dim // 2)
    assert shapes[f"transformer.layers.{layers - 1}.linear1.weight"] == (4 * dim, dim)
    assert f"transformer.layers.{layers}.linear1.weight" not in shapes
    assert len(shapes) == 28 + 12 * layers and (m.num_heads, dim // m.num_heads) in ((8, 64), (16, 64))


@pytest.mark.parametrize("attention", ["full", "causal", "state"])
def test_a_ragged_batch_equals_one_by_one(attention: str) -> None:
    model, text = _model(attention), _random(3, 5)
    a, b = [_random(5, 6), _random(2, 6), _random(1, 6)], [_random(3, 6), _random(7, 6), _random(0, 6)]
    together = model(_batch(text, a, b))
    for i in range(3):
        alone = model(_batch(text[i : i + 1], a[i : i + 1], b[i : i + 1]))
        n, m = len(a[i]), len(b[i])
        torch.testing.assert_close(together.progress_logits[i, :n], alone.progress_logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.success_logits_b[i, :m], alone.success_logits_b[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.preference_logits[i], alone.preference_logits[0], atol=1e-5, rtol=1e-5)


def test_causal_predictions_do_not_see_later_frames_or_the_other_clip() -> None:
    model, text, a, b = _model("causal"), _random(1, 5), _random(4, 6), _random(4, 6)
    before = model(_batch(text, [a], [b]))
    changed = torch.cat([a[:2], a[2:] + 1.0])
    after = model(_batch(text, [changed], [b * 2]))
    torch.testing.assert_close(before.progress_logits[:, :2], after.progress_logits[:, :2])
    assert not torch.allclose(before.progress_logits[:, 2:], after.progress_logits[:, 2:])


def test_state_predictions_do_not_know_their_place() -> None:
    model, text, a = _model("state"), _random(1, 5), _random(4, 6)
    forward = model(_batch(text, [a], [a]))
    backward = model(_batch(text, [a.flip(0)], [a.flip(0)]))
    torch.testing.assert_close(forward.progress_logits, backward.progress_logits.flip(1), atol=1e-5, rtol=1e-5)


def test_state_preference_is_antisymmetric_and_reads_all_frames() -> None:
    model, text, a, b = _model("state"), _random(1, 5), _random(4, 6), _random(3, 6)
    first = model(_batch(text, [a], [b])).preference_logits
    swapped = model(_batch(text, [b], [a])).preference_logits
    torch.testing.assert_close(first, -swapped, atol=1e-5, rtol=1e-5)
    for frame in range(4):
        changed = a.clone()
        changed[frame] += 1.0
        assert not torch.allclose(first, model(_batch(text, [changed], [b])).preference_logits, atol=1e-4)


def test_state_preference_holds_the_progress_and_success_that_it_predicts() -> None:
    model, text, a, b = _model("state"), _random(1, 5), _random(4, 6), _random(3, 6)
    for parameter in model.preference_head.parameters():
        torch.nn.init.zeros_(parameter)
    output = model(_batch(text, [a], [b]))

    def worth(progress_logits: torch.Tensor, success_logits: torch.Tensor) -> torch.Tensor:
        value = VALUE_OF_PROGRESS * progress_from_logits(progress_logits) + VALUE_OF_SUCCESS * success_logits
        return value[:, -1] + value.mean(1)

    want = worth(output.progress_logits, output.success_logits) - worth(
        output.progress_logits_b, output.success_logits_b
    )
    torch.testing.assert_close(output.preference_logits, want, atol=1e-5, rtol=1e-5)


def test_a_window_sees_the_frames_just_before() -> None:
    torch.manual_seed(0)
    model = Rewind(6, 5, 16, 2, 2, 8, 10, attention="state", window=2, dropout=0.0).eval()
    one_layer = Rewind(6, 5, 16, 1, 2, 8, 10, attention="state", window=2, dropout=0.0).eval()
    text, a = _random(1, 5), _random(5, 6)
    changed = a.clone()
    changed[1] += 1.0
    for net, reach in ((one_layer, 1), (model, 2)):
        before, after = (net(_batch(text, [clip], [a])).progress_logits[0] for clip in (a, changed))
        moved = ~torch.isclose(before, after, atol=1e-5).all(-1)
        assert moved.tolist() == [1 <= frame <= 1 + reach for frame in range(5)]


def test_a_clip_longer_than_max_len_is_refused() -> None:
    with pytest.raises(ValueError, match=r"longer than model.max_len=8"):
        _model("causal")(_batch(_random(1, 5), [_random(9, 6)], [_random(0, 6)]))


def _ensemble() -> RewindEnsemble:
    return RewindEnsemble(
        [_model("state", tokens=False), Rewind(6, 5, 16, 2, 2, 8, 10, attention="state", dropout=0.0)]
    )


def test_an_ensemble_answers_with_the_mean_of_its_members_logits() -> None:
    ensemble, batch = _ensemble().eval(), _batch(_random(2, 5), [_random(4, 6)] * 2, [_random(3, 6), _random(0, 6)])
    first, second = (member(batch) for member in ensemble.members)
    for got, one, other in zip(ensemble(batch), first, second, strict=True):
        torch.testing.assert_close(got, (one + other) / 2)


@pytest.mark.parametrize("samples", [1, 7])
def test_each_sample_teaches_the_member_that_its_index_names(samples: int) -> None:
    ensemble = _ensemble().train()
    batch = _batch(_random(samples, 5), [_random(4, 6)] * samples, [_random(3, 6)] * samples)
    first, second = (member(batch) for member in ensemble.members)
    got, member = ensemble(batch), member_of(batch.sample_index, 2).tolist()
    for part, one, other in zip(got, first, second, strict=True):
        want = torch.stack([(one, other)[k][i] for i, k in enumerate(member)])
        torch.testing.assert_close(part, want, atol=1e-5, rtol=1e-5)
    sum(part.sum() for part in got).backward()
    assert all(parameter.grad is not None for net in ensemble.members for parameter in net.success_head.parameters())
    shifted = batch.map(lambda tensor: tensor.flip(0))  # the same member, at another place in the batch
    again = ensemble(shifted).preference_logits.flip(0)
    torch.testing.assert_close(again, got.preference_logits, atol=1e-5, rtol=1e-5)
    assert samples == 1 or set(member) == {0, 1}


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_members_share_samples_evenly_though_kinds_repeat(period: int) -> None:
    index = torch.arange(0, 960 * period, period)
    assert 470 <= int(member_of(index, 2).sum()) <= 490


def test_a_scorer_reads_known_features_at_the_frames_that_it_shows() -> None:
    """A model of three frames sees the first, third and last of five; between them, scores are a straight line."""
    config = load(["sampling.max_frames=3", "embed.image_encoder=stored"])
    scorer = RewindScorer(_model("causal"), config, texts={"t": np.ones(5, dtype=np.float32)})
    features = {"stored": _random(5, 6).numpy()}
    clip = Clip(np.zeros((5, 8, 8, 3), dtype=np.uint8), "t", features)
    whole, thinned = scorer.score([clip, clip.take([0, 2, 4])])
    for name in ("progress", "success"):
        five, three = getattr(whole, name), getattr(thinned, name)
        np.testing.assert_allclose(five[[0, 2, 4]], three, atol=1e-6)
        np.testing.assert_allclose(five[[1, 3]], [three[:2].mean(), three[1:].mean()], atol=1e-6)
    assert np.unique(whole.progress).size == 5
    other = clip.take([1, 3, 0])
    pairs = scorer.compare([(clip, other), (clip.take([0, 2, 4]), other), (clip.take([0, 1, 2]), other)])
    assert pairs[0] == pytest.approx(pairs[1], abs=1e-6) and abs(pairs[0] - pairs[2]) > 1e-5


@pytest.mark.parametrize("stored", [True, False])
def test_all_prefixes_encode_each_frame_once(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 frames, the default way encodes up to 6 for each prefix: 15 + 6 * 15 = 105."""
    monkeypatch.setattr(scoring, "PREFIXES_AT_A_TIME", 7)
    config = load(["sampling.max_frames=6", "embed.image_encoder=random_image", "embed.text_encoder=random_text"])
    model = Rewind(64, 32, hidden_dim=16, num_layers=1, num_heads=2, max_len=8, bins=10).eval()
    scorer = RewindScorer(model, config)
    encoded, encode = [], scorer._images.encode

    def count(frames: np.ndarray) -> np.ndarray:
        encoded.append(len(frames))
        return encode(frames)

    monkeypatch.setattr(scorer._images, "encode", count)
    draws = np.random.default_rng(0)
    clips = [Clip(draws.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8), "open") for n in (20, 1)]
    if stored:
        clips = [replace(clip, features={"random_image": encode(clip.frames).astype(np.float16)}) for clip in clips]
    fast = score_prefixes(scorer, clips)
    assert sum(encoded) == (0 if stored else 21)
    for clip, score in zip(clips, fast, strict=True):
        alone = [scorer.score([clip.take(np.arange(n))])[0] for n in range(1, len(clip) + 1)]
        np.testing.assert_allclose(score.progress, [one.progress[-1] for one in alone], atol=1e-6)
        np.testing.assert_allclose(score.success, [one.success[-1] for one in alone], atol=1e-6)
    assert len(np.unique(np.round(fast[0].progress, 5))) > 10


def test_embeddings_of_another_encoder_are_the_fault_of_the_input() -> None:
    config = load(["embed.image_encoder=stored"])
    texts = {"t": np.ones(5, dtype=np.float32)}
    for model in (_model("causal"), RewindEnsemble([_model("causal"), _model("causal")])):
        scorer = RewindScorer(model, config, texts=texts)
        other = Clip(np.zeros((2, 8, 8, 3), dtype=np.uint8), "t", {"stored": _random(2, 7).numpy()})
        for ask in (lambda: scorer.score([other]), lambda: scorer.compare([(other, other)])):  # noqa: B023
            with pytest.raises(InputError, match="have 7 numbers for each frame, but the model reads the 6 of stored"):
                ask()


def test_a_scorer_keeps_the_tasks_of_its_corpus_and_the_last_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks an endpoint is asked about, its memory does not grow, and no answer changes."""
    monkeypatch.setattr(rewind_scorer, "MAX_TASKS", 3)
    config = load(["embed.image_encoder=stored", "embed.text_encoder=random_text"])
    model = Rewind(6, 32, hidden_dim=16, num_layers=1, num_heads=2, max_len=8, bins=10).eval()
    scorer = RewindScorer(model, config, texts={"of the corpus": np.ones(32, dtype=np.float32)})
    features = {"stored": _random(2, 6).numpy()}
    clips = [Clip(np.zeros((2, 8, 8, 3), dtype=np.uint8), f"task {i}", features) for i in range(8)]
    first = [score.progress.tolist() for score in scorer.score(clips)]
    assert list(scorer._task_cache) == ["of the corpus", "task 5", "task 6", "task 7"]
    again = [scorer.score([clip])[0].progress.tolist() for clip in clips]
    assert next(iter(scorer._task_cache)) == "of the corpus" and len(scorer._task_cache) == 4
    np.testing.assert_allclose(again, first, atol=1e-6)
    assert len(np.unique(np.round(first, 6))) > 8, "the tasks do not matter"


@pytest.mark.parametrize("tokens", [True, False])
def test_heads_read_the_tokens_behind_the_frames(tokens: bool) -> None:
    """[task, f1, p1, f2, p2, ...] or [task, f1, f2, ...]: the state of frame i is that of p_i, or of f_i."""
    model = _model("causal", tokens)
    hidden = torch.arange(12.0).reshape(1, 12, 1).expand(1, 12, 16)
    states = model._frame_states(hidden, 1, 6 if tokens else 3)[0, :, 0]
    assert states.tolist() == ([2, 4, 6] if tokens else [1, 2, 3])
