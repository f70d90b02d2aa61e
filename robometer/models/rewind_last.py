"""The newest frame of a session, by a ReWiND whose answer depends on the last few frames alone.

The model is small: on a CPU, Python between its layers takes more time than its arithmetic. So its forward pass for one
session is traced once, and runs without Python from then on.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from robometer.models.collate import collate_targets
from robometer.models.rewind import Rewind, RewindEnsemble
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.training.batch import progress_from_logits


def reach_of(model: Rewind | RewindEnsemble) -> int | None:
    """How many frames the answer at a frame depends on, itself included; None for all before it, or all."""
    members = cast(list[Rewind], list(model.members) if isinstance(model, RewindEnsemble) else [model])
    if any(member.attention != "state" for member in members):
        return None
    return max((member.window - 1) * len(member.transformer.layers) + 1 for member in members)


class LastFrame(nn.Module):
    """Progress and success [2] of the last of some frames, from a task [1, E] and embeddings [1, T, D]."""

    def __init__(self, model: Rewind | RewindEnsemble, num_frames: int) -> None:
        super().__init__()
        self.model = model
        plan = SamplePlan(0, "progress", "forward", "", ClipPlan.unlabelled(num_frames), None, 0.0)
        device = next(model.parameters()).device
        self._batch = collate_targets([plan], {}).to(device)

    def forward(self, text: Tensor, embeddings: Tensor) -> Tensor:
        """See the class."""
        inputs = {"text": text, "embeddings_a": embeddings, "embeddings_b": embeddings[:, :0]}
        output = self.model(replace(self._batch, inputs=inputs))
        progress = progress_from_logits(output.progress_logits)[0, -1]
        return torch.stack([progress.float(), output.success_logits[0, -1].float().sigmoid()])

    @torch.inference_mode()
    def traced(self, text: Tensor, embeddings: Tensor) -> Any:
        """The same as a graph, for these shapes; itself where the graph's answer is another one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the graph is for these shapes only, and is checked
            graph = torch.jit.freeze(torch.jit.trace(self.eval(), (text, embeddings), check_trace=False))
            same = torch.allclose(graph(text, embeddings), self(text, embeddings), atol=1e-6)
        return graph if same else self
