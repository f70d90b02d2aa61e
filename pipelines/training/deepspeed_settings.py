"""DeepSpeed's settings for a run: those that follow from ours, and those that `train.deepspeed` passes through."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from robometer.configs.schema import Config
from robometer.settings import ConfigError, did_you_mean, require
from robometer.training.optimisation import BETAS, EPSILON

KEY = "train.deepspeed"

_OURS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.learning_rate and train.weight_decay",
    "scheduler": "train.schedule and train.warmup_ratio",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "activation_checkpointing": "train.gradient_checkpointing",
    "flops_profiler": "train.profile_steps",
    "steps_per_print": "train.log_every",
    "tensorboard": "tracking.uri",
    "wandb": "tracking.uri",
    "csv_monitor": "tracking.uri",
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.cpu_offload": "train.offload",
    "zero_optimization.cpu_offload_param": "train.offload",
    "zero_optimization.compute_grad_norm": "train.max_grad_norm",
}
"""Keys of DeepSpeed that settings of ours decide, and which ones do."""

_UNSAFE = {
    "compile": "DeepCompile changes when gradients are reduced, and nobody has tried it here; there is train.compile",
    "zero_optimization.zenflow": "its steps come later than the check that losses and gradients are finite",
    "zero_optimization.elastic_checkpoint": "checkpoints for other numbers of workers are universal ones",
    "zero_optimization.legacy_stage1": "DeepSpeed has removed it",
}
"""Keys of DeepSpeed that no run can have here, and why."""

_SCALARS = ("communication_data_type", "memory_breakdown", "wall_clock_breakdown")


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings for this run on `world_size` workers.

    The batch sizes are nominal: where the number of workers does not divide that of micro-batches, some of these are
    copies with weight 0 (`pipelines.sample_stream.MicroBatches`).
    """
    train = config.train
    rounds = math.ceil(train.micro_batches / world_size)
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": train.use_gpu}
    if train.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": train.use_gpu}
    settings = {
        "train_batch_size": train.samples_per_micro_batch * rounds * world_size,
        "train_micro_batch_size_per_gpu": train.samples_per_micro_batch,
        "gradient_accumulation_steps": rounds,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": train.use_gpu,
        "bf16": {"enabled": train.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},  # else gradients of micro-batches would be summed in bf16
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.learning_rate,
                "betas": list(BETAS),
                "eps": EPSILON,
                "weight_decay": train.weight_decay,
                "torch_adam": not train.use_gpu,  # DeepSpeed's own CPU Adam needs a compiler at first use
            },
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return _merged(settings, train.deepspeed)


def _merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top, section by section."""
    return {
        key: _merged(settings.get(key) or {}, more[key])
        if isinstance(more.get(key), Mapping)
        else more.get(key, settings.get(key))
        for key in [*settings, *(key for key in more if key not in settings)]
    }


def check_deepspeed(config: Config) -> None:
    """Check `train.deepspeed` against the settings that the installed DeepSpeed knows, before any worker starts.

    Raises:
        ConfigError: a key is unknown, another setting of ours decides it, or its value cannot be used.
    """
    given = config.train.deepspeed
    if not given:
        return
    with loaded_for_the_cpu():
        from deepspeed.comm.config import CommsLoggerConfig
        from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
        from deepspeed.runtime.zero.offload_config import (
            DeepSpeedZeroOffloadOptimizerConfig,
            DeepSpeedZeroOffloadParamConfig,
        )

    _check_names("", given, ["zero_optimization", "comms_logger", "aio", *_SCALARS])
    sections = {"comms_logger": CommsLoggerConfig, "zero_optimization": DeepSpeedZeroConfig}
    for name, known in sections.items():
        if name in given:
            _check_names(f"{name}.", _section(name, given), _fields(known))
    if "aio" in given:
        _check_names("aio.", _section("aio", given), AIO_DEFAULT_DICT)
    _check_offload(config, "offload_optimizer", _fields(DeepSpeedZeroOffloadOptimizerConfig))
    _check_offload(config, "offload_param", _fields(DeepSpeedZeroOffloadParamConfig))
    for name, known in sections.items():
        if name in given:
            _check_values(name, known, deepspeed_config(config, config.train.num_workers)[name])


def _section(name: str, given: Mapping[str, Any], prefix: str = KEY) -> Mapping[str, Any]:
    key = f"{prefix}.{name}"
    require(isinstance(given[name], Mapping), f"{key} is a section. Give its keys, such as {key}.KEY=...")
    section: Mapping[str, Any] = given[name]
    return section


def _check_names(prefix: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    names = [f"{prefix}{name}" for name in known]
    for key, value in given.items():
        name = f"{prefix}{key}"
        require(name not in _OURS, f"{KEY}.{name} is decided by {_OURS.get(name)}. Set that instead.")
        require(name not in _UNSAFE, f"{KEY}.{name} cannot be used: {_UNSAFE.get(name)}. Leave it out.")
        if name not in names:
            near = did_you_mean(name, names) or f" It has {', '.join(sorted(known))}."
            raise ConfigError(f"{KEY} has no {name}.{near}")
        require(value != "auto", f"{KEY}.{name}=auto means nothing without transformers' Trainer. Give a value.")


def _fields(known: Any) -> list[str]:
    """Names of a section of DeepSpeed, under which its JSON has them; those that DeepSpeed gives up are left out."""
    fields = known.model_fields.items()
    live = [(name, field) for name, field in fields if not (field.json_schema_extra or {}).get("deprecated")]
    return [*(field.alias or name for name, field in live), *(name for name, field in live if field.alias)]


def _check_values(name: str, known: Any, values: Mapping[str, Any]) -> None:
    from pydantic import ValidationError

    try:
        known(**values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join([KEY, name, *map(str, fault["loc"])])
        what = f"{key}={fault['input']!r}" if fault["loc"] else key  # else it is about several keys
        raise ConfigError(f"{what} cannot be used: {fault['msg'].rstrip('.')}.") from error


def _check_offload(config: Config, name: str, known: Collection[str]) -> None:
    """`train.offload` says what is moved; DeepSpeed's own keys say where to, and how."""
    train = config.train
    zero = train.deepspeed.get("zero_optimization", {})
    if name not in zero:
        return
    _check_names(f"zero_optimization.{name}.", _section(name, zero, f"{KEY}.zero_optimization"), known)
    key, section = f"{KEY}.zero_optimization.{name}", zero[name]
    needed = ("optimizer", "parameters") if name == "offload_optimizer" else ("parameters",)
    require(train.offload in needed, f"{key} needs train.offload={' or '.join(needed)}.")
    require(section.get("device") != "none", f"{key}.device=none contradicts train.offload={train.offload}.")
    if section.get("device") == "nvme":
        require(train.zero_stage == 3, f"{key}.device=nvme needs train.zero_stage=3.")
        require(bool(section.get("nvme_path")), f"{key}.device=nvme needs {key}.nvme_path, a folder of every node.")


@contextmanager
def loaded_for_the_cpu() -> Iterator[None]:
    """Import DeepSpeed in a process that trains nothing, on whatever machine; processes started later are free."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    finally:
        if before is None:
            del os.environ["DS_ACCELERATOR"]


def deepspeeds_own_estimate(config: Config, parameters: int, largest_layer: int, gpus: int) -> tuple[int, int]:
    """Bytes per GPU and of CPU memory per node for model states, as DeepSpeed's own functions estimate them.

    They exist for stages 2 and 3, and take every weight as trained, in 16 bits.

    Args:
        parameters: of the whole model.
        largest_layer: the most parameters that one module has.
        gpus: all in one node.
    """
    train = config.train
    with loaded_for_the_cpu():
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    offload = train.offload != "none"
    if train.zero_stage == 3:
        cpu, gpu, _ = estimate_zero3_model_states_mem_needs(
            parameters,
            largest_layer,
            num_gpus_per_node=gpus,
            cpu_offload=offload,
            cpu_offload_params=train.offload == "parameters",
            zero_init=train.zero_init,
        )
    else:
        cpu, gpu = estimate_zero2_model_states_mem_needs(parameters, num_gpus_per_node=gpus, cpu_offload=offload)
    return int(gpu), int(cpu)
