"""Robometer: reward heads on a vision-language backbone (Qwen3-VL), in the key layout of the public checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLModel, Qwen3VLTextConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from robometer.batch import Batch, RewardOutput, progress_from_logits
from robometer.configs.schema import Config, ConfigError
from robometer.models.heads import RewardHeads
from robometer.models.processing import MERGE, PATCH, TEMPORAL, RobometerProcessor, pixel_values
from robometer.models.tiny import TINY, tiny_config, tiny_tokenizer
from robometer.scoring import Clip, ClipScore, PrefixSession, Session, spread, thin_positions


class Robometer(RewardHeads):
    """Progress and success at each frame's `<|prog_token|>`, preference at `<|pref_token|>`.

    The heads read the backbone's last hidden states after its final norm. The language model is causal, so that
    prediction t of a clip depends on the task and frames 1..t; in a pair B sees A, and A does not see B.

    Batch inputs: what `robometer.models.processing.RobometerProcessor.collate` makes.
    """

    def __init__(self, backbone: Qwen3VLModel, progress_loss: str, bins: int, dropout: float = 0.1) -> None:
        hidden_dim = cast(Qwen3VLTextConfig, backbone.config.text_config).hidden_size
        super().__init__(hidden_dim, progress_loss, bins, dropout)
        self.model = backbone
        # Part of the public layout; only frame pooling, which is not done here, reads it. Without a gradient of its
        # own it must not ask for one, or data-parallel training would wait for it.
        self.frame_pool_attn = nn.Linear(hidden_dim, 1, bias=False).requires_grad_(False)

    def forward(self, batch: Batch) -> RewardOutput:
        """Logits for every sample: B's are None without pairs; the preference of a progress sample means nothing."""
        inputs = batch.inputs
        hidden = self.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            pixel_values=pixel_values(inputs["patches"]),
            image_grid_thw=inputs["image_grid_thw"],
            use_cache=False,
        ).last_hidden_state  # [B, L, H]
        at_a, at_b = inputs["progress_index_a"], inputs["progress_index_b"]
        # Both clips in one call, and the preference head always: under ZeRO 3 every rank must run the same modules,
        # whether or not its batch has pairs.
        progress, success = self.frame_logits(_states(hidden, torch.cat([at_a, at_b], 1)))
        preference = self.preference_head(_states(hidden, inputs["preference_index"][:, None])).flatten()
        split = at_a.shape[1]
        has_b = at_b.shape[1] > 0
        return RewardOutput(
            progress[:, :split],
            success[:, :split],
            progress[:, split:] if has_b else None,
            success[:, split:] if has_b else None,
            preference,
        )


def _states(hidden: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [B, T, H] of [B, L, H] at token positions [B, T]."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def load_processor(config: Config, folder: str | Path | None = None) -> RobometerProcessor:
    """Processor with the tokenizer of a checkpoint folder, or without one of `model.base_model`.

    Raises:
        ConfigError: the tokenizer cannot be had.
    """
    base = config.model.base_model
    if folder is None and base == TINY:
        return RobometerProcessor(tiny_tokenizer())
    with _explained(folder or base):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder or base))
    return RobometerProcessor(tokenizer)


def save_processor(config: Config, folder: str | Path) -> None:
    """Write into a checkpoint folder what rebuilds the model without its base: tokenizer and backbone `config.json`."""
    processor = load_processor(config)
    processor.tokenizer.save_pretrained(folder)
    backbone = _backbone_config(config, processor)
    cast(Qwen3VLTextConfig, backbone.text_config).vocab_size = len(processor.tokenizer)
    backbone.save_pretrained(folder)


def build_robometer(config: Config, folder: str | Path | None = None) -> tuple[Robometer, PreTrainedTokenizerBase]:
    """Model and tokenizer for `model.base_model`: its weights (random for `tiny`), and random heads.

    With the folder of a checkpoint the shapes and the tokenizer come from there, all weights are random, and the
    caller loads the checkpoint's.

    Raises:
        ConfigError: the base model cannot be had, or is not one that the patches fit.
    """
    processor = load_processor(config, folder)
    if folder is None and config.model.base_model != TINY:
        with _explained(config.model.base_model):
            backbone = Qwen3VLModel.from_pretrained(config.model.base_model, dtype=_dtype(config), use_safetensors=True)
    else:
        backbone = Qwen3VLModel(_backbone_config(config, processor, folder))
    _check_patches(backbone.config, config.model.base_model)
    # Also where the table shrinks, as Qwen3-VL's does from 151936 to 151674 rows: public checkpoints have this size.
    backbone.resize_token_embeddings(len(processor.tokenizer))
    model = Robometer(backbone, config.model.progress_loss, config.sampling.progress_bins, config.model.dropout)
    backbone.visual.requires_grad_(config.model.train_vision_encoder)
    if config.train.gradient_checkpointing:
        cast(Any, backbone).gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(_dtype(config)), processor.tokenizer


def _backbone_config(config: Config, processor: RobometerProcessor, folder: str | Path | None = None) -> Qwen3VLConfig:
    if folder is None and config.model.base_model == TINY:
        return tiny_config(processor.tokenizer)
    with _explained(folder or config.model.base_model):
        return Qwen3VLConfig.from_pretrained(str(folder or config.model.base_model))


def _dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def _check_patches(config: Qwen3VLConfig, name: str) -> None:
    vision = cast(Qwen3VLVisionConfig, config.vision_config)
    if (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size) != (PATCH, MERGE, TEMPORAL):
        raise ConfigError(f"model.base_model={name!r} does not cut images as Qwen3-VL does: choose a Qwen3-VL model")


@contextmanager
def _explained(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # what transformers raises for hubs, folders and files alike
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"model.base_model={str(source)!r} cannot be loaded ({reason}): give a hub id that can be reached, "
            f"a local folder with a Qwen3-VL model, or `{TINY}`"
        ) from error


class RobometerScorer:
    """Scorer of a trained Robometer.

    A clip that is longer than the model was trained on (`sampling.max_frames`) is thinned to that many frames, evenly
    with first and last kept; predictions are interpolated linearly back to every frame of the clip.
    """

    image_encoder: str | None = None  # it reads frames

    def __init__(
        self,
        model: RewardHeads,
        processor: RobometerProcessor,
        config: Config,
        name: str = "robometer",
        device: str = "cpu",
    ) -> None:
        self.name, self.processor = name, processor
        self.provenance: dict[str, Any] = {}
        self._device, self._batch_size = device, config.evaluate.batch_size
        self._max_frames = config.sampling.max_frames
        self._model = model.to(device).eval()

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        return [score for chunk in self._chunks(len(clips)) for score in self._score(clips[chunk])]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """See `Scorer.compare`; the first clip is shown as trajectory A."""
        parts = [self._compare(pairs[chunk]) for chunk in self._chunks(len(pairs))]
        return np.concatenate([np.zeros(0, dtype=np.float32), *parts])

    def open_session(self, task: str) -> Session:
        """See `Scorer.open_session`."""
        return PrefixSession(self, task)

    def _score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        positions = [thin_positions(len(clip), self._max_frames) for clip in clips]
        thinned = [clip.take(at) for clip, at in zip(clips, positions, strict=True)]
        output = self._forward(self.processor.collate_clips(thinned))
        progress = progress_from_logits(output.progress_logits).cpu().numpy()
        success = output.success_logits.float().sigmoid().cpu().numpy()
        return [
            ClipScore(spread(progress[i, : len(at)], at, len(clip)), spread(success[i, : len(at)], at, len(clip)))
            for i, (clip, at) in enumerate(zip(clips, positions, strict=True))
        ]

    def _compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        thinned = [(self._thin(a), self._thin(b)) for a, b in pairs]
        output = self._forward(self.processor.collate_pairs(thinned))
        assert output.preference_logits is not None
        return np.asarray(output.preference_logits.float().sigmoid().cpu().numpy())

    def _thin(self, clip: Clip) -> Clip:
        return clip.take(thin_positions(len(clip), self._max_frames))

    def _chunks(self, count: int) -> list[slice]:
        return [slice(start, start + self._batch_size) for start in range(0, count, self._batch_size)]

    @torch.no_grad()
    def _forward(self, batch: Batch) -> RewardOutput:
        output: RewardOutput = self._model(batch.to(self._device))
        return output
