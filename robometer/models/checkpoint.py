"""Build models from configuration, write checkpoint folders, load them strictly.

A checkpoint folder holds `model.safetensors` (upstream's key layout), `config.yaml`, `provenance.json` and, for the
vision-language model, its processor files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robometer.configs.loading import from_dict, save
from robometer.configs.schema import Config, ConfigError
from robometer.corpus.corpus import Corpus
from robometer.errors import RobometerError
from robometer.models.collate import Collator
from robometer.models.rewind import Rewind, RewindEnsemble
from robometer.models.rewind_scorer import RewindCollator, RewindScorer, feature_statistics
from robometer.scoring import Scorer


class CheckpointError(RobometerError):
    """A checkpoint that cannot be loaded; the message is one sentence that says why."""


def build_model(config: Config, corpus: Corpus) -> nn.Module:
    """A fresh model whose input sizes fit the corpus; weights follow from `train.seed`."""
    torch.manual_seed(config.train.seed)
    if config.model.kind == "robometer":
        from robometer.models.robometer import build_robometer

        return build_robometer(config)[0]
    image_dim = corpus.embeddings(config.embed.image_encoder, 0).shape[1]
    text_dim = len(next(iter(corpus.text_embeddings(config.embed.text_encoder).values())))
    model = _rewind(config, image_dim, text_dim)
    if config.model.standardise:
        mean, std = feature_statistics(corpus, config)
        for name, buffer in model.named_buffers():
            buffer.copy_(torch.from_numpy(mean if name.endswith("feature_mean") else std))
    return model


def build_collator(config: Config, corpus: Corpus) -> Collator:
    """What turns plans into batches for `config.model.kind`."""
    if config.model.kind == "robometer":
        from robometer.models.processing import RobometerCollator

        return RobometerCollator.from_config(config, corpus)
    return RewindCollator(config, corpus)


def save_checkpoint(
    folder: str | Path, state: Mapping[str, Tensor], config: Config, provenance: Mapping[str, Any]
) -> None:
    """Write a checkpoint folder; tensors go to the CPU, contiguous."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    save(config, path / "config.yaml")
    (path / "provenance.json").write_text(json.dumps(dict(provenance), indent=2))
    if config.model.kind == "robometer":
        from robometer.models.robometer import save_processor

        save_processor(config, path)


def load_config(folder: str | Path) -> Config:
    """The configuration of a checkpoint folder."""
    path = Path(folder)
    if not (path / "config.yaml").is_file() or not (path / "model.safetensors").is_file():
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.yaml and model.safetensors")
    try:
        return from_dict(yaml.safe_load((path / "config.yaml").read_text()))
    except (ConfigError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder}/config.yaml cannot be read: {error}") from error


def load_model(folder: str | Path) -> tuple[nn.Module, Config]:
    """Model and configuration of a checkpoint folder, loaded strictly.

    Raises:
        CheckpointError: no such folder, an unreadable file, or tensors that are missing, unexpected or misshaped.
    """
    config = load_config(folder)
    try:
        state = load_file(Path(folder) / "model.safetensors")
    except SafetensorError as error:
        raise CheckpointError(f"{folder}/model.safetensors is damaged: {error}") from error
    if config.model.kind == "robometer":
        from robometer.models.robometer import build_robometer

        model: nn.Module = build_robometer(config, folder)[0]
    else:
        sizes = {name.split(".")[-2]: value.shape[1] for name, value in state.items() if name.endswith("_proj.weight")}
        model = _rewind(config, sizes.get("video_proj", 1), sizes.get("text_proj", 1))
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit its own config.yaml: {' '.join(str(error).split())}") from error
    return model, config


def load_scorer(checkpoint: str | Path, device: str = "cpu") -> Scorer:
    """Scorer of a checkpoint folder, or of the endpoint at an http(s) URL."""
    if str(checkpoint).startswith(("http://", "https://")):
        from robometer.client import RemoteScorer

        return RemoteScorer(str(checkpoint))
    model, config = load_model(checkpoint)
    name = f"{config.model.kind}@{checkpoint_hash(checkpoint)}"
    scorer = make_scorer(model, config, name, device, folder=checkpoint)
    provenance = Path(checkpoint) / "provenance.json"
    scorer.provenance = json.loads(provenance.read_text()) if provenance.is_file() else {}  # type: ignore[attr-defined]
    return scorer


def make_scorer(
    model: nn.Module,
    config: Config,
    name: str,
    device: str = "cpu",
    folder: str | Path | None = None,
    corpus: Corpus | None = None,
) -> Scorer:
    """Scorer around a model in memory; with the corpus it will score, what that corpus has embedded is used."""
    if isinstance(model, Rewind | RewindEnsemble):
        texts = corpus.text_embeddings(config.embed.text_encoder) if corpus else None
        return RewindScorer(model, config, name, device, texts)
    from robometer.models.robometer import Robometer, load_processor
    from robometer.models.robometer_scorer import RobometerScorer

    assert isinstance(model, Robometer)
    return RobometerScorer(model, load_processor(config, folder), config, name, device)


def checkpoint_hash(folder: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of the weights: the model's revision."""
    digest = hashlib.sha256()
    with (Path(folder) / "model.safetensors").open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 22), b""):
            digest.update(chunk)
    return digest.hexdigest()[:12]


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
