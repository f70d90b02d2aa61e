"""Checkpoints of a run: what they hold, how they are saved, and how other workers than saved them load them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
import uuid
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.report_config import CheckpointUploadMode
from torch import Tensor

from pipelines.training.engine import build_engine
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.errors import RobometerError

logger = logging.getLogger(__name__)

HISTORY = "history.jsonl"
STATE = "state"
MODEL = "model"
POSITION = "step.json"
PULSE = "pulse"
"""File of a run's folder in which its first worker says how far it is, so that its driver sees whether it goes on."""

UNKNOWN = 1e300
"""Of the metric that checkpoints are ranked by, what one has that was not validated (yet), with the sign that ranks it
last. Ray Train would rank one without the metric first where less is better, and reads not-a-number back as null."""


def known(value: float) -> bool:
    """Whether a metric of a checkpoint is a number that a validation gave."""
    return abs(value) < UNKNOWN


class TrainingError(RobometerError):
    """Training that cannot go on; the message says why."""


@dataclass
class Position:
    """Where a run is: steps done, and what was recorded by then."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def state_name(config: Config, world_size: int) -> str:
    """The folder of a training state. Whoever asks for the same name can load it as it is.

    It also keeps apart what workers of different numbers left of one checkpoint that was never committed.
    """
    stage = config.train.zero_stage
    return f"zero{stage}-{config.train.offload}-{world_size}" if stage else "zero0"  # which every worker has whole


def save_state(engine: Any, folder: Path, name: str) -> None:
    """Save this rank's share of trained weights and of the optimizer; every rank must call this.

    Frozen weights are those of the model that the run starts from.
    """
    engine.save_checkpoint(str(folder / STATE), tag=name, save_latest=False, exclude_frozen_parameters=True)


def save_position(position: Position, folder: Path, name: str, metrics: dict[str, float]) -> None:
    """Save what is the same on every rank; the first one calls this."""
    (folder / HISTORY).write_text("".join(json.dumps(entry) + "\n" for entry in position.history))
    values = {"step": position.step, "state": name, "metrics": metrics}
    (folder / POSITION).write_text(json.dumps(values))


def report(folder: Path, metrics: dict[str, float], step: int, wait: bool, validation: bool) -> None:
    """Hand the checkpoint to Ray Train, which uploads it and then removes the folder.

    Args:
        wait: return when it is uploaded; otherwise training goes on meanwhile.
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

    A state that was saved by another number of workers, at another ZeRO stage or with other offload is converted first.

    Raises:
        TrainingError: the checkpoint cannot be loaded.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return build_engine(config, corpus, world_size), Position()
    with checkpoint.as_directory() as folder:
        saved = json.loads(Path(folder, POSITION).read_text())
        history = [json.loads(line) for line in Path(folder, HISTORY).read_text().splitlines()]
        state = Path(folder, STATE, saved["state"])
        if saved["state"] == state_name(config, world_size):
            engine = build_engine(config, corpus, world_size)
            load_state(engine, state)
        else:
            with _converted(state) as universal:
                engine = build_engine(config, corpus, world_size, universal=True)
                load_state(engine, universal)
    if dist.get_rank() == 0:
        logger.info("resumed %s at step %d", checkpoint.path, saved["step"])
    return engine, Position(saved["step"], history)


def load_state(engine: Any, state: Path) -> None:
    """Load weights and optimizer; the options of each parameter group stay those of this run.

    A universal checkpoint of stage 3 has the options of the first group only, which DeepSpeed would give to all, and
    one counter of steps for all of them, which torch would then advance once for each.

    Raises:
        TrainingError: there is no state that DeepSpeed can read.
    """
    groups = engine.optimizer.param_groups
    options = [{key: group[key] for key in group if key not in ("params", "step")} for group in groups]
    loaded, _ = engine.load_checkpoint(str(state.parent), tag=state.name, load_module_strict=False)
    if loaded is None:
        raise TrainingError(f"the training state in {state} cannot be loaded")
    for group, kept in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(kept)
    for moments in engine.basic_optimizer.state.values():
        if isinstance(moments.get("step"), Tensor):
            moments["step"] = moments["step"].clone()


@contextlib.contextmanager
def _converted(state: Path) -> Iterator[Path]:
    """The universal form of a state, in a temporary folder that the workers of a node share.

    Weights that are not trained, and buffers, are not part of it: they are what the fresh model has.
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
    """Convert a DeepSpeed checkpoint to its universal form: a file per parameter and kind, whole.

    One file after the other in this process: converters in processes of their own would each import all of DeepSpeed.
    """
    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        input_folder=str(state),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # which only pipelines of Megatron write themselves
    )
    target.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(settings)
