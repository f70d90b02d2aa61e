"""Typed configuration: one tree for all jobs. Values come from here, then from YAML groups, then from overrides."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from robometer.errors import RobometerError
from robometer.runs import paths
from robometer.runs.redaction import redacted

_FORMATS = Path(__file__).parents[1] / "corpus/formats"


class ConfigError(RobometerError):
    """A configuration that cannot run; the message is one sentence that says what to change."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, f"{name}={value!r} is none of {', '.join(allowed)}")


@dataclass
class CorpusConfig:
    """Where the corpus lies (local path or any URI that pyarrow's filesystems open)."""

    path: str = "outputs/corpus"
    """Folder of the corpus, or any URI that pyarrow opens (`s3://...`, `gs://...`)."""

    def __post_init__(self) -> None:
        paths.check_storage("corpus.path", self.path)


@dataclass
class IngestConfig:
    """Raw data to corpus. Sizes follow upstream: at most 32 frames, short edge 240 px."""

    format: str = "mp4_jsonl"
    """How the raw data lies on disk: a module of `robometer.corpus.formats`, or the dotted path of your own."""
    input: str = "bundled"
    """Folder or file of that format; `bundled` is the Meta-World corpus that comes with the package."""
    source_name: str = ""
    """Name of the data set (its source); empty: as the format says."""
    split: str = "train"
    """Split of trajectories whose format names none: `train`, or the name of a split to evaluate on."""
    max_frames: int = 32
    """Frames that are kept of a trajectory, at least 2; the first and the last always are."""
    short_edge: int = 240
    """Pixels of the shorter edge of a stored frame, at least 16."""
    jpeg_quality: int = 90
    """Quality of the stored frames, 1 to 100."""
    shard_size: int = 256
    """Trajectories of a shard, about; 2048 for a corpus of a million."""
    max_source_frames: int = 100_000
    """A video with more frames is refused."""
    max_source_pixels: int = 8192 * 8192
    """A video with more pixels in a frame is refused."""
    max_bad_fraction: float = 0.5
    """The job ends with status 2 if more than this share of the episodes was refused, 0 to 1."""
    retry_quarantined: bool = False
    """Read again what was refused before and has not changed."""
    update: bool = False
    """Store trajectories that differ from what is there in its place; else they are counted only."""

    def __post_init__(self) -> None:
        # A module of one's own may read from anywhere, and what is there is no mistake, whatever it looks like.
        if (_FORMATS / f"{self.format}.py").is_file() and not os.path.exists(self.input):
            paths.check_local("ingest.input", self.input)
        _check(self.max_frames >= 2, "ingest.max_frames must be at least 2")
        _check(self.short_edge >= 16, "ingest.short_edge must be at least 16 px")
        _check(1 <= self.jpeg_quality <= 100, "ingest.jpeg_quality must be in 1..100")
        _check(self.shard_size >= 1, "ingest.shard_size must be at least 1")


@dataclass
class EmbedConfig:
    """Frozen encoders, by name in `robometer.models.encoders`."""

    image_encoder: str = "efficientnet_lite0"
    """Frozen encoder of frames, by its name in `robometer.models.encoders`."""
    text_encoder: str = "minilm_l6"
    """Frozen encoder of instructions, by its name in `robometer.models.encoders`."""
    batch_size: int = 32
    """Frames that an actor encodes at once."""
    actors: int = 2
    """Processes that encode."""
    num_gpus: float = 0.0
    """GPUs of each of them; a fraction lets them share one."""


@dataclass
class PreferenceStrategies:
    """Relative weights of the ways to make a rejected trajectory."""

    rewind: float = 1.0
    """The rejected clip goes forward, then back."""
    suboptimal: float = 1.0
    """The rejected clip is a worse trajectory of the same task."""
    different_task: float = 1.0
    """The rejected clip is a success of another task."""
    reverse: float = 1.0
    """The rejected clip is played backwards."""
    paired: float = 0.0
    """A robot's success against a human's at the same task, played as a rewind, or the other way around."""


@dataclass
class ProgressStrategies:
    """Relative weights of the ways to show one trajectory."""

    forward: float = 1.0
    """As it was recorded."""
    reverse: float = 1.0
    """Backwards."""
    rewind: float = 1.0
    """Forward, then back."""
    different_instruction: float = 1.0
    """Under the instruction of another task: its progress is 0."""


@dataclass
class SamplingConfig:
    """What the plan draws. Names follow upstream's `data` group."""

    max_frames: int = 16
    """Frames that are shown of a clip, at least 2."""
    mode: str = "trajectory_first"
    """What is drawn first: `trajectory_first` walks over all trajectories; `strategy_first` draws a strategy, then a
    data set, then a trajectory."""
    sources: list[str] = field(default_factory=list)
    """Data sets and groups (`robometer/sampling/groups.yaml`) to draw from; empty: all."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Weight of data sets or groups, `'+sampling.source_weights={lab:2}'`; what is not named has 1."""
    preference: float = 1.0
    """Weight of samples that compare two clips, 0 or more."""
    progress: float = 1.0
    """Weight of samples of a single clip, 0 or more."""
    preference_strategies: PreferenceStrategies = field(default_factory=PreferenceStrategies)
    progress_strategies: ProgressStrategies = field(default_factory=ProgressStrategies)
    partial_success_threshold: float = 0.2
    """Two trajectories with partial success make a pair if they differ by at least this, 0 to 1."""
    same_source_probability: float = 0.5
    """How often another task is drawn from the same data set, 0 to 1."""
    min_frames_per_trajectory: int = 5
    """Shorter trajectories are not drawn."""
    progress_target: str = "absolute_first_frame"
    """`absolute_first_frame`: 0 at the earliest frame that is shown, 1 at the cut-off; `absolute_wrt_total_frames`:
    share of the whole trajectory; `relative_first_frame`: the change of the first from frame to frame."""
    not_done_below_progress: float = 0.5
    """Frames of a success train the success head as not done below this progress, 0 to 1; from there to the cut-off
    they are left out."""
    default_cutoff: float = 1.0
    """Share of a demonstration at which its task counts as done, 0 to 1, for data sets without a cut-off of their own
    (`robometer/sampling/cutoffs.yaml`)."""
    progress_bins: int = 10
    """Bins of the two-hot progress target, at least 2."""
    graded_pairs: float = 0.0
    """Share of unsuccessful trajectories that are paired with the other grade, 0 to 1: suboptimal beats failure."""
    feature_noise: float = 0.0
    """Noise on each frame's embedding, in standard deviations of each dimension."""
    clip_noise: float = 0.0
    """The same noise, one shift for all frames of a clip."""
    pad_frames: bool = False
    """Repeat the last frame up to `max_frames` and train it, as the public weights were."""
    split: str = "train"
    """Split to draw from."""

    def __post_init__(self) -> None:
        _one_of("sampling.mode", self.mode, ("trajectory_first", "strategy_first"))
        _one_of(
            "sampling.progress_target",
            self.progress_target,
            ("absolute_first_frame", "absolute_wrt_total_frames", "relative_first_frame"),
        )
        _check(self.max_frames >= 2, "sampling.max_frames must be at least 2")
        _check(self.preference >= 0 and self.progress >= 0, "sampling ratios must not be negative")
        _check(self.preference + self.progress > 0, "sampling.preference and sampling.progress are both 0")
        _check(
            all(0 <= weight < math.inf for weight in self.source_weights.values()),
            "sampling.source_weights must be numbers that are not negative",
        )
        _check(0 <= self.graded_pairs <= 1, "sampling.graded_pairs must be in [0, 1]")
        _check(min(self.feature_noise, self.clip_noise) >= 0, "sampling noise must not be negative")
        _check(self.progress_bins >= 2, "sampling.progress_bins must be at least 2")


@dataclass
class LoraSettings:
    """Low-rank adapters on the language model; upstream uses rank 32, alpha 64 and all its projections."""

    rank: int = 0
    """Rank of the adapters; 0: none, the language model itself is trained."""
    alpha: int = 64
    """Their scale is `alpha / rank`."""
    dropout: float = 0.05
    """Dropout before the adapters, 0 to 1."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers of the language model that get one."""

    def __post_init__(self) -> None:
        _check(self.rank >= 0, "model.lora.rank must not be negative")


@dataclass
class ModelConfig:
    """The reward model. `kind=rewind` reads embeddings, `kind=robometer` is the vision-language model."""

    kind: str = "rewind"
    """`rewind`: a transformer on frozen embeddings; `robometer`: a vision-language model."""
    hidden_dim: int = 512
    """Width of ReWiND."""
    num_layers: int = 4
    """Layers of ReWiND."""
    num_heads: int = 8
    """Attention heads of ReWiND; they must divide `hidden_dim`."""
    dropout: float = 0.1
    """Dropout of ReWiND, and of Robometer's heads, 0 to 1."""
    max_len: int = 32
    """Frames of a clip that ReWiND can take; `sampling.max_frames` must not be more."""
    attention: str = "causal"
    """What a frame sees of the clip in ReWiND: `full`: all; `causal`: those before it; `state`: those of its window."""
    window: int = 1
    """Frames that `attention=state` sees, at least 1: the frame itself, and those just before it."""
    members: int = 1
    """Transformers whose logits are averaged; each learns from its share of the samples."""
    standardise: bool = False
    """Shift and scale embeddings to zero mean and unit variance over the training split."""
    base_model: str = "Qwen/Qwen3-VL-4B-Instruct"
    """Backbone of the vision-language model: a hub id, a folder, or a random tiny one (`tiny`, `tiny_qwen2_5_vl`,
    `tiny_smolvlm`)."""
    revision: str = ""
    """Revision of a hub id; empty: the newest."""
    train_vision_encoder: bool = False
    """Train the vision tower too, at `train.vision_learning_rate`."""
    train_language_model: bool = True
    """Train the language model; else only the heads."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    ask_progress: bool = True
    """Ask for the progress of clip A in the prompt of a pair too."""
    frame_pooling: str = "mean"
    """What the heads read of a frame without a token of its own: the `mean` of its tokens, its last one (`boundary`),
    or their mean by learned weights (`attention`)."""
    frame_pooling_temperature: float = 1.0
    """Temperature of those weights, above 0."""
    attn_implementation: str = "sdpa"
    """Attention kernel: `sdpa`, `flash_attention_2` or `eager`; all work without padding."""
    per_frame_progress_token: bool = True
    """A token after each frame, where the heads read."""
    progress_loss: str = "discrete"
    """`discrete`: cross-entropy to a two-hot target over `sampling.progress_bins`; `l1` or `l2` of its value."""

    def __post_init__(self) -> None:
        paths.check_local("model.base_model", self.base_model)
        _one_of("model.kind", self.kind, ("rewind", "robometer"))
        _one_of("model.attention", self.attention, ("full", "causal", "state"))
        _one_of("model.frame_pooling", self.frame_pooling, ("mean", "boundary", "attention"))
        _one_of("model.attn_implementation", self.attn_implementation, ("sdpa", "flash_attention_2", "eager"))
        _check(self.frame_pooling_temperature > 0, "model.frame_pooling_temperature must be above 0")
        _check(self.window >= 1, "model.window must be at least 1")
        _check(self.members >= 1, "model.members must be at least 1")
        _one_of("model.progress_loss", self.progress_loss, ("discrete", "l1", "l2"))


@dataclass
class LossConfig:
    """loss = progress_weight * L_progress + success_weight * L_success + preference_weight * L_preference."""

    progress_weight: float = 1.0
    """Weight of the progress loss."""
    success_weight: float = 1.0
    """Weight of the success loss."""
    preference_weight: float = 1.0
    """Weight of the preference loss."""
    balance_success: bool = True
    """Frames with and without success count alike, however many there are of each."""
    supervise_b: bool = True
    """Train progress and success of both clips of a pair; else of the first only."""
    pair_progress: bool = True
    """Train progress of pairs; else of single clips only."""


@dataclass
class TrainConfig:
    """One training run. Running the same command again resumes it."""

    output: str = "outputs/train"
    """Folder of the run; the same folder resumes it."""
    load_from_checkpoint: str = ""
    """Weights to start from: a folder, `org/name[@revision]` of the hub, or an MLflow URI."""
    steps: int = 1000
    """Optimizer steps, at least 1."""
    batch_size: int = 32
    """Samples per optimizer step over all workers."""
    micro_batch_size: int = 0
    """Samples per forward pass of a worker; 0: `batch_size / num_workers`."""
    learning_rate: float = 1e-4
    """Learning rate after warm-up, above 0."""
    vision_learning_rate: float = 1e-5
    """Learning rate of the vision tower, where `model.train_vision_encoder` is on."""
    schedule: str = "cosine"
    """After warm-up: `cosine` or `linear` to 0, or `constant`."""
    weight_decay: float = 0.01
    """Of AdamW; biases and norms do not decay."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the rate rises from 0."""
    max_grad_norm: float = 10.0
    """Larger gradients are scaled down to this norm."""
    seed: int = 42
    """Decides the samples, their order, and what dropout draws."""
    num_workers: int = 1
    """Processes that train, each with its share of the batch."""
    min_workers: int = 0
    """With fewer workers than this the run waits; 0: as many as `num_workers`. Else it shrinks and grows."""
    resize_every_s: float = 60.0
    """Seconds between two looks of a run with `min_workers` whether it may grow."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: float = 1.0
    """CPUs that are reserved for a worker, its share of the data actors and of validation."""
    data_actors: int = 1
    """Processes that fetch and collate batches, on the nodes of the workers."""
    zero_stage: int = 2
    """DeepSpeed ZeRO: 0 nothing is shared out; 1 the optimizer's state; 2 gradients too; 3 weights too."""
    zero_init: bool = False
    """With stage 3 and a vision-language model: no process ever holds all of its weights."""
    offload: str = "none"
    """To CPU memory: `none`, `optimizer` (its state and its step), or `parameters` (these too, stage 3)."""
    precision: str = "fp32"
    """Of forward and backward: `fp32` or `bf16`; the optimizer's own weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    peak_tflops: float = 0.0
    """Peak of one device at this precision, for the MFU estimate; 0: known by the device's name."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept: the best ones, and the latest."""
    best_metric: str = "seen/preference_accuracy"
    """Metric of validation that chooses `best/`, as SPLIT/METRIC."""
    best_mode: str = "max"
    """`max` if larger is better, else `min`."""
    validate: bool = True
    """Validate at every checkpoint."""
    validate_async: bool = False
    """Validate in a task beside training, which else waits (as it does in a sweep, which decides by it)."""
    validation_gpus: float = 0.0
    """GPUs of that task."""
    validation_clips: int = 150
    """Clips per split that a validation scores."""
    validation_splits: list[str] = field(default_factory=lambda: ["seen"])
    """Splits that a validation scores."""
    log_every: int = 10
    """Steps between two entries of the history and the tracker."""
    max_failures: int = 3
    """Times that workers may fail before the run ends."""

    def __post_init__(self) -> None:
        paths.check_local("train.output", self.output)
        paths.check_checkpoint("train.load_from_checkpoint", self.load_from_checkpoint, empty=True)
        _check(self.zero_stage in (0, 1, 2, 3), "train.zero_stage must be 0, 1, 2 or 3")
        _check(self.learning_rate > 0, "train.learning_rate must be above 0")
        _one_of("train.schedule", self.schedule, ("cosine", "linear", "constant"))
        _one_of("train.precision", self.precision, ("fp32", "bf16"))
        _one_of("train.best_mode", self.best_mode, ("max", "min"))
        _one_of("train.offload", self.offload, ("none", "optimizer", "parameters"))
        _check(  # DeepSpeed 0.19.8 divides its gradients by a loss scale that it never multiplied them by
            self.precision != "bf16" or self.zero_stage > 0,
            "train.precision=bf16 needs train.zero_stage=1, 2 or 3: DeepSpeed's stage 0 has wrong gradients there",
        )
        _check(
            self.offload != "parameters" or self.zero_stage == 3, "train.offload=parameters needs train.zero_stage=3"
        )
        _check(self.offload == "none" or self.zero_stage > 0, "train.offload needs train.zero_stage=1, 2 or 3")
        _check(not self.zero_init or self.zero_stage == 3, "train.zero_init needs train.zero_stage=3")
        _check(
            not self.validation_gpus or (self.validate and self.validate_async),
            "train.validation_gpus is what the task beside training gets: it needs train.validate_async=true",
        )
        _check(self.steps >= 1, "train.steps must be at least 1")
        _check(self.num_workers >= 1, "train.num_workers must be at least 1")
        _check(
            0 <= self.min_workers <= self.num_workers,
            f"train.min_workers={self.min_workers} must be in 0..num_workers={self.num_workers}",
        )
        self._check_micro_batches()

    def _check_micro_batches(self) -> None:
        size, divisor = self.micro_batch_size, "micro_batch_size" if self.micro_batch_size else "num_workers"
        number = size or self.num_workers
        _check(size >= 0, "train.micro_batch_size must not be negative")
        _check(
            self.batch_size % number == 0,
            f"train.batch_size={self.batch_size} must be a multiple of {divisor}={number}",
        )
        _check(
            self.micro_batches >= self.num_workers,
            f"train.batch_size={self.batch_size} makes {self.micro_batches} micro-batches of {size}, "
            f"too few for num_workers={self.num_workers}: choose a smaller micro_batch_size",
        )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a global batch, which are dealt out to however many workers there are."""
        return self.batch_size // self.micro_batch_size if self.micro_batch_size else self.num_workers

    @property
    def samples_per_micro_batch(self) -> int:
        """`micro_batch_size`, whether given or derived."""
        return self.batch_size // self.micro_batches


@dataclass
class SweepConfig:
    """Ray Tune over any keys of this tree: `space` lists KEY=choice(...), KEY=uniform(a,b) or KEY=loguniform(a,b)."""

    output: str = "outputs/sweep"
    """Folder of the sweep; the same folder resumes it."""
    num_trials: int = 8
    """Trials in all."""
    max_concurrent: int = 1
    """Trials that run at a time."""
    scheduler: str = "asha"
    """`asha` stops weak trials early; `fifo` lets all finish."""
    search: str = "random"
    """`random`, or `optuna`, which learns from the trials before."""
    metric: str = "seen/preference_accuracy"
    """Metric of validation to improve, as SPLIT/METRIC."""
    mode: str = "max"
    """`max` if larger is better, else `min`."""
    grace_checkpoints: int = 1
    """Validations before ASHA may stop a trial."""
    space: list[str] = field(
        default_factory=lambda: [
            "loss.progress_weight=loguniform(0.1,3)",
            "loss.success_weight=loguniform(0.1,3)",
            "loss.preference_weight=loguniform(0.1,3)",
        ]
    )
    """What is searched: KEY=choice(...), KEY=uniform(low,high), KEY=loguniform(low,high) or KEY=randint(low,high)."""

    def __post_init__(self) -> None:
        paths.check_local("sweep.output", self.output)
        _one_of("sweep.scheduler", self.scheduler, ("asha", "fifo"))
        _one_of("sweep.search", self.search, ("random", "optuna"))
        _one_of("sweep.mode", self.mode, ("max", "min"))


@dataclass
class EvaluateConfig:
    """Evaluations of a scorer, or of several, on splits of a corpus."""

    scorer: str = "outputs/train/best"
    """What is evaluated: a checkpoint folder, `org/name` of the hub, an MLflow URI, a URL, or `baseline:NAME`."""
    against: list[str] = field(default_factory=list)
    """More of these, evaluated alike into OUTPUT/against and set beside the first."""
    output: str = "outputs/evaluation"
    """Folder, or any URI that pyarrow opens."""
    splits: list[str] = field(default_factory=lambda: ["seen", "held_out"])
    """Splits of the corpus to evaluate on."""
    sources: list[str] = field(default_factory=list)
    """Data sets and groups (such as `rbm-1m-ood`) to evaluate on; empty: all."""
    evaluations: list[str] = field(
        default_factory=lambda: [
            "reward_alignment",
            "policy_ranking",
            "confusion_matrix",
            "preference",
            "success_detection",
            "partial_success",
            "robustness",
            "instruction_grounding",
        ]
    )
    """Evaluations to make."""
    mode: str = "whole"
    """`whole`: a clip is seen at once; `prefix`: each frame with those before it, as a policy sees it."""
    max_clips: int = 2000
    """Clips per split, at least 1."""
    pairs_per_task: int = 50
    """Pairs of each kind and task that the preference evaluation asks."""
    bootstrap: int = 1000
    """Resamples of an interval; 0: no intervals."""
    confidence: float = 0.95
    """Of an interval, between 0 and 1."""
    batch_size: int = 16
    """Clips or pairs that a scorer is given at once."""
    actors: int = 1
    """Processes that score."""
    num_gpus: float = 0.0
    """GPUs of each of them; a fraction lets them share one."""
    seed: int = 42
    """Decides which clips, pairs and resamples are drawn."""

    def __post_init__(self) -> None:
        paths.check_storage("evaluate.output", self.output)
        paths.check_scorer("evaluate.scorer", self.scorer)
        for checkpoint in self.against:
            paths.check_scorer("evaluate.against", checkpoint)
        _one_of("evaluate.mode", self.mode, ("whole", "prefix"))
        for name in ("max_clips", "batch_size", "actors"):
            _check(getattr(self, name) >= 1, f"evaluate.{name} must be at least 1")
        _check(
            min(self.pairs_per_task, self.bootstrap) >= 0, "evaluate.pairs_per_task and bootstrap must not be negative"
        )
        _check(0 < self.confidence < 1, f"evaluate.confidence={self.confidence} must be between 0 and 1")


@dataclass
class BaselineConfig:
    """How a published baseline runs; `baseline:gvl` in the place of a checkpoint names one (`robometer.baselines`)."""

    model: str = ""
    """Hub id or folder of weights, or a model's name at an API; empty: what its authors published."""
    provider: str = "gemini"
    """Of API models: `gemini`, or `openai` (any server that speaks its chat completions)."""
    base_url: str = ""
    """Of the API, with its version; empty: the provider's, with its key in GEMINI_API_KEY or OPENAI_API_KEY."""
    max_frames: int = 0
    """Frames that are shown of a clip; 0: as published."""
    prompt: str = ""
    """Of local models: a file with `{task}` and the marks `<image>` or `<video>`; empty: as published."""
    batch_size: int = 8
    """Of local models: prompts that are answered at once."""
    interval: int = 1
    """Of models that compare two frames: how many frames lie between them."""
    mode: str = ""
    """Of robo_dopamine: `incremental`, `forward` or `backward`; empty: as published for the model."""
    temperature: float | None = 0.0
    """0 or more; null: not sent, for models that refuse to be told."""
    max_tokens: int = 4096
    """Tokens of an API's answer, what a model thinks before it included."""
    structured: bool = True
    """Ask an API for JSON by schema, where the baseline wants JSON."""
    requests_per_minute: float = 60.0
    """Of each actor, above 0."""
    concurrency: int = 8
    """Requests of each actor that are in flight at a time."""
    cache: str = "outputs/answers"
    """Answers of APIs, kept by the hash of the request: a folder, or a storage URI."""
    timeout_s: float = 120.0
    """Seconds that one request may take."""
    seed: int = 0
    """Sent to an API; decides the order of GVL's frames, and what `baseline:random` says."""

    def __post_init__(self) -> None:
        paths.check_storage("baseline.cache", self.cache)
        paths.check_local("baseline.prompt", self.prompt, empty=True)
        if "://" in self.model:  # names at an API may hold a colon
            paths.check_local("baseline.model", self.model)
        _one_of("baseline.provider", self.provider, ("gemini", "openai"))
        _check(
            not self.base_url or self.base_url.startswith(("http://", "https://")),
            f"baseline.base_url={redacted(self.base_url)!r} must start with http:// or https://",
        )
        _check(self.max_frames == 0 or self.max_frames >= 2, "baseline.max_frames must be 0 or at least 2")
        _check(self.temperature is None or self.temperature >= 0, "baseline.temperature must not be negative")
        _check(self.max_tokens >= 1, "baseline.max_tokens must be at least 1")
        _check(self.requests_per_minute > 0, "baseline.requests_per_minute must be above 0")
        _check(self.concurrency >= 1, "baseline.concurrency must be at least 1")
        _check(self.timeout_s > 0, "baseline.timeout_s must be above 0")
        _check(self.seed >= 0, "baseline.seed must not be negative")
        _check(self.batch_size > 0 and self.interval > 0, "baseline.batch_size and interval must be positive")
        _one_of("baseline.mode", self.mode, ("", "incremental", "forward", "backward"))


@dataclass
class ServeConfig:
    """The endpoint. It binds to loopback unless told otherwise."""

    checkpoint: str = "outputs/train/best"
    """Checkpoint folder, `org/name` of the hub, or MLflow URI."""
    host: str = "127.0.0.1"
    """Address to listen on; set a token before you open it to others."""
    port: int = 8000
    """1 to 65535."""
    replicas: int = 1
    """Processes that hold the model."""
    num_cpus: float = 1.0
    """CPUs of each of them."""
    num_gpus: float = 0.0
    """GPUs of each of them; a fraction lets them share one."""
    max_batch_size: int = 8
    """Requests that a replica answers at once."""
    batch_wait_timeout_s: float = 0.02
    """Seconds that a request waits for others to share its batch."""
    max_upload_bytes: int = 64 * 1024 * 1024
    """Bytes of the body of one request."""
    max_held_bytes: int = 512 * 1024 * 1024
    """Bytes of the bodies of all requests at a time, and of their frames."""
    body_timeout_s: float = 30.0
    """Seconds that a body may take to arrive."""
    drain_timeout_s: float = 60.0
    """Seconds at the end for the requests that were accepted."""
    max_source_frames: int = 10_000
    """An upload with more frames is refused."""
    max_source_pixels: int = 4096 * 4096
    """An upload with more pixels in a frame is refused."""
    max_total_pixels: int = 2_000_000_000
    """Pixels of all frames of a video: half a minute of 1080p, two of 640x480."""
    decode_timeout_s: float = 30.0
    """Seconds that the decoding of one uploaded video may take."""
    max_queued_requests: int = 64
    """Requests that wait for the model; more get 503."""
    token: str = field(default="", repr=False)
    """Bearer token that every request must carry; ROBOMETER_TOKEN sets it too; empty: none."""

    def __post_init__(self) -> None:
        paths.check_checkpoint("serve.checkpoint", self.checkpoint)
        _check(0 < self.port < 65536, "serve.port must be in 1..65535")
        _check(self.decode_timeout_s > 0, "serve.decode_timeout_s must be more than 0")
        _check(self.max_held_bytes >= self.max_upload_bytes > 0, "serve.max_held_bytes must hold one upload at least")
        _check(self.body_timeout_s > 0, "serve.body_timeout_s must be more than 0")
        _check(self.drain_timeout_s >= 0, "serve.drain_timeout_s must not be negative")


@dataclass
class SimulateConfig:
    """Meta-World roll-outs with scripted experts (needs the `simulate` extra); the defaults made the bundled corpus."""

    output: str = "outputs/metaworld"
    """Folder of the videos and their `trajectories.jsonl`."""
    tasks: list[str] = field(default_factory=list)
    """Meta-World tasks; empty: all that label reliably."""
    clips_per_quality: int = 17
    """Clips of each task and quality label."""
    seen_clips_per_quality: int = 3
    """Of these, kept for evaluation."""
    held_out_clips_per_quality: int = 6
    """Clips of tasks that are never trained on."""
    image_size: int = 160
    """Pixels of an edge of the square picture."""
    max_frames: int = 16
    """Frames of a clip."""
    crf: int = 36
    """Quality of H.264; larger is smaller and worse."""
    seed: int = 0
    """Decides every roll-out."""

    def __post_init__(self) -> None:
        paths.check_local("simulate.output", self.output)


@dataclass
class TrackingConfig:
    """MLflow. `uri` is a database or a server; `none` turns tracking off."""

    uri: str = "sqlite:///outputs/mlflow.db"
    """Database (`sqlite:///...`) or server (`http://...`) of MLflow; `none` turns tracking off."""
    experiment: str = "robometer"
    """Experiment of MLflow that runs are put into."""
    run_name: str = ""
    """Name of the run; empty: what the job does, such as `train`."""

    def __post_init__(self) -> None:
        paths.check_tracking("tracking.uri", self.uri)


@dataclass
class RayConfig:
    """The cluster: the one this process runs in or that RAY_ADDRESS names, else a local one of this size."""

    num_cpus: int = 0
    """Logical CPUs of a local cluster; 0: at least 4."""
    object_store_mb: int = 2048
    """Megabytes of a local cluster's object store; a run may fill half of it with batches in advance."""
    stall_timeout_s: float = 3600.0
    """Seconds without a step after which a job ends and says what it lacks; 0: it waits on."""


@dataclass
class Config:
    """All of it."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        _check(
            self.sampling.max_frames <= self.model.max_len or self.model.kind != "rewind",
            f"sampling.max_frames={self.sampling.max_frames} is more than model.max_len={self.model.max_len}",
        )
        _check(
            not (self.train.zero_init and self.model.lora.rank),
            "train.zero_init and model.lora do not go together: adapters copy rows of the embedding when they are made",
        )
