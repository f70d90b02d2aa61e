"""From sample plans to the targets of a batch; each model's own collator turns the frames into inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robometer.sampling.types import STRATEGIES, ClipPlan, SamplePlan
from robometer.training.batch import Batch, ClipTargets


class Collator(Protocol):
    """Plans in, batch out: reads the frames or embeddings that the plans name from the corpus."""

    def __call__(self, plans: Sequence[SamplePlan]) -> Batch: ...

    def read_ahead(self, plans: Sequence[SamplePlan]) -> None:
        """Begin to read what these plans need, for calls with some of them each (see `Corpus.read_ahead`)."""
        ...


def collate_targets(plans: Sequence[SamplePlan], inputs: dict[str, Tensor]) -> Batch:
    """Pad the targets of `plans` to the longest clip of each side, and add the model's `inputs`."""
    return Batch(
        sample_index=torch.tensor([plan.sample_index for plan in plans]),
        inputs=inputs,
        a=_pad([plan.a for plan in plans]),
        b=_pad([plan.b for plan in plans]),
        preference_label=torch.tensor([plan.preference_label for plan in plans], dtype=torch.float32),
        preference_mask=torch.tensor([plan.b is not None for plan in plans]),
        strategy=torch.tensor([STRATEGIES.index(plan.strategy) for plan in plans]),
    )


def _pad(clips: Sequence[ClipPlan | None]) -> ClipTargets:
    lengths = [0 if clip is None else len(clip) for clip in clips]
    width = max(lengths)
    dtypes = {"frame_mask": bool, "progress_mask": bool, "success_mask": bool}
    arrays = {f.name: np.zeros((len(clips), width), dtype=dtypes.get(f.name, np.float32)) for f in fields(ClipTargets)}
    for i, (clip, length) in enumerate(zip(clips, lengths, strict=True)):
        arrays["frame_mask"][i, :length] = True
        for name, array in arrays.items():
            if clip is not None and name != "frame_mask":
                array[i, :length] = getattr(clip, name)
    return ClipTargets(**{name: torch.from_numpy(array) for name, array in arrays.items()})
