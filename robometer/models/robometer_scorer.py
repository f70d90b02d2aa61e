"""The Scorer of a trained Robometer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robometer.configs.schema import Config
from robometer.frames.video import thin_positions
from robometer.models.attention import KeyValues
from robometer.models.continuing import RobometerSession, Step, continued_inputs
from robometer.models.processing import RobometerProcessor
from robometer.models.robometer import Robometer
from robometer.scoring import (
    Clip,
    ClipScore,
    OneAtATime,
    ScorerInfo,
    one_at_a_time,
    spread,
)
from robometer.sessions import Answer, finite
from robometer.training.batch import Batch, RewardOutput, progress_from_logits


class RobometerScorer(OneAtATime):
    """Scorer of a trained Robometer.

    A clip with more frames than the model was trained on (`sampling.max_frames`) is thinned evenly, with its first and
    last frame; predictions are interpolated linearly back to every frame of the clip.
    """

    def __init__(
        self,
        model: Robometer,
        processor: RobometerProcessor,
        config: Config,
        name: str = "robometer",
        device: str = "cpu",
        info: ScorerInfo = ScorerInfo(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self._max_frames = config.sampling.max_frames
        self.name, self.info, self.processor = name, replace(info, max_frames=self._max_frames), processor
        self._device, self._batch_size = device, config.evaluate.batch_size
        self._model = model.to(device).eval()

    @one_at_a_time
    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        return [score for chunk in self._chunks(len(clips)) for score in self._score(clips[chunk])]

    def score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `robometer.scoring.score_prefixes`; equal to it, with less work.

        The model is causal, so that one forward pass gives all prefixes that are not thinned. Thinned prefixes share
        frames, and each distinct frame of a batch is encoded once.
        """
        return [self._prefixes(clip) for clip in clips]

    def _prefixes(self, clip: Clip) -> ClipScore:
        whole = min(len(clip), self._max_frames)
        counts = range(whole, len(clip) + 1)
        first, *last = [
            score
            for chunk in self._chunks(len(counts))  # all thinned prefixes of a long clip would fill the memory
            for score in self.score([clip.take(thin_positions(n, whole)) for n in counts[chunk]])
        ]
        progress, success = (
            np.append(getattr(first, name), [getattr(score, name)[-1] for score in last]).astype(np.float32)
            for name in ("progress", "success")
        )
        return ClipScore(progress, success)

    @one_at_a_time
    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """See `Scorer.compare`; the first clip is shown as trajectory A."""
        parts = [self._compare(pairs[chunk]) for chunk in self._chunks(len(pairs))]
        return np.concatenate([np.zeros(0, dtype=np.float32), *parts])

    def open_session(self, task: str) -> RobometerSession:
        """See `Scorer.open_session`; the session keeps the model's keys and values of its frames."""
        return RobometerSession(self, task)

    @one_at_a_time
    def push_all(self, sessions: Sequence[RobometerSession], frames: Sequence[np.ndarray]) -> list[Answer]:
        """See `SessionScorer.push_all`."""
        steps = [session.step(frame) for session, frame in zip(sessions, frames, strict=True)]
        answers, finishes = list[Answer](), list[tuple[KeyValues, list[int]]]()
        for chunk in self._chunks(len(steps)):
            inputs, ends = continued_inputs(self.processor, steps[chunk])
            answered, grown = self._continue(inputs, steps[chunk])
            answers += answered
            finishes += zip(grown, ends, strict=True)
        finite(answers)
        kept = [session.kept(step, *finish) for session, step, finish in zip(sessions, steps, finishes, strict=True)]
        for session, (look, past) in zip(sessions, kept, strict=True):  # from here on nothing can fail
            session.finish(look, past)
        return answers

    @torch.no_grad()
    def _continue(self, inputs: dict[str, Tensor], steps: Sequence[Step]) -> tuple[list[Answer], list[KeyValues]]:
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        progress_logits, success_logits, grown = self._model.continued(inputs, [step.past for step in steps])
        progress = progress_from_logits(progress_logits).tolist()
        success = success_logits.float().sigmoid().tolist()
        last = np.cumsum([len(step.frames) for step in steps]) - 1
        return [(progress[i], success[i]) for i in last], grown

    def _score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        positions = [thin_positions(len(clip), self._max_frames) for clip in clips]
        thinned = [clip.take(at) for clip, at in zip(clips, positions, strict=True)]
        output = self._forward(self.processor.collate_clips(thinned))
        progress = progress_from_logits(output.progress_logits).cpu().numpy()
        success = output.success_logits.float().sigmoid().cpu().numpy()
        return [
            ClipScore(spread(progress[i, : len(at)], at, len(clip)), spread(success[i, : len(at)], at, len(clip)))
            for i, (clip, at) in enumerate(zip(clips, positions, strict=True))
        ]

    def _compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        thinned = [(self._thin(a), self._thin(b)) for a, b in pairs]
        output = self._forward(self.processor.collate_pairs(thinned))
        assert output.preference_logits is not None
        return np.asarray(output.preference_logits.float().sigmoid().cpu().numpy())

    def _thin(self, clip: Clip) -> Clip:
        return clip.take(thin_positions(len(clip), self._max_frames))

    def _chunks(self, count: int) -> list[slice]:
        return [slice(start, start + self._batch_size) for start in range(0, count, self._batch_size)]

    @torch.no_grad()
    def _forward(self, batch: Batch) -> RewardOutput:
        output: RewardOutput = self._model(batch.to(self._device))
        return output
