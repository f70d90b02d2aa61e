"""The cost of a step: throughput, waiting for data, memory, the share of the device's peak, and a profiler's trace."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from robometer.configs.schema import Config
from robometer.corpus.storage import Storage
from robometer.training.batch import Batch
from robometer.training.throughput import Work, cost, peak_flops, work

GIB = 2.0**30


class Meter:
    """Measures the steps of one worker; the caller sums the work of a global batch over the workers."""

    def __init__(self, config: Config, model: nn.Module, device: torch.device, world_size: int) -> None:
        train = config.train
        self._model, self._device, self._batch_size = model, device, train.batch_size
        self._cost = cost(model, train.gradient_checkpointing)
        peak = peak_flops(device, train.precision, train.peak_tflops)
        self._peak = None if peak is None else peak * world_size
        self._workers = world_size
        self._started = self._fetched = 0.0

    def start(self) -> None:
        """Begin a step, which first waits for its data."""
        self._started = time.perf_counter()

    def fetched(self) -> None:
        """Note that the step's data has arrived."""
        self._fetched = time.perf_counter()

    def work(self, batch: Batch) -> Tensor:
        """The model's work on a micro-batch, as a tensor that can be summed."""
        return work(batch, self._model).tensor()

    def stop(self, total: Tensor) -> dict[str, float]:
        """End a step; returns its measures.

        Args:
            total: sum of `work` over the global batch, without the copies that only keep workers in step.
        """
        seconds, done = time.perf_counter() - self._started, Work(*total.tolist())
        values = {
            "workers": float(self._workers),
            "step_seconds": seconds,
            "samples_per_s": self._batch_size / seconds,
            "tokens_per_s": done.seen / seconds,
            "data_wait_share": (self._fetched - self._started) / seconds,
            "memory_gib": self._memory() / GIB,
        }
        if self._peak:
            values["mfu"] = self._cost.flops(done) / seconds / self._peak
        return values

    def _memory(self) -> float:
        """Bytes: the peak of tensors on a GPU, else the resident memory of this process."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        return float(psutil.Process().memory_info().rss)


class StepProfiler:
    """Records what a window of steps does on the CPU and the GPU, for chrome://tracing or Perfetto.

    Args:
        window: the first and the last step, counted from 1; empty for none.
        folder: where the trace goes, as `trace-steps-FIRST-LAST.json.gz`.
    """

    def __init__(self, window: Sequence[int], folder: Storage) -> None:
        self._window, self._folder = window, folder
        self._first = 0
        self._profile: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Start with the first step in the window; that of a run that resumes may be a later one."""
        if self._window and self._profile is None and self._window[0] <= step <= self._window[1]:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._first, self._profile = step, torch.profiler.profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after(self, step: int, last: bool) -> str | None:
        """The name of the trace, once the window or the run has ended; else None."""
        if self._profile is None or not (last or step == self._window[1]):
            return None
        self._profile.stop()
        name = f"trace-steps-{self._first}-{step}.json.gz"
        with tempfile.TemporaryDirectory() as folder:
            self._profile.export_chrome_trace(f"{folder}/{name}")
            self._folder.write_bytes(name, Path(folder, name).read_bytes())
        self._profile, self._window = None, []
        return name
