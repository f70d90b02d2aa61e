"""Typed configuration: one tree for all jobs. Values come from here, then from YAML groups, then from overrides."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from robometer import paths
from robometer.errors import RobometerError
from robometer.redaction import redacted

_SOURCES = Path(__file__).parents[1] / "corpus/sources"


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

    def __post_init__(self) -> None:
        paths.check_storage("corpus.path", self.path)


@dataclass
class IngestConfig:
    """Raw data to corpus. Sizes follow upstream: at most 32 frames, short edge 240 px."""

    source: str = "mp4_jsonl"  # format: a module of robometer.corpus.sources, or the dotted path of your own
    input: str = "bundled"  # a folder or file of the source's format; `bundled` is the packaged Meta-World corpus
    data_source: str = ""  # name of the data set; empty: as the format says
    split: str = "train"  # of trajectories whose format does not say: train, or the name of an evaluation split
    max_frames: int = 32
    short_edge: int = 240
    jpeg_quality: int = 90
    shard_size: int = 256  # trajectories per shard, about; 2048 for a corpus of a million
    max_source_frames: int = 100_000
    max_source_pixels: int = 8192 * 8192
    max_bad_fraction: float = 0.5  # more refused episodes than this end the job with status 1
    retry_quarantined: bool = False
    update: bool = False  # trajectories that differ from what is stored take its place, instead of being counted only

    def __post_init__(self) -> None:
        # A module of one's own may read from anywhere, and what is there is no mistake, whatever it looks like.
        if (_SOURCES / f"{self.source}.py").is_file() and not os.path.exists(self.input):
            paths.check_local("ingest.input", self.input)
        _check(self.max_frames >= 2, "ingest.max_frames must be at least 2")
        _check(self.short_edge >= 16, "ingest.short_edge must be at least 16 px")
        _check(1 <= self.jpeg_quality <= 100, "ingest.jpeg_quality must be in 1..100")
        _check(self.shard_size >= 1, "ingest.shard_size must be at least 1")


@dataclass
class EmbedConfig:
    """Frozen encoders, by name in `robometer.models.encoders`."""

    image_encoder: str = "efficientnet_lite0"
    text_encoder: str = "minilm_l6"
    batch_size: int = 32
    actors: int = 2
    num_gpus: float = 0.0  # per actor


@dataclass
class PreferenceStrategies:
    """Relative weights of the ways to make a rejected trajectory."""

    rewind: float = 1.0
    suboptimal: float = 1.0
    different_task: float = 1.0
    reverse: float = 1.0
    paired: float = 0.0  # a robot's success before a rewind of a human's at the same task, or the other way around


@dataclass
class ProgressStrategies:
    """Relative weights of the ways to show one trajectory."""

    forward: float = 1.0
    reverse: float = 1.0
    rewind: float = 1.0
    different_instruction: float = 1.0


@dataclass
class SamplingConfig:
    """What the plan draws. Names follow upstream's `data` group."""

    max_frames: int = 16
    # what is drawn first: trajectory_first (a walk over all of them) | strategy_first (strategy, source, trajectory)
    mode: str = "trajectory_first"
    sources: list[str] = field(default_factory=list)  # sources and groups (sampling/groups.yaml); empty: all
    source_weights: dict[str, float] = field(default_factory=dict)  # +...={lab:2}, by source or group; else 1
    preference: float = 1.0  # weight of preference samples (upstream trains on these only)
    progress: float = 1.0  # weight of progress samples
    preference_strategies: PreferenceStrategies = field(default_factory=PreferenceStrategies)
    progress_strategies: ProgressStrategies = field(default_factory=ProgressStrategies)
    partial_success_threshold: float = 0.2
    same_source_probability: float = 0.5
    min_frames_per_trajectory: int = 5
    progress_target: str = "absolute_first_frame"
    min_success: float = 0.5  # successful frames below this progress are negatives of the success head
    max_success: float = 1.0  # success cut-off of sources that have none of their own
    progress_bins: int = 10
    graded_pairs: float = 0.0  # share of unsuccessful items paired with the other grade: suboptimal beats failure
    feature_noise: float = 0.0  # of each frame's embedding, in standard deviations of each dimension
    clip_noise: float = 0.0  # the same, one shift for all frames of a clip
    pad_frames: bool = False  # repeat the last frame up to max_frames and train it, as the public weights were
    split: str = "train"

    def __post_init__(self) -> None:
        _one_of("sampling.mode", self.mode, ("trajectory_first", "strategy_first"))
        _one_of(
            "sampling.progress_target",
            self.progress_target,
            ("absolute_first_frame", "absolute_wrt_total_frames", "relative_first_frame"),
        )
        _check(self.max_frames >= 1, "sampling.max_frames must be at least 1")
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

    rank: int = 0  # 0: none, the language model itself is trained
    alpha: int = 64
    dropout: float = 0.05
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )

    def __post_init__(self) -> None:
        _check(self.rank >= 0, "model.lora.rank must not be negative")


@dataclass
class ModelConfig:
    """The reward model. `kind=rewind` reads embeddings, `kind=robometer` is the vision-language model."""

    kind: str = "rewind"
    # rewind: transformer on frozen embeddings
    hidden_dim: int = 512
    num_layers: int = 4
    num_heads: int = 8
    dropout: float = 0.1
    max_len: int = 32
    attention: str = "causal"  # full | causal | state: a frame sees the text and the frames of its window only
    window: int = 1  # frames that attention=state sees: itself, and those just before it
    members: int = 1  # transformers whose logits are averaged; each learns from its share of the samples
    standardise: bool = False  # embeddings to zero mean and unit variance over the training split
    # robometer: a vision-language backbone
    base_model: str = "Qwen/Qwen3-VL-4B-Instruct"  # a hub id, a local folder, or `tiny...` (models/tiny.py)
    revision: str = ""  # of a hub id; empty: the newest
    train_vision_encoder: bool = False
    train_language_model: bool = True
    lora: LoraSettings = field(default_factory=LoraSettings)
    ask_progress: bool = True  # pairs are also asked for the progress of A (upstream's predict_pref_progress)
    frame_pooling: str = "mean"  # without per_frame_progress_token: mean | boundary | attention over a frame's tokens
    frame_pooling_temperature: float = 1.0  # of attention
    attn_implementation: str = "sdpa"  # sdpa | flash_attention_2 | eager, all without padding
    # both
    per_frame_progress_token: bool = True  # a token after each frame, where the heads read
    progress_loss: str = "discrete"  # discrete (two-hot over sampling.progress_bins) | l1 | l2

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
    success_weight: float = 1.0
    preference_weight: float = 1.0
    balance_success: bool = True  # positives and negatives count alike, however many there are
    supervise_b: bool = True  # progress and success of both trajectories of a pair are trained, else of the first only
    pair_progress: bool = True  # progress of pairs is trained (upstream's predict_pref_progress), else of single clips


@dataclass
class TrainConfig:
    """One training run. Running the same command again resumes it."""

    output: str = "outputs/train"
    load_from_checkpoint: str = ""  # weights to start from: a folder, org/name[@revision] or an MLflow URI
    steps: int = 1000
    batch_size: int = 32  # samples per optimizer step over all workers
    micro_batch_size: int = 0  # samples per forward pass of a worker; 0: batch_size / num_workers
    learning_rate: float = 1e-4
    vision_learning_rate: float = 1e-5  # of the vision tower, where model.train_vision_encoder is on
    schedule: str = "cosine"  # after warm-up: cosine or linear to 0 | constant
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 10.0
    seed: int = 42
    num_workers: int = 1
    min_workers: int = 0  # fewer workers than this wait; 0: as many as num_workers, else the run shrinks and grows
    resize_every_s: float = 60.0  # how often a run with min_workers looks whether it may grow
    use_gpu: bool = False
    cpus_per_worker: float = 1.0  # reserved for a worker with its share of the data actors and of validation beside it
    data_actors: int = 1  # processes that fetch and collate batches, on the nodes of the workers
    zero_stage: int = 2
    zero_init: bool = False  # stage 3 and a vision-language model: no process ever holds all of its weights
    offload: str = "none"  # to CPU memory: none | optimizer (its state and step) | parameters (these too, stage 3)
    precision: str = "fp32"  # fp32 | bf16 (forward and backward; the optimizer's own weights stay fp32)
    gradient_checkpointing: bool = False
    peak_tflops: float = 0.0  # of one device at this precision, for the MFU estimate; 0: known by the device's name
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    best_metric: str = "seen/preference_accuracy"
    best_mode: str = "max"
    validate: bool = True  # at every checkpoint
    validate_async: bool = False  # in a task beside training, which else waits (as in a sweep, which decides by it)
    validation_gpus: float = 0.0  # of that task
    validation_clips: int = 150  # per split
    validation_splits: list[str] = field(default_factory=lambda: ["seen"])
    log_every: int = 10
    max_failures: int = 3

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
    num_trials: int = 8
    max_concurrent: int = 1
    scheduler: str = "asha"  # asha | fifo
    search: str = "random"  # random | optuna
    metric: str = "seen/preference_accuracy"
    mode: str = "max"
    grace_checkpoints: int = 1  # validations before ASHA may stop a trial
    space: list[str] = field(
        default_factory=lambda: [
            "loss.progress_weight=loguniform(0.1,3)",
            "loss.success_weight=loguniform(0.1,3)",
            "loss.preference_weight=loguniform(0.1,3)",
        ]
    )

    def __post_init__(self) -> None:
        paths.check_local("sweep.output", self.output)
        _one_of("sweep.scheduler", self.scheduler, ("asha", "fifo"))
        _one_of("sweep.search", self.search, ("random", "optuna"))
        _one_of("sweep.mode", self.mode, ("max", "min"))


@dataclass
class EvaluateConfig:
    """Evaluations of a scorer, or of several, on splits of a corpus."""

    checkpoint: str = "outputs/train/best"  # a checkpoint folder, org/name, an MLflow URI, a URL, or baseline:NAME
    against: list[str] = field(default_factory=list)  # more of these, evaluated alike into OUTPUT/against
    output: str = "outputs/evaluation"
    splits: list[str] = field(default_factory=lambda: ["seen", "held_out"])
    sources: list[str] = field(default_factory=list)  # sources and groups (rbm-1m-ood); empty: all
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
    mode: str = "whole"  # whole: a clip is seen at once; prefix: each frame with those before it, as a policy sees it
    max_clips: int = 2000  # per split
    pairs_per_task: int = 50
    bootstrap: int = 1000
    confidence: float = 0.95
    batch_size: int = 16
    actors: int = 1
    num_gpus: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        paths.check_storage("evaluate.output", self.output)
        paths.check_checkpoint("evaluate.checkpoint", self.checkpoint, asked=True)
        for checkpoint in self.against:
            paths.check_checkpoint("evaluate.against", checkpoint, asked=True)
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

    model: str = ""  # hub id or folder of weights, or a model's name at an API; empty: what its authors published
    provider: str = "gemini"  # of API models: gemini, or openai (any server that speaks its chat completions)
    base_url: str = ""  # of the API with its version; empty: the provider's, its key in GEMINI_API_KEY/OPENAI_API_KEY
    max_frames: int = 0  # shown of a clip; 0: as published
    prompt: str = ""  # of local models: a file with {task} and the marks <image> or <video>; empty: as published
    batch_size: int = 8  # of local models: prompts that are answered at once
    interval: int = 1  # of models that compare two frames: how many frames lie between them
    mode: str = ""  # of robo_dopamine: incremental, forward or backward; empty: as published for the model
    temperature: float | None = 0.0  # null: not sent, for models that refuse to be told
    max_tokens: int = 4096  # of an API's answer, what a model thinks before it included
    structured: bool = True  # ask an API for JSON by schema, where the baseline wants JSON
    requests_per_minute: float = 60.0  # of each actor
    concurrency: int = 8  # requests of each actor that are in flight at a time
    cache: str = "outputs/answers"  # answers of APIs, kept by the hash of the request: a folder, or a storage URI
    timeout_s: float = 120.0  # of one request
    seed: int = 0

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
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_batch_size: int = 8
    batch_wait_timeout_s: float = 0.02
    max_upload_bytes: int = 64 * 1024 * 1024
    max_held_bytes: int = 512 * 1024 * 1024  # of the bodies of all requests at a time, and of their frames
    body_timeout_s: float = 30.0  # a request whose body takes longer is refused
    drain_timeout_s: float = 60.0  # at the end, for the requests that were accepted
    max_source_frames: int = 10_000
    max_source_pixels: int = 4096 * 4096
    max_total_pixels: int = 2_000_000_000  # of all frames of a video: half a minute of 1080p, two of 640x480
    decode_timeout_s: float = 30.0  # for one uploaded video
    max_queued_requests: int = 64
    # bearer token that every request must carry; ROBOMETER_TOKEN sets it too; empty: none
    token: str = field(default="", repr=False)

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
    tasks: list[str] = field(default_factory=list)  # empty: all that label reliably
    clips_per_quality: int = 17
    seen_clips_per_quality: int = 3  # of these, kept for evaluation
    held_out_clips_per_quality: int = 6  # of tasks that are never trained on
    image_size: int = 160
    max_frames: int = 16
    crf: int = 36  # of H.264; larger is smaller and worse
    seed: int = 0

    def __post_init__(self) -> None:
        paths.check_local("simulate.output", self.output)


@dataclass
class TrackingConfig:
    """MLflow. `uri` is a database or a server; `none` turns tracking off."""

    uri: str = "sqlite:///outputs/mlflow.db"
    experiment: str = "robometer"
    run_name: str = ""

    def __post_init__(self) -> None:
        paths.check_tracking("tracking.uri", self.uri)


@dataclass
class RayConfig:
    """The cluster: the one this process runs in or that RAY_ADDRESS names, else a local one of this size."""

    num_cpus: int = 0  # of a local cluster; 0: at least 4 logical CPUs
    object_store_mb: int = 2048  # of a local cluster; a run may fill half of it with batches in advance
    stall_timeout_s: float = 3600.0  # a job that makes no step for so long ends and says what it lacks; 0: it waits on


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
