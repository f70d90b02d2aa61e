"""Typed answers, and the request bodies in OpenAPI."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines.serving.backend import MAX_TASK_CHARS, revision
from pipelines.serving.errors import PROBLEM_JSON
from pipelines.serving.options import MAX_FPS, MODES
from robometer.scoring import ClipScore


class ModelRef(BaseModel):
    """Which model answered."""

    name: str = Field(examples=["rewind@3f2a9c0d1e5b"])
    revision: str = Field(description="hash of the weights; empty where there are none", examples=["3f2a9c0d1e5b"])


class ModelAnswer(ModelRef):
    """The model and the limits of a request."""

    provenance: dict[str, Any] = Field(description="data and settings of the training, from the checkpoint")
    limits: dict[str, int | float] = Field(description="limits of one request")
    frames: dict[str, int] = Field(
        description="how a video becomes frames: at most max_frames, short_edge in pixels, jpeg_quality"
    )
    max_frames: int | None = Field(
        default=None, description="frames that the model looks at together, evenly spread; null for any number"
    )


class NamedModel(BaseModel):
    """A model that a request may name."""

    model: str = Field(description="the name to ask for", examples=["default"])
    checkpoint: str = Field(description="as the endpoint's settings name it")
    frames: dict[str, int] = Field(description="how a video becomes frames for it")
    share: float = Field(description="part of the requests without a model's name that it answers", examples=[0.9])


class ModelsAnswer(BaseModel):
    """All models of the endpoint, the default first."""

    models: list[NamedModel]


class ScoredClip(BaseModel):
    """Progress and success at every scored frame."""

    task: str
    num_frames: int = Field(description="T, the number of scored frames", examples=[3])
    frame_index: list[int] = Field(description="[T], position of each frame in the source", examples=[[0, 12, 24]])
    fps: float | None = Field(description="frames per second of the source, where it is known", examples=[10.0])
    progress: list[float] = Field(description="[T], in [0, 1]", examples=[[0.04, 0.51, 0.93]])
    success: list[float] = Field(description="[T], probability that the task is done", examples=[[0.0, 0.11, 0.88]])
    reward: float = Field(description="progress at the last frame", examples=[0.93])


_MODE = Field(description="whole; prefix: each frame from those up to it; session: as in a session", examples=["whole"])


class ScoreAnswer(ScoredClip):
    """Progress and success at every scored frame, and which model says so."""

    request_id: str
    model: ModelRef
    mode: str = _MODE


class ClipError(BaseModel):
    """Why one clip of a request has no answer."""

    status: int = Field(description="as if the clip had been sent alone", examples=[415])
    sentence: str = Field(description="what was wrong and what to do")


class FailedClip(BaseModel):
    """A clip of a request that has no answer; those beside it may have one."""

    error: ClipError


class ScoresAnswer(BaseModel):
    """A score, or an error, for each clip."""

    request_id: str
    model: ModelRef
    mode: str = _MODE
    clips: list[ScoredClip | FailedClip] = Field(description="in the order of their numbers")


class RankedClip(BaseModel):
    """What a clip is ranked by."""

    reward: float = Field(description="progress at the last frame, or what the model ranks by", examples=[0.93])
    mean_success: float = Field(description="decides between clips of one reward", examples=[0.33])
    num_frames: int = Field(description="the number of scored frames", examples=[8])


class RankAnswer(BaseModel):
    """Clips ordered by how well they did the task."""

    request_id: str
    model: ModelRef
    task: str
    order: list[int] = Field(description="numbers of the scored clips, the best first", examples=[[2, 0, 1]])
    clips: list[RankedClip | FailedClip] = Field(description="in the order of their numbers")


class CompareAnswer(BaseModel):
    """Which of two videos did the task better."""

    request_id: str
    model: ModelRef
    task: str
    probability_a_better: float = Field(description="in [0, 1]", examples=[0.83])
    preferred: str = Field(description="'a' where probability_a_better is at least 0.5, else 'b'", examples=["a"])


class PushAnswer(BaseModel):
    """Progress and success at the frames of one push, one item for each trajectory of the session."""

    request_id: str
    session_id: str
    model: ModelRef
    index: list[int] = Field(description="number of the frame in its trajectory", examples=[[12]])
    progress: list[float] = Field(description="in [0, 1]", examples=[[0.51]])
    success: list[float] = Field(description="probability that the task is done", examples=[[0.11]])
    preference: list[float] | None = Field(
        description="P(the trajectory so far is better than the reference); null where it was not asked"
    )


class SessionInfo(BaseModel):
    """A session."""

    request_id: str
    session_id: str = Field(examples=["3q2-7wAbCdEfGhIjKlMnOpQr"])
    model: ModelRef
    tasks: list[str] = Field(description="one for each trajectory", examples=[["open the drawer"]])
    pushes: int = Field(description="the index of the next push", examples=[0])
    pushed: list[int] = Field(description="frames of each trajectory", examples=[[0]])
    max_frames: int | None = Field(description="frames of a trajectory that the model looks at together; null: any")
    idle_s: float = Field(description="seconds without a push after which the session ends", examples=[600.0])
    last: PushAnswer | None = Field(description="the answer to the last push")


class StandingsAnswer(BaseModel):
    """Which of several videos did the task best."""

    request_id: str
    model: ModelRef
    task: str
    order: list[int] = Field(description="numbers of the clips, the best first", examples=[[2, 0, 1]])
    probabilities: list[list[float]] = Field(
        description="[N, N], P(clip of the row is better than that of the column), the mean of both orders",
        examples=[[[0.5, 0.7, 0.2], [0.3, 0.5, 0.1], [0.8, 0.9, 0.5]]],
    )
    strengths: list[float] = Field(
        description="[N], Bradley-Terry log-strengths with mean 0", examples=[[-0.166725, -0.959647, 1.126372]]
    )


class StatusAnswer(BaseModel):
    """One word."""

    status: str = Field(examples=["ok"])


class HealthAnswer(StatusAnswer):
    """The endpoint can score. The names are those of the public server."""

    available_gpus: int
    total_gpus: int


class PreferenceOutputs(BaseModel):
    """One value per preference sample."""

    predictions: list[int] = Field(description="1 where the chosen trajectory did better")
    prediction_probs: list[float] = Field(description="P(the chosen trajectory did better)")
    preference_labels: list[float] = Field(description="always 1")


class ProgressOutputs(BaseModel):
    """One row per progress sample, one value per frame."""

    progress_pred: list[list[float]]


class SuccessOutputs(BaseModel):
    """One row per progress sample, one value per frame."""

    success_probs: list[list[float]]


class EvaluationAnswer(BaseModel):
    """The answer of the public server. Null where the request had no sample of the kind."""

    outputs_preference: PreferenceOutputs | None
    outputs_progress: ProgressOutputs | None
    outputs_success: SuccessOutputs | None


class ModelInfoAnswer(BaseModel):
    """The checkpoint, in the names of the public server."""

    model_config = ConfigDict(protected_namespaces=())

    model_path: str = Field(description="the checkpoint as it was named at the start")
    num_gpus: int
    name: str = Field(description="as in /v1/model")
    image_encoder: str | None = Field(description="embeddings that stand in for frames; null: none do")
    experiment_config: dict[str, Any] = Field(description="settings of the checkpoint")
    model_architecture: dict[str, Any] = Field(description="class and numbers of parameters; null where not known")


class GpuAnswer(BaseModel):
    """GPUs and replicas. The names are those of the public server."""

    total_gpus: int
    available_gpus: int
    max_workers: int
    pool_size: int
    gpu_stats: dict[str, Any] = Field(description="empty: /metrics has the numbers")


class ErrorAnswer(BaseModel):
    """The form of every error: problem details (RFC 9457)."""

    type: str = Field(description="always about:blank: the status says what kind of problem it is")
    title: str = Field(description="the status in words", examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    detail: str = Field(description="one sentence: what was wrong, where, and what to do")
    error: str = Field(description="the same sentence as detail")
    request_id: str = Field(description="also in the x-request-id header and in the endpoint's log")


_ERRORS = {
    400: "A header is malformed or repeated, or the body is malformed (multipart, JSON, text that is not UTF-8).",
    401: "The bearer token is missing or wrong.",
    404: "There is no such session or job: it has ended or expired, or belongs to another token.",
    408: "The body did not arrive in time.",
    409: "The push does not follow the last one, or the job has not ended.",
    410: "The job was cancelled.",
    411: "The token has a limit of bytes, and the request does not declare its Content-Length.",
    413: "Too many bytes, frames or pixels; the limits are in /v1/model.",
    415: "The body is neither multipart nor JSON, or the upload is not a video.",
    422: "A field is missing, empty or of the wrong kind.",
    429: "The token has used up its limits: retry after the seconds in Retry-After.",
    500: "The model failed on this input.",
    503: "Not ready, or overloaded: retry after the seconds in Retry-After.",
}


def model_ref(name: str) -> ModelRef:
    """The scorer of this name."""
    return ModelRef(name=name, revision=revision(name))


def scored_clip(task: str, frame_index: list[int], fps: float | None, score: ClipScore) -> ScoredClip:
    """The answer to one clip."""
    progress = score.progress.tolist()
    return ScoredClip(
        task=task,
        num_frames=len(progress),
        frame_index=frame_index,
        fps=fps,
        progress=progress,
        success=score.success.tolist(),
        reward=progress[-1],
    )


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of these statuses."""
    content = {PROBLEM_JSON: {"schema": ErrorAnswer.model_json_schema()}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


_OPTIONS: dict[str, Any] = {
    "mode": {
        "type": "string",
        "enum": list(MODES),
        "description": "prefix: each frame from those up to it; session: as in a session",
    },
    "start_frame": {"type": "integer", "minimum": 0, "description": "the first frame of the part to score"},
    "end_frame": {"type": "integer", "minimum": 1, "description": "the frame after its last"},
    "start_s": {"type": "number", "minimum": 0, "description": "of a video: its start in seconds"},
    "end_s": {"type": "number", "minimum": 0, "description": "of a video: its end in seconds"},
    "max_frames": {"type": "integer", "minimum": 2, "description": "most frames to take of it, evenly spread"},
    "fps": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": MAX_FPS,
        "description": "of a video: frames to take of each second, instead of max_frames",
    },
}


_TASK = {
    "type": "string",
    "description": "the instruction, in words",
    "example": "open the drawer",
    "minLength": 1,
    "maxLength": MAX_TASK_CHARS,
}
_BINARY = {"type": "string", "format": "binary"}
_VIDEO = _BINARY | {"description": "a video file (mp4); this or frames"}
_NPY = _BINARY | {"description": "a .npy file of uint8 [T, H, W, 3] RGB; this or video"}
_IMAGES = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "format": "byte"},
    "description": "JPEG or PNG images of one size, base64",
}


_URL = {
    "type": "string",
    "format": "uri",
    "description": "address of a video or a .npy file; only where serve.url_allow_list allows it",
}
_KINDS: dict[str, dict[str, Any]] = {
    "multipart/form-data": {"video": _VIDEO, "frames": _NPY, "url": _URL},
    "application/json": {"frames_base64": _IMAGES, "url": _URL},
}
_TWO_FRAMES = [
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAANUlEQVQoFZXBAQEAAAABIN70f6ENqsijyKPIo8ijyKPIo8ijyKPIo8ijyKPIo8ij"
    "yKPIo8hjQowHkYg3pIUAAAAASUVORK5CYII=",
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAANUlEQVQoFZXBAQEAAAABIP4fa5YNqsijyKPIo8ijyKPIo8ijyKPIo8ijyKPIo8ij"
    "yKPIo8hj2FwlkWWS9jAAAAAASUVORK5CYII=",
]
"""Images of 16 x 16 pixels, dark and bright, for examples that work as they are."""


def request_body(suffixes: tuple[str, ...], options: bool = False, task: bool = True) -> dict[str, Any]:
    """OpenAPI `requestBody` of a route whose clips are named by `suffixes`; it may take a task and `OPTIONS`."""
    content: dict[str, Any] = {}
    for content_type, kinds in _KINDS.items():
        clips = {f"{kind}{suffix}": field for suffix in suffixes for kind, field in kinds.items()}
        one_each = [{"oneOf": [{"required": [f"{kind}{suffix}"]} for kind in kinds]} for suffix in suffixes]
        properties = ({"task": _TASK} if task else {}) | clips | (_OPTIONS if options else {})
        schema = {"type": "object", "additionalProperties": False, "required": ["task"] * task}
        content[content_type] = {"schema": schema | {"properties": properties, "allOf": one_each}}
    clips = {f"frames_base64{suffix}": _TWO_FRAMES for suffix in suffixes}
    content["application/json"]["example"] = ({"task": _TASK["example"]} if task else {}) | clips
    return {"required": True, "content": content}


def compare_body() -> dict[str, Any]:
    """OpenAPI `requestBody` of the route that compares two clips, or more that have numbers."""
    body = request_body(("_a", "_b"))
    for content_type, content in body["content"].items():
        schema, kinds = content["schema"], _KINDS[content_type]
        several = [{"required": [f"{kind}_0"]} for kind in kinds]
        schema |= {"anyOf": [{"allOf": schema.pop("allOf")}, *several], "patternProperties": _numbered(kinds)}
    return {"requestBody": body}


def clips_body(own_tasks: bool) -> dict[str, Any]:
    """OpenAPI `requestBody` of a route of numbered clips; with `own_tasks` each may have its task.

    What belongs to one clip may be anything: if it is of no use, that clip has an error, and the others their scores.
    """
    content: dict[str, Any] = {}
    for content_type, kinds in _KINDS.items():
        schema = {
            "type": "object",
            "required": [] if own_tasks else ["task"],
            "properties": {"task": _TASK} | _OPTIONS,
            "patternProperties": _numbered(
                {name: _of_one_clip(field) for name, field in (kinds | ({"task": _TASK} if own_tasks else {})).items()}
            ),
            "additionalProperties": False,
            "anyOf": [{"required": [f"{kind}_0"]} for kind in kinds],
            "description": "Clips have the numbers 0, 1, 2, ...",
        }
        content[content_type] = {"schema": schema}
    clips = {"frames_base64_0": _TWO_FRAMES, "frames_base64_1": _TWO_FRAMES[::-1]}
    content["application/json"]["example"] = {"task": _TASK["example"]} | clips
    return {"requestBody": {"required": True, "content": content}}


def _of_one_clip(field: dict[str, Any]) -> dict[str, Any]:
    return {"description": f"{field['description']}; anything else is an error of this clip"}


def _numbered(fields: dict[str, Any]) -> dict[str, Any]:
    return {f"^{name}_(0|[1-9][0-9]*)$": field for name, field in fields.items()}


def session_body() -> dict[str, Any]:
    """OpenAPI `requestBody` of the route that opens a session."""
    task = {"type": "string", "minLength": 1, "maxLength": MAX_TASK_CHARS, "example": "open the drawer"}
    numbers = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    body: dict[str, Any] = {
        "task": task,
        "tasks": {"type": "array", "items": task, "minItems": 1, "description": "in place of task: one per trajectory"},
        "pushed": numbers | {"description": "to continue a session: frames of each trajectory so far"},
        "pushes": {"type": "integer", "minimum": 0, "description": "to continue a session: its pushes so far"},
        "key": {
            "type": "string",
            "pattern": "^[A-Za-z0-9_-]{16,64}$",
            "description": "at random: what is sent again with the same key opens no second session",
        },
    }
    binary = {"type": "string", "format": "binary"}
    files = {
        "video_reference": binary | {"description": "a video to compare with; this or frames_reference"},
        "frames_reference": binary | {"description": "a .npy file of uint8 [T, H, W, 3] to compare with"},
        "frames": binary | {"description": "to continue a session: a .npy file of the frames that it held"},
    }
    either = {"oneOf": [{"required": ["task"]}, {"required": ["tasks"]}]}
    return _both(
        {"properties": body | files} | either, {"properties": body, "example": {"task": "open the drawer"}} | either
    )


def push_body() -> dict[str, Any]:
    """OpenAPI `requestBody` of the route that pushes frames."""
    options: dict[str, Any] = {
        "index": {"type": "integer", "minimum": 0, "description": "number of the push: sent twice, it counts once"},
        "reset": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "description": "trajectories that start anew with this frame",
        },
        "compare": {"type": "boolean", "description": "compare with the reference of the session"},
    }
    frames = {"type": "string", "format": "binary", "description": "a .npy file of uint8 [H, W, 3] or [n, H, W, 3]"}
    images = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "byte"}}
    form = {"required": ["frames"], "properties": options | {"frames": frames}}
    return _both(form, {"required": ["frames_base64"], "properties": options | {"frames_base64": images}})


def _both(form: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    objects = {"type": "object", "additionalProperties": False}
    content = {"multipart/form-data": {"schema": objects | form}, "application/json": {"schema": objects | body}}
    return {"requestBody": {"required": True, "content": content}}


_PIXEL = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 1, "maxItems": 3}
_PICTURE = {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": _PIXEL}}
_TRAJECTORY = {
    "type": "object",
    "required": ["frames"],
    "properties": {
        "frames": {
            "description": "[T, H, W, 3], or one picture [H, W, 3]; also with one channel in place of 3",
            "anyOf": [{"type": "array", "minItems": 1, "items": _PICTURE}, _PICTURE],
        },
        "task": {"type": ["string", "null"], "maxLength": MAX_TASK_CHARS, "description": "the instruction, in words"},
    },
}
"""In JSON; in a form, frames or embeddings refer to a `.npy` part."""


def samples_body(kind: str = "form") -> dict[str, Any]:
    """OpenAPI `requestBody` of the routes of the public server."""
    sample = {
        "oneOf": [_sample("progress", "trajectory"), _sample("preference", "chosen_trajectory", "rejected_trajectory")]
    }
    if kind == "json":
        samples = {"type": "array", "minItems": 1, "items": sample}
        properties = {"samples": samples, "use_frame_steps": {"type": "boolean"}}
        schema: dict[str, Any] = {"type": "object", "required": ["samples"], "properties": properties}
        frames = [[[[colour] * 3] * 2] * 2 for colour in (0, 255)]  # two of 2 x 2 pixels
        trajectory = {"frames": frames, "task": _TASK["example"]}
        example = {"samples": [{"sample_type": "progress", "trajectory": trajectory}], "use_frame_steps": False}
        content = {"application/json": {"schema": schema, "example": example}}
        return {"requestBody": {"required": True, "content": content}}
    properties = {
        "sample_0": {"type": "string", "description": "JSON of the first sample; sample_1 of the next, and so on"},
        "use_frame_steps": {"type": "string", "enum": ["true", "false"]},
        "sample_0_trajectory_frames": {"type": "string", "format": "binary", "description": "a .npy part"},
    }
    schema = {"type": "object", "required": ["sample_0"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _sample(kind: str, *trajectories: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"sample_type": {"const": kind}}
    properties |= dict.fromkeys(trajectories, _TRAJECTORY)
    return {"type": "object", "required": [*properties], "properties": properties}
