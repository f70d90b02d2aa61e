"""OpenVINO, which runs small networks faster on a CPU than torch, and equal to 1e-5."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

from torch import Tensor, nn


def load_openvino() -> Any | None:
    """The package, or None where it is not installed (the extra `encoders` has it where there is a wheel)."""
    # It would report its use to its makers, also when it is only imported: without this module it cannot.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    try:
        return importlib.import_module("openvino")
    except ImportError:
        return None


def compile_module(openvino: Any, module: nn.Module, inputs: Sequence[Tensor], shapes: Any, threads: int) -> Any:
    """A compiled model of a module with one output.

    Args:
        openvino: the package.
        module: in evaluation mode.
        inputs: an example of each.
        shapes: of each input; -1 for a size that may change.
        threads: that compute, each a batch of its own, so that answers do not depend on their number.
    """
    model = openvino.convert_model(module, example_input=tuple(inputs), input=shapes)
    # Newer CPUs would compute in bfloat16, whose answers differ in the second digit.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    # Pinned threads of several processes would share the first cores.
    streams = {"NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return openvino.compile_model(model, "CPU", exact | streams)
