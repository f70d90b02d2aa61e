"""Settings of the models and of the frozen encoders that one of them reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from robometer.runs import paths
from robometer.settings import Count, NotNegative, Positive, Range, Settings, WholeNumber, require

ProgressLoss = Literal["discrete", "l1", "l2"]
Attention = Literal["full", "causal", "state"]
FramePooling = Literal["mean", "boundary", "attention"]


@dataclass
class EmbedConfig(Settings, section="embed"):
    """Frozen encoders, which make the embeddings that ReWiND reads."""

    image_encoder: str = "efficientnet_lite0"
    """Encoder of frames, by its name in `robometer.models.encoders`."""
    text_encoder: str = "minilm_l6"
    """Encoder of instructions, by its name in `robometer.models.encoders`."""
    batch_size: Count = 32
    """Frames that an actor encodes at once."""
    actors: Count = 2
    """Processes that encode."""
    num_gpus: NotNegative = 0.0
    """GPUs of each of them; a fraction lets them share one."""


@dataclass
class LoraSettings(Settings, section="model.lora"):
    """Low-rank adapters on the language model; upstream uses rank 32, alpha 64 and all its projections."""

    rank: WholeNumber = 0
    """Rank of the adapters; 0: none, the language model itself is trained."""
    alpha: Count = 64
    """Their scale is `alpha / rank`."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.05
    """Dropout before the adapters."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers of the language model that get one."""


@dataclass
class _Kind(Settings):
    kind: Literal["rewind", "robometer"] = "rewind"
    """`rewind`: a transformer on frozen embeddings; `robometer`: a vision-language model."""


@dataclass
class RewindSettings(Settings):
    """What only `model.kind=rewind` reads, but for `dropout`."""

    hidden_dim: Count = 512
    """ReWiND: width."""
    num_layers: Count = 4
    """ReWiND: layers."""
    num_heads: Count = 8
    """ReWiND: attention heads; they must divide `hidden_dim`."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.1
    """ReWiND, and the heads of Robometer: dropout."""
    max_len: Count = 32
    """ReWiND: frames of a clip, at most; `sampling.max_frames` must not be more."""
    attention: Attention = "causal"
    """ReWiND: what a frame sees of the clip. `full`: all of it; `causal`: itself and the frames before it; `state`:
    those of its window."""
    window: Count = 1
    """ReWiND: frames that `attention=state` sees: the frame itself, and those just before it."""
    members: Count = 1
    """ReWiND: transformers whose logits are averaged; each learns from its share of the samples."""
    standardise: bool = False
    """ReWiND: shift and scale embeddings to zero mean and unit variance over the training split."""


@dataclass
class RobometerSettings(Settings):
    """What only `model.kind=robometer` reads."""

    base_model: str = "Qwen/Qwen3-VL-4B-Instruct"
    """Robometer: its backbone, a hub id, a folder, or a random tiny one (`tiny`, `tiny_qwen2_5_vl`, `tiny_smolvlm`)."""
    revision: str = ""
    """Robometer: revision of a hub id; empty: the newest."""
    train_vision_encoder: bool = False
    """Robometer: train the vision tower too, at `train.vision_learning_rate`."""
    train_language_model: bool = True
    """Robometer: train the language model; else only the heads."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    ask_progress: bool = True
    """Robometer: ask for the progress of clip A in the prompt of a pair too."""
    frame_pooling: FramePooling = "mean"
    """Robometer: what the heads read of a frame without a token of its own. `mean`: the mean of its tokens; `boundary`:
    its last one; `attention`: their mean by learned weights."""
    frame_pooling_temperature: Positive = 1.0
    """Robometer: temperature of those weights."""
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Robometer: attention kernel; all of them work without padding."""


@dataclass
class _Heads(Settings):
    per_frame_progress_token: bool = True
    """A token after each frame, where the heads read."""
    progress_loss: ProgressLoss = "discrete"
    """`discrete`: cross-entropy to a two-hot target over `sampling.progress_bins`; `l1` or `l2` of its value."""


# The order of the bases is the order of the fields: `repr` of a model is part of what a scorer's answers are kept by.
@dataclass
class ModelConfig(_Heads, RobometerSettings, RewindSettings, _Kind, section="model"):
    """The reward model: its kind, what ReWiND reads, what Robometer reads, and the heads of both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_local("model.base_model", self.base_model)
        require(
            self.hidden_dim % self.num_heads == 0,
            f"model.num_heads={self.num_heads} does not divide model.hidden_dim={self.hidden_dim}",
        )
