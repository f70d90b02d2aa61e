"""RL-VLM-F (arXiv 2402.03681): a chat model says which of two final frames is closer to the completed task.

One request does both steps; the authors let the model describe first and judge in a second request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from robometer.baselines.api import ApiClient
from robometer.baselines.config import BaselineConfig
from robometer.baselines.providers import Question
from robometer.scoring import Clip, ClipScore, MissingAnswer, NoProgress, ScorerInfo, Session

MODELS = {"gemini": "gemini-2.5-flash", "openai": "gpt-4o"}

_TASK = "Two robots were told: {task}\nHere is how the scene looked at the end of each attempt."

_REQUEST = """Describe what either picture shows of the task, then weigh which of the two is closer to having it done.
End with a line that holds a single number and nothing else: 0 if picture 0 is closer, 1 if picture 1 is, and -1 if \
they are equally close or it cannot be told."""

_PREFERENCE = {"0": 1.0, "1": 0.0, "-1": 0.5}


class RlVlmF:
    """Preference by a chat model, from the last frame of each clip. It has no progress (`ScorerInfo.compares_only`)."""

    def __init__(self, config: BaselineConfig) -> None:
        self._client = ApiClient(config, MODELS)
        self.name = f"rl_vlm_f ({self._client.model})"

    @property
    def info(self) -> ScorerInfo:
        """Comparisons only, and what was asked and spent so far."""
        return ScorerInfo(compares_only=True, spent=asdict(self._client.usage))

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """1 if the first clip did better, 0 if the second did, 0.5 for a tie, float32 [N]; one request per pair.

        A pair is asked in this order only; ask both orders, as the evaluation does, to find a bias to one position.

        Raises:
            ProviderError, MissingAnswer: a pair has no answer; raised after all pairs were asked.
        """
        texts = self._client.texts([question(first, second) for first, second in pairs])
        return np.array([read_preference(text) for text in texts], dtype=np.float32)

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """Raises NoProgress."""
        raise NoProgress(f"{self.name} only compares two clips and has no progress: evaluate its preferences alone")

    def open_session(self, task: str) -> Session:
        """Raises NoProgress."""
        raise NoProgress(f"{self.name} only compares two clips and cannot follow one: choose another scorer")


def question(first: Clip, second: Clip) -> Question:
    """The last frames of both clips, under the task of the first."""
    pictures = ("Picture 0:", first.frames[-1], "Picture 1:", second.frames[-1])
    return Question((_TASK.format(task=first.task), *pictures, _REQUEST), detail="high")


def read_preference(text: str) -> float:
    """P(first is better) of an answer whose last line ends with 0, 1 or -1.

    Raises:
        MissingAnswer: the last line is different.
    """
    last = (text.strip().splitlines() or [""])[-1].replace("\N{MINUS SIGN}", "-")
    match = re.search(r"(?<![\w.-])(-1|0|1)(?:\.0+)?\W*$", last)
    if not match:
        raise MissingAnswer(f"the last line of the answer is not 0, 1 or -1: {last.strip()[:120]!r}")
    return _PREFERENCE[match[1]]


def make(name: str, config: BaselineConfig, device: str) -> RlVlmF:
    """See `robometer.baselines.load_baseline`."""
    return RlVlmF(config)
