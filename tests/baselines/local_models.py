"""Small models with real weights for the tests of this folder, and what they are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from robometer.baselines.asking import Prompt
from robometer.baselines.chat_model import ChatModel, load_chat_model
from robometer.configs.schema import BaselineConfig
from robometer.scoring import Clip
from robometer.video import decode_video, thin

VIDEO = Path(__file__).resolve().parents[2] / "robometer/data/metaworld/videos/drawer-open-v3/successful-000.mp4"


def bundled_clip(max_frames: int = 8) -> Clip:
    """A bundled video, at 64 px."""
    return Clip(decode_video(VIDEO, lambda n, fps: thin(n, max_frames), short_edge=64).frames, "open the drawer")


def tiny_model(name: str = "tiny", **settings: int) -> ChatModel:
    """A random model of one of the families; small pictures stay small."""
    return load_chat_model(BaselineConfig(model=name, batch_size=4), "", **settings)


def teach(chat: ChatModel, prompts: Sequence[Prompt], answers: Sequence[str], steps: int = 150) -> None:
    """Train the language model until it gives these answers, so that a real model says something that can be read."""
    ends = f"{chat.family.chat.closing[0]}"
    said = [chat.tokenizer.encode(answer + ends, add_special_tokens=False) for answer in answers]
    tokens, features = chat.read(prompts)
    ids = [torch.tensor(answer).numpy() for answer in said]
    inputs = chat.padded([prompt.followed_by(answer) for prompt, answer in zip(tokens, ids, strict=True)], features)
    longest = max(map(len, said))
    optimizer = torch.optim.Adam(chat.model.model.language_model.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = chat.model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits
        parts = [cross_entropy(row[-len(a) - 1 : -1], torch.tensor(a)) for row, a in zip(logits, said, strict=True)]
        loss = torch.stack(parts).mean()
        if loss.item() < 0.02:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"it did not learn the answers: loss {loss.item():.3f}")
