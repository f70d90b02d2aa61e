"""Group i_training: upstream's training runs of ReWiND, step by step, with our model, losses and optimiser settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from parity.difference import close, exact, wrong_upstream
from parity.groups.logged import logged_rows
from parity.groups.losses import mixed_targets, supervised_samples
from parity.groups.rewind import model_of
from parity.recorded import read
from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.upstream.losses import upstream_losses
from robometer.models.rewind import Rewind
from robometer.models.rewind_scorer import clip_inputs
from robometer.sampling.config import SamplingConfig
from robometer.training.batch import Batch, RewardOutput
from robometer.training.config import LossConfig, TrainConfig
from robometer.training.optimisation import BETAS, EPSILON, decays, parameter_groups, schedule, warmup_steps

GROUP = "i_training"
_STEP = {"atol": 1e-5, "rtol": 1e-5}
_NORM = {"atol": 1e-5, "rtol": 1e-4}
_MEAN_OF_STEP = 6e-5  # upstream's log rounds it to 4 digits
_WEIGHT, _KEY_BIAS = 1e-4, 1e-2

_ARCHITECTURE = {"num_attention_heads": 4, "max_len": 16, "causal_mask": True}
"""Of the recorded runs: what neither their weights nor their facts tell."""


class _Recorded(NamedTuple):
    """A recorded batch, which of its samples train progress, and what else is known of them."""

    batch: Batch
    supervised: Tensor
    facts: tuple[dict[str, Any], dict[str, Any]]


@dataclass
class _Step:
    """One optimizer step: what each micro-batch gave, the rate, and the norm of the gradient before it is clipped."""

    rate: float
    norm: float = 0.0
    micro: list[tuple[_Recorded, RewardOutput, float]] = field(default_factory=list)


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    here = recorded_set.folder / GROUP
    for facts in read(here / "cases.json"):
        case = f"{GROUP}/{facts['name']}"
        start, end = (load_file(here / f"{facts['name']}.{when}.safetensors") for when in ("init", "final"))
        with np.load(here / f"{facts['name']}.batches.npz") as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        batches = [_batch(tensors, k, inputs) for k, inputs in enumerate(facts["non_tensor"])]
        model, steps = _train(facts, start, batches, drop=True)
        yield from _settings(case, facts, model)
        for number, step in enumerate(steps):
            yield from _step_rows(case, facts, number, step)
        for name, theirs in end.items():
            yield from _final(f"{case}/{name}", name, model.get_parameter(name).detach(), theirs)
        if facts["gradient_accumulation_steps"] > 1:
            correct = _train(facts, start, batches, drop=False)[1]
            reason = "the gradients of all but the last micro-batch of a step are cleared"
            norms = [[step["grad_norm"] for step in facts["optimizer_steps"]], [step.norm for step in correct]]
            yield wrong_upstream(case, "gradient norm", reason, *norms)


def _batch(arrays: dict[str, Tensor], number: int, non_tensor: dict[str, Any]) -> _Recorded:
    """A recorded preference batch (A and B on one time axis) and progress batch as one mixed batch of ours."""
    pairs, singles = (
        {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        for prefix in (f"b{number}.preference_inputs.", f"b{number}.progress_inputs.")
    )
    targets = {f"pin_{name}": value for name, value in pairs.items()}
    targets |= {f"gin_{name}": value for name, value in singles.items()}
    facts = non_tensor["preference_inputs"], non_tensor["progress_inputs"]
    batch = mixed_targets(targets, *facts, SamplingConfig().not_done_below_progress)
    a, b = pairs["video_embeddings"].chunk(2, dim=1)
    single = singles["video_embeddings"]
    text = torch.cat([pairs["text_embeddings"], singles["text_embeddings"]])
    inputs = clip_inputs(text, [*a, *single], [*b, *single[:, :0]])
    frame_mask = batch.preference_mask[:, None].expand(-1, b.shape[1])
    batch = replace(batch, inputs=inputs, b=replace(batch.b, frame_mask=frame_mask))
    return _Recorded(batch, supervised_samples(targets), facts)


def _train(
    facts: dict[str, Any], start: dict[str, Tensor], batches: list[_Recorded], drop: bool
) -> tuple[Rewind, list[_Step]]:
    """A recorded run again; with `drop` each micro-batch clears the gradients of those before it, as upstream does."""
    model = model_of(start, _ARCHITECTURE | {"progress_loss_type": facts["loss"]}).train()
    accumulation = facts["gradient_accumulation_steps"]
    train = TrainConfig(
        steps=facts["max_steps"],
        learning_rate=facts["lr"],
        weight_decay=facts["weight_decay"],
        warmup_ratio=facts["warmup_ratio"] if facts["scheduler"] != "constant" else 0.0,
        schedule=facts["scheduler"].removesuffix("_with_warmup"),
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, train), betas=BETAS, eps=EPSILON)
    steps = []
    for number in range(train.steps):
        # Upstream's rate of a step is that of the schedule before it.
        step = _Step(train.learning_rate * schedule(number, warmup_steps(train), train.steps, train.schedule))
        for group in optimizer.param_groups:
            group["lr"] = step.rate * group["lr_scale"]
        optimizer.zero_grad()
        for i in range(accumulation):
            if drop:
                optimizer.zero_grad()
            recorded = batches[(number * accumulation + i) % len(batches)]
            output = model(recorded.batch)
            loss = upstream_losses(output, recorded.batch, LossConfig(), facts["loss"]).total
            (loss / accumulation).backward()
            step.micro.append((recorded, RewardOutput(*(part.detach() for part in output)), loss.item()))
        step.norm = float(clip_grad_norm_(model.parameters(), facts["max_grad_norm"]))
        optimizer.step()
        steps.append(step)
    return model, steps


def _settings(case: str, facts: dict[str, Any], model: Rewind) -> Iterator[Row]:
    parameters = dict(model.named_parameters())
    ours = {name for name, parameter in parameters.items() if decays(name, parameter)}
    # Upstream also lists what torch's attention keeps as None.
    yield exact(case, "parameters that decay", ours, parameters.keys() & set(facts["decay_parameters"]))
    yield exact(case, "AdamW's constants", [*BETAS, EPSILON], facts["adam"])


def _step_rows(case: str, facts: dict[str, Any], number: int, step: _Step) -> Iterator[Row]:
    at, recorded = f"{case}/step {number + 1}", facts["optimizer_steps"][number]
    yield close(at, "learning rate", step.rate, recorded["lr"], atol=1e-12)
    yield close(at, "gradient norm", step.norm, recorded["grad_norm"], **_NORM)
    mean = sum(loss for *_, loss in step.micro) / len(step.micro)
    yield close(at, "loss of a step", mean, recorded["hf_loss"], atol=_MEAN_OF_STEP)
    first = number * len(step.micro)
    for i, (arguments, output, loss) in enumerate(step.micro):
        logged, micro = facts["micro_steps"][first + i], f"{at}.{i + 1}"
        yield close(micro, "loss of a micro-batch", loss, logged["total"], **_STEP)
        yield from logged_rows(micro, output, *arguments, LossConfig(), facts["loss"], logged)


def _final(case: str, name: str, ours: Tensor, theirs: Tensor) -> Iterator[Row]:
    """The key bias moves no attention weight: its gradient is rounding noise, which AdamW turns into steps."""
    if not name.endswith("self_attn.in_proj_bias"):
        yield close(case, "final weights", ours, theirs, atol=_WEIGHT)
        return
    (query, key, value), (their_query, their_key, their_value) = ours.chunk(3), theirs.chunk(3)
    yield close(
        case,
        "final weights",
        torch.cat([query, value]),
        torch.cat([their_query, their_value]),
        atol=_WEIGHT,
    )
    yield close(case, "final key bias", key, their_key, atol=_KEY_BIAS)
