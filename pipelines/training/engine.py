"""The DeepSpeed engine of a run: ZeRO stage, precision, offload, and models that are too big for one process."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.training.deepspeed_settings import deepspeed_config
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.models.checkpoint import build_model
from robometer.settings import ConfigError
from robometer.training.optimisation import parameter_groups

Weights = Iterable[tuple[str, Tensor]]
"""Names and whole tensors, one at a time."""


def build_engine(config: Config, corpus: Corpus, world_size: int, universal: bool = False) -> Any:
    """A DeepSpeed engine around a fresh model; every rank must call this.

    Args:
        universal: whether it will load a universal checkpoint.
    """
    deepspeed = import_deepspeed(config)
    settings = deepspeed_config(config, world_size)
    if universal:
        settings["checkpoint"] = {"load_universal": True}
    with _empty_parameters() if config.train.zero_init else nullcontext():
        model = build_model(config, corpus, weights=not config.train.zero_init)
    groups = parameter_groups(model, config.train)
    if config.train.zero_init:
        weights = _first_weights(config, corpus) if dist.get_rank() == 0 else ()
        partitioned = partition(model, weights, settings)
        for group in groups:
            group["params"] = [partitioned[parameter] for parameter in group["params"]]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=settings, dist_init_required=False)
    if config.train.compile:
        _compile_blocks(model)
    return engine


def _compile_blocks(model: nn.Module) -> None:
    """Compile the repeated blocks of a model, one by one: what lies between them in transformers cannot be compiled."""
    for blocks in model.modules():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                block.compile(dynamic=True)


def apply_gradients(engine: Any) -> float:
    """Take the optimizer's step, unless the norm of the gradients is not finite; every rank must call this.

    Returns:
        The norm before clipping, over all parameters and workers. If it is not finite, no weight and no state of the
        optimizer was changed, and the next step begins without gradients.
    """
    # Stages 1 to 3 skip such a step themselves. Without ZeRO, DeepSpeed would clip by any norm and step; there every
    # rank has the same gradients.
    if engine.zero_optimization_stage() == 0:
        norm = float(nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
        if math.isfinite(norm):
            engine.step()
        else:  # as the other stages do
            engine.zero_grad()
            engine.micro_steps += 1
        return norm
    engine.step()
    return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.inf


def full_state(engine: Any, only_trained: bool = False) -> dict[str, Tensor]:
    """All parameters and buffers, whole, on the CPU of the first rank; empty on others. Every rank must call this."""
    state, first = {}, dist.get_rank() == 0
    for name, value in engine.module.state_dict(keep_vars=True).items():
        if only_trained and not value.requires_grad:
            continue
        with _gathered(value):  # one at a time, since all together may not fit on a device
            if first:
                state[name] = value.detach().to("cpu", copy=True)
    return state


@contextmanager
def _gathered(value: Tensor) -> Iterator[None]:
    """Make a tensor whole in the block, if ZeRO 3 has partitioned it.

    Small parameters are whole between steps. GatheredParameters would leave them partitioned, and the next step of a
    run that resumed from a universal checkpoint would fail with a `tracing error`.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if getattr(value, "ds_status", ZeroParamStatus.AVAILABLE) == ZeroParamStatus.AVAILABLE:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([value]):
        yield


def import_deepspeed(config: Config) -> Any:
    """Import DeepSpeed, which must know its device before."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.train.use_gpu else "cpu")
    import deepspeed
    import deepspeed.ops

    deepspeed.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed", category=FutureWarning)
    if not config.train.use_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would need a compiler
    return deepspeed


def partition(model: nn.Module, weights: Weights, settings: dict[str, Any]) -> dict[nn.Parameter, nn.Parameter]:
    """Fill a model of empty parameters and partition them for ZeRO 3, one by one; every rank must call this.

    Each process except the first holds at most one whole parameter, besides its share of the others.

    Args:
        weights: every parameter in the order of `named_parameters`; only the first rank's are used.

    Returns:
        The new parameter for each old one.
    """
    import deepspeed

    modules, new = dict(model.named_modules()), {}
    first, source = dist.get_rank() == 0, iter(weights)
    for name, parameter in list(model.named_parameters()):
        value = _expected(source, name) if first else torch.empty(parameter.shape)
        new[parameter] = nn.Parameter(value.to(parameter.dtype), requires_grad=parameter.requires_grad)
        deepspeed.zero.Init(module=nn.ParameterList([new[parameter]]), config_dict_or_path=settings)
        path, _, leaf = name.rpartition(".")
        setattr(modules[path], leaf, new[parameter])
    return new


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Modules built in the block have parameters without memory (on torch's meta device) and ordinary buffers."""
    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _first_weights(config: Config, corpus: Corpus) -> Weights:
    """The parameters that a fresh model starts from."""
    yield from build_model(config, corpus).named_parameters()


def _expected(weights: Iterator[tuple[str, Tensor]], name: str) -> Tensor:
    next_name, value = next(weights, ("nothing", torch.empty(0)))
    if next_name != name:
        raise ConfigError(f"the first weights of a model are out of order: got {next_name} instead of {name}")
    return value.detach()
