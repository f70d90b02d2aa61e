"""Sessions: equal to the score of their window, for any scorer; cheap, resumable and batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from robometer.configs import load
from robometer.errors import InputError
from robometer.frames.window import Window, kept_positions
from robometer.models.continuing import RobometerSession
from robometer.models.rewind import Rewind
from robometer.models.rewind_scorer import RewindScorer
from robometer.models.robometer import build_robometer, load_processor
from robometer.models.robometer_scorer import RobometerScorer
from robometer.scoring import Clip, ClipScore, Scorer, ScorerInfo, score_prefixes
from robometer.sessions import WindowSession, joined, push_all, score_as_session

TASKS = ("open the drawer", "close it")
MODELS = {
    "qwen3": [],
    "qwen2.5": ["model.base_model=tiny_qwen2_5_vl"],
    "smolvlm": ["model.base_model=tiny_smolvlm"],
    "pooled": ["model.per_frame_progress_token=false", "model.frame_pooling=attention"],
    "eager": ["model.attn_implementation=eager"],
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _robometer(overrides: Sequence[str] = ()) -> RobometerScorer:
    config = load(["model.kind=robometer", "model.base_model=tiny", "sampling.max_frames=4", *overrides])
    torch.manual_seed(0)
    return RobometerScorer(build_robometer(config)[0], load_processor(config), config)


def _rewind(attention: str = "causal") -> RewindScorer:
    config = load(["sampling.max_frames=4", "embed.image_encoder=random_image", "embed.text_encoder=random_text"])
    torch.manual_seed(0)
    model = Rewind(64, 32, 16, num_layers=2, num_heads=2, max_len=8, bins=10, attention=attention, window=2)
    return RewindScorer(model, config)


def _open(scorer: Scorer, task: str = TASKS[0]) -> WindowSession:
    session = scorer.open_session(task)
    assert isinstance(session, WindowSession)
    return session


def _frames(count: int, seed: int = 0, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def _expected(scorer: Scorer, clip: Clip, max_frames: int = 4) -> np.ndarray:
    """Progress and success [T, 2] of each frame, from the frames that a session keeps, without a session."""
    parts = [clip.take(kept_positions(t + 1, max_frames)) for t in range(len(clip))]
    return np.array([(s.progress[-1], s.success[-1]) for part in parts for s in scorer.score([part])])


class Pixel:
    """A scorer as a user writes one; progress is the mean brightness of a pixel."""

    name, info = "pixel", ScorerInfo(max_frames=4)

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        return [ClipScore.of_progress(np.full(len(clip), clip.frames[:, 0, 0, 0].mean() / 255)) for clip in clips]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        return np.array([len(a) > len(b) for a, b in pairs], dtype=np.float32)

    def open_session(self, task: str) -> WindowSession:
        return WindowSession(self, task)


@pytest.mark.parametrize("name", MODELS)
def test_a_session_of_a_vision_language_model_equals_its_window(name: str) -> None:
    scorer = _robometer(MODELS[name])
    clip = Clip(_frames(19), TASKS[0])
    session = _open(scorer, clip.task)
    pushed = np.array([session.push(frame) for frame in clip.frames])
    np.testing.assert_allclose(pushed, _expected(scorer, clip), atol=5e-6)
    assert np.ptp(pushed[:, 0]) > 1e-3
    for part in (clip, clip.up_to(3)):
        score = score_as_session(scorer, part)
        at_once = np.stack([score.progress, score.success], 1)
        np.testing.assert_allclose(at_once, pushed[: len(part)], atol=5e-6)


def test_a_frame_costs_as_many_tokens_at_the_end_as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept frames are read again only where the window drops some: at 4 + 1 frames, and when it has filled up again."""
    scorer, read = _robometer(), []

    def hidden_states(inputs: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        read.append(len(inputs["input_ids"]))
        return original(inputs, *rest)

    original = scorer._model.hidden_states
    monkeypatch.setattr(scorer._model, "hidden_states", hidden_states)
    session = _open(scorer)
    for frame in _frames(40):
        session.push(frame)
    alone = read[1]  # the first frame comes with the opening and the task
    assert read[0] > alone and [t for t, tokens in enumerate(read) if tokens != alone] == [0, 4, 7, 13, 25]


@pytest.mark.parametrize("attention", ["causal", "full", "state"])
def test_a_session_of_rewind_equals_its_window_and_encodes_a_frame_once(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, clip = _rewind(attention), Clip(_frames(11), TASKS[0])
    expected, encoded = _expected(scorer, clip), list[int]()
    original = scorer._images.encode

    def encode(frames: np.ndarray) -> np.ndarray:
        encoded.append(len(frames))
        return original(frames)

    monkeypatch.setattr(scorer._images, "encode", encode)
    session = _open(scorer, clip.task)
    np.testing.assert_allclose([session.push(frame) for frame in clip.frames], expected, atol=1e-6)
    assert encoded == [1] * 11 and np.ptp(expected[:, 0]) > 1e-3
    score = score_as_session(scorer, clip)
    np.testing.assert_allclose(np.stack([score.progress, score.success], 1), expected, atol=1e-6)
    assert encoded == [1] * 11 + [11]


@pytest.mark.parametrize("make", [_robometer, _rewind])
def test_sessions_of_any_length_share_a_batch(make: Callable[[], Scorer]) -> None:
    scorer = make()
    clips = [Clip(_frames(9, 1), TASKS[0]), Clip(_frames(3, 2, (64, 96)), TASKS[1]), Clip(_frames(6, 3), TASKS[1])]
    expected = [_expected(scorer, clip) for clip in clips]
    sessions = [_open(scorer, clip.task) for clip in clips]
    for t in range(9):
        at = [i for i, clip in enumerate(clips) if t < len(clip)]
        answers = push_all([sessions[i] for i in at], [clips[i].frames[t] for i in at])
        np.testing.assert_allclose(answers, [expected[i][t] for i in at], atol=5e-6)


@pytest.mark.parametrize("make", [_robometer, _rewind])
def test_a_session_goes_on_from_the_frames_that_its_window_held(make: Callable[[], Scorer]) -> None:
    scorer, clip = make(), Clip(_frames(23), TASKS[0])
    expected, first, held = _expected(scorer, clip), _open(scorer), Window[np.ndarray](4)
    for t, frame in enumerate(clip.frames):
        second = _open(scorer)
        second.restore(t, held.items)
        np.testing.assert_allclose(second.push(frame), expected[t], atol=5e-6)
        np.testing.assert_allclose(first.push(frame), expected[t], atol=5e-6)
        if t % 3 == 0:
            first.forget()
        held.make_room()
        held.add(frame)
    assert first.window.pushed == second.window.pushed == 23
    assert len(first.clip()) == len(kept_positions(23, 4))
    assert scorer.compare([(first.clip(), clip)]) == pytest.approx(
        scorer.compare([(clip.take(kept_positions(23, 4)), clip)]), abs=1e-5
    )


@pytest.mark.parametrize("make", [_robometer, _rewind, Pixel])
def test_a_caller_may_use_its_buffer_again(make: Callable[[], Scorer]) -> None:
    scorer, frames = make(), _frames(7)
    session, buffer, answers = _open(scorer), np.empty_like(frames[0]), []
    for shown in frames:
        buffer[:] = shown
        answers.append(session.push(buffer))
        session.forget()
    np.testing.assert_allclose(answers, _expected(scorer, Clip(frames, TASKS[0])), atol=5e-6)


@pytest.mark.parametrize(("make", "exact"), [(Pixel, True), (_rewind, True), (_robometer, False)])
def test_what_a_push_adds_is_known_before_it(make: Callable[[], Scorer], exact: bool) -> None:
    """Keys and values are estimated, never too low: those of the task count among those of the frames."""
    session = _open(make())
    for t, frame in enumerate(_frames(12)):
        before, told = session.size_bytes(), session.added_bytes(frame)
        session.push(frame)
        added = session.size_bytes() - before
        if t > 0:
            assert told == max(added, 0) if exact else told >= added and (told > 0) == (added > 0)


def test_memory_of_a_session_does_not_grow_and_can_be_freed() -> None:
    session, sizes = _open(_robometer()), []
    for frame in _frames(40):
        session.push(frame)
        sizes.append(session.size_bytes())
    assert max(sizes) == sizes[3] > 4 * 64 * 64 * 3
    session.forget()
    assert session.size_bytes() == 64 * 64 * 3 * len(session.window.items)


@pytest.mark.parametrize("make", [_robometer, _rewind, Pixel])
def test_a_wrong_frame_does_not_count(make: Callable[[], Scorer]) -> None:
    scorer, frames = make(), _frames(3)
    session, other = _open(scorer), _open(scorer)
    with pytest.raises(InputError, match="no frames yet"):
        session.clip()
    push_all([session, other], list(frames[:2]))
    for wrong in (frames[0].astype(np.float32), frames[0][..., 0], frames[0][..., :2], frames[0][:0]):
        with pytest.raises(InputError, match="must be uint8"):
            session.push(wrong)
    with pytest.raises(InputError, match="has 96x64 pixels, but the session's first one had 64x64"):
        push_all([other, session], [frames[2], _frames(1, 0, (64, 96))[0]])
    assert (session.window.pushed, other.window.pushed) == (1, 1)
    np.testing.assert_allclose(session.push(frames[2]), _expected(scorer, Clip(frames[[0, 2]], TASKS[0]))[1], atol=5e-6)
    assert push_all([], []) == []


def test_sessions_of_a_batch_are_different_and_of_one_scorer() -> None:
    first, other = _open(Pixel()), _open(Pixel())
    frame = _frames(1)[0]
    for wrong in ([first, first], [first, other]):
        with pytest.raises(InputError, match="different sessions of one scorer"):
            push_all(wrong, [frame, frame])
    assert first.window.pushed == other.window.pushed == 0


def test_a_model_that_reads_more_frames_back_than_it_sees_has_sessions() -> None:
    config = load(["sampling.max_frames=4", "embed.image_encoder=random_image", "embed.text_encoder=random_text"])
    model = Rewind(64, 32, 16, num_layers=3, num_heads=2, max_len=8, bins=10, attention="state", window=4)
    scorer, clip = RewindScorer(model, config), Clip(_frames(6), TASKS[0])
    np.testing.assert_allclose(score_as_session(scorer, clip).progress, _expected(scorer, clip)[:, 0], atol=1e-6)


def test_embeddings_of_a_corpus_are_used_where_a_clip_has_them() -> None:
    scorer, clip = _rewind(), Clip(_frames(6), TASKS[0])
    looks = scorer.embedded(list(clip.frames), [clip.task] * 6)
    score = score_as_session(scorer, joined(looks))
    np.testing.assert_allclose(score.progress, _expected(scorer, clip)[:, 0], atol=1e-6)


def test_no_frame_counts_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, frames = _robometer(), _frames(2)
    sessions, calls = [_open(scorer), _open(scorer)], list[int]()
    keep = RobometerSession.kept

    def kept(self: RobometerSession, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return keep(self, *args)

    monkeypatch.setattr(RobometerSession, "kept", kept)
    with pytest.raises(MemoryError):
        push_all(sessions, list(frames))
    assert [session.window.pushed for session in sessions] == [0, 0]


def test_a_short_clip_has_its_prefix_scores() -> None:
    scorer, clip = _robometer(), Clip(_frames(4), TASKS[0])
    (prefixes,) = score_prefixes(scorer, [clip])
    np.testing.assert_allclose(score_as_session(scorer, clip).progress, prefixes.progress, atol=5e-6)
