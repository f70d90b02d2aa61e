"""Settings of training: the losses, one run, and a sweep of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from robometer.runs import paths
from robometer.settings import Count, NotNegative, Positive, Range, Settings, Share, WholeNumber, require

Precision = Literal["fp32", "bf16"]


@dataclass
class LossConfig(Settings, section="loss"):
    """loss = progress_weight * L_progress + success_weight * L_success + preference_weight * L_preference."""

    progress_weight: NotNegative = 1.0
    """Weight of the progress loss."""
    success_weight: NotNegative = 1.0
    """Weight of the success loss."""
    preference_weight: NotNegative = 1.0
    """Weight of the preference loss."""
    balance_success: bool = True
    """Frames with and without success count alike, however many there are of each."""
    supervise_b: bool = True
    """Train progress and success of both clips of a pair; else of the first only."""
    pair_progress: bool = True
    """Train progress of pairs; else of single clips only."""


@dataclass
class TrainConfig(Settings, section="train"):
    """One training run. The same command resumes it."""

    output: str = "outputs/train"
    """Folder of the run, or any URI that pyarrow opens; the same folder resumes it."""
    load_from_checkpoint: str = ""
    """Weights to start from: a folder or its URI, `org/name[@revision]` of the hub, or an MLflow URI."""
    steps: Count = 1000
    """Optimizer steps."""
    batch_size: Count = 32
    """Samples per optimizer step over all workers."""
    micro_batch_size: WholeNumber = 0
    """Samples per forward pass of a worker; 0: `batch_size / num_workers`."""
    learning_rate: Positive = 1e-4
    """Learning rate after warm-up."""
    vision_learning_rate: Positive = 1e-5
    """Learning rate of the vision tower, where `model.train_vision_encoder` is on."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After warm-up: `cosine` or `linear` to 0, or `constant`."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW; biases and norms do not decay."""
    warmup_ratio: Share = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    max_grad_norm: Positive = 10.0
    """Norm to which larger gradients are scaled down."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """At a step whose loss or gradients are not finite: `stop` the run, or `skip` the step. Either way it changes no
    weight."""
    max_skipped_steps: Count = 5
    """Steps in a row that `skip` leaves out; one more stops the run."""
    seed: WholeNumber = 42
    """Decides the samples, their order, and what dropout draws."""
    num_workers: Count = 1
    """Processes that train, each with its share of the batch."""
    min_workers: WholeNumber = 0
    """Workers without which the run waits, `num_workers` at most; with more it shrinks and grows. 0: all of them."""
    resize_every_s: Positive = 60.0
    """Seconds after which a run with `min_workers` checks again whether it can grow."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    gpus_per_worker: Annotated[float, Range(above=0, most=1)] = 1.0
    """Share of a GPU that a worker reserves with `use_gpu`; below 1, trials of a sweep share a GPU, and its memory."""
    accelerator_type: str = ""
    """Kind of GPU that each worker gets, by Ray's name, such as `H100` or `A100-80G`; empty: any."""
    tf32: bool = False
    """Let GPUs multiply float32 matrices in TF32: faster, with 10 bits of mantissa instead of 23."""
    compile: bool = False
    """Compile the layers of the model with torch.compile at the first step; on CPUs this needs a C++ compiler."""
    collective_timeout_s: Positive = 1800.0
    """Seconds that a worker waits for the others in one collective operation, before it fails."""
    cpus_per_worker: NotNegative = 1.0
    """CPUs reserved for a worker, its data actors and its part of the validation."""
    data_actors: Count = 1
    """Processes that fetch and collate batches, on the nodes of the workers."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed ZeRO shards over the workers; 0: nothing; 1: the optimizer's state; 2: gradients too; 3: weights
    too."""
    zero_init: bool = False
    """With stage 3, make a vision-language model in shards: no process ever holds all of its weights."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What moves to CPU memory: `none`, `optimizer` (its state and its step), or `parameters` (these too, stage 3)."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further settings of DeepSpeed under its own names, such as
    `train.deepspeed.zero_optimization.overlap_comm=true`."""
    precision: Precision = "fp32"
    """Precision of forward and backward; the optimizer's own weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    peak_tflops: NotNegative = 0.0
    """Peak TFLOP/s of one device at this precision, for the MFU estimate; 0: from the device's name."""
    checkpoint_every: Count = 200
    """Steps between two checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints to keep: the best ones, and the latest."""
    best_metric: str = "seen/preference_accuracy"
    """Metric of validation that chooses `best/`, as SPLIT/METRIC."""
    best_mode: Literal["max", "min"] = "max"
    """`max` if larger is better, else `min`."""
    validate: bool = True
    """Validate at every checkpoint."""
    validate_async: bool = False
    """Validate in a task of its own while training goes on; else training waits, as it always does in a sweep."""
    validation_gpus: NotNegative = 0.0
    """GPUs of that task."""
    validation_clips: Count = 150
    """Clips of a split that a validation scores."""
    validation_splits: list[str] = field(default_factory=lambda: ["seen"])
    """Splits that a validation scores."""
    log_every: Count = 10
    """Steps between two entries of the history and the tracker."""
    profile_steps: list[int] = field(default_factory=list)
    """The first and the last step that the first worker profiles, such as [20,25]; the trace goes into the output and
    the tracker. Empty: none."""
    max_failures: Annotated[int, Range(least=-1)] = 3
    """Failures of workers after which the run ends; -1: it never does for that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_storage("train.output", self.output)
        paths.check_checkpoint("train.load_from_checkpoint", self.load_from_checkpoint, empty=True)
        require(  # DeepSpeed 0.19.8 divides its gradients by a loss scale that it never multiplied them by
            self.precision != "bf16" or self.zero_stage > 0,
            "train.precision=bf16 needs train.zero_stage=1, 2 or 3: DeepSpeed's stage 0 has wrong gradients there",
        )
        require(
            self.offload != "parameters" or self.zero_stage == 3, "train.offload=parameters needs train.zero_stage=3"
        )
        require(self.offload == "none" or self.zero_stage > 0, "train.offload needs train.zero_stage=1, 2 or 3")
        require(not self.zero_init or self.zero_stage == 3, "train.zero_init needs train.zero_stage=3")
        require(
            not self.validation_gpus or (self.validate and self.validate_async),
            "train.validation_gpus is what the task beside training gets: it needs train.validate_async=true",
        )
        require(
            self.on_nonfinite == "stop" or self.offload == "none" or self.precision == "fp32" or self.zero_stage == 3,
            "train.on_nonfinite=skip with train.precision=bf16 and train.offload needs train.zero_stage=3: the other "
            "stages keep the bad gradients in CPU memory",
        )
        require(
            self.gpus_per_worker == 1 or (self.use_gpu and self.num_workers == 1),
            "train.gpus_per_worker below 1 needs train.use_gpu=true and train.num_workers=1: NCCL refuses two workers "
            "of a run on one GPU",
        )
        require(not self.accelerator_type or self.use_gpu, "train.accelerator_type needs train.use_gpu=true")
        window = self.profile_steps
        require(
            not window or (len(window) == 2 and 1 <= window[0] <= window[1]),
            f"train.profile_steps={window} must be the first and the last step of a window, such as [20,25]",
        )
        require(
            self.min_workers <= self.num_workers,
            f"train.min_workers={self.min_workers} is more than train.num_workers={self.num_workers}",
        )
        self._check_micro_batches()

    def _check_micro_batches(self) -> None:
        size, divisor = self.micro_batch_size, "micro_batch_size" if self.micro_batch_size else "num_workers"
        number = size or self.num_workers
        require(
            self.batch_size % number == 0,
            f"train.batch_size={self.batch_size} must be a multiple of {divisor}={number}",
        )
        require(
            self.micro_batches >= self.num_workers,
            f"train.batch_size={self.batch_size} makes {self.micro_batches} micro-batches of {size}, "
            f"too few for num_workers={self.num_workers}: choose a smaller micro_batch_size",
        )

    @property
    def gpus(self) -> float:
        """GPUs of a worker."""
        return self.gpus_per_worker if self.use_gpu else 0.0

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a global batch, which are dealt out to however many workers there are."""
        return self.batch_size // self.micro_batch_size if self.micro_batch_size else self.num_workers

    @property
    def samples_per_micro_batch(self) -> int:
        """`micro_batch_size`, whether given or derived."""
        return self.batch_size // self.micro_batches


@dataclass
class SweepConfig(Settings, section="sweep"):
    """A search with Ray Tune over any settings; each trial is a training run."""

    output: str = "outputs/sweep"
    """Folder of the sweep, or any URI that pyarrow opens; the same folder resumes it."""
    num_trials: Count = 8
    """Trials in all, with those whose settings are given: the first one has the settings as they are. A larger number
    later goes on with more."""
    seeds_per_trial: Count = 1
    """Training runs of each trial, with seeds from `train.seed` on; trials are ranked by the mean of their runs."""
    max_concurrent: Count = 1
    """Training runs that go on at once, at most."""
    max_hours: NotNegative = 0.0
    """Hours after which no more trials start; the same command later goes on. 0: no limit."""
    max_gpu_hours: NotNegative = 0.0
    """GPU hours, those of earlier commands included, after which no more trials start. 0: no limit."""
    scheduler: Literal["asha", "fifo", "pbt"] = "asha"
    """`asha` stops weak trials early; `fifo` lets all finish; `pbt` (population based training) lets weak ones go on
    from the training state of strong ones, with other weights of the losses."""
    perturb_every: WholeNumber = 0
    """Steps after which `pbt` compares the trials, a multiple of `train.checkpoint_every`; 0: at each checkpoint."""
    search: Literal["random", "optuna"] = "random"
    """`random`, or `optuna`, which learns from earlier trials (its first 10 are random)."""
    metric: str = "seen/preference_accuracy"
    """Metric of validation to improve, as SPLIT/METRIC."""
    mode: Literal["max", "min"] = "max"
    """`max` if larger is better, else `min`."""
    more_metrics: list[str] = field(default_factory=list)
    """Further metrics to improve, as SPLIT/METRIC, or SPLIT/METRIC:min where smaller is better. The table then says
    which trials are not beaten in all of them; the winner is still the best by `sweep.metric`."""
    grace_checkpoints: Count = 1
    """Validations before ASHA may stop a trial."""
    space: list[str] = field(
        default_factory=lambda: ["loss.progress_weight+loss.success_weight+loss.preference_weight=simplex(3)"]
    )
    """What to search: KEY=DISTRIBUTION(ARGUMENTS), or KEY+KEY=simplex(SUM), each with ` if KEY=VALUE` where it depends
    on a choice."""
    first: list[str] = field(default_factory=list)
    """Settings of the trials after the first one, each KEY=VALUE;KEY=VALUE with all keys of the space."""
    confirm_seeds: WholeNumber = 0
    """New seeds with which the winner and the settings as they are train again, to be compared; 0 (not at all), or 2
    and more."""
    confirm_metric: str = ""
    """Metric that is compared, best one of clips by which no trial was chosen; empty: `sweep.metric`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_storage("sweep.output", self.output)
        require(
            self.scheduler != "pbt" or (self.search == "random" and not self.confirm_seeds and self.num_trials >= 4),
            "sweep.scheduler=pbt needs sweep.num_trials=4 or more, sweep.search=random and sweep.confirm_seeds=0: what "
            "it finds is a schedule of weights, which no settings can repeat",
        )
        require(
            self.seeds_per_trial == 1 or self.scheduler == "fifo",
            f"sweep.scheduler={self.scheduler} judges a trial by one run: with sweep.seeds_per_trial > 1, set fifo",
        )
        require(self.confirm_seeds != 1, "sweep.confirm_seeds=1 has no spread: set 2 or more, or 0")
        for entry in self.more_metrics:
            require(
                entry.partition(":")[2] in ("", "max", "min"),
                f"sweep.more_metrics entry {entry!r} is not SPLIT/METRIC or SPLIT/METRIC:min",
            )

    @property
    def objectives(self) -> list[tuple[str, str]]:
        """All metrics, each with `max` or `min`."""
        more = [entry.partition(":") for entry in self.more_metrics]
        return [(self.metric, self.mode), *((metric, mode or "max") for metric, _, mode in more)]
