"""Robometer: reward heads on a vision-language backbone, in the key layout of the public checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from robometer.configs.schema import Config
from robometer.models.attention import IMPLEMENTATIONS, KeyValues, PackedCache, packed_kwargs
from robometer.models.backbones import backbone_of
from robometer.models.heads import RewardHeads
from robometer.models.processing import RobometerProcessor
from robometer.models.tiny import TINY, tiny_config, tiny_tokenizer
from robometer.settings import ConfigError
from robometer.training.batch import Batch, RewardOutput


class Robometer(RewardHeads):
    """Progress and success of each frame, and the preference between two trajectories.

    The heads read the backbone's last hidden states after its final norm: for the preference at `<|pref_token|>`, for
    a frame at the `<|prog_token|>` behind it or, without those tokens, the pooled states of the frame's own tokens. The
    language model is causal, so that prediction t of a clip depends on the task and frames 1..t; in a pair, B sees A
    but A does not see B.

    Batch inputs, for B samples that show F frames in N tokens, D of the frames distinct:
        `input_ids` int64 [N], all samples one after another; `sequence_length` int64 [B];
        `position_ids` int64 [4, N]: place in the sample, then time, row and column for the rotary embedding;
        `patches` uint8 and `grid` int64 [D, 3] of the distinct frames (see `Cutter`); `image` int64 [F], the distinct
        frame that each shown frame is; `frame_tokens` int64 [F, M], the tokens at which a frame is read (padded with
        -1); `frames_a` int64 [B, Ta] and `frames_b` [B, Tb], the frames of A and B among the F (padded with 0);
        `preference_token` int64 [B].

    Args:
        pooling: how to pool a frame's tokens: `mean`, `boundary` (the last token) or `attention` (a learned softmax).
        temperature: temperature of that softmax.
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
        self.adapters: tuple[Any, ...] = ()  # peft's wrapper; in a tuple, so that it is not registered as a submodule
        # Part of the public layout. If it is not used it must not require a gradient, or data-parallel training would
        # wait for one.
        self.frame_pool_attn = nn.Linear(hidden_dim, 1, bias=False).requires_grad_(pooling == "attention")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Cast parameters only: the buffers are rotary frequencies, which stay float32 whatever the weights are."""
        buffers = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in buffers.items():
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
        """Logits of every sample; B's are None without pairs; the preference of a progress sample is meaningless."""
        inputs = batch.inputs
        hidden = self.hidden_states(inputs)  # [N, H]
        # The heads run on packed states, which are padded afterwards. The preference head always runs: under ZeRO 3 all
        # ranks must run the same modules, whether or not their batch has pairs.
        progress, success = self.frame_logits(self._frame_states(hidden, inputs["frame_tokens"]))  # [F, K], [F]
        preference = self.preference_head(hidden[inputs["preference_token"]]).flatten()
        a, b = inputs["frames_a"], inputs["frames_b"]
        if b.shape[1] == 0:
            return RewardOutput(progress[a], success[a], None, None, preference)
        return RewardOutput(progress[a], success[a], progress[b], success[b], preference)

    def continued(self, inputs: dict[str, Tensor], past: Sequence[KeyValues]) -> tuple[Tensor, Tensor, list[KeyValues]]:
        """Progress [F, K] and success logits [F] of frames that follow others, and the keys and values of all.

        Args:
            inputs: as a batch of progress samples has them, of the tokens that are new.
            past: keys and values of the tokens before these, of each sample; empty for a sample that starts.
        """
        cache = PackedCache(past, inputs["sequence_length"].tolist())
        hidden = self.hidden_states(inputs, cache)
        return *self.frame_logits(self._frame_states(hidden, inputs["frame_tokens"])), cache.grown

    def hidden_states(self, inputs: dict[str, Tensor], cache: PackedCache | None = None) -> Tensor:
        """Last hidden states after the final norm [N, H] of the packed tokens."""
        pixels = self.cutter.pixels(inputs["patches"])
        features = self.family.features(self.model, pixels, inputs["grid"])
        images = inputs["image"].tolist()
        # Each distinct frame went through the vision tower once; here it is repeated for every place that shows it.
        features.pooler_output = [features.pooler_output[i] for i in images]
        if getattr(features, "deepstack_features", None) is not None:
            features.deepstack_features = [[level[i] for i in images] for level in features.deepstack_features]
        language = self.language_model.config
        positions = inputs["position_ids"] if self.family.spatial_positions else inputs["position_ids"][:1]
        output = self.model(
            input_ids=inputs["input_ids"][None],
            position_ids=positions[:, None] if self.family.spatial_positions else positions,
            mm_encoder_outputs={"image": features},
            use_cache=False,
            **({} if cache is None else {"cache": cache}),
            **packed_kwargs(language._attn_implementation, inputs["sequence_length"], inputs.get("past_length")),
        )
        return cast(Tensor, output.last_hidden_state[0])

    def _frame_states(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """States [F, H] of frames that are read at `tokens` [F, M]."""
        valid = tokens >= 0
        if tokens.shape[1] == 1:
            return hidden[tokens[:, 0]]
        if self.pooling == "boundary":
            return hidden[tokens.gather(1, valid.sum(1, keepdim=True) - 1)[:, 0]]
        states = hidden[tokens.clamp(min=0)]  # [F, M, H]
        weights = valid[..., None].to(states.dtype) / valid.sum(1)[:, None, None]
        if self.pooling == "attention":
            scores = self.frame_pool_attn(states) / self.temperature
            weights = scores.masked_fill(~valid[..., None], float("-inf")).softmax(1)
        return (weights * states).sum(1)


def load_processor(config: Config, folder: str | Path | None = None) -> RobometerProcessor:
    """The processor with the tokenizer of a checkpoint folder or, without a folder, of `model.base_model`.

    Raises:
        ConfigError: the tokenizer cannot be loaded, or the base model's family is not supported.
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
    """Write the tokenizer and the backbone's `config.json` into a checkpoint folder, so that it needs no base model.

    Args:
        source: the folder that `load_processor` reads.
    """
    processor = load_processor(config, source)
    processor.tokenizer.save_pretrained(folder)
    cast(Any, processor.base).text_config.vocab_size = len(processor.tokenizer)
    processor.base.save_pretrained(folder)


def build_robometer(
    config: Config, folder: str | Path | None = None, weights: bool = True
) -> tuple[Robometer, PreTrainedTokenizerBase]:
    """Model and tokenizer for `model.base_model`, with random heads.

    Args:
        folder: a checkpoint's folder: shapes and tokenizer come from there, all weights are random, and the caller
            loads the checkpoint's.
        weights: whether to load the base model's weights; without, or for a tiny base model, they are random.

    Raises:
        ConfigError: the base model cannot be loaded, or its family is not supported.
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
            "install it, or use sdpa"
        ) from error
    # Also if the table shrinks, as Qwen3-VL's does from 151936 to 151674 rows: public checkpoints have this size.
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
    except (OSError, ValueError) as error:  # transformers raises these for hubs, folders and files alike
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"model.base_model={str(source)!r} cannot be loaded ({reason}): give a hub id that can be reached, "
            f"a local folder with a vision-language model, or one of {', '.join(TINY)}"
        ) from error
