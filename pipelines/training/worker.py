"""What each training worker runs: DeepSpeed steps over the sample stream, checkpoints, validation."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.cluster import Progress, progress_bar
from pipelines.sample_stream import MicroBatch, MicroBatches, opened
from pipelines.training import checkpointing
from pipelines.training.accounting import Meter, StepProfiler
from pipelines.training.checkpointing import MODEL, PULSE, UNKNOWN, Position, TrainingError
from pipelines.training.engine import apply_gradients, full_state
from pipelines.training.validation import measure
from pipelines.training.whereabouts import Whereabouts
from robometer.configs.loading import from_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage, StorageError
from robometer.models.checkpoint import save_checkpoint
from robometer.runs import tracking
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.training.losses import TERMS, Losses, compute_losses, counts
from robometer.training.optimisation import learning_rate

logger = logging.getLogger(__name__)

LOSSES = ("loss", "progress_loss", "success_loss", "preference_loss")

NOTICE_INTERVAL_S = float(os.environ.get("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", 5.0))
"""How often workers ask whether one of their nodes will be taken away: as often as Ray Train looks."""

MAX_NAMED = 8
"""Trajectories that an error names; a file lists all."""


class NotANumberError(TrainingError):
    """A loss or a norm of gradients is not finite; no weight was changed by it.

    Every rank raises it at the same step, and a retry would raise it again.
    """


def train_worker(spec: dict[str, Any]) -> str:
    """Train from the latest checkpoint (or the start) to `train.steps`; runs on every worker of a `TorchTrainer`.

    Args:
        spec: `config` (dict), `shared` (`sample_stream.share`), `provenance` (dict), `run_id` of the tracked run,
            `interactive`.

    Returns:
        Why the run ended early; empty where it did not.
    """
    for noisy in ("ray.train", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = from_dict(spec["config"])
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    tracked = tracking.start(config, "train", run_id=spec["run_id"]) if rank == 0 else nullcontext(tracking.NullRun())
    if not config.train.use_gpu:
        torch.set_num_threads(max(1, int(config.train.cpus_per_worker)))
    torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    try:
        with tracked as run:  # marks the run as failed if training raises
            corpus, _ = opened(config, spec["shared"])
            engine, position = checkpointing.start(config, corpus, size)
            whereabouts = Whereabouts(Storage(config.train.output), rank, size)
            with closing(whereabouts):
                Worker(config, spec, run, corpus, engine, position, rank, size, whereabouts).train()
    except NotANumberError as error:
        return str(error)
    return ""


class Worker:
    """One rank of a training run, which starts at `position`."""

    def __init__(
        self,
        config: Config,
        spec: dict[str, Any],
        run: tracking.TrackedRun,
        corpus: Corpus,
        engine: Any,
        position: Position,
        rank: int,
        world_size: int,
        whereabouts: Whereabouts,
    ) -> None:
        self.whereabouts = whereabouts
        self.config, self.spec, self.run = config, spec, run
        self.rank, self.world_size = rank, world_size
        self.corpus = corpus
        self.engine, self.position = engine, position
        self.output = Storage(config.train.output)
        self.meter = Meter(config, engine.module, engine.device, world_size)
        self.notice_asked_s, self.notice, self.pulse_s = time.monotonic(), None, -math.inf
        counted = (entry["skipped_steps"] for entry in reversed(position.history) if "skipped_steps" in entry)
        self.skipped, self.skipped_in_a_row = int(next(counted, 0)), 0
        self.profiler = StepProfiler(config.train.profile_steps if rank == 0 else [], self.output)

    def train(self) -> None:
        """Step until the end of the run."""
        bar = progress_bar("train", self.config.train.steps, self.spec["interactive"]) if self.rank == 0 else None
        shard = ray.train.get_dataset_shard("train")
        with closing(MicroBatches(shard, self.config, self.position.step, self.rank, self.world_size)) as stream:
            self._steps(stream, bar)

    def _steps(self, stream: MicroBatches, bar: Progress | None) -> None:
        train = self.config.train
        while self.position.step < train.steps:
            self._write_pulse()
            self.profiler.before(self.position.step + 1)
            values, has_notice = self.step(stream)
            step, last = self.position.step, self.position.step == train.steps
            if trace := self.profiler.after(step, last):
                with self.output.local_copy(trace) as path:
                    self.run.artifact(path)
            if bar:
                bar(step, {"loss": values["loss"]})
            if step % train.log_every == 0 or last:
                self._record({name: value for name, value in values.items() if math.isfinite(value)})
            due = step % train.checkpoint_every == 0 or last
            if due or has_notice:
                self._checkpoint(whole=due, wait=has_notice)

    def _write_pulse(self) -> None:
        """Write the progress of this run for the driver, at most once a second; less often where it costs a request."""
        if self.rank == 0 and time.monotonic() - self.pulse_s > (1 if self.output.is_local else 10):
            self.pulse_s = time.monotonic()
            try:
                self.output.put_bytes(PULSE, f"step {self.position.step}".encode())
            except StorageError as error:  # storage may come back; a checkpoint that cannot be written ends the run
                logger.warning("%s", error)

    def step(self, stream: MicroBatches) -> tuple[dict[str, float], bool]:
        """One optimizer step; returns its values, and whether Ray has just announced that a node will be taken away."""
        self.meter.start()
        self._at("waits for its batch")
        micro_batches = stream.take(self.position.step)
        self.meter.fetched()
        self._at("counts the batch with the others")
        total, work, ask = self._totals(micro_batches)
        self._at("computes losses and gradients")
        self._set_learning_rate()
        self.engine.train()
        parts: list[Tensor] = []  # they stay on the device: to read one is to wait for all that it still has to do
        for micro_batch in micro_batches[:-1]:
            losses = self._losses(micro_batch, total)
            parts.append(self._parts(micro_batch, losses))
            self._backward(micro_batch, losses.total)
            self.engine.step()  # before the last micro-batch it only counts
        last = micro_batches[-1]
        losses = self._losses(last, total)
        parts.append(self._parts(last, losses))
        self._at("sums the losses with the others")
        values = self._sum(torch.stack(parts).sum(0))  # read once, while no weight has changed
        fault = "" if torch.isfinite(values[0]) else self._fault("loss", self._not_finite(micro_batches, parts))
        self._at("computes the last gradients, and applies them with the others")
        # A bad loss may have good gradients. As not-a-number they make DeepSpeed leave the step out at every stage.
        self._backward(last, losses.total * math.nan if fault else losses.total)
        norm = apply_gradients(self.engine)
        if not fault and not math.isfinite(norm):
            fault = self._fault("norm of the gradients", range(self.config.train.micro_batches))
        self.skipped += bool(fault)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if fault else 0
        self.position.step += 1
        result = dict(zip(LOSSES, values.tolist(), strict=True)) | {
            "learning_rate": learning_rate(self.position.step, self.config),
            "grad_norm": norm,
        }
        if self.config.train.on_nonfinite == "skip":
            result["skipped_steps"] = float(self.skipped)
        return result | self.meter.stop(work), ask and self._has_new_notice()

    def _fault(self, what: str, micro_batches: Sequence[int]) -> str:
        """Why this step cannot be taken, in the log where `train.on_nonfinite` says so.

        Raises:
            NotANumberError: the run is to stop, or has skipped as many steps in a row as it may.
        """
        train, message = self.config.train, self._blame(what, micro_batches)
        if train.on_nonfinite == "stop":
            raise NotANumberError(f"{message} The same command resumes from the last checkpoint.")
        if self.skipped_in_a_row >= train.max_skipped_steps:
            raise NotANumberError(f"{message} The {self.skipped_in_a_row} steps before it were skipped for that too.")
        if self.rank == 0:
            logger.warning("Skipped a step: %s", message)
        return message

    def _totals(self, micro_batches: list[MicroBatch]) -> tuple[Tensor, Tensor, bool]:
        """Over the global batch: the counts that normalise its losses, its work, and whether to ask for notices now."""
        terms = sum(m.weight * counts(m.batch, self.config.loss) for m in micro_batches)
        work = sum(m.weight * self.meter.work(m.batch) for m in micro_batches)
        ask = self.rank == 0 and time.monotonic() - self.notice_asked_s > NOTICE_INTERVAL_S
        total = self._sum(torch.cat([torch.as_tensor(terms), torch.as_tensor(work), torch.tensor([float(ask)])]))
        return total[: len(TERMS)], total[len(TERMS) : -1], bool(total[-1])

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.position.step + 1, self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _losses(self, micro_batch: MicroBatch, total: Tensor) -> Losses:
        """Forward pass of one micro-batch."""
        # Dropout follows from the micro-batch, so that it is the same for any number of workers.
        seed = np.random.SeedSequence([self.config.train.seed, micro_batch.number]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        batch = micro_batch.batch.to(self.engine.device)
        output = self.engine(batch)
        return compute_losses(output, batch, self.config.loss, self.config.model.progress_loss, total)

    def _parts(self, micro_batch: MicroBatch, losses: Losses) -> Tensor:
        """A micro-batch's share of the step's `LOSSES`, float64 [4], on the device."""
        parts = torch.stack([losses.total, losses.progress, losses.success, losses.preference])
        return micro_batch.weight * parts.detach().double()

    def _backward(self, micro_batch: MicroBatch, loss: Tensor) -> None:
        # DeepSpeed averages over workers and micro-batches. Our losses are shares of the global mean, to be summed.
        scale = self.world_size * self.engine.gradient_accumulation_steps()
        self.engine.backward(loss * (micro_batch.weight * scale))

    def _sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            values = values.to(self.engine.device)
            dist.all_reduce(values)
        return values.cpu()

    def _has_new_notice(self) -> bool:
        """Whether there is a new notice that a node will be taken away; every rank must call this at the same step."""
        self.notice_asked_s, before = time.monotonic(), self.notice
        self.notice = ray.train.get_preemption_info()
        return self.notice is not None and self.notice != before

    def _not_finite(self, micro_batches: list[MicroBatch], parts: list[Tensor]) -> list[int]:
        """Micro-batches, counted from the first of the step, whose loss is not finite, on any worker."""
        failures = torch.zeros(self.config.train.micro_batches, dtype=torch.float64)
        for micro_batch, (loss, *_) in zip(micro_batches, parts, strict=True):
            failures[micro_batch.number % len(failures)] += not bool(torch.isfinite(loss))
        return self._sum(failures).nonzero().flatten().tolist()

    def _blame(self, what: str, micro_batches: Sequence[int]) -> str:
        """A message that names the trajectories of some micro-batches of this step; the first rank writes all down."""
        index = ManifestIndex.from_table(self.corpus.manifest, self.config.sampling)
        train, step = self.config.train, self.position.step
        size, samples, all_ids = train.samples_per_micro_batch, [], dict[str, None]()
        for i in (step * train.batch_size + m * size + k for m in micro_batches for k in range(size)):
            sample = plan(index, self.config.sampling, train.seed, i)
            rows = [clip.row for clip in (sample.a, sample.b) if clip is not None]
            ids = [self.corpus.manifest["id"][row].as_py() for row in rows]
            samples.append({"sample_index": i, "strategy": sample.strategy, "trajectories": ids})
            all_ids |= dict.fromkeys(ids)
        name = f"not-finite-step{step + 1}.json"
        where = self.output.full(name)
        if self.rank == 0:
            self.output.write_bytes(name, json.dumps(samples, indent=1).encode())
        more = f" and {len(all_ids) - MAX_NAMED} more" if len(all_ids) > MAX_NAMED else ""
        return (
            f"the {what} is not a finite number at step {step + 1}, which was not taken. Check its trajectories "
            f"{', '.join(list(all_ids)[:MAX_NAMED])}{more} (all are in {where})."
        )

    def _at(self, doing: str) -> None:
        self.whereabouts.at(self.position.step + 1, doing)

    def _record(self, values: dict[str, float]) -> None:
        self.position.history.append({"step": self.position.step} | values)
        metrics = {name if "/" in name else f"train/{name}": value for name, value in values.items()}
        self.run.metrics(metrics, self.position.step)

    def _checkpoint(self, whole: bool, wait: bool) -> None:
        """Save on every rank, validate on the first one unless a task does that, report to Ray Train.

        Args:
            whole: save the model and validate it, as a candidate for the best; else only what resumes the run.
            wait: for the upload, which otherwise goes on beside training.
        """
        started = time.perf_counter()
        self.whereabouts.at(self.position.step, "saves a checkpoint with the others")
        folder = Path(tempfile.mkdtemp(prefix="robometer-checkpoint-"))
        name = checkpointing.state_name(self.config, self.world_size)
        # A checkpoint with adapters holds only what is trained; the rest is in its base model.
        state = full_state(self.engine, only_trained=self.config.model.lora.rank > 0) if whole else {}
        checkpointing.save_state(self.engine, folder, name)
        metrics: dict[str, float] = {"step": self.position.step}
        train = self.config.train
        beside = whole and train.validate and train.validate_async
        if self.rank == 0:
            if whole:
                provenance = self.spec["provenance"] | {"step": self.position.step}
                save_checkpoint(folder / MODEL, state, self.config, provenance)
            if train.validate and (beside or not whole):
                metrics[train.best_metric] = UNKNOWN if train.best_mode == "min" else -UNKNOWN
            elif train.validate:
                metrics |= self._validate(folder / MODEL)
            self._record({"checkpoint_seconds": time.perf_counter() - started})
            checkpointing.save_position(self.position, folder, name, metrics)
        self.whereabouts.at(self.position.step, "reports a checkpoint with the others")
        checkpointing.report(folder, metrics, self.position.step, wait, validation=beside)

    def _validate(self, folder: Path) -> dict[str, float]:
        self.whereabouts.at(self.position.step, "validates, while the others wait")
        metrics = measure(folder, self.config, self.corpus, str(self.engine.device))
        self._record(metrics)
        return metrics
