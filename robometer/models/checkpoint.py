"""Builds models from configuration, and writes and loads checkpoint folders, strictly.

A checkpoint folder holds the weights in the public layout (`model.safetensors`, or shards and an index), `config.yaml`,
`provenance.json` and, for the vision-language model, the backbone's `config.json` and its tokenizer. Upstream's and
LeRobot's public checkpoints load as they are: see `robometer.models.layouts`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robometer.configs.loading import save
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.errors import RobometerError
from robometer.frames import UPSTREAM, FrameSettings
from robometer.models.collate import Collator
from robometer.models.layouts import BACKBONE, CONFIG, Checkpoint, open_checkpoint
from robometer.models.rewind import Rewind, RewindEnsemble
from robometer.models.rewind_scorer import RewindCollator, RewindScorer, feature_statistics
from robometer.models.sources import locate
from robometer.models.weights import MAX_SHARD_SIZE, CheckpointError, fill, save_weights, weights_hash
from robometer.scoring import Scorer, ScorerInfo

PROVENANCE = "provenance.json"


def build_model(config: Config, corpus: Corpus, weights: bool = True) -> nn.Module:
    """The model that training starts from, with input sizes that fit the corpus.

    The weights are those of `train.load_from_checkpoint`. Without one they are random from `train.seed`, except for a
    vision-language model's backbone, which is that of `model.base_model`.

    Args:
        weights: whether to read weights from files; False where the caller replaces them anyway.

    Raises:
        CheckpointError: the checkpoint cannot be found, or holds another model than the configuration describes.
    """
    torch.manual_seed(config.train.seed)
    if config.model.kind == "robometer":
        return _build_robometer(config, weights)
    model = _fresh_rewind(config, corpus)
    if config.train.load_from_checkpoint and weights:
        fill(model, locate(config.train.load_from_checkpoint))
    return model


def _build_robometer(config: Config, weights: bool = True) -> nn.Module:
    from robometer.models.lora import add_lora
    from robometer.models.robometer import build_robometer

    with start_folder(config) as folder:
        if folder is None or not weights:
            model, tokenizer = build_robometer(config, folder, weights)
        else:
            with torch.device("meta"):
                model, tokenizer = build_robometer(config, folder)
            fill(model, locate(config.train.load_from_checkpoint))
    if config.model.lora.rank:
        add_lora(model, config.model.lora, tokenizer)
    return model


@contextmanager
def start_folder(config: Config) -> Iterator[Path | None]:
    """The folder with the backbone configuration and tokenizer that a run starts from; None for `model.base_model`.

    Raises:
        CheckpointError: `train.load_from_checkpoint` cannot be found, or training cannot start from it.
    """
    if not config.train.load_from_checkpoint:
        yield None
        return
    start = open_checkpoint(locate(config.train.load_from_checkpoint))
    if start.config.model.kind != config.model.kind:
        raise CheckpointError(
            f"{start.folder} holds a {start.config.model.kind} model, not a {config.model.kind} model"
        )
    if start.config.model.lora.rank:
        raise CheckpointError(
            f"{start.folder} holds adapters, from which training cannot start: merge them into a model first, with "
            f"`robometer publish {start.folder} --merge --output FOLDER`"
        )
    with backbone_folder(start) as folder:
        yield folder


def _fresh_rewind(config: Config, corpus: Corpus) -> nn.Module:
    image_dim = corpus.embeddings(config.embed.image_encoder, 0).shape[1]
    text_dim = len(next(iter(corpus.text_embeddings(config.embed.text_encoder).values())))
    model = _rewind(config, image_dim, text_dim)
    if config.model.standardise:
        mean, std = feature_statistics(corpus, config)
        for name, buffer in model.named_buffers():
            buffer.copy_(torch.from_numpy(mean if name.endswith("feature_mean") else std))
    return model


def build_collator(config: Config, corpus: Corpus) -> Collator:
    """The collator of `config.model.kind`, which turns plans into batches."""
    if config.model.kind == "robometer":
        from robometer.models.processing import RobometerCollator
        from robometer.models.robometer import load_processor

        with start_folder(config) as folder:
            return RobometerCollator(corpus, load_processor(config, folder))
    return RewindCollator(config, corpus)


def save_checkpoint(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: Config,
    provenance: Mapping[str, Any],
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write a checkpoint folder with the weights in `state`, in shards of at most `max_shard_size`.

    With adapters (`model.lora.rank`), `state` holds only the tensors of `trained_names`; the others are the base
    model's.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_weights(path, state, max_shard_size)
    save(config, path / CONFIG)
    (path / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2))
    if config.model.kind == "robometer":
        from robometer.models.robometer import save_processor

        with start_folder(config) as start:
            save_processor(config, path, start)


def load_config(source: str | Path) -> Config:
    """The configuration of a checkpoint (see `locate` for what `source` may be)."""
    return open_checkpoint(locate(source)).config


def load_model(source: str | Path, tracking_uri: str = "") -> tuple[nn.Module, Config]:
    """Model and configuration of a checkpoint (see `locate` for what `source` may be), loaded strictly.

    The model is built without memory, and takes its tensors from the files one by one.

    Raises:
        CheckpointError: the checkpoint cannot be found, a file is unreadable, or tensors are missing, unexpected or
            misshaped.
    """
    checkpoint = open_checkpoint(locate(source, tracking_uri))
    return filled_model(checkpoint), checkpoint.config


def filled_model(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint with its weights; a checkpoint of adapters is loaded on top of its base model.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshaped, or the base model has changed.
    """
    if not checkpoint.config.model.lora.rank:
        model = empty_model(checkpoint)
        fill(model, checkpoint.folder)
        return model
    from robometer.models.lora import trained_names

    torch.manual_seed(checkpoint.config.train.seed)  # a base model with random weights needs the seed of its run
    model = _build_robometer(checkpoint.config)
    base, base_hash = checkpoint.config.train.load_from_checkpoint, load_provenance(checkpoint.folder).get("base", "")
    if base_hash and base_hash != checkpoint_hash(locate(base)):
        raise CheckpointError(f"{checkpoint.folder} holds adapters for other weights than {base} has now")
    fill(model, checkpoint.folder, trained_names(model))
    return model


def empty_model(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint on the meta device, without weights.

    Raises:
        CheckpointError: the tokenizer and the token embedding differ in size.
    """
    if checkpoint.config.model.kind == "rewind":
        inputs = {
            name.split(".")[-2]: s.shape[-1] for name, s in checkpoint.slots.items() if name.endswith("_proj.weight")
        }
        with torch.device("meta"):
            return _rewind(checkpoint.config, inputs.get("video_proj", 1), inputs.get("text_proj", 1))
    from robometer.models.robometer import build_robometer, load_processor

    with backbone_folder(checkpoint) as folder:
        tokens = len(load_processor(checkpoint.config, folder).tokenizer)
        if tokens != checkpoint.vocabulary:
            raise CheckpointError(
                f"{checkpoint.folder} has {checkpoint.vocabulary} embedding rows, but its tokenizer has {tokens} "
                "tokens: they belong to different models"
            )
        with torch.device("meta"):
            return build_robometer(checkpoint.config, folder)[0]


@contextmanager
def backbone_folder(checkpoint: Checkpoint) -> Iterator[Path | None]:
    """The folder with `config.json` and tokenizer that `build_robometer` and `load_processor` read; None for ReWiND.

    For a public checkpoint this is a temporary folder: its backbone's configuration may lie inside another one, and if
    it has no tokenizer, that of its base model is used, with the reward model's tokens added in order.
    """
    if checkpoint.backbone is None or (checkpoint.layout == "robometer" and checkpoint.has_tokenizer):
        yield None if checkpoint.backbone is None else checkpoint.folder
        return
    from robometer.models.robometer import load_processor

    with tempfile.TemporaryDirectory() as place:
        rows = {"vocab_size": checkpoint.vocabulary}
        text = checkpoint.backbone.get("text_config")
        backbone = checkpoint.backbone | ({"text_config": text | rows} if text else rows)
        if checkpoint.has_tokenizer:
            others = shutil.ignore_patterns("*.safetensors*", "*.bin", "*.pt")
            shutil.copytree(checkpoint.folder, place, ignore=others, dirs_exist_ok=True)
        else:
            load_processor(checkpoint.config).tokenizer.save_pretrained(place)
        Path(place, BACKBONE).write_text(json.dumps(backbone))
        yield Path(place)


def load_provenance(folder: str | Path) -> dict[str, Any]:
    """What a checkpoint folder records about its training; empty if it records nothing."""
    path = Path(folder, PROVENANCE)
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def frames_of(checkpoint: Checkpoint) -> FrameSettings | None:
    """How a recording becomes frames for this model: as for its corpus, or upstream's way for public weights.

    Returns:
        None if the checkpoint does not record it, as those before November 2026.

    Raises:
        CheckpointError: the recorded settings are invalid.
    """
    ours, recorded = checkpoint.layout == "robometer", load_provenance(checkpoint.folder).get("frames")
    if ours and not recorded:
        return None
    try:
        return FrameSettings.from_dict((FrameSettings() if ours else UPSTREAM).as_dict() | (recorded or {}))
    except RobometerError as error:
        raise CheckpointError(f"{checkpoint.folder / PROVENANCE}: {error}") from error


def checkpoint_scorer(checkpoint: Checkpoint, device: str = "cpu") -> Scorer:
    """The scorer of a checkpoint, with its weights."""
    model, revision = filled_model(checkpoint), checkpoint_hash(checkpoint.folder)
    info = ScorerInfo(frames_of(checkpoint), revision=revision, provenance=load_provenance(checkpoint.folder))
    with backbone_folder(checkpoint) as folder:
        return make_scorer(
            model, checkpoint.config, _scorer_name(checkpoint, revision), device, folder=folder, info=info
        )


def checkpoint_identity(checkpoint: Checkpoint) -> str:
    """Text that is equal for checkpoints whose scorers give equal answers, made without loading weights."""
    name = _scorer_name(checkpoint, checkpoint_hash(checkpoint.folder))
    return f"{name} {checkpoint.config.model} {checkpoint.config.sampling.max_frames}"


def _scorer_name(checkpoint: Checkpoint, revision: str) -> str:
    return f"{checkpoint.config.model.kind}@{revision}"


def make_scorer(
    model: nn.Module,
    config: Config,
    name: str,
    device: str = "cpu",
    folder: str | Path | None = None,
    corpus: Corpus | None = None,
    info: ScorerInfo = ScorerInfo(),  # noqa: B008 - frozen
) -> Scorer:
    """Scorer around a model in memory; with a corpus, the task embeddings of that corpus are used."""
    if isinstance(model, Rewind | RewindEnsemble):
        texts = corpus.text_embeddings(config.embed.text_encoder) if corpus else None
        return RewindScorer(model, config, name, device, texts, info)
    from robometer.models.robometer import Robometer, load_processor
    from robometer.models.robometer_scorer import RobometerScorer

    assert isinstance(model, Robometer)
    return RobometerScorer(model, load_processor(config, folder), config, name, device, info)


def checkpoint_hash(folder: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of the weights: the model's revision."""
    return weights_hash(folder)


def _rewind(config: Config, image_dim: int, text_dim: int) -> Rewind | RewindEnsemble:
    m = config.model
    members = [
        Rewind(
            image_dim,
            text_dim,
            m.hidden_dim,
            m.num_layers,
            m.num_heads,
            m.max_len,
            config.sampling.progress_bins,
            m.progress_loss,
            m.dropout,
            m.attention,
            m.per_frame_progress_token,
            m.standardise,
            m.window,
        )
        for _ in range(m.members)
    ]
    return members[0] if m.members == 1 else RewindEnsemble(members)
