"""Opens a checkpoint folder: ours, upstream's or LeRobot's, by its configuration and the headers of its weights.

| layout    | configuration                                  | weights                              | tokenizer    |
|-----------|------------------------------------------------|--------------------------------------|--------------|
| robometer | config.yaml, our `Config`                      | model.visual.*, heads                | in the folder|
| upstream  | config.yaml of `robometer/Robometer-4B`, also  | the same; ReWiND too                 | may be absent|
|           | in the parent folder, and the backbone's       |                                      |              |
|           | config.json                                    |                                      |              |
| lerobot   | config.json alone, with the backbone's inside  | model.model.visual.*, lm_head, heads | may be absent|

Settings of others that we do not have are ignored, unless they would make another model: those are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robometer.configs.loading import from_dict, to_dict
from robometer.configs.renamed import current
from robometer.configs.schema import Config
from robometer.models.config import EmbedConfig, FramePooling, ModelConfig, ProgressLoss
from robometer.models.weights import EMBEDDING, CheckpointError, Slot, slots
from robometer.sampling.config import ProgressTarget, SamplingConfig
from robometer.settings import ConfigError
from robometer.training.config import LossConfig, Precision, TrainConfig

CONFIG = "config.yaml"
BACKBONE = "config.json"
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")

Values = Mapping[str, Any]

_OF_THE_MODEL = ("model", "sampling", "embed")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, opened without reading its weights.

    Attributes:
        layout: `robometer`, `upstream` or `lerobot`.
        config: our configuration of the model; the number of progress bins is that of the weights.
        backbone: transformers' configuration of the vision-language backbone; None for ReWiND.
        vocabulary: rows of the token embedding; 0 for ReWiND.
        has_tokenizer: whether the folder holds a tokenizer.
        slots: the tensors, by our names.
    """

    folder: Path
    layout: str
    config: Config
    backbone: dict[str, Any] | None
    vocabulary: int
    has_tokenizer: bool
    slots: Mapping[str, Slot]


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the configuration and the weight headers of a checkpoint folder.

    Raises:
        CheckpointError: the folder is not a checkpoint, or its model is not supported.
    """
    path = Path(folder)
    layout, config = _config(path)
    tensors = slots(path)
    vocabulary = next((slot.shape[0] for name, slot in tensors.items() if EMBEDDING.search(name)), 0)
    backbone = _backbone(path, layout) if config.model.kind == "robometer" else None
    if backbone is not None and not vocabulary and not config.model.lora.rank:
        raise CheckpointError(f"{path} has no token embedding (embed_tokens.weight)")
    has_tokenizer = any((path / name).is_file() for name in TOKENIZERS)
    return Checkpoint(path, layout, _with_bins(config, tensors), backbone, vocabulary, has_tokenizer, tensors)


def _config(path: Path) -> tuple[str, Config]:
    """Layout and configuration of a folder; upstream's trainer writes config.yaml into the parent folder."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder")
    for file in (path / CONFIG, path.parent / CONFIG):
        values = _read_yaml(file) if file.is_file() else {}
        if "base_model_id" in (values.get("model") or {}):
            return "upstream", _convert(file, from_upstream, values)
        if values and file.parent == path:
            return "robometer", _convert(file, from_ours, values)
    values = _read_json(path / BACKBONE) if (path / BACKBONE).is_file() else {}
    if values.get("type") == "robometer" and "vlm_config" in values:
        return "lerobot", _convert(path / BACKBONE, from_lerobot, values)
    raise CheckpointError(
        f"{path} is not a checkpoint folder: it has neither a {CONFIG}, ours or upstream's, nor a {BACKBONE} of "
        "LeRobot's reward model"
    )


def _convert(file: Path, convert: Any, values: Values) -> Config:
    try:
        config: Config = convert(values)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{file}: {error}") from error
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{file} cannot be read: {reason}") from error
    return config


def _with_bins(config: Config, tensors: Mapping[str, Slot]) -> Config:
    """The configuration with as many progress bins as the weights have."""
    outputs = [slot.shape[0] for name, slot in tensors.items() if name.endswith("progress_head.4.weight")]
    if not outputs or config.model.progress_loss != "discrete":
        return config
    if outputs[0] < 2:
        raise CheckpointError(
            "progress_head has one output, but progress_loss=discrete in the configuration needs several"
        )
    return replace(config, sampling=replace(config.sampling, progress_bins=outputs[0]))


def _backbone(path: Path, layout: str) -> dict[str, Any]:
    if not (path / BACKBONE).is_file():
        raise CheckpointError(f"{path} has no {BACKBONE}, which describes the vision-language backbone")
    values = _read_json(path / BACKBONE)
    backbone: dict[str, Any] = values["vlm_config"] if layout == "lerobot" else values
    from robometer.models.backbones import BACKBONES

    if backbone.get("model_type") not in BACKBONES:
        raise CheckpointError(
            f"{path} is built on {backbone.get('model_type')!r}, which is not one of {', '.join(BACKBONES)}"
        )
    return backbone


# --- settings, ours and others -------------------------------------------------------------------------------------


def from_ours(values: Values) -> Config:
    """Our configuration, also as an earlier version wrote it.

    A setting that no longer exists is an error if the model depends on it. Otherwise (how a run was trained, on which
    machine) it is ignored, so that old checkpoints still load.
    """
    defaults = to_dict(Config())
    settings = {
        section: entries if section in _OF_THE_MODEL else {k: v for k, v in entries.items() if k in defaults[section]}
        for section, entries in current(values).items()
        if section in _OF_THE_MODEL or section in defaults
    }
    return from_dict(settings)


def from_upstream(values: Values) -> Config:
    """Our configuration from upstream's `ExperimentConfig`.

    Raises:
        CheckpointError: a setting describes a model that is not supported.
    """
    model, data, training = (dict(values.get(key) or {}) for key in ("model", "data", "training"))
    loss = dict(values.get("loss") or {})
    _refuse(model.get("use_peft"), "use_peft", True, "an adapter without its base model: merge it first")
    merged = {"progress_loss_type": loss.get("progress_loss_type"), "progress_discrete_bins": 10} | loss | model
    sampling = _sampling(data, merged)
    if model.get("rewind") or "rewind" in str(model["base_model_id"]).lower():
        return _rewind(dict(model.get("rewind") or {}), merged, sampling)
    return _robometer(merged | training, sampling)


def from_lerobot(values: Values) -> Config:
    """Our configuration from LeRobot's `RobometerConfig`.

    Raises:
        CheckpointError: as `from_upstream`.
    """
    return _robometer(values, _sampling(values, values))


def _robometer(values: Values, sampling: SamplingConfig) -> Config:
    _refuse(values.get("use_multi_image", True), "use_multi_image", False, "frames as a video")
    precisions: dict[str, Precision] = {"bfloat16": "bf16", "float32": "fp32"}
    dtype = str(values.get("torch_dtype", "bfloat16"))
    if dtype not in precisions:
        raise CheckpointError(f"torch_dtype={dtype} is not one of {', '.join(precisions)}")
    model = ModelConfig(
        kind="robometer",
        base_model=str(values["base_model_id"]),
        train_vision_encoder=bool(values.get("train_vision_encoder", False)),
        train_language_model=bool(values.get("train_language_model", True)),
        ask_progress=bool(values.get("predict_pref_progress", True)),
        per_frame_progress_token=bool(values.get("use_per_frame_progress_token", True)),
        frame_pooling=cast(FramePooling, str(values.get("frame_pooling", "mean"))),  # whose choices ModelConfig checks
        frame_pooling_temperature=float(values.get("frame_pooling_attn_temperature", 1.0)),
        progress_loss=cast(ProgressLoss, str(values["progress_loss_type"])),
    )
    loss = LossConfig(pair_progress=model.ask_progress)
    return Config(model=model, sampling=sampling, loss=loss, train=TrainConfig(precision=precisions[dtype]))


def _rewind(rewind: Values, values: Values, sampling: SamplingConfig) -> Config:
    # The heads follow the outer progress_loss_type: upstream never reads the one inside `rewind`.
    model = ModelConfig(
        kind="rewind",
        hidden_dim=int(rewind.get("hidden_dim", 512)),
        num_layers=int(rewind.get("num_layers", 4)),
        num_heads=int(rewind.get("num_attention_heads", 8)),
        dropout=float(rewind.get("dropout", 0.1)),
        max_len=int(rewind.get("max_len", 16)),
        attention="causal" if rewind.get("causal_mask", True) else "full",
        per_frame_progress_token=bool(rewind.get("use_per_frame_progress_token", True)),
        progress_loss=cast(ProgressLoss, str(values["progress_loss_type"])),
    )
    frames = min(sampling.max_frames, model.max_len)
    return Config(
        model=model,
        sampling=replace(sampling, max_frames=frames),
        embed=EmbedConfig(image_encoder="dinov2_base", text_encoder="minilm_l12"),
    )


def _sampling(data: Values, values: Values) -> SamplingConfig:
    defaults = SamplingConfig()
    target = str(data.get("progress_pred_type") or defaults.progress_target)
    # ReWiND's settings say "absolute", which upstream treats as the default.
    return SamplingConfig(
        max_frames=int(data.get("max_frames") or 16),
        progress_target=defaults.progress_target if target == "absolute" else cast(ProgressTarget, target),
        not_done_below_progress=float(data.get("min_success", defaults.not_done_below_progress)),
        default_cutoff=float(data.get("max_success", defaults.default_cutoff)),
        progress_bins=int(values.get("progress_discrete_bins") or defaults.progress_bins),
    )


def _refuse(value: object, name: str, refused: bool, what: str) -> None:
    if value is not None and bool(value) is refused:
        raise CheckpointError(f"{name}={str(refused).lower()} makes a model that is not supported ({what})")


# --- files ---------------------------------------------------------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):
    """YAML in which a Python object is read as the mapping, list or text that it was written as, and never created."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    del suffix
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(cast(yaml.ScalarNode, node))


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def _read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping with `${a.b}` resolved."""
    try:
        values = yaml.load(file.read_text(), _PlainLoader)  # noqa: S506 - a SafeLoader
        resolved = OmegaConf.to_container(OmegaConf.create(values or {}), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(resolved, dict):
        raise CheckpointError(f"{file} is not a mapping of settings")
    return {str(key): value for key, value in resolved.items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a mapping of settings")
    return values
