"""VLAC (arXiv 2509.15937): a critic that says how much closer a robot got to its goal between two frames.

There are two kinds of critic. The authors' weights run only in their own package, `evo_vlac`, which needs an old
transformers and so its own environment (`robometer.baselines.runtime_env`). Any other vision-language model can be
asked the same question in our words. The same code turns the answers into progress.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from robometer.baselines.asking import Ask, fill, read_template, score_moments
from robometer.baselines.config import BaselineConfig
from robometer.baselines.progress import ProgressScorer
from robometer.models.sources import locate
from robometer.scoring import Clip, ClipScore
from robometer.settings import ConfigError

PUBLISHED = "InternRobotics/VLAC"
TEMPLATE = """A robot works on a task: {task}
This is an earlier moment: <image>
This is a later moment: <image>
By what share of what was left to do did the robot get closer to the end of the task in between? Answer with a signed \
number of percent from -100 to 100 and nothing else: negative where it got further away, 0 where nothing changed."""
"""Our wording, for models other than the published one, whose package has its own prompt."""

_MAX_FRAMES, _MAX_NEW_TOKENS = 64, 32
_PUBLISHED_TYPE = "internvl_chat"  # model_type of the published weights
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")

Critic = Callable[[Clip], np.ndarray]
"""From a clip to the signed progress float [M - 1] in [-1, 1] from each frame to the next; NaN for no answer."""


def parse_delta(answer: str) -> float:
    """The first number of an answer, in percent, as a share clipped to [-1, 1]; NaN without one."""
    match = _NUMBER.search(answer)
    return float(np.clip(float(match[0]) / 100, -1, 1)) if match else np.nan


def accumulate(deltas: np.ndarray) -> np.ndarray:
    """Value float64 [N] after each delta [N], starting at 0: each delta is a share of what is left, up or down.

    A delta that is NaN has no value, and the next one continues from the last known value.
    """
    return np.where(np.isfinite(deltas), 1 - np.cumprod(1 - np.nan_to_num(deltas)), np.nan)


class Vlac(ProgressScorer):
    """Progress is the accumulated value, clipped to [0, 1]."""

    name = "vlac"

    def __init__(self, critic: Critic, max_frames: int = _MAX_FRAMES, interval: int = 1) -> None:
        self._critic, self._max_frames, self._interval = critic, max_frames, interval

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`; a clip without any readable delta raises `MissingAnswer`."""
        return [score_moments(clip, self._max_frames, self._interval, self._judge) for clip in clips]

    def _judge(self, moments: Clip) -> tuple[np.ndarray, Sequence[str]]:
        return accumulate(fit(self._critic(moments), len(moments) - 1)), [""]


def fit(deltas: np.ndarray, count: int) -> np.ndarray:
    """The first `count` deltas; missing ones are 0, so that the value does not change."""
    return np.pad(deltas[:count], (0, max(0, count - len(deltas))))


def asking_critic(ask: Ask, template: str = TEMPLATE) -> Critic:
    """A critic that asks a chat model in our words."""

    def critic(clip: Clip) -> np.ndarray:
        pairs = zip(clip.frames[:-1], clip.frames[1:], strict=True)
        return np.array([parse_delta(answer) for answer in ask([fill(template, clip.task, pair) for pair in pairs])])

    return critic


def published_critic(source: str, batch_size: int, device: str) -> Critic:
    """The critic of the authors' package with their weights.

    Raises:
        ConfigError: `evo_vlac` is not installed.
        CheckpointError: the weights cannot be found.
    """
    try:
        from evo_vlac import GAC_model
    except ImportError as error:
        raise ConfigError(
            f"the weights of {source} run only in the package evo_vlac, which is not installed: run them in the "
            "environment robometer.baselines.runtime_env('vlac'), or set baseline.model=FOLDER to another model"
        ) from error
    model: Any = GAC_model(tag="critic")
    model.init_model(model_path=str(locate(source)), model_type="internvl2", device_map=device)
    model.temperature, model.top_k = 0.5, 1  # only the most likely word, so nothing is random
    model.set_config()
    model.set_system_prompt()

    busy = Lock()  # as in `OneAtATime`: their package may keep state between calls

    def critic(clip: Clip) -> np.ndarray:
        frames = [Image.fromarray(frame) for frame in clip.frames]
        settings = {"ref_image_list": None, "ref_num": 0, "batch_num": batch_size, "skip": 1, "rich": True}
        with busy:
            deltas, _ = model.get_trajectory_critic(task=clip.task, image_list=frames, **settings)
        return np.array([float(delta) / 100 for delta in deltas])

    return critic


def make(name: str, config: BaselineConfig, device: str) -> Vlac:
    """See `robometer.baselines.load_baseline`."""
    source = config.model or PUBLISHED
    if _is_published(source):
        critic = published_critic(source, config.batch_size, device)
    else:
        # Imported late: it needs a newer transformers than the authors' package allows.
        from robometer.baselines.chat_model import load_chat_model

        template = read_template(config, TEMPLATE)
        critic = asking_critic(load_chat_model(config, PUBLISHED, device, _MAX_NEW_TOKENS).ask, template)
    return Vlac(critic, config.max_frames or _MAX_FRAMES, config.interval)


def _is_published(source: str) -> bool:
    """Whether `source` is the authors' weights, or a folder with weights of the same type."""
    if source.startswith(PUBLISHED):
        return True
    try:
        return bool(json.loads((locate(source) / "config.json").read_text())["model_type"] == _PUBLISHED_TYPE)
    except (OSError, ValueError, KeyError):
        return False
