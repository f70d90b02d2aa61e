"""Robometer: reward heads on a vision-language backbone, in the key layout of the public checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from robometer.configs.schema import Config, ConfigError
from robometer.models.attention import IMPLEMENTATIONS, packed_kwargs
from robometer.models.backbones import backbone_of
from robometer.models.heads import RewardHeads
from robometer.models.processing import RobometerProcessor
from robometer.models.tiny import TINY, tiny_config, tiny_tokenizer
from robometer.training.batch import Batch, RewardOutput


class Robometer(RewardHeads):
    """Progress and success of each frame, and the preference between two trajectories.

    The heads read the backbone's last hidden states after its final norm: for the preference at `<|pref_token|>`, for
    a frame at the `<|prog_token|>` behind it, or without those tokens the pooled states of the frame's own
    tokens. The language model is causal, so that prediction t of a clip depends on the task and frames 1..t; in a pair
    B sees A, and A does not see B.

    Batch inputs, of B samples that show F frames in N tokens, D of the frames distinct:
        `input_ids` int64 [N], all samples one after another; `sequence_length` int64 [B];
        `position_ids` int64 [4, N]: place in the sample, then time, row and column for the rotary embedding;
        `patches` uint8 and `grid` int64 [D, 3] of the distinct frames (see `Cutter`); `image` int64 [F], which of them
        each shown frame is; `frame_tokens` int64 [F, M], the tokens that stand for a frame (padded with -1);
        `frames_a` int64 [B, Ta] and `frames_b` [B, Tb], which of the F frames are A's and B's (padded with 0);
        `preference_token` int64 [B].

    Args:
        pooling: of a frame's tokens: `mean`, `boundary` (the last one) or `attention` (a learned softmax).
        temperature: of that softmax.
    """

    def __init__(
        self,
        backbone: Any,
        progress_loss: str,
        bins: int,
        dropout: float = 0.1,
        pooling: str = "mean",
        temperature: float = 1.0,
    ) -> None:
        hidden_dim = backbone.config.text_config.hidden_size
        super().__init__(hidden_dim, progress_loss, bins, dropout)
        self.model = backbone
        self.family = backbone_of(backbone.config)
        self.cutter = self.family.cutter(backbone.config)
        self.pooling, self.temperature = pooling, temperature
        self.adapters: tuple[Any, ...] = ()  # peft's wrapper of the language model, in a tuple: it is not a part
        # Part of the public layout; where it is not read it must not ask for a gradient, or data-parallel training
        # would wait for it.
        self.frame_pool_attn = nn.Linear(hidden_dim, 1, bias=False).requires_grad_(pooling == "attention")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Cast parameters only: the buffers are rotary frequencies, which stay float32 whatever the weights are."""
        kept = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            owner, leaf = self.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            device = getattr(owner, leaf).device
            setattr(owner, leaf, getattr(owner, leaf) if device.type == "meta" else before.to(device))
        return self

    @property
    def language_model(self) -> Any:
        """The causal language model of the backbone."""
        return self.model.get_submodule(self.family.language)

    @property
    def vision_parts(self) -> list[nn.Module]:
        """The modules of the backbone that turn pixels into features."""
        return [self.model.get_submodule(name) for name in self.family.vision]

    def forward(self, batch: Batch) -> RewardOutput:
        """Logits for every sample: B's are None without pairs; the preference of a progress sample means nothing."""
        inputs = batch.inputs
        hidden = self.hidden_states(inputs)  # [N, H]
        # Packed through the heads, and padded only then. The preference head always runs: under ZeRO 3 every rank
        # must run the same modules, whether or not its batch has pairs.
        progress, success = self.frame_logits(self._frame_states(hidden, inputs["frame_tokens"]))  # [F, K], [F]
        preference = self.preference_head(hidden[inputs["preference_token"]]).flatten()
        a, b = inputs["frames_a"], inputs["frames_b"]
        if b.shape[1] == 0:
            return RewardOutput(progress[a], success[a], None, None, preference)
        return RewardOutput(progress[a], success[a], progress[b], success[b], preference)

    def hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Last hidden states after the final norm [N, H] of the packed tokens."""
        pixels = self.cutter.pixels(inputs["patches"])
        features = self.family.features(self.model, pixels, inputs["grid"])
        shown = inputs["image"].tolist()
        # Each distinct frame went through the vision tower once; here it takes all the places where it is shown.
        features.pooler_output = [features.pooler_output[i] for i in shown]
        if getattr(features, "deepstack_features", None) is not None:
            features.deepstack_features = [[level[i] for i in shown] for level in features.deepstack_features]
        language = self.language_model.config
        positions = inputs["position_ids"] if self.family.spatial_positions else inputs["position_ids"][:1]
        output = self.model(
            input_ids=inputs["input_ids"][None],
            position_ids=positions[:, None] if self.family.spatial_positions else positions,
            mm_encoder_outputs={"image": features},
            use_cache=False,
            **packed_kwargs(language._attn_implementation, inputs["sequence_length"]),
        )
        return cast(Tensor, output.last_hidden_state[0])

    def _frame_states(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """States [F, H] of frames for which `tokens` [F, M] stand."""
        there = tokens >= 0
        if tokens.shape[1] == 1:
            return hidden[tokens[:, 0]]
        if self.pooling == "boundary":
            return hidden[tokens.gather(1, there.sum(1, keepdim=True) - 1)[:, 0]]
        states = hidden[tokens.clamp(min=0)]  # [F, M, H]
        weights = there[..., None].to(states.dtype) / there.sum(1)[:, None, None]
        if self.pooling == "attention":
            scores = self.frame_pool_attn(states) / self.temperature
            weights = scores.masked_fill(~there[..., None], float("-inf")).softmax(1)
        return (weights * states).sum(1)


def load_processor(config: Config, folder: str | Path | None = None) -> RobometerProcessor:
    """Processor with the tokenizer of a checkpoint folder, or without one of `model.base_model`.

    Raises:
        ConfigError: the tokenizer cannot be had, or the base model is of no family that there is.
    """
    source = str(folder or config.model.base_model)
    if source in TINY:
        tokenizer = tiny_tokenizer()
        base: PretrainedConfig = tiny_config(source, tokenizer)
    else:
        with _explained(source):
            tokenizer = cast(
                PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, **_revision(config, folder))
            )
            base = AutoConfig.from_pretrained(source, **_revision(config, folder))
    model = config.model
    return RobometerProcessor(tokenizer, base, model.ask_progress, model.per_frame_progress_token)


def save_processor(config: Config, folder: str | Path, source: str | Path | None = None) -> None:
    """Write into a checkpoint folder what rebuilds the model without its base: tokenizer and backbone `config.json`.

    Args:
        source: as in `load_processor`.
    """
    processor = load_processor(config, source)
    processor.tokenizer.save_pretrained(folder)
    cast(Any, processor.base).text_config.vocab_size = len(processor.tokenizer)
    processor.base.save_pretrained(folder)


def build_robometer(
    config: Config, folder: str | Path | None = None, weights: bool = True
) -> tuple[Robometer, PreTrainedTokenizerBase]:
    """Model and tokenizer for `model.base_model`: its weights, and random heads.

    A tiny base model has random weights, as every one has without `weights`.

    With the folder of a checkpoint the shapes and the tokenizer come from there, all weights are random, and the
    caller loads the checkpoint's.

    Raises:
        ConfigError: the base model cannot be had, or is of no family that there is.
    """
    processor, name = load_processor(config, folder), config.model.base_model
    attention = {"text_config": IMPLEMENTATIONS[config.model.attn_implementation], "vision_config": "sdpa"}
    if attention["text_config"] == "flash_attention_2":
        attention["vision_config"] = "flash_attention_2"
    if folder is None and name not in TINY and weights:
        with _explained(name):
            backbone = processor.family.model.from_pretrained(
                name, dtype=_dtype(config), use_safetensors=True, **_revision(config, folder)
            )
    else:
        if not weights:
            cast(Any, processor.base).text_config.vocab_size = len(processor.tokenizer)
        backbone = processor.family.model(processor.base)
    try:
        backbone.set_attn_implementation(attention)
    except ImportError as error:
        raise ConfigError(
            "model.attn_implementation=flash_attention_2 needs the package flash-attn and a GPU: "
            "install it, or take sdpa"
        ) from error
    # Also where the table shrinks, as Qwen3-VL's does from 151936 to 151674 rows: public checkpoints have this size.
    backbone.resize_token_embeddings(len(processor.tokenizer))
    model = Robometer(
        backbone,
        config.model.progress_loss,
        config.sampling.progress_bins,
        config.model.dropout,
        config.model.frame_pooling,
        config.model.frame_pooling_temperature,
    )
    for module in model.vision_parts:
        module.requires_grad_(config.model.train_vision_encoder)
    model.language_model.requires_grad_(config.model.train_language_model)
    if config.train.gradient_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(_dtype(config)), processor.tokenizer


def _revision(config: Config, folder: str | Path | None) -> dict[str, str]:
    return {"revision": config.model.revision} if folder is None and config.model.revision else {}


def _dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


@contextmanager
def _explained(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # what transformers raises for hubs, folders and files alike
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"model.base_model={str(source)!r} cannot be loaded ({reason}): give a hub id that can be reached, "
            f"a local folder with a vision-language model, or one of {', '.join(TINY)}"
        ) from error
