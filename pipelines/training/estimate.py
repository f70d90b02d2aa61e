"""What a training run needs of memory, before it runs: `robometer train --estimate`, without weights, GPU or Ray."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pipelines.training.deepspeed_settings import (
    check_deepspeed,
    deepspeed_config,
    deepspeeds_own_estimate,
    loaded_for_the_cpu,
)
from robometer.configs.loading import override
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.models.checkpoint import build_model, start_folder
from robometer.models.collate import collate_targets
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.scoring import Clip
from robometer.text import table
from robometer.training.activations import peak_bytes
from robometer.training.batch import Batch
from robometer.training.throughput import PEAK_TFLOPS, cost, work
from robometer.training.validation_split import training_corpus

GIB = 2.0**30
MASTER, MOMENTS, GRADIENT = 4, 8, 4
"""Bytes per trained parameter of ZeRO's float32 weights, of AdamW's two moments, and of a gradient that is summed over
micro-batches in float32."""

TASK = "pick up the red block from the left side of the table and put it into the open drawer"
"""The instruction where there is no corpus."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, and the bytes of each in forward and backward.

    Attributes:
        layer: the most that one module has of its own.
    """

    total: int
    trained: int
    layer: int
    width: int


@dataclass(frozen=True)
class States:
    """Bytes that a run needs whatever its batches are.

    Attributes:
        weights, gradients, optimizer: per GPU, all the time.
        buffers: per GPU, beside activations.
        step: per GPU, while the optimizer steps, when activations and buffers are gone.
        host: of CPU memory per process, for what is offloaded.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    step: float
    host: float

    @property
    def lasting(self) -> float:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer

    def peak(self, activations: float) -> float:
        """Bytes per GPU at the worst moment of a step."""
        return self.lasting + max(self.buffers + activations, self.step)


@dataclass(frozen=True)
class Activations:
    """Bytes of activations: `fixed + per_sample * micro_batch`."""

    fixed: int
    per_sample: int

    def __call__(self, micro_batch: int) -> int:
        return self.fixed + self.per_sample * micro_batch


def sizes_of(model: nn.Module) -> Sizes:
    """The sizes of a model, also of one on the meta device."""
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    layer = max(sum(own.numel() for own in module.parameters(recurse=False)) for module in model.modules())
    width = max(parameter.element_size() for parameter in parameters)
    return Sizes(sum(parameter.numel() for parameter in parameters), trained, layer, width)


def model_states(sizes: Sizes, config: Config, gpus: int) -> States:
    """Bytes of model states on each of `gpus` GPUs, as DeepSpeed 0.19 holds them under `config.train`.

    Padding, and small parameters that stage 3 leaves whole, are not counted. With offload, what gradients take on the
    GPU is an upper bound.
    """
    train, trained = config.train, sizes.trained
    zero = _zero_settings(config)
    stage, offload, share = train.zero_stage, train.offload != "none", trained / gpus
    weights = sizes.width * sizes.total / (gpus if stage == 3 else 1)
    if stage == 0:
        reduced = sizes.width * min(trained, zero["reduce_bucket_size"]) if gpus > 1 else 0
        return States(weights, sizes.width * trained, MOMENTS * trained, reduced, 0, 0)
    gradients = GRADIENT * (trained if stage == 1 else share)
    optimizer = (MASTER + MOMENTS) * share
    bucket = zero["reduce_bucket_size"] * (GRADIENT if stage == 1 else sizes.width) * zero["contiguous_gradients"]
    buffers = bucket * (2 if zero["overlap_comm"] and stage < 3 else 1)
    if stage == 3:  # weights that are whole at one time
        buffers += sizes.width * min(sizes.total, zero["max_live_parameters"])
    step = GRADIENT * share if stage < 3 else 0  # the gradients again, as one tensor
    if not offload:
        return States(weights, gradients, optimizer, buffers, step, 0)
    # Gradients wait in CPU memory in float32; before, those of micro-batches are summed there, in stages 1 and 2 at the
    # width of the weights. One whole gradient stays on the GPU to be added to.
    host = optimizer + share * (2 * GRADIENT if stage == 3 else GRADIENT + 2 * sizes.width)
    left = {1: gradients, 2: sizes.width * share, 3: 0.0}[stage] + (sizes.width * sizes.layer if stage < 3 else 0)
    moved = weights if train.offload == "parameters" else 0
    return States(weights - moved, left, 0, buffers, 0, host + moved)


def _zero_settings(config: Config) -> dict[str, Any]:
    with loaded_for_the_cpu():
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    return dict(DeepSpeedZeroConfig(**deepspeed_config(config, 1)["zero_optimization"]).model_dump())


def activations(config: Config, corpus: Corpus | None) -> Activations:
    """The activations of the run's model, counted for one and for two samples (`peak_bytes`).

    Every sample is a pair of clips of `sampling.max_frames` different frames each, the largest that a run can meet.
    """
    model = empty_model(config, corpus)
    one, two = (
        peak_bytes(model, largest_batch(config, corpus, count), config.loss, config.model.progress_loss)
        for count in (1, 2)
    )
    return Activations(2 * one - two, two - one)


def empty_model(config: Config, corpus: Corpus | None) -> nn.Module:
    """The model that the run trains, on the meta device. `flash_attention_2` needs no package here."""
    if config.model.attn_implementation == "flash_attention_2":
        config = override(config, {"model.attn_implementation": "sdpa"})
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames how activations are recomputed
        return build_model(config, cast(Corpus, corpus), weights=False)  # which only ReWiND reads


def largest_batch(config: Config, corpus: Corpus | None, count: int) -> Batch:
    """`count` pairs with as many frames as a sample can have, of the corpus's largest frames and longest task."""
    frames = config.sampling.max_frames
    if config.model.kind == "rewind":
        assert corpus is not None
        image_dim = corpus.embeddings(config.embed.image_encoder, 0).shape[1]
        text_dim = len(next(iter(corpus.text_embeddings(config.embed.text_encoder).values())))
        clip = ClipPlan.unlabelled(frames)
        plans = [SamplePlan(i, "preference", "forward", TASK, clip, clip, 0.0) for i in range(count)]
        embeddings = {f"embeddings_{side}": torch.zeros(count, frames, image_dim) for side in "ab"}
        return collate_targets(plans, {"text": torch.zeros(count, text_dim)} | embeddings)
    from robometer.models.robometer import load_processor

    (height, width), task = _frame_size(config, corpus), _longest_task(corpus)
    rng = np.random.default_rng(0)  # frames that differ, since equal ones are encoded once
    clips = [Clip(rng.integers(0, 255, (frames, height, width, 3), dtype=np.uint8), task) for _ in range(2 * count)]
    with start_folder(config) as folder:
        return load_processor(config, folder).collate_pairs(list(zip(clips[::2], clips[1::2], strict=True)))


def _frame_size(config: Config, corpus: Corpus | None) -> tuple[int, int]:
    """Height and width in px of the largest frames; without a corpus, 4:3 at the short edge of an ingest."""
    if corpus is None or not len(corpus):
        return config.ingest.short_edge, config.ingest.short_edge * 4 // 3
    sizes = corpus.manifest.select(["height", "width"]).group_by(["height", "width"]).aggregate([]).to_pylist()
    largest = max(sizes, key=lambda size: size["height"] * size["width"])
    return largest["height"], largest["width"]


def _longest_task(corpus: Corpus | None) -> str:
    return TASK if corpus is None else max([*corpus.manifest["task"].unique().to_pylist(), ""], key=len) or TASK


# --- the report -----------------------------------------------------------------------------------------------------


def report(config: Config) -> str:
    """Tables of what the run needs per GPU, in words and GiB.

    Raises:
        ConfigError, CorpusError: the model or its inputs cannot be known; ReWiND's sizes are those of a corpus.
    """
    check_deepspeed(config)
    corpus = _corpus(config)
    train, sizes = config.train, sizes_of(empty_model(config, corpus))
    counted = {choice: activations(_checkpointing(config, choice), corpus) for choice in _choices(config)}
    own = counted[train.gradient_checkpointing and config.model.kind == "robometer"]
    batch = train.samples_per_micro_batch
    states = model_states(sizes, config, train.num_workers)
    return "\n".join(
        [
            f"Model: {config.model.kind}, {sizes.total:,} parameters, {sizes.trained:,} of them trained, "
            f"{train.precision}",
            "",
            f"Model states in GiB per GPU, by train.zero_stage and train.num_workers (train.offload={train.offload}):",
            _states_table(config, sizes),
            "",
            f"Activations in GiB per GPU, by train.micro_batch_size. {_sample(config, corpus)}",
            _activations_table(counted, batch),
            *(
                f"{_title(choice)}: {_gib(count.fixed)} + {_gib(count.per_sample)} x micro-batch"
                for choice, count in counted.items()
            ),
            "",
            f"This run: train.zero_stage={train.zero_stage}, {train.num_workers} GPUs, {batch} samples a micro-batch",
            _run_table(states, own(batch)),
            "",
            _hours(config, corpus),
            "",
            LIMITS,
        ]
    )


MFU = 0.4
"""Share of a GPU's peak that the estimate of hours assumes; training logs what a run reaches as `mfu`."""


def _hours(config: Config, corpus: Corpus | None) -> str:
    """The arithmetic of the run, and the hours that follow from it."""
    train, model = config.train, empty_model(config, corpus)
    sample = cost(model, train.gradient_checkpointing).flops(work(largest_batch(config, corpus, 1), model))
    total = sample * train.batch_size * train.steps
    peaks = {name: PEAK_TFLOPS[name][0 if train.precision == "bf16" else 1] for name in ("H100", "A100", "L40S")}
    hours = ", ".join(f"{total / (peak * 1e12 * MFU * 3600):,.1f} on {name}" for name, peak in peaks.items())
    return (
        f"Time: {sample / 1e12:,.3g} TFLOP for a sample, {total / 1e18:,.3g} EFLOP for {train.steps:,} steps of "
        f"{train.batch_size} samples. GPU hours at {MFU:.0%} of the peak, by calculation: {hours}."
    )


LIMITS = """\
How far to trust this: model states are exact up to padding, and a bound with train.offload. Activations are counted
tensor by tensor for the largest samples; attention counts as a fused kernel (on GPUs, float32 with grouped keys may get
a plain one, which takes more). Not in the numbers: the CUDA context, workspaces of kernels, NCCL's buffers, and
fragmentation. Leave a fifth of the GPU free. CPU runs agree with these counts; no GPU has checked them yet. DeepSpeed's
own estimate takes every weight as trained, in 16 bits with gradients of 16 and of 32 bits, and leaves out its buffers
and all activations."""


def _corpus(config: Config) -> Corpus | None:
    """The corpus of the run; None where there is none and the model does not need it."""
    from robometer.corpus.storage import Storage

    if config.model.kind == "robometer" and not Storage(config.corpus.path).exists("corpus.json"):
        return None
    return training_corpus(config)


def _choices(config: Config) -> Sequence[bool]:
    return (False, True) if config.model.kind == "robometer" else (False,)


def _checkpointing(config: Config, choice: bool) -> Config:
    return override(config, {"train.gradient_checkpointing": choice})


def _title(choice: bool) -> str:
    return f"train.gradient_checkpointing={str(choice).lower()}"


def _states_table(config: Config, sizes: Sizes) -> str:
    rows = []
    for stage in (0, 1, 2, 3):
        if _refused(config, stage):
            continue
        at_stage = override(
            config, {"train.zero_stage": stage, "train.zero_init": config.train.zero_init and stage == 3}
        )
        for gpus in sorted({1, 2, 4, 8, config.train.num_workers}):
            states = model_states(sizes, at_stage, gpus)
            parts = (states.weights, states.gradients, states.optimizer, states.lasting, states.buffers, states.host)
            theirs = deepspeeds_own_estimate(at_stage, sizes.total, sizes.layer, gpus)[0] if stage > 1 else None
            rows.append([str(stage), str(gpus), *map(_gib, parts), "-" if theirs is None else _gib(theirs)])
    header = ["stage", "GPUs", "weights", "gradients", "optimizer", "sum", "buffers", "CPU memory", "DeepSpeed's own"]
    return table(header, rows)


def _refused(config: Config, stage: int) -> bool:
    train = config.train
    needs_zero = train.precision == "bf16" or train.offload != "none"
    return (stage == 0 and needs_zero) or (stage < 3 and train.offload == "parameters")


def _activations_table(counted: dict[bool, Activations], batch: int) -> str:
    sizes = sorted({1, 2, 4, 8, 16, batch})
    rows = [[str(size), *(_gib(count(size)) for count in counted.values())] for size in sizes]
    return table(["micro-batch", *map(_title, counted)], rows)


def _run_table(states: States, activations: int) -> str:
    rows = [
        ["weights, gradients, optimizer", _gib(states.lasting)],
        ["buffers", _gib(states.buffers)],
        ["activations", _gib(activations)],
        ["at the worst moment of a step", _gib(states.peak(activations))],
    ]
    return table(["GiB per GPU", ""], [*rows, ["CPU memory per process", _gib(states.host)]])


def _sample(config: Config, corpus: Corpus | None) -> str:
    frames = config.sampling.max_frames
    if config.model.kind == "rewind":
        return f"A sample is a pair of clips of {frames} frames."
    height, width = _frame_size(config, corpus)
    source = "as the largest of the corpus" if corpus else "as an ingest makes them, since there is no corpus"
    tokens = int(largest_batch(config, corpus, 1).inputs["sequence_length"][0])
    return f"A sample is a pair of clips of {frames} frames of {height} x {width} px, {source}: {tokens:,} tokens."


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:,.2f}"
