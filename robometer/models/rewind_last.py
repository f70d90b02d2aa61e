"""The newest frame of a session, by a ReWiND whose answer depends on the last few frames alone.

The model is small: on a CPU, Python between its layers takes more time than its arithmetic. So its forward pass for one
session becomes a graph once, and runs without Python from then on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from robometer.models.collate import collate_targets
from robometer.models.openvino import compile_module, load_openvino
from robometer.models.rewind import Rewind, RewindEnsemble
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.training.batch import progress_from_logits

Graph = Callable[[Tensor, Tensor], list[float]]
"""Progress and success of the last frame, from a task [1, E] and embeddings [1, T, D]."""


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

    def graph(self, text: Tensor, embeddings: Tensor) -> Graph:
        """The same as a graph, for the shapes of these examples; in OpenVINO on a CPU, where that is installed."""
        openvino = load_openvino() if text.device.type == "cpu" else None
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the graph is for these shapes only, and is checked
            made = self._in_openvino(openvino, text, embeddings) if openvino else self._in_torch(text, embeddings)
            here = self._without(text, embeddings)
        return made if np.allclose(made(text, embeddings), here, atol=1e-6) else self._without

    def _without(self, text: Tensor, embeddings: Tensor) -> list[float]:
        answer: list[float] = self.eval()(text, embeddings).tolist()
        return answer

    def _in_torch(self, *inputs: Tensor) -> Graph:
        graph = torch.jit.freeze(torch.jit.trace(self.eval(), inputs, check_trace=False))
        return lambda text, embeddings: graph(text, embeddings).tolist()

    def _in_openvino(self, openvino: Any, *inputs: Tensor) -> Graph:
        torch.backends.mha.set_fastpath_enabled(False)  # OpenVINO does not know torch's fused layer
        try:
            traced = torch.jit.trace(self.eval(), inputs, check_trace=False)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        model = compile_module(openvino, traced, inputs, [list(one.shape) for one in inputs], threads=1)
        request = model.create_infer_request()
        return lambda text, embeddings: request.infer([text.numpy(), embeddings.numpy()])[0].tolist()
