"""RoboReward (arXiv 2601.00675): a model that grades the end of an episode from 1 to 5."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from robometer.baselines.asking import Ask, PromptVideo, answered, fill, prefix_ends, read_template
from robometer.baselines.chat_model import load_chat_model
from robometer.baselines.config import BaselineConfig
from robometer.baselines.progress import ProgressScorer
from robometer.frames.video import thin_positions
from robometer.scoring import Clip, ClipScore

PUBLISHED = "teetone/RoboReward-4B"
TEMPLATE = """<video>Given the task, assign a discrete progress score reward (1,2,3,4,5) for the robot in the video in \
the format: ANSWER: <score>
Rubric for end-of-episode progress (judge only the final state without time limits):
1 - No Success: Final state shows no goal-relevant change for the command.
2 - Minimal Progress: Final state shows a small but insufficient change toward the goal.
3 - Partial Completion: The final state shows good progress toward the goal but violates more than one requirement or \
a major requirement.
4 - Near Completion: Final state is correct in region and intent but misses a single minor requirement.
5 - Perfect Completion: Final state satisfies all requirements.

Task: {task}"""
"""The authors' wording (their model card, CC-BY-4.0), which the published weights depend on."""

# Each grade costs an answer; the published protocol grades this many prefixes.
_PREFIXES, _MAX_FRAMES, _FPS = 5, 64, 1.0
_MAX_NEW_TOKENS = 128
# Limits of qwen_vl_utils 0.0.14 for the frames of a video: 128 to 768 features of 32 x 32 px.
_BOUNDS = (128 * 32**2, 768 * 32**2)

_ANSWER = re.compile(r"ANSWER:\s*(\d+)(?![.\d])", re.IGNORECASE)
_DIGIT = re.compile(r"(?<![\w.-])[1-5](?!\w|\.\d)")


def parse_grade(answer: str) -> float:
    """The grade 1..5 in an answer: after `ANSWER:`, else the last digit 1..5 that stands alone; NaN without one.

    The published code takes 1 for a missing grade, which counts a broken answer as a failed episode.
    """
    labelled = [grade for grade in map(int, _ANSWER.findall(answer)) if 1 <= grade <= 5]
    alone = [int(digit) for digit in _DIGIT.findall(answer)]
    return float([*labelled[:1], *alone[-1:], np.nan][0])


class RoboReward(ProgressScorer):
    """Progress at the end of each of five prefixes is (grade - 1) / 4, and is interpolated between them."""

    name = "roboreward"

    def __init__(self, ask: Ask, template: str = TEMPLATE, max_frames: int = _MAX_FRAMES) -> None:
        self._ask, self._template, self._max_frames = ask, template, max_frames

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`; a clip without any grade raises `MissingAnswer`."""
        return [self._score(clip) for clip in clips]

    def _score(self, clip: Clip) -> ClipScore:
        positions = thin_positions(len(clip), self._max_frames)
        ends = prefix_ends(len(positions), _PREFIXES)
        videos = [PromptVideo(clip.frames[positions[:end]], _FPS) for end in ends]
        answers = self._ask([fill(self._template, clip.task, [video]) for video in videos])
        grades = np.array([parse_grade(answer) for answer in answers])
        return answered((grades - 1) / 4, positions[ends - 1], len(clip), answers)


def make(name: str, config: BaselineConfig, device: str) -> RoboReward:
    """See `robometer.baselines.load_baseline`."""
    model = load_chat_model(config, PUBLISHED, device, _MAX_NEW_TOKENS, _BOUNDS)
    return RoboReward(model.ask, read_template(config, TEMPLATE), config.max_frames or _MAX_FRAMES)
