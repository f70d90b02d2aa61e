"""Small models and clips for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import one_hot

from robometer.baselines.asking import Prompt
from robometer.baselines.chat_model import ChatModel, load_chat_model
from robometer.baselines.config import BaselineConfig
from robometer.frames import FrameSettings, read_frames
from robometer.scoring import Clip

VIDEO = Path(__file__).resolve().parents[2] / "robometer/data/metaworld/videos/drawer-open-v3/successful-000.mp4"


def bundled_clip(max_frames: int = 8) -> Clip:
    """A bundled video, at 64 px."""
    return Clip(read_frames(VIDEO, FrameSettings(max_frames, 64)).frames, "open the drawer")


def tiny_model(name: str = "tiny", **settings: int) -> ChatModel:
    """A random model of one of the families, which does not enlarge small pictures."""
    return load_chat_model(BaselineConfig(model=name, batch_size=4), "", **settings)


def teach(chat: ChatModel, prompts: Sequence[Prompt], answers: Sequence[str]) -> None:
    """Fit the last layer to these answers, so that a real model gives readable ones."""
    end = str(chat.family.chat.closing[0])
    answer_ids = [np.array(chat.tokenizer.encode(answer + end, add_special_tokens=False)) for answer in answers]
    tokens, features = chat.read(prompts)
    inputs = chat.padded([prompt.followed_by(ids) for prompt, ids in zip(tokens, answer_ids, strict=True)], features)
    with torch.no_grad():
        states = chat.model.model(**inputs, use_cache=False).last_hidden_state.double()
    before = torch.cat([row[-len(ids) - 1 : -1] for row, ids in zip(states, answer_ids, strict=True)])  # [N, H]
    targets = one_hot(torch.from_numpy(np.concatenate(answer_ids)), chat.model.lm_head.out_features)  # [N, V]
    weight = torch.linalg.lstsq(before, targets.double(), driver="gelsd").solution.T
    chat.model.lm_head.weight = torch.nn.Parameter((100 * weight).float())
