"""Settings of what only `pipelines` does: serving, simulating, and the Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from robometer.runs import paths
from robometer.settings import Settings, require


@dataclass
class ServeConfig(Settings, section="serve"):
    """The HTTP endpoint. It listens on loopback only, by default."""

    checkpoint: str = "outputs/train/best"
    """Checkpoint folder, `org/name` of the hub, or MLflow URI."""
    host: str = "127.0.0.1"
    """Address to listen on; set a token before you open it to others."""
    port: int = 8000
    """TCP port, 1 to 65535."""
    replicas: int = 1
    """Processes that hold the model, at least 1."""
    num_cpus: float = 1.0
    """CPUs of each of them."""
    num_gpus: float = 0.0
    """GPUs of each of them; a fraction lets them share one."""
    max_batch_size: int = 8
    """Requests that a replica answers at once, at least 1."""
    batch_wait_timeout_s: float = 0.02
    """Seconds that a request waits for others to share its batch."""
    max_upload_bytes: int = 64 * 1024 * 1024
    """Bytes of the body of one request, at most."""
    max_held_bytes: int = 512 * 1024 * 1024
    """Bytes that the bodies of all requests in progress, and their frames, take at most."""
    body_timeout_s: float = 30.0
    """Seconds that a body may take to arrive, above 0."""
    drain_timeout_s: float = 60.0
    """Seconds that a stopping endpoint gives the requests that it has accepted, 0 or more."""
    max_source_frames: int = 10_000
    """Frames of an uploaded video, at most; a longer one is refused."""
    max_source_pixels: int = 4096 * 4096
    """Pixels of an upload's frame, at most; a larger one is refused."""
    max_total_pixels: int = 2_000_000_000
    """Pixels of all frames of a video, at most; the default is half a minute of 1080p, or two minutes of 640x480."""
    decode_timeout_s: float = 30.0
    """Seconds that the decoding of one uploaded video may take, above 0."""
    max_queued_requests: int = 64
    """Requests that wait for the model, at most; more get 503."""
    token: str = field(default="", repr=False)
    """Bearer token that every request must carry; ROBOMETER_TOKEN sets it too; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_checkpoint("serve.checkpoint", self.checkpoint)
        require(0 < self.port < 65536, "serve.port must be in 1..65535")
        require(self.decode_timeout_s > 0, "serve.decode_timeout_s must be more than 0")
        require(self.max_held_bytes >= self.max_upload_bytes > 0, "serve.max_held_bytes must hold one upload at least")
        require(self.body_timeout_s > 0, "serve.body_timeout_s must be more than 0")
        require(self.drain_timeout_s >= 0, "serve.drain_timeout_s must not be negative")


@dataclass
class SimulateConfig(Settings, section="simulate"):
    """Roll-outs of Meta-World's scripted experts (needs the `simulate` extra). The defaults made the bundled corpus."""

    output: str = "outputs/metaworld"
    """Folder of the videos and their `trajectories.jsonl`."""
    tasks: list[str] = field(default_factory=list)
    """Meta-World tasks; empty: all that label reliably."""
    clips_per_quality: int = 17
    """Clips of each task and quality label."""
    seen_clips_per_quality: int = 3
    """Clips among these of the split `seen`, which is kept for evaluation."""
    held_out_clips_per_quality: int = 6
    """Clips of each quality label of the tasks that are never trained on."""
    image_size: int = 160
    """Pixels of each edge of the square frames."""
    max_frames: int = 16
    """Frames of a clip."""
    crf: int = 36
    """Constant rate factor of H.264, 0 to 51; a larger one makes smaller files of lower quality."""
    seed: int = 0
    """Decides every roll-out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_local("simulate.output", self.output)


@dataclass
class RayConfig(Settings, section="ray"):
    """The Ray cluster: that of the job, or that of RAY_ADDRESS, else a local one of this size."""

    num_cpus: int = 0
    """Logical CPUs of a local cluster; 0: those of the machine, but at least 4."""
    object_store_mb: int = 2048
    """Megabytes of a local cluster's object store; a run may fill half of it with batches in advance."""
    stall_timeout_s: float = 3600.0
    """Seconds without progress after which a job ends and says what it lacks; 0: it waits for ever."""
