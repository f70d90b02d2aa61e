"""Robo-Dopamine's general reward model, GRM (arXiv 2512.23703): how far one moment is ahead of another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources

import numpy as np

from robometer.baselines.api import ApiClient, ProviderError, Usage
from robometer.baselines.asking import Ask, Prompt, PromptVideo, fill, read_template, score_moments
from robometer.baselines.chat_model import load_chat_model
from robometer.baselines.config import BaselineConfig
from robometer.baselines.progress import ProgressScorer
from robometer.baselines.providers import Answer, Question
from robometer.scoring import Clip, ClipScore, ScorerInfo

PUBLISHED = {
    "tanhuajie2001/Robo-Dopamine-GRM-2.0-8B-Preview": "forward",
    "tanhuajie2001/Robo-Dopamine-GRM-3B": "incremental",
}
"""The published models and how their hops are accumulated; the first model is the default."""

TEMPLATE = resources.files("robometer.baselines").joinpath("robo_dopamine.txt").read_text(encoding="utf-8")
"""The authors' wording (public code `Robo-Dopamine`), which the published weights depend on."""

_MAX_FRAMES, _MAX_NEW_TOKENS = 64, 1024
_BOUNDS = (12_544, 76_800)  # px of a picture, as published
_SCORE = re.compile(r"<score>\s*([+-]?\d+(?:\.\d+)?)\s*%?\s*</score>", re.IGNORECASE)
_NO_GOAL = np.full((224, 224, 3), 128, dtype=np.uint8)


def parse_hop(answer: str) -> float:
    """The signed share in [-1, 1] in the first `<score>±NN%</score>` of an answer; NaN without one."""
    match = _SCORE.search(answer)
    return float(np.clip(float(match[1]) / 100, -1, 1)) if match else np.nan


def accumulate(hops: np.ndarray, mode: str) -> np.ndarray:
    """Progress float64 [N] after each hop [N] in [-1, 1].

    `forward`: hops start at the first frame, and progress is the hop. `backward`: hops start at the goal, and progress
    is 1 + hop. `incremental`: hops start at the moment before; forwards by a share of what is left to do, backwards by
    a share of what is done, and the first hop is the progress itself. A hop that is NaN has no progress, and the next
    one continues from the last known progress.
    """
    if mode != "incremental":
        return hops + (mode == "backward")
    progress = np.full(len(hops), np.nan)
    value: float | None = None
    for i in np.flatnonzero(np.isfinite(hops)):
        hop = hops[i]
        if value is None:
            value = hop
        else:
            value += (1 - value) * hop if hop >= 0 else value * hop
        progress[i] = value
    return progress


class RoboDopamine(ProgressScorer):
    """Progress from the hops between moments of a clip; the only view stands in for the published three.

    Args:
        ask: the model: `ChatModel.ask`, or a client of an endpoint that serves it.
        mode: see `accumulate`.
        interval: frames from one moment to the next; the last frame is always a moment.
        goals: by task, a picture uint8 [H, W, 3] of the completed task; without one, the published grey picture stands
            in, also as the start of every hop in `backward`.
        usage: the counters of an endpoint's client.
    """

    name = "robo_dopamine"

    def __init__(
        self,
        ask: Ask,
        mode: str = "forward",
        template: str = TEMPLATE,
        max_frames: int = _MAX_FRAMES,
        interval: int = 1,
        goals: Mapping[str, np.ndarray] | None = None,
        usage: Usage | None = None,
    ) -> None:
        self._ask, self._mode, self._template = ask, mode, template
        self._max_frames, self._interval, self._goals = max_frames, interval, goals or {}
        self._usage = usage

    @property
    def info(self) -> ScorerInfo:
        """The defaults, and what was asked of an endpoint and spent so far."""
        return ScorerInfo(spent=asdict(self._usage) if self._usage else {})

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`; a clip without any readable hop raises `MissingAnswer`."""
        return [score_moments(clip, self._max_frames, self._interval, self._judge) for clip in clips]

    def _judge(self, moments: Clip) -> tuple[np.ndarray, list[str]]:
        answers = self._ask(self.prompts(moments))
        return accumulate(np.array([parse_hop(answer) for answer in answers]), self._mode), answers

    def prompts(self, moments: Clip) -> list[Prompt]:
        """One question with eight pictures for each moment but the first."""
        start, goal = moments.frames[0], self._goals.get(moments.task, _NO_GOAL)
        before = {"forward": [start] * len(moments), "backward": [goal] * len(moments)}.get(self._mode, moments.frames)
        return [
            fill(self._template, moments.task, [start, goal, *[before[i - 1]] * 3, *[moments.frames[i]] * 3])
            for i in range(1, len(moments))
        ]


def _endpoint(client: ApiClient) -> Ask:
    def ask(prompts: Sequence[Prompt]) -> list[str]:
        answers = client.ask(
            [Question([part for part in prompt if not isinstance(part, PromptVideo)]) for prompt in prompts]
        )
        failure = next((answer for answer in answers if isinstance(answer, ProviderError)), None)
        if failure is not None:
            raise failure
        return [answer.text if isinstance(answer, Answer) else "" for answer in answers]

    return ask


def make(name: str, config: BaselineConfig, device: str) -> RoboDopamine:
    """See `robometer.baselines.load_baseline`; an unknown model accumulates its hops like the default one.

    With `baseline.base_url` the model is not loaded here but asked at an endpoint such as vLLM, as its authors do.
    """
    default, *_ = PUBLISHED
    # A worker gets an absolute folder, which may still end in a published name.
    published = next((name for name in PUBLISHED if config.model.endswith(name)), default)
    mode = config.mode or PUBLISHED[published]
    template = read_template(config, TEMPLATE)
    usage = None
    if config.base_url:
        client = ApiClient(replace(config, provider="openai", model=config.model or default), {})
        ask, usage = _endpoint(client), client.usage
    else:
        ask = load_chat_model(config, default, device, _MAX_NEW_TOKENS, _BOUNDS).ask
    return RoboDopamine(ask, mode, template, config.max_frames or _MAX_FRAMES, config.interval, usage=usage)
