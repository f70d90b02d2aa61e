"""What the vision-language model is fed: patches of frames and token ids, for training and for inference alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from robometer.batch import Batch
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.errors import RobometerError
from robometer.models.collate import collate_targets
from robometer.models.prompts import (
    CONTROL_TOKENS,
    IMAGE,
    PREFERENCE,
    PROGRESS,
    SPECIAL_TOKENS,
    preference_prompt,
    progress_prompt,
)
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import Clip

PATCH, MERGE, TEMPORAL = 16, 2, 2
"""Qwen3-VL: patch edge in px, patches per token along an edge, frames per patch (an image is shown twice)."""

_FACTOR = PATCH * MERGE
_MIN_PIXELS, _MAX_PIXELS = 4 * _FACTOR**2, 16384 * _FACTOR**2
_MAX_ASPECT_RATIO = 200


def smart_size(height: int, width: int) -> tuple[int, int]:
    """Size in px that the model sees: multiples of 32, between 4 and 16384 tokens, aspect ratio nearly kept.

    Follows qwen_vl_utils 0.0.14, down to Python's rounding of halves to even.

    Raises:
        RobometerError: one edge is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise RobometerError(
            f"a frame of {height}x{width} px is too long: one edge may be at most {_MAX_ASPECT_RATIO} times the other"
        )
    edges = [max(_FACTOR, round(edge / _FACTOR) * _FACTOR) for edge in (height, width)]
    if math.prod(edges) > _MAX_PIXELS:
        scale = math.sqrt(height * width / _MAX_PIXELS)
        edges = [max(_FACTOR, math.floor(edge / scale / _FACTOR) * _FACTOR) for edge in (height, width)]
    elif math.prod(edges) < _MIN_PIXELS:
        scale = math.sqrt(_MIN_PIXELS / (height * width))
        edges = [math.ceil(edge * scale / _FACTOR) * _FACTOR for edge in (height, width)]
    return edges[0], edges[1]


def patchify(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resize frames and cut them into patches in the order of Qwen3-VL: each token's 2x2 patches lie together.

    Args:
        frames: uint8 [T, H, W, 3] RGB.

    Returns:
        Patches uint8 [N, 3 * 16 * 16] (channel, row, column), and the patch grid (1, rows, columns) of each frame,
        int64 [T, 3]. They stay uint8 and single, an eighth of the size of pixel values: see `pixel_values`.
    """
    height, width = smart_size(*frames.shape[1:3])
    if (height, width) != frames.shape[1:3]:
        resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
        frames = np.stack([np.asarray(image) for image in resized])
    rows, columns = height // _FACTOR, width // _FACTOR
    blocks = frames.reshape(len(frames), rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    patches = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * PATCH**2)
    grid = np.tile(np.array([1, rows * MERGE, columns * MERGE], dtype=np.int64), (len(frames), 1))
    return np.ascontiguousarray(patches), grid


def pixel_values(patches: Tensor) -> Tensor:
    """What the vision tower takes, float32 [N, 3 * 2 * 16 * 16] in [-1, 1], from patches uint8 [N, 3 * 16 * 16]."""
    scaled = (patches.float() / 255.0 - 0.5) / 0.5
    return scaled.view(-1, 3, 1, PATCH**2).expand(-1, -1, TEMPORAL, -1).reshape(len(patches), -1)


@dataclass(frozen=True)
class Encoded:
    """One sample: ids int64 [L], patches and grid of A's frames and then B's, and the number of frames of each."""

    input_ids: np.ndarray
    patches: np.ndarray
    grid: np.ndarray
    num_frames: tuple[int, int]


class RobometerProcessor:
    """Frames and a task to model inputs.

    Args:
        tokenizer: of the base model; the reward model's tokens are added where they are missing.
        ask_progress: see `robometer.models.prompts.preference_prompt`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ask_progress: bool = True) -> None:
        self.tokenizer, self.ask_progress = tokenizer, ask_progress
        # One by one: their order is that of the embedding rows in every checkpoint.
        for token in SPECIAL_TOKENS:
            tokenizer.add_tokens([token], special_tokens=True)
        names = sorted(CONTROL_TOKENS)
        self._ids = dict(zip(names, cast(list[int], tokenizer.convert_tokens_to_ids(names)), strict=True))
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def encode(self, task: str, a: np.ndarray, b: np.ndarray | None = None) -> Encoded:
        """One sample from frames uint8 [T, H, W, 3]; with `b` a pair, without it a progress sample."""
        clips = [a] if b is None else [a, b]
        cut = [patchify(clip) for clip in clips]
        patches, grid = (np.concatenate(parts) for parts in zip(*cut, strict=True))
        if b is None:
            prompt = progress_prompt(task, len(a))
        else:
            prompt = preference_prompt(task, len(a), len(b), self.ask_progress)
        ids = self.token_ids(prompt, (grid.prod(1) // MERGE**2).tolist())
        return Encoded(ids, patches, grid, (len(a), 0 if b is None else len(b)))

    def token_ids(self, prompt: Sequence[str], tokens_per_frame: Sequence[int]) -> np.ndarray:
        """Ids int64 [L] of the parts of a prompt, with as many image tokens per frame as the frame has."""
        texts = [part for part in prompt if part not in CONTROL_TOKENS]
        # Without split_special_tokens a task that spells <|prog_token|> would become one.
        encoded = iter(self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        frames = iter(tokens_per_frame)
        ids: list[int] = []
        for part in prompt:
            if part == IMAGE:
                ids += [self._ids[IMAGE]] * next(frames)
            else:
                ids += [self._ids[part]] if part in CONTROL_TOKENS else next(encoded)
        return np.array(ids, dtype=np.int64)

    def collate(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Inputs of `Robometer.forward`: ids padded on the right, patches of all samples one after another."""
        ids = [torch.from_numpy(sample.input_ids) for sample in samples]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)  # [B, L]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.pad_id)
        progress = [np.flatnonzero(sample.input_ids == self._ids[PROGRESS]) for sample in samples]
        preference = [np.flatnonzero(sample.input_ids == self._ids[PREFERENCE]) for sample in samples]
        a = [at[: sample.num_frames[0]] for at, sample in zip(progress, samples, strict=True)]
        b = [at[sample.num_frames[0] :] for at, sample in zip(progress, samples, strict=True)]
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "mm_token_type_ids": (input_ids == self._ids[IMAGE]).long() * mask,
            "patches": torch.from_numpy(np.concatenate([sample.patches for sample in samples])),
            "image_grid_thw": torch.from_numpy(np.concatenate([sample.grid for sample in samples])),
            "progress_index_a": _padded(a),  # [B, Ta]
            "progress_index_b": _padded(b),  # [B, Tb]
            "preference_index": torch.tensor([int(at[0]) if len(at) else 0 for at in preference]),  # [B]
        }

    def collate_clips(self, clips: Sequence[Clip]) -> Batch:
        """Batch of progress samples without targets."""
        return self._unlabelled([(clip, None) for clip in clips])

    def collate_pairs(self, pairs: Sequence[tuple[Clip, Clip]]) -> Batch:
        """Batch of preference samples without targets, each under the task of its first clip."""
        return self._unlabelled(pairs)

    def _unlabelled(self, pairs: Sequence[tuple[Clip, Clip | None]]) -> Batch:
        samples = [self.encode(a.task, a.frames, None if b is None else b.frames) for a, b in pairs]
        plans = [
            SamplePlan(
                i,
                "progress" if b is None else "preference",
                "forward",
                a.task,
                _unlabelled(a),
                None if b is None else _unlabelled(b),
                0.0,
            )
            for i, (a, b) in enumerate(pairs)
        ]
        return collate_targets(plans, self.collate(samples))


class RobometerCollator:
    """Plans to batches: frames from the corpus, patches and token ids by the processor (see `Collator`)."""

    def __init__(self, corpus: Corpus, processor: RobometerProcessor) -> None:
        self.corpus, self.processor = corpus, processor

    @classmethod
    def from_config(cls, config: Config, corpus: Corpus) -> RobometerCollator:
        """With the tokenizer of `model.base_model`."""
        from robometer.models.robometer import load_processor

        return cls(corpus, load_processor(config))

    def __call__(self, plans: Sequence[SamplePlan]) -> Batch:
        samples = [
            self.processor.encode(plan.task, self._frames(plan.a), None if plan.b is None else self._frames(plan.b))
            for plan in plans
        ]
        return collate_targets(plans, self.processor.collate(samples))

    def _frames(self, clip: ClipPlan) -> np.ndarray:
        return self.corpus.frames(clip.row, clip.positions)


def _padded(positions: Sequence[np.ndarray]) -> Tensor:
    return pad_sequence([torch.from_numpy(at) for at in positions], batch_first=True)


def _unlabelled(clip: Clip) -> ClipPlan:
    zeros, none = np.zeros(len(clip), dtype=np.float32), np.zeros(len(clip), dtype=bool)
    return ClipPlan(0, np.arange(len(clip)), zeros, none, zeros, none)
