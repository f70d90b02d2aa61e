"""What a checkpoint holds and whether it fits its model, by group of tensors, from file headers alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robometer import text
from robometer.configs import to_dict
from robometer.configs.schema import Config
from robometer.models.checkpoint import backbone_folder, empty_model, frames_of, load_provenance
from robometer.models.config import ModelConfig
from robometer.models.layouts import BACKBONE, Checkpoint
from robometer.models.weights import EMBEDDING, CheckpointError, Match, Slot, match, optional_of, our_name, shapes_of

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Group:
    """The tensors of one part of the model: how many the checkpoint has, and how many do not fit."""

    name: str
    tensors: int
    parameters: int
    size_bytes: int
    missing: int
    unexpected: int
    misshaped: int


def inventory(checkpoint: Checkpoint) -> list[Group]:
    """The groups of a checkpoint, compared with the model of its configuration; the last one is the total."""
    shapes = {name: slot.shape for name, slot in checkpoint.slots.items()}
    fit = _fit(checkpoint, shapes)
    misfits = [set(fit.missing), set(fit.unexpected), {name for name, *_ in fit.misshaped}]
    names = dict.fromkeys([*checkpoint.slots, *fit.missing])
    groups = [
        _group(group, [name for name in names if _group_of(name) == group], checkpoint.slots, misfits)
        for group in dict.fromkeys(map(_group_of, names))
    ]
    return [*groups, _group("all", list(names), checkpoint.slots, misfits)]


def _fit(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Match:
    if not checkpoint.config.model.lora.rank:
        model = empty_model(checkpoint)
        return match(shapes_of(model), shapes, optional_of(model))
    from robometer.models.lora import add_lora, trained_names
    from robometer.models.robometer import build_robometer

    with backbone_folder(checkpoint) as folder, torch.device("meta"):
        adapted, tokenizer = build_robometer(checkpoint.config, folder)
        add_lora(adapted, checkpoint.config.model.lora, tokenizer)
    return match(shapes_of(adapted, trained_names(adapted)), shapes)


def _group(title: str, names: list[str], slots: Mapping[str, Slot], misfits: list[set[str]]) -> Group:
    present = [slots[name] for name in names if name in slots]
    sizes = [math.prod(slot.shape) for slot in present]
    size_bytes = sum(size * _BYTES[slot.dtype] for size, slot in zip(sizes, present, strict=True))
    return Group(title, len(present), sum(sizes), size_bytes, *(len(misfit & set(names)) for misfit in misfits))


def _group_of(name: str) -> str:
    if EMBEDDING.search(name):
        return "embed_tokens"
    first, *rest = name.split(".")
    return rest[0] if first == "model" and rest else first


def table(groups: list[Group]) -> str:
    """The groups as text."""
    header = ["group", "tensors", "parameters", "bytes", "missing", "unexpected", "misshaped"]
    rows = [
        [g.name, *(f"{n:,}" for n in (g.tensors, g.parameters, g.size_bytes, g.missing, g.unexpected, g.misshaped))]
        for g in groups
    ]
    return text.table(header, rows)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings and sizes of a checkpoint, in the names of the public server's `/model_info`; ready for JSON.

    Sizes are None where the checkpoint holds adapters alone, or where they mean nothing for a model that only scores.
    """
    settings = to_dict(checkpoint.config)
    if checkpoint.config.model.kind == "rewind":  # clients look for the name of the backbone, and this has none
        settings["model"]["base_model"] = ""
    architecture: dict[str, Any] = dict.fromkeys(
        ("total_parameters", "trainable_parameters", "frozen_parameters", "trainable_percentage")
    )
    if not checkpoint.config.model.lora.rank:
        model = empty_model(checkpoint)
        architecture |= {
            "model_class": type(model).__name__,
            "model_module": type(model).__module__,
            "total_parameters": _size(model),
            "architecture_summary": [
                {"name": name, "type": type(part).__name__, "parameters": _size(part)}
                for name, part in model.named_children()
            ],
        }
    return {
        "experiment_config": {name: settings[name] for name in ("model", "embed", "sampling")},
        "model_architecture": architecture,
    }


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def summary(checkpoint: Checkpoint, revision: str = "") -> str:
    """What a checkpoint records about itself, one fact per line."""
    model, config = checkpoint.config.model, checkpoint.config
    files = {slot.file.name for slot in checkpoint.slots.values() if slot.file.name}
    progress = f"{config.sampling.progress_bins} bins" if model.progress_loss == "discrete" else model.progress_loss
    tokenizer = "in the folder" if checkpoint.has_tokenizer else "from the base model"
    lines = {
        "layout": checkpoint.layout,
        "model": f"{model.kind}{f'@{revision}' if revision else ''}, progress as {progress}",
        "base model": model.base_model if model.kind == "robometer" else "",
        "vocabulary": str(checkpoint.vocabulary or ""),
        "tokenizer": tokenizer if checkpoint.vocabulary else "",
        "embeddings": f"{config.embed.image_encoder}, {config.embed.text_encoder}" if model.kind == "rewind" else "",
        "weights": f"{len(files) or 'no'} file(s), {', '.join(sorted({s.dtype for s in checkpoint.slots.values()}))}",
    }
    if not files:
        return _lined(lines)
    provenance = load_provenance(checkpoint.folder)
    lines |= {name: str(value) for name, value in provenance.items() if isinstance(value, str | int | float)}
    lines["trained on"] = f"split {config.sampling.split} of {', '.join(config.sampling.sources) or 'all sources'}"
    for name in ("sources", "splits"):
        lines[f"corpus {name}"] = ", ".join(f"{key} {count}" for key, count in (provenance.get(name) or {}).items())
    lines["frames"] = str(frames_of(checkpoint) or "not recorded")
    metrics = provenance.get("metrics") or {}
    lines["metrics"] = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "none recorded"
    return _lined(lines)


def _lined(lines: Mapping[str, str]) -> str:
    return "\n".join(f"{name:14} {value}" for name, value in lines.items() if value)


def dry_checkpoints(folder: str | Path) -> Iterator[Checkpoint]:
    """Checkpoints in both public layouts, without weights, at the size of the base model in `folder`.

    Names and shapes of the backbone come from transformers' own classes, those of the heads from the published
    checkpoint (`robometer/Robometer-4B`). Comparing them with our model shows whether the public weights will load.

    Args:
        folder: holds the base model's `config.json` and tokenizer.

    Raises:
        CheckpointError: it does not.
    """
    from robometer.models.robometer import load_processor

    path = Path(folder)
    if not (path / BACKBONE).is_file():
        raise CheckpointError(f"{folder} has no {BACKBONE}: give a folder with that of a base model and its tokenizer")
    config = Config(model=ModelConfig(kind="robometer", base_model=str(path)))
    vocabulary = len(load_processor(config, path).tokenizer)
    backbone: dict[str, Any] = json.loads((path / BACKBONE).read_text())
    for layout in ("upstream", "lerobot"):
        slots = _public_slots(path, layout, vocabulary, config.sampling.progress_bins)
        yield Checkpoint(path, layout, config, backbone, vocabulary, True, slots)


def _public_slots(folder: Path, layout: str, vocabulary: int, bins: int) -> dict[str, Slot]:
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    settings = AutoConfig.from_pretrained(folder)
    settings.text_config.vocab_size = vocabulary
    model_class: Any = AutoModel if layout == "upstream" else AutoModelForImageTextToText
    with torch.device("meta"):
        state = model_class.from_config(settings).state_dict()
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in state.items()}
    size = settings.text_config.hidden_size
    half = size // 2
    for head, outputs in (("progress_head", bins), ("preference_head", 1), ("success_head", 1)):
        shapes |= {f"{head}.0.weight": (half, size), f"{head}.4.weight": (outputs, half), f"{head}.4.bias": (outputs,)}
        shapes |= {f"{head}.{name}": (half,) for name in ("0.bias", "1.weight", "1.bias")}
    shapes["frame_pool_attn.weight"] = (1, size)
    return {our_name(key): Slot(Path(), key, shape, "BF16") for key, shape in shapes.items()}
