"""Model inputs, targets and outputs: named tensors with explicit masks, padded along T."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass
class ClipTargets:
    """Targets of one trajectory per sample.

    Attributes:
        frame_mask: bool [B, T], false for padding.
        progress_target: float32 [B, T] in [0, 1].
        progress_mask: bool [B, T], frames whose progress is supervised.
        success_label: float32 [B, T], 0 or 1.
        success_mask: bool [B, T], frames whose success is supervised.
    """

    frame_mask: Tensor
    progress_target: Tensor
    progress_mask: Tensor
    success_label: Tensor
    success_mask: Tensor


@dataclass
class Batch:
    """One micro-batch of samples; a progress sample has an empty second trajectory (`b.frame_mask` all false).

    Attributes:
        sample_index: int64 [B], the position of each sample in the stream of plans.
        inputs: the model's own inputs, from its collator (embeddings, or token ids and pixels).
        a, b: targets of the first and the second trajectory.
        preference_label: float32 [B], 1 where A did better.
        preference_mask: bool [B], true for preference samples.
        strategy: int64 [B], index into `robometer.sampling.STRATEGIES`.
    """

    sample_index: Tensor
    inputs: dict[str, Tensor]
    a: ClipTargets
    b: ClipTargets
    preference_label: Tensor
    preference_mask: Tensor
    strategy: Tensor

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat numpy form `{"a.frame_mask": ..., "inputs.text": ...}`; the inverse of `from_arrays`."""
        flat = {name: getattr(self, name) for name in _PLAIN}
        flat |= {f"{side}.{f.name}": getattr(getattr(self, side), f.name) for side in "ab" for f in fields(ClipTargets)}
        flat |= {f"inputs.{name}": value for name, value in self.inputs.items()}
        return {name: value.numpy() for name, value in flat.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> Batch:
        """Rebuild a batch from its flat form, on `device`."""
        tensors = {name: torch.from_numpy(np.array(value)).to(device) for name, value in arrays.items()}
        sides = {
            side: ClipTargets(**{f.name: tensors[f"{side}.{f.name}"] for f in fields(ClipTargets)}) for side in "ab"
        }
        inputs = {name.removeprefix("inputs."): t for name, t in tensors.items() if name.startswith("inputs.")}
        return cls(**{name: tensors[name] for name in _PLAIN}, inputs=inputs, a=sides["a"], b=sides["b"])

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `change` applied to every tensor."""
        a, b = (
            ClipTargets(**{f.name: change(getattr(side, f.name)) for f in fields(side)}) for side in (self.a, self.b)
        )
        inputs = {name: change(value) for name, value in self.inputs.items()}
        plain: dict[str, Any] = {name: change(getattr(self, name)) for name in _PLAIN}
        return Batch(**plain, inputs=inputs, a=a, b=b)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; to a GPU through pinned memory, so that the host does not wait."""
        if torch.device(device).type != "cuda":
            return self.map(lambda tensor: tensor.to(device))
        return self.map(
            lambda tensor: (tensor if tensor.is_cuda else tensor.pin_memory()).to(device, non_blocking=True)
        )


_PLAIN = ("sample_index", "preference_label", "preference_mask", "strategy")


class RewardOutput(NamedTuple):
    """Output of a reward model; a tuple, so that DeepSpeed's ZeRO 3 finds the tensors that need gradients.

    Attributes:
        progress_logits: [B, T, K] of trajectory A, for K bins; l1 and l2 heads have K = 1, a value in [0, 1].
        success_logits: [B, T] of trajectory A.
        progress_logits_b, success_logits_b: the same for trajectory B; None if the batch has no pairs.
        preference_logits: [B], above 0 where A is judged better; None if the batch has no pairs.
    """

    progress_logits: Tensor
    success_logits: Tensor
    progress_logits_b: Tensor | None = None
    success_logits_b: Tensor | None = None
    preference_logits: Tensor | None = None


def progress_from_logits(logits: Tensor) -> Tensor:
    """Expected progress [...] of logits [..., K] over bin centres linspace(0, 1, K); K = 1 is the value itself."""
    if logits.shape[-1] == 1:
        return logits.squeeze(-1).float()
    centres = torch.linspace(0.0, 1.0, logits.shape[-1], device=logits.device)
    return (logits.float().softmax(-1) * centres).sum(-1)
