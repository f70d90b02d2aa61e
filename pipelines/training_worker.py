"""What every training worker runs: DeepSpeed steps over the sample stream, checkpoints, validation."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.cluster import Progress, progress_bar
from pipelines.sample_stream import batches
from robometer import tracking
from robometer.batch import Batch
from robometer.configs.loading import from_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.errors import RobometerError
from robometer.evaluation.validation import validate
from robometer.losses import Losses, compute_losses, counts
from robometer.models.checkpoint import build_model, load_model, make_scorer, save_checkpoint
from robometer.optimisation import learning_rate, parameter_groups
from robometer.sampling import ManifestIndex, plan

logger = logging.getLogger(__name__)

HISTORY = "history.jsonl"
STATE = "state"
MODEL = "model"


class TrainingError(RobometerError):
    """Training that cannot go on; the message says why."""


class NotANumberError(TrainingError):
    """A loss that is not finite. Every rank raises it at the same step, and a retry would only raise it again."""


def train_worker(spec: dict[str, Any]) -> str:
    """Train from the latest checkpoint (or the start) to `train.steps`; runs on every worker of a `TorchTrainer`.

    Returns:
        What ended the run early, or nothing.

    Args:
        spec: `config` (dict), `provenance` (dict), `run_id` of the tracked run, `interactive`.
    """
    config = from_dict(spec["config"])
    with tracking.start(config, "train", run_id=spec["run_id"]) if _is_first() else _untracked() as run:
        try:
            Worker(config, spec, run).train()
        except NotANumberError as error:
            return str(error)
    return ""


def _untracked() -> Any:
    from contextlib import nullcontext

    return nullcontext(tracking.NullRun())


def _is_first() -> bool:
    return ray.train.get_context().get_world_rank() == 0


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's JSON for this run."""
    train = config.train
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": {"stage": train.zero_stage},
        "bf16": {"enabled": train.precision == "bf16"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.learning_rate,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": train.weight_decay,
                "torch_adam": not train.use_gpu,  # DeepSpeed's own CPU Adam is compiled at first use
            },
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


class Worker:
    """One rank of a training run."""

    def __init__(self, config: Config, spec: dict[str, Any], run: tracking.Run) -> None:
        self.config, self.spec, self.run = config, spec, run
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.corpus = Corpus(config.corpus.path)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.engine = self._engine()
        self._restore()

    def train(self) -> None:
        """Step until the end of the run."""
        bar = progress_bar("train", self.config.train.steps, self.spec["interactive"]) if self.rank == 0 else None
        # Closed at the end, so that Ray Data gives its share of the cluster back at once, not when a request expires.
        with closing(batches(ray.train.get_dataset_shard("train"))) as stream:
            self._steps(stream, bar)

    def _steps(self, stream: Iterator[Batch], bar: Progress | None) -> None:
        while self.step < self.config.train.steps:
            values = self._step(stream)
            if bar:
                bar(self.step, {"loss": values["loss"]})
            if self.step % self.config.train.log_every == 0 or self.step == self.config.train.steps:
                self._record(values)
            if self.step % self.config.train.checkpoint_every == 0 or self.step == self.config.train.steps:
                self._checkpoint()

    def _engine(self) -> Any:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if self.config.train.use_gpu else "cpu")
        import deepspeed
        import deepspeed.ops

        deepspeed.logger.setLevel(logging.WARNING)
        if not self.config.train.use_gpu:
            torch.set_num_threads(max(1, int(self.config.train.cpus_per_worker)))
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would want a compiler
        model = build_model(self.config, self.corpus)
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, self.config.train),
            config=deepspeed_config(self.config),
            dist_init_required=False,
        )
        return engine

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            loaded, _ = self.engine.load_checkpoint(f"{folder}/{STATE}", tag=STATE)
            if loaded is None:
                raise TrainingError(f"the training state in {checkpoint.path} cannot be loaded")
            lines = Path(folder, HISTORY).read_text().splitlines()
            self.step = json.loads(Path(folder, "step.json").read_text())["step"]
        self.history = [json.loads(line) for line in lines]
        if self.rank == 0:
            logger.info("resumed %s at step %d", checkpoint.path, self.step)

    def _step(self, stream: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step over `gradient_accumulation` micro-batches; returns what the global batch gave."""
        train, started = self.config.train, time.perf_counter()
        micro_batches = [self._next(stream, i) for i in range(train.gradient_accumulation)]
        waited = time.perf_counter() - started
        total = torch.stack([counts(batch, self.config.loss) for batch in micro_batches]).sum(0)
        total = self._sum(total)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.step + 1, self.config) * group["lr_scale"]
        # Dropout follows from (seed, step, rank), so that a resumed run draws what the uninterrupted one drew.
        torch.manual_seed(int(np.random.SeedSequence([train.seed, self.step, self.rank]).generate_state(1)[0]))
        parts = torch.zeros(4, dtype=torch.float64)
        self.engine.train()
        for batch in micro_batches:
            losses = self._losses(batch.to(self.engine.device), total)
            # DeepSpeed averages over workers and micro-batches; ours are shares of the global mean and add up.
            self.engine.backward(losses.total * self.world_size * train.gradient_accumulation)
            self.engine.step()
            parts += torch.stack([losses.total, losses.progress, losses.success, losses.preference]).detach().cpu()
        self.step += 1
        sums = self._sum(parts)
        if not torch.isfinite(sums[0]):
            raise NotANumberError(self._blame(micro_batches))
        values = dict(zip(("loss", "progress_loss", "success_loss", "preference_loss"), sums.tolist(), strict=True))
        seconds = time.perf_counter() - started
        norm = self.engine.get_global_grad_norm()
        return values | {
            "learning_rate": learning_rate(self.step, self.config),
            "grad_norm": float(norm) if norm is not None else math.nan,
            "samples_per_s": train.batch_size / seconds,
            "data_wait_share": waited / seconds,
        }

    def _losses(self, batch: Batch, total: Tensor) -> Losses:
        output = self.engine(batch)
        return compute_losses(output, batch, self.config.loss, self.config.model.progress_loss, total)

    def _next(self, stream: Iterator[Batch], micro_step: int) -> Batch:
        train = self.config.train
        batch = next(stream)
        position = (self.step * train.gradient_accumulation + micro_step) * self.world_size + self.rank
        expected = position * train.micro_batch_size
        if int(batch.sample_index[0]) != expected:
            raise TrainingError(f"the sample stream is out of order: got {int(batch.sample_index[0])}, not {expected}")
        return batch

    def _sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            values = values.to(self.engine.device)
            dist.all_reduce(values)
        return values.cpu()

    def _blame(self, micro_batches: list[Batch]) -> str:
        """Write down which trajectories gave a loss that is not a number; every rank writes its own."""
        index = ManifestIndex.from_table(self.corpus.manifest, self.config.sampling)
        samples = []
        for i in torch.cat([batch.sample_index for batch in micro_batches]).tolist():
            sample = plan(index, self.config.sampling, self.config.train.seed, i)
            rows = [clip.row for clip in (sample.a, sample.b) if clip is not None]
            ids = [self.corpus.manifest["id"][row].as_py() for row in rows]
            samples.append({"sample_index": i, "strategy": sample.strategy, "trajectories": ids})
        path = Path(self.config.train.output, f"nan-step{self.step}-rank{self.rank}.json")
        path.write_text(json.dumps(samples, indent=1))
        return f"the loss is not a number at step {self.step}: {path} lists the trajectories of the batch"

    def _record(self, values: dict[str, float]) -> None:
        self.history.append({"step": self.step} | values)
        self.run.metrics({f"train/{name}": value for name, value in values.items() if math.isfinite(value)}, self.step)

    def _checkpoint(self) -> None:
        """Save on every rank, validate on the first one, report to Ray Train."""
        state = self._full_state()
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save_checkpoint(f"{folder}/{STATE}", tag=STATE, save_latest=False)
            metrics: dict[str, float] = {"step": self.step}
            if self.rank == 0:
                save_checkpoint(f"{folder}/{MODEL}", state, self.config, self.spec["provenance"] | {"step": self.step})
                metrics |= self._validate(Path(folder, MODEL))
                lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
                Path(folder, HISTORY).write_text(lines)
                Path(folder, "step.json").write_text(json.dumps({"step": self.step, "metrics": metrics}))
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"step-{self.step:07d}",
            )

    def _full_state(self) -> dict[str, Tensor]:
        """All parameters, whole, on the first rank (under ZeRO 3 they are gathered; every rank must call this)."""
        if self.config.train.zero_stage < 3:
            return dict(self.engine.module.state_dict())
        import deepspeed

        parameters = list(self.engine.module.parameters())
        with deepspeed.zero.GatheredParameters(parameters):
            return {name: value.detach().cpu().clone() for name, value in self.engine.module.state_dict().items()}

    def _validate(self, folder: Path) -> dict[str, float]:
        train = self.config.train
        if not train.validate:
            return {}
        model, config = load_model(folder)
        scorer = make_scorer(model, config, "validation", folder=folder, corpus=self.corpus)
        metrics = validate(scorer, self.corpus, train.validation_splits, train.validation_clips, train.seed)
        self.history.append({"step": self.step} | metrics)
        self.run.metrics(metrics, self.step)
        return metrics
