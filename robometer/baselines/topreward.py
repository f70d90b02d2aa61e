"""TOPReward (arXiv 2602.19313): how sure a model without reward training is that the video shows the completed task.

The reward of a prefix is log P("True"), the log-probability of that word at the start of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from robometer.baselines.asking import PromptVideo, fill, prefix_ends, read_template
from robometer.baselines.chat_model import ChatModel, load_chat_model
from robometer.baselines.config import BaselineConfig
from robometer.baselines.progress import ProgressScorer
from robometer.frames.video import thin_positions
from robometer.models.images import resize
from robometer.scoring import Clip, ClipScore, spread

PUBLISHED = "Qwen/Qwen3-VL-8B-Instruct"
TEMPLATE = (
    "<video>The above video shows a robot manipulation trajectory that completes the following task: {task} "
    "Decide whether the above statement is True or not. The answer is:"
)
"""The prompt u of the paper, which is part of the reward's definition."""

_PREFIXES, _MAX_FRAMES, _EDGE, _FPS = 15, 64, 224, 2.0


class TopReward(ProgressScorer):
    """Progress is the log-probability, scaled to [0, 1] within each clip; clips rank by that of the whole clip.

    The scaling is the published one (a clip of one or two frames, or with equal rewards, is 1 throughout). It often
    makes the last value the highest of the clip, which cannot rank clips: hence `rank`.
    """

    name = "topreward"
    temperature = 1.0  # of a difference of log-probabilities

    def __init__(self, model: ChatModel, template: str = TEMPLATE, max_frames: int = _MAX_FRAMES) -> None:
        self._model, self._template, self._max_frames = model, template, max_frames

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        return [self._score(clip) for clip in clips]

    def _score(self, clip: Clip) -> ClipScore:
        positions = thin_positions(len(clip), self._max_frames)
        ends = prefix_ends(len(positions), _PREFIXES)
        rewards = self.rewards(clip.take(positions), ends)
        scaled = np.ones(len(ends)) if len(clip) <= 2 else min_max(rewards)
        progress = spread(scaled, positions[ends - 1], len(clip))
        return ClipScore(progress, progress, rank=float(rewards[-1]))

    def rewards(self, clip: Clip, ends: np.ndarray) -> np.ndarray:
        """log P("True") float64 [P] of the prefixes of a clip with lengths `ends` int64 [P]."""
        frames = resize(clip.frames, _EDGE, _EDGE, Image.Resampling.BICUBIC)
        prompts = [fill(self._template, clip.task, [PromptVideo(frames[:end], _FPS)]) for end in ends]
        return self._model.log_prob(prompts, "True")


def min_max(values: np.ndarray) -> np.ndarray:
    """The values scaled to [0, 1]; ones if all are equal."""
    span = np.ptp(values)
    return (values - values.min()) / span if span > 0 else np.ones(len(values))


def make(name: str, config: BaselineConfig, device: str) -> TopReward:
    """See `robometer.baselines.load_baseline`."""
    template = read_template(config, TEMPLATE)
    return TopReward(load_chat_model(config, PUBLISHED, device), template, config.max_frames or _MAX_FRAMES)
