"""Inputs of the vision-language model, for training and inference alike: patches of frames, and token ids.

A batch is packed: the tokens of all samples one after another without padding, and each distinct frame once, however
often it is shown. All positions that the model reads are computed here, so that nothing is searched on the device.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from robometer.corpus.corpus import Corpus
from robometer.models.backbones import Backbone, backbone_of
from robometer.models.collate import collate_targets
from robometer.models.images import Cutter
from robometer.models.prompts import PREFERENCE, SPECIAL_TOKENS, Control, preference_prompt, progress_prompt
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import Clip
from robometer.training.batch import Batch


@dataclass(frozen=True)
class Sample:
    """One question to the model: a task, and the names of the frames of one or two trajectories."""

    task: str
    a: Sequence[Hashable]
    b: Sequence[Hashable] | None = None

    @property
    def frames(self) -> list[Hashable]:
        """The frame names in the order of the prompt."""
        return [*self.a, *(self.b or [])]


@dataclass(frozen=True)
class Prompted:
    """One sample as tokens.

    Attributes:
        ids: int64 [L].
        positions: int64 [3, L] for the rotary embedding: time, row and column.
        frame_tokens: for each frame, the indices of the tokens at which it is read out (see `Robometer`).
        preference: index of the `PREFERENCE` token, or 0.
    """

    ids: np.ndarray
    positions: np.ndarray
    frame_tokens: list[np.ndarray]
    preference: int


class PromptTokenizer:
    """Turns the prompts of a family into ids and positions.

    Args:
        tokens: whether a progress token follows each frame, at which the frame is read out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, family: Backbone, tokens: bool = False) -> None:
        self._tokenizer, self._family, self._tokens = tokenizer, family, tokens
        names = [str(name) for name in family.chat.controls]
        self._ids = dict(zip(names, cast(list[int], tokenizer.convert_tokens_to_ids(names)), strict=True))
        self.text_ids = lru_cache(maxsize=1 << 16)(self._tokenize)

    def tokenise(self, prompt: Sequence[str], features: np.ndarray) -> Prompted:
        """Ids and positions of the parts of a prompt; its frames have `features` int64 [T, 2] (rows, columns)."""
        chat, frames = self._family.chat, iter(features.tolist())
        ids: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        frame_tokens: list[np.ndarray] = []
        index = at = preference = 0
        for part in prompt:
            rows = columns = 0
            if part is chat.image:
                rows, columns = next(frames)
                part_ids = np.full(rows * columns, self._ids[part], dtype=np.int64)
                after = index + len(part_ids) + len(chat.after)
                # Without a progress token, a frame is all tokens between its outer marks (some families have several).
                span = (after, after + 1) if self._tokens else (index + 1 - len(chat.before), after - 1)
                frame_tokens.append(np.arange(*span))
            elif isinstance(part, Control):
                part_ids = np.array([self._ids[part]], dtype=np.int64)
                preference = index if part is PREFERENCE else preference
            else:
                part_ids = self.text_ids(part)
            part_positions, advance = self._family.positions(len(part_ids), rows, columns, at)
            ids.append(part_ids)
            positions.append(part_positions)
            index, at = index + len(part_ids), at + advance
        return Prompted(np.concatenate(ids), np.concatenate(positions, 1), frame_tokens, preference)

    def _tokenize(self, text: str) -> np.ndarray:
        # Without split_special_tokens, a task that spells <|prog_token|> would become that token.
        ids = self._tokenizer([text], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return np.array(cast(list[list[int]], ids)[0], dtype=np.int64)


class RobometerProcessor:
    """Turns frames and tasks into model inputs.

    Args:
        tokenizer: tokenizer of the base model; missing tokens of the reward model are added.
        base: configuration of the base model.
        ask_progress: see `robometer.models.prompts.preference_prompt`.
        tokens: whether a progress token follows each frame, as in the public weights.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        base: PretrainedConfig,
        ask_progress: bool = True,
        tokens: bool = True,
    ) -> None:
        self.tokenizer, self.base, self.ask_progress, self.tokens = tokenizer, base, ask_progress, tokens
        self.family: Backbone = backbone_of(base)
        self.cutter: Cutter = self.family.cutter(base)
        # One by one, so that their order is that of the embedding rows in every checkpoint.
        for token in SPECIAL_TOKENS:
            tokenizer.add_tokens([str(token)], special_tokens=True)
        self.tokenise = PromptTokenizer(tokenizer, self.family, tokens).tokenise

    def prompt(self, task: str, num_frames_a: int, num_frames_b: int | None = None) -> list[str]:
        """Parts of the prompt of a clip or a pair."""
        if num_frames_b is None:
            return progress_prompt(task, num_frames_a, self.family.chat, self.tokens)
        return preference_prompt(task, num_frames_a, num_frames_b, self.ask_progress, self.family.chat, self.tokens)

    def collate(self, samples: Sequence[Sample], frames: Mapping[Hashable, np.ndarray]) -> dict[str, Tensor]:
        """Inputs of `Robometer.forward` for samples, from the frames uint8 [H, W, 3] that they name."""
        names = list(dict.fromkeys(name for sample in samples for name in sample.frames))
        number = {name: i for i, name in enumerate(names)}
        patches, grid = self.cut([frames[name] for name in names])
        features = self.cutter.features(grid)  # [D, 2]
        images = [np.array([number[name] for name in sample.frames], dtype=np.int64) for sample in samples]
        prompted = [
            self.tokenise(self.prompt(s.task, len(s.a), None if s.b is None else len(s.b)), features[at])
            for s, at in zip(samples, images, strict=True)
        ]
        lengths = np.array([len(p.ids) for p in prompted], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        first = np.cumsum([len(at) for at in images]) - [len(at) for at in images]
        a = [np.arange(len(s.a)) + f for s, f in zip(samples, first, strict=True)]
        b = [np.arange(len(s.b or [])) + f + len(s.a) for s, f in zip(samples, first, strict=True)]
        places = [np.arange(n) for n in lengths]
        packed = {
            "input_ids": np.concatenate([p.ids for p in prompted]),
            "position_ids": np.concatenate(
                [np.concatenate([at[None], p.positions]) for at, p in zip(places, prompted, strict=True)], 1
            ),
            "sequence_length": lengths,
            "patches": patches,
            "grid": grid,
            "image": np.concatenate(images),
            "preference_token": np.array([p.preference for p in prompted]) + starts,
        }
        inputs = {name: torch.from_numpy(value) for name, value in packed.items()}
        frame_tokens = [at + start for p, start in zip(prompted, starts, strict=True) for at in p.frame_tokens]
        return inputs | {"frame_tokens": _padded(frame_tokens, -1), "frames_a": _padded(a), "frames_b": _padded(b)}

    def cut(self, frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Patches and grids of frames of any sizes; adjacent frames of the same size are cut together."""
        parts, start = [], 0
        for end in range(1, len(frames) + 1):
            if end == len(frames) or frames[end].shape != frames[start].shape:
                parts.append(self.cutter.cut(np.stack(frames[start:end])))
                start = end
        patches, grid = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return patches, grid

    def collate_clips(self, clips: Sequence[Clip]) -> Batch:
        """A batch of progress samples without targets."""
        return self._collate_unlabelled([(clip, None) for clip in clips])

    def collate_pairs(self, pairs: Sequence[tuple[Clip, Clip]]) -> Batch:
        """A batch of preference samples without targets, each under the task of its first clip."""
        return self._collate_unlabelled(pairs)

    def _collate_unlabelled(self, pairs: Sequence[tuple[Clip, Clip | None]]) -> Batch:
        frames: dict[Hashable, np.ndarray] = {}

        def add_frames(clip: Clip) -> list[Hashable]:
            names: list[Hashable] = [(frame.shape, frame.tobytes()) for frame in clip.frames]
            frames.update(zip(names, clip.frames, strict=True))
            return names

        samples = [Sample(a.task, add_frames(a), None if b is None else add_frames(b)) for a, b in pairs]
        plans = [
            SamplePlan(
                i,
                "progress" if b is None else "preference",
                "forward",
                a.task,
                ClipPlan.unlabelled(len(a)),
                None if b is None else ClipPlan.unlabelled(len(b)),
                0.0,
            )
            for i, (a, b) in enumerate(pairs)
        ]
        return collate_targets(plans, self.collate(samples, frames))


class RobometerCollator:
    """Turns plans into batches: frames from the corpus, patches and token ids from the processor (see `Collator`).

    Each distinct frame of a batch is decoded, cut and later encoded once.
    """

    def __init__(self, corpus: Corpus, processor: RobometerProcessor) -> None:
        self.corpus, self.processor = corpus, processor

    def __call__(self, plans: Sequence[SamplePlan]) -> Batch:
        self.read_ahead(plans)
        samples = [
            Sample(plan.task, self._names(plan.a), None if plan.b is None else self._names(plan.b)) for plan in plans
        ]
        return collate_targets(plans, self.processor.collate(samples, self._frames(samples)))

    def read_ahead(self, plans: Sequence[SamplePlan]) -> None:
        """See `Collator.read_ahead`."""
        self.corpus.read_ahead(c.row for plan in plans for c in (plan.a, plan.b) if c)

    def _names(self, clip: ClipPlan) -> list[Hashable]:
        return [(clip.row, int(position)) for position in clip.positions]

    def _frames(self, samples: Sequence[Sample]) -> dict[Hashable, np.ndarray]:
        """Every frame that the samples name; each trajectory is read once."""
        positions: dict[int, dict[Any, int]] = {}
        for name in cast(Any, [name for sample in samples for name in sample.frames]):
            positions.setdefault(name[0], {})[name] = name[1]
        frames: dict[Hashable, np.ndarray] = {}
        for row, names in positions.items():
            frames.update(zip(names, self.corpus.frames(row, np.array(list(names.values()))), strict=True))
        return frames


def _padded(positions: Sequence[np.ndarray], value: int = 0) -> Tensor:
    return pad_sequence([torch.from_numpy(at) for at in positions], batch_first=True, padding_value=value)
