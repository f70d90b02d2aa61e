"""ReWiND's training collator and its Scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.errors import InputError
from robometer.frames.video import thin_positions
from robometer.models.collate import collate_targets
from robometer.models.encoders import STORED, ImageEncoder, TextEncoder, image_encoder, text_encoder
from robometer.models.rewind import Rewind, RewindEnsemble
from robometer.models.rewind_last import Graph, LastFrame, reach_of
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import (
    Clip,
    ClipScore,
    OneAtATime,
    ScorerInfo,
    each_prefix,
    one_at_a_time,
    spread,
)
from robometer.sessions import Answer, WindowSession, last_answers, push_clips
from robometer.training.batch import Batch, progress_from_logits


class RewindCollator:
    """Turns plans into batches: frame and task embeddings from the corpus (see `Collator`)."""

    def __init__(self, config: Config, corpus: Corpus) -> None:
        self.corpus, self.encoder = corpus, config.embed.image_encoder
        self.tasks = corpus.text_embeddings(config.embed.text_encoder)
        self.seed = config.train.seed
        self.frame_noise, self.clip_noise = config.sampling.feature_noise, config.sampling.clip_noise
        noisy = self.frame_noise > 0 or self.clip_noise > 0
        self.std = feature_statistics(corpus, config)[1] if noisy else None

    def __call__(self, plans: Sequence[SamplePlan]) -> Batch:
        text = torch.from_numpy(np.stack([self.tasks[plan.task] for plan in plans]))
        self.read_ahead(plans)
        a, b = [], []
        for plan in plans:
            draws = np.random.Generator(np.random.Philox(key=[self.seed, plan.sample_index]))
            a.append(self._embeddings(plan.a, draws))
            b.append(a[-1][:0] if plan.b is None else self._embeddings(plan.b, draws))
        return collate_targets(plans, clip_inputs(text, a, b))

    def read_ahead(self, plans: Sequence[SamplePlan]) -> None:
        """See `Collator.read_ahead`."""
        self.corpus.read_ahead((c.row for plan in plans for c in (plan.a, plan.b) if c), self.encoder)

    def _embeddings(self, clip: ClipPlan, draws: np.random.Generator) -> Tensor:
        values = self.corpus.embeddings(self.encoder, clip.row, clip.positions)
        if self.std is not None:
            frames = self.frame_noise * draws.standard_normal(values.shape, dtype=np.float32)
            clip_shift = self.clip_noise * draws.standard_normal(values.shape[1], dtype=np.float32)
            values = values + self.std * (frames + clip_shift)
        return torch.from_numpy(values)


MAX_TASKS = 10_000
"""Tasks beside those of the corpus whose embeddings a scorer keeps: an endpoint is asked about any number of them."""

STATISTICS_ROWS = 512
MIN_STD = 1e-3


def feature_statistics(corpus: Corpus, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation float32 [D] of the image embeddings in 512 evenly spread training rows."""
    rows = corpus.rows(config.sampling.split)
    sample = rows[thin_positions(len(rows), STATISTICS_ROWS)]
    corpus.read_ahead(sample, config.embed.image_encoder)
    frames = np.concatenate([corpus.embeddings(config.embed.image_encoder, int(row)) for row in sample])
    return frames.mean(0), frames.std(0) + MIN_STD


def clip_inputs(text: Tensor, a: Sequence[Tensor], b: Sequence[Tensor]) -> dict[str, Tensor]:
    """Model inputs from text [B, E] and per-sample embeddings [Ta, D] and [Tb, D], zero-padded on the right."""
    return {
        "text": text,
        "embeddings_a": pad_sequence(list(a), batch_first=True),
        "embeddings_b": pad_sequence(list(b), batch_first=True),
    }


_PIXEL = np.zeros((1, 1, 1, 3), dtype=np.uint8)


class RewindSession(WindowSession):
    """A session whose window keeps embeddings."""

    scorer: RewindScorer

    def push_look(self, look: Clip) -> Answer:
        """See `WindowSession.push_look`."""
        return self.scorer.push_embedded(self, look)

    def look(self, frames: Sequence[np.ndarray]) -> list[Clip]:
        """See `WindowSession.look`."""
        return self.scorer.embedded(frames, [self.task] * len(frames))

    def first_bytes(self, frame: np.ndarray) -> int:
        """See `WindowSession.first_bytes`: an embedding is not known before it is made."""
        return 0


class RewindScorer(OneAtATime):
    """Scorer of a trained ReWiND; longer clips than it was trained on are thinned and their predictions interpolated.

    Args:
        texts: task embeddings of a corpus; other tasks are encoded when they are first scored.
        info: its `image_encoder` is replaced by the one that the model was trained on.
    """

    def __init__(
        self,
        model: Rewind | RewindEnsemble,
        config: Config,
        name: str = "rewind",
        device: str = "cpu",
        texts: Mapping[str, np.ndarray] | None = None,
        info: ScorerInfo = ScorerInfo(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.name = name
        self._image_encoder = config.embed.image_encoder
        self._max_frames = config.sampling.max_frames
        self.info = replace(info, image_encoder=self._image_encoder, max_frames=self._max_frames)
        self._text_name, self._device = config.embed.text_encoder, device
        self._model = model.to(device).eval()
        reach = reach_of(self._model)
        self._reach = None if reach is None or reach > self._max_frames else reach
        self._known_tasks = len(texts or {})
        self._task_cache = {task: torch.from_numpy(vector) for task, vector in (texts or {}).items()}

    @one_at_a_time
    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`; clips without features are encoded first."""
        if not clips:
            return []
        positions = [thin_positions(len(clip), self._max_frames) for clip in clips]
        a = [self._features(clip, at) for clip, at in zip(clips, positions, strict=True)]
        output = self._forward([clip.task for clip in clips], a, [f[:0] for f in a])
        progress = progress_from_logits(output.progress_logits).cpu().numpy()
        success = output.success_logits.float().sigmoid().cpu().numpy()
        return [
            ClipScore(spread(progress[i, : len(at)], at, len(clip)), spread(success[i, : len(at)], at, len(clip)))
            for i, (clip, at) in enumerate(zip(clips, positions, strict=True))
        ]

    @one_at_a_time
    def score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `robometer.scoring.score_prefixes`; equal to it, and each frame is encoded once."""
        everywhere = [self._features(clip, np.arange(len(clip))).numpy() for clip in clips]
        embedded = [replace(clip, features={self._image_encoder: f}) for clip, f in zip(clips, everywhere, strict=True)]
        return [each_prefix(self, clip) for clip in embedded]

    @one_at_a_time
    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """See `Scorer.compare`."""
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        a, b = (
            [self._features(clip, thin_positions(len(clip), self._max_frames)) for clip in side]
            for side in zip(*pairs, strict=True)
        )
        output = self._forward([pair[0].task for pair in pairs], a, b)
        assert output.preference_logits is not None
        return np.asarray(output.preference_logits.float().sigmoid().cpu().numpy(), dtype=np.float32)

    @one_at_a_time
    def open_session(self, task: str) -> RewindSession:
        """See `Scorer.open_session`; the session keeps embeddings, not frames."""
        if self._reach is not None:
            _ = self._last_frame  # takes a second, once, and not at a push
        return RewindSession(self, task)

    @one_at_a_time
    def push_all(self, sessions: Sequence[RewindSession], frames: Sequence[np.ndarray]) -> list[Answer]:
        """See `SessionScorer.push_all`; all frames of one size are encoded together."""
        new = self.embedded(frames, [session.task for session in sessions])
        return push_clips(self, sessions, new, self._last)

    @one_at_a_time
    def push_embedded(self, session: RewindSession, look: Clip) -> Answer:
        """Push a frame whose embedding is known."""
        return push_clips(self, [session], [look], self._last)[0]

    def _last(self, clips: Sequence[Clip]) -> list[Answer]:
        """Answers at the last frames, from as few frames as they depend on."""
        if self._reach is None:
            return last_answers(self, clips)
        clips = [clip.take(range(max(len(clip) - self._reach, 0), len(clip))) for clip in clips]
        if len(clips) > 1 or len(clips[0]) < self._reach:
            return last_answers(self, clips)
        features = self._features(clips[0], np.arange(self._reach))[None].to(self._device)
        text = self._text([clips[0].task]).to(self._device)
        with torch.inference_mode():
            progress, success = self._last_frame(text, features)
        return [(progress, success)]

    @one_at_a_time
    def embedded(self, frames: Sequence[np.ndarray], tasks: Sequence[str]) -> list[Clip]:
        """One-frame clips that hold the embeddings of frames uint8 [H, W, 3] and one black pixel each."""
        clips = dict[int, Clip]()
        for shape in dict.fromkeys(frame.shape for frame in frames):
            at = [i for i, frame in enumerate(frames) if frame.shape == shape]
            features = self._images.encode(np.stack([frames[i] for i in at])).astype(STORED)
            for i, feature in zip(at, features, strict=True):
                clips[i] = Clip(_PIXEL, tasks[i], {self._image_encoder: feature[None]})
        return [clips[i] for i in range(len(frames))]

    @cached_property
    def _last_frame(self) -> Graph:
        assert self._reach is not None
        text = self._text([""]).to(self._device)
        features = torch.zeros(1, self._reach, self._model.image_dim, device=self._device)
        return LastFrame(self._model, self._reach).graph(text, features)

    @cached_property
    def _images(self) -> ImageEncoder:
        return image_encoder(self._image_encoder, self._device)

    @cached_property
    def _texts(self) -> TextEncoder:
        return text_encoder(self._text_name, self._device)

    def _features(self, clip: Clip, positions: np.ndarray) -> Tensor:
        stored = clip.features.get(self._image_encoder)
        if stored is None:
            features = self._images.encode(clip.frames[positions]).astype(STORED)  # as a corpus would store them
        else:
            if stored.shape[-1] != self._model.image_dim:
                raise InputError(
                    f"the embeddings have {stored.shape[-1]} numbers for each frame, but the model reads the "
                    f"{self._model.image_dim} of {self._image_encoder}"
                )
            features = stored[positions]
        return torch.from_numpy(np.asarray(features, dtype=np.float32))

    def _text(self, tasks: Sequence[str]) -> Tensor:
        new = sorted(set(tasks) - self._task_cache.keys())
        if new:
            self._task_cache.update(zip(new, torch.from_numpy(self._texts.encode(new)), strict=True))
        embeddings = torch.stack([self._task_cache[task] for task in tasks])
        surplus = max(len(self._task_cache) - self._known_tasks - MAX_TASKS, 0)
        for task in list(islice(self._task_cache, self._known_tasks, self._known_tasks + surplus)):
            del self._task_cache[task]  # the oldest first
        return embeddings

    @torch.inference_mode()
    def _forward(self, tasks: Sequence[str], a: list[Tensor], b: list[Tensor]) -> Any:
        plans = [
            SamplePlan(
                i, "preference", "forward", task, ClipPlan.unlabelled(len(fa)), ClipPlan.unlabelled(len(fb)), 0.0
            )
            for i, (task, fa, fb) in enumerate(zip(tasks, a, b, strict=True))
        ]
        batch = collate_targets(plans, clip_inputs(self._text(tasks), a, b))
        return self._model(batch.to(self._device))
