"""Checkpoints of a run: what they hold, how they are saved, and how any number of workers loads them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import posixpath
import shutil
import tempfile
import uuid
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.report_config import CheckpointUploadMode
from torch import Tensor

from pipelines.training.engine import build_engine
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError

logger = logging.getLogger(__name__)

HISTORY = "history.jsonl"
STATE = "state"
MODEL = "model"
BEST = "best"
"""Folder of the best model of a run or a sweep."""
POSITION = "step.json"
PULSE = "pulse"
"""File of a run in which its first worker writes its progress, so that the driver sees whether the run goes on."""

UNKNOWN = 1e300
"""Value of the ranking metric for a checkpoint without validation, with the sign that ranks it last. Ray Train would
rank a checkpoint without the metric first where less is better, and reads not-a-number back as null."""

Folder = TypeVar("Folder")

History = list[dict[str, float]]
"""What a run recorded, by step."""


def is_measured(value: float) -> bool:
    """Whether a metric of a checkpoint is a number from a validation."""
    return abs(value) < UNKNOWN


def best_of(
    checkpoints: Sequence[tuple[dict[str, float], Folder]], metric: str, mode: str
) -> tuple[dict[str, float], Folder] | None:
    """The checkpoint (metrics, folder) with the best value of a metric; of equals, the last.

    Args:
        mode: `max` or `min`.

    Returns:
        None where no checkpoint has the metric.
    """
    sign = -1.0 if mode == "min" else 1.0
    measured = [(metrics, path) for metrics, path in checkpoints if is_measured(metrics.get(metric, math.nan))]
    return max(measured, key=lambda item: (sign * item[0][metric], item[0]["step"]), default=None)


def read_history(storage: Storage, folder: str = "") -> History:
    """What a run, or the checkpoint in a folder of it, has recorded."""
    text = storage.read_bytes(posixpath.join(folder, HISTORY)).decode()
    return [json.loads(line) for line in text.splitlines()]


def history_text(history: History) -> str:
    """What `read_history` reads."""
    return "".join(json.dumps(entry) + "\n" for entry in history)


class TrainingError(RobometerError):
    """Training cannot go on; the message says why."""


@dataclass
class Position:
    """Where a run is: the steps done, and what was recorded by then."""

    step: int = 0
    history: History = field(default_factory=list)


def state_name(config: Config, world_size: int) -> str:
    """The name of a training state. A run with the same name can load the state as it is.

    The name also keeps apart the files that different numbers of workers left of a checkpoint that was not committed.
    """
    stage = config.train.zero_stage
    return f"zero{stage}-{config.train.offload}-{world_size}" if stage else "zero0"  # every worker has this whole


def save_state(engine: Any, folder: Path, name: str) -> None:
    """Save this rank's share of the trained weights and of the optimizer; every rank must call this.

    Frozen weights are not saved: they are those of the model that the run starts from.
    """
    engine.save_checkpoint(str(folder / STATE), tag=name, save_latest=False, exclude_frozen_parameters=True)


def save_position(position: Position, folder: Path, name: str, metrics: dict[str, float]) -> None:
    """Save what is the same on every rank; the first rank calls this."""
    (folder / HISTORY).write_text(history_text(position.history))
    values = {"step": position.step, "state": name, "metrics": metrics}
    (folder / POSITION).write_text(json.dumps(values))


def report(folder: Path, metrics: dict[str, float], step: int, wait: bool, validation: bool) -> None:
    """Give the checkpoint to Ray Train, which uploads it and then removes the folder.

    Args:
        wait: return after the upload; otherwise training goes on meanwhile.
        validation: have Ray Train validate it beside training.
    """
    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=f"step-{step:07d}",
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        validation=validation,
    )


def start(config: Config, corpus: Corpus, world_size: int) -> tuple[Any, Position]:
    """The engine and the position of the run's latest checkpoint, or of its start; every rank must call this.

    A state of another number of workers, another ZeRO stage or other offload is converted first.

    Raises:
        TrainingError: the checkpoint cannot be loaded.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return build_engine(config, corpus, world_size), Position()
    with checkpoint.as_directory() as folder:
        saved = json.loads(Path(folder, POSITION).read_text())
        history = read_history(Storage(folder))
        state = Path(folder, STATE, saved["state"])
        if saved["state"] == state_name(config, world_size):
            engine = build_engine(config, corpus, world_size)
            load_state(engine, state)
        else:
            with _converted(state) as universal:
                engine = build_engine(config, corpus, world_size, universal=True)
                load_state(engine, universal)
    if dist.get_rank() == 0:
        logger.info("Resumed %s at step %d.", checkpoint.path, saved["step"])
    return engine, Position(saved["step"], history)


def load_state(engine: Any, state: Path) -> None:
    """Load weights and optimizer; the options of each parameter group stay those of this run.

    A universal checkpoint of stage 3 has the options of the first group only, which DeepSpeed would give to all groups.
    It also has one step counter for all groups, which torch would advance once for each.

    Raises:
        TrainingError: DeepSpeed cannot read the state.
    """
    groups = engine.optimizer.param_groups
    options = [{key: group[key] for key in group if key not in ("params", "step")} for group in groups]
    loaded, _ = engine.load_checkpoint(str(state.parent), tag=state.name, load_module_strict=False)
    if loaded is None:
        raise TrainingError(f"the training state in {state} cannot be loaded")
    for group, own in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(own)
    for moments in engine.basic_optimizer.state.values():
        if isinstance(moments.get("step"), Tensor):
            moments["step"] = moments["step"].clone()


@contextlib.contextmanager
def _converted(state: Path) -> Iterator[Path]:
    """The universal form of a state, in a temporary folder that the workers of a node share.

    It leaves out buffers and weights that are not trained: the fresh model has them.
    """
    name = broadcast_from_rank_zero(f"robometer-{uuid.uuid4().hex}")
    folder = Path(tempfile.gettempdir(), name)
    maker = ray.train.get_context().get_local_rank() == 0
    if maker:
        to_universal(state, folder / STATE)
    dist.barrier()
    yield folder / STATE
    dist.barrier()
    if maker:
        shutil.rmtree(folder)


def to_universal(state: Path, target: Path) -> None:
    """Convert a DeepSpeed checkpoint to its universal form: whole tensors, a file for each parameter and kind.

    It converts in this process, since each converter process would import all of DeepSpeed.
    """
    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        input_folder=str(state),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # only pipelines of Megatron write it themselves
    )
    target.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(settings)
