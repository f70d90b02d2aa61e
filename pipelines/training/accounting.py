"""What a step cost: throughput, time spent waiting for data, memory, and the share of the device's peak."""

from __future__ import annotations

import time

import psutil
import torch
from torch import Tensor, nn

from robometer.configs.schema import Config
from robometer.training.batch import Batch
from robometer.training.throughput import Work, cost, peak_flops, work

GIB = 2.0**30


class Meter:
    """Measures steps of one worker; what a step's global batch held is summed by the caller."""

    def __init__(self, config: Config, model: nn.Module, device: torch.device, world_size: int) -> None:
        train = config.train
        self._model, self._device, self._batch_size = model, device, train.batch_size
        self._cost = cost(model, train.gradient_checkpointing)
        peak = peak_flops(device, train.precision, train.peak_tflops)
        self._peak = None if peak is None else peak * world_size
        self._workers = world_size
        self._started = self._fetched = 0.0

    def start(self) -> None:
        """A step begins, with waiting for its data."""
        self._started = time.perf_counter()

    def fetched(self) -> None:
        """The step's data is here."""
        self._fetched = time.perf_counter()

    def work(self, batch: Batch) -> Tensor:
        """What a micro-batch gives the model to do, as a tensor that adds up."""
        return work(batch, self._model).tensor()

    def stop(self, total: Tensor) -> dict[str, float]:
        """The step is done; `total` is the sum of `work` over its global batch.

        Copies of micro-batches that only keep workers in step do not count as work.
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
        """Bytes: the most that tensors took on a GPU, else what this process holds now."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        return float(psutil.Process().memory_info().rss)
