"""Settings of what only `pipelines` does: serving, simulating, and the Ray cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

from robometer.configs.allow_list import AllowList
from robometer.runs import paths
from robometer.settings import Count, NotNegative, Positive, Range, Settings, Share, WholeNumber, require


@dataclass
class ServeConfig(Settings, section="serve"):
    """The HTTP endpoint. It listens on loopback only, by default."""

    checkpoint: str = "outputs/train/best"
    """Checkpoint folder or its URI (`s3://...`), `org/name` of the hub, or MLflow URI."""
    host: str = "127.0.0.1"
    """Address to listen on; set a token before you open it to others."""
    port: Annotated[int, Range(least=1, most=65535)] = 8000
    """TCP port."""
    grpc_port: Annotated[int, Range(least=0, most=65535)] = 0
    """TCP port of RewardRelabelService, at the same address; 0: no gRPC."""
    relabel_image_keys: list[str] = field(default_factory=lambda: ["observation/image", "image"])
    """Observations that hold a camera's frames, for gRPC; those that a request has are scored, each for itself."""
    models: dict[str, str] = field(default_factory=dict)
    """More models that a request may name, each with its checkpoint: `'serve.models={small:outputs/small/best}'`."""
    models_per_replica: WholeNumber = 0
    """Models of serve.models that a replica keeps in memory; the longest unused makes room; 0: all."""
    canary: str = ""
    """Checkpoint that answers a part of the requests, such as `models:/robometer@candidate`; empty: none."""
    canary_share: Share = 0.1
    """Part of the requests that the canary answers, of those that name no model."""
    replicas: Count = 1
    """Processes that hold the model; under load there may be more, see max_replicas."""
    max_replicas: WholeNumber = 0
    """Processes that hold the model, at most, where many requests wait or latency is high; 0: always serve.replicas."""
    target_latency_s: NotNegative = 0.0
    """Seconds of a request in the model, on average, above which replicas start; 0: the queue alone decides."""
    upscale_delay_s: NotNegative = 10.0
    """Seconds of too much load before replicas start."""
    downscale_delay_s: NotNegative = 300.0
    """Seconds of too little load before replicas end."""
    num_cpus: NotNegative = 1.0
    """CPUs of each of them."""
    num_gpus: NotNegative = 0.0
    """GPUs of each of them; a fraction lets them share one."""
    max_batch_size: Count = 8
    """Requests that a replica answers at once."""
    batch_wait_timeout_s: NotNegative = 0.005
    """Seconds that a batch waits, at most, to become as large as the one before it. One client waits for nobody."""
    max_upload_bytes: Count = 64 * 1024 * 1024
    """Bytes of the body of one request, at most."""
    max_held_bytes: Count = 512 * 1024 * 1024
    """Bytes that the bodies of all requests in progress, and their frames, take at most."""
    body_timeout_s: Positive = 30.0
    """Seconds that a body may take to arrive."""
    request_timeout_s: Positive = 600.0
    """Seconds from the end of a body to the answer, at most."""
    drain_timeout_s: NotNegative = 60.0
    """Seconds that a stopping endpoint gives the requests that it has accepted."""
    max_surge_percent: Annotated[int, Range(least=0, most=100)] = 100
    """Percent of the replicas that an update starts before it ends old ones; 0 where there is no room for both."""
    max_source_frames: Count = 10_000
    """Frames of an uploaded video, at most; a longer one is refused."""
    max_source_pixels: Count = 4096 * 4096
    """Pixels of an upload's frame, at most; a larger one is refused."""
    max_total_pixels: Count = 2_000_000_000
    """Pixels of all frames of a video, at most; the default is half a minute of 1080p, or two minutes of 640x480."""
    decode_timeout_s: Positive = 30.0
    """Seconds that the decoding of one uploaded video may take."""
    url_allow_list: list[str] = field(default_factory=list)
    """Hosts, or hosts with a path (data.example.org/clips), that clips may be fetched from by URL; empty: none."""
    max_queued_requests: Count = 64
    """Requests that wait for the model, at most; more get 503."""
    max_sessions: Count = 1000
    """Trajectories that a replica of the model scores frame by frame in sessions, at most; more get 503."""
    max_session_bytes: Count = 2 * 1024**3
    """Bytes of the frames and caches of a replica's sessions, at most; beyond, the longest unused make room."""
    session_idle_s: Positive = 600.0
    """Seconds after which a session without a push ends."""
    jobs_folder: str = ""
    """Folder of jobs, which a later start then goes on with; empty: one that goes away when the endpoint ends."""
    max_jobs: WholeNumber = 1000
    """Jobs that are kept, at most; those that ended first make room, else more get 503; 0: no jobs, and no process."""
    max_jobs_bytes: Count = 4 * 1024**3
    """Bytes of the uploads and answers of the jobs that are kept, at most; room is made as for `max_jobs`."""
    max_running_jobs: Count = 1
    """Jobs that run at a time; other requests come between them."""
    job_timeout_s: Positive = 3600.0
    """Seconds that one run of a job may take."""
    job_ttl_s: Positive = 3600.0
    """Seconds after its end after which a job and its result are removed, if there was room for so long."""
    token: str = field(default="", repr=False)
    """Bearer token that every request must carry; ROBOMETER_TOKEN sets it too; empty: none."""
    tls_certificate: str = ""
    """PEM file of a certificate and its chain, to serve HTTPS; empty: HTTP."""
    tls_key: str = ""
    """PEM file of the certificate's key, without a password."""
    cors_origins: list[str] = field(default_factory=list)
    """Origins (https://lab.example) whose pages may use the endpoint from a browser; '*': any; empty: its own only."""
    audit_log: str = ""
    """File on the head node that gets a JSON line about each request, without tokens and tasks; empty: none."""
    token_file: str = ""
    """File of more tokens with names and limits, from `robometer serve-token`; every node must see it; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_checkpoint("serve.checkpoint", self.checkpoint)
        AllowList.of(self.url_allow_list)
        for origin in self.cors_origins:
            right = re.fullmatch(r"\*|https?://[a-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?", origin)
            require(
                right is not None, f"serve.cors_origins: {origin!r} is not '*' or an origin such as https://lab.example"
            )
        for name in ("token_file", "tls_certificate", "tls_key", "audit_log", "jobs_folder"):
            paths.check_local(f"serve.{name}", getattr(self, name), empty=True)
        require(self.max_held_bytes >= self.max_upload_bytes, "serve.max_held_bytes must hold one upload at least")
        require(bool(self.relabel_image_keys) or not self.grpc_port, "serve.relabel_image_keys must name one at least")
        require(self.grpc_port != self.port, "serve.grpc_port and serve.port must differ")
        require(
            self.max_replicas == 0 or self.max_replicas >= self.replicas,
            f"serve.max_replicas={self.max_replicas} is less than serve.replicas={self.replicas}",
        )
        paths.check_checkpoint("serve.canary", self.canary, empty=True)
        for name, checkpoint in self.models.items():
            paths.check_checkpoint(f"serve.models.{name}", checkpoint)
            is_free = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) and name not in ("default", "canary")
            require(
                bool(is_free), "names in serve.models are letters, digits and ._- only, and not 'default' or 'canary'"
            )

    @property
    def most_replicas(self) -> int:
        """Replicas of the model under load."""
        return max(self.replicas, self.max_replicas)


ClipCount = Annotated[int, Range(least=0, most=999)]  # clips are numbered with three digits


@dataclass
class SimulateConfig(Settings, section="simulate"):
    """Roll-outs of Meta-World's scripted experts (needs the `simulate` extra). The defaults made the bundled corpus."""

    output: str = "outputs/metaworld"
    """Folder of the videos and their `trajectories.jsonl`, or its URI."""
    tasks: list[str] = field(default_factory=list)
    """Meta-World tasks; empty: all that label reliably."""
    clips_per_quality: ClipCount = 17
    """Clips of each task and quality label."""
    seen_clips_per_quality: ClipCount = 3
    """Clips among these of the split `seen`, which is kept for evaluation."""
    held_out_clips_per_quality: ClipCount = 6
    """Clips of each quality label of the tasks that are never trained on."""
    image_size: Annotated[int, Range(least=32, most=480)] = 160
    """Pixels of each edge of the square frames, an even number."""
    max_frames: Annotated[int, Range(least=4, most=1000)] = 16
    """Frames of a clip."""
    crf: Annotated[int, Range(least=0, most=51)] = 36
    """Constant rate factor of H.264; a larger one makes smaller files of lower quality."""
    seed: WholeNumber = 0
    """Decides every roll-out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_storage("simulate.output", self.output)


@dataclass
class RayConfig(Settings, section="ray"):
    """The Ray cluster: that of the job, or that of RAY_ADDRESS, else a local one of this size."""

    num_cpus: WholeNumber = 0
    """Logical CPUs of a local cluster; 0: those of the machine, but at least 4."""
    object_store_mb: Count = 2048
    """Megabytes of a local cluster's object store; a run may fill half of it with batches in advance."""
    stall_timeout_s: NotNegative = 3600.0
    """Seconds without progress after which a job ends and says what it lacks; 0: it waits for ever."""
