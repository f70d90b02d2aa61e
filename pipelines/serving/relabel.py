"""Rewards of a policy's transitions: the messages of `relabel.proto`, and the route that answers them.

gRPC calls come to this route as POSTs (`pipelines.serving.grpc_server`), so that all that holds for a request holds for
them too. A client sends a trajectory so far, and gets progress and success of some of its steps, each scored from the
frames up to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import numpy as np
from fastapi import APIRouter, Request, Response

from pipelines.serving.backend import Backend, Deployed, Limits, ScoreRequest
from pipelines.serving.bodies import content_type
from pipelines.serving.decoding import Decoders, check_source
from pipelines.serving.errors import ApiError
from pipelines.serving.front import RELABEL
from pipelines.serving.metrics import Metrics
from pipelines.serving.npy import HEAD_BYTES, read_npy, read_npy_header
from pipelines.serving.options import MAX_PREFIX_FRAMES, check_prefixes
from pipelines.serving.outcomes import checked
from pipelines.serving.samples import as_frames
from pipelines.serving.text import checked_task
from pipelines.serving.wire import CONTENT_TYPE, VARINT, Reader, chunk, inner, int32s, text, varint
from robometer.scoring import Clip, ClipScore

MAX_FIELDS = 500_000
"""Fields of a message, with those inside its fields. A trajectory has about 30 for each step that is shown."""


@dataclass(frozen=True)
class RelabelRequest:
    """What is asked about a trajectory.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB, those that may be shown, by observation.
        positions: of the frames to answer for, in the order of the answer.
    """

    task: str
    frames: Mapping[str, np.ndarray]
    positions: tuple[int, ...]


def relabel_route(
    backend: Backend, limits: Limits, decoders: Decoders, metrics: Metrics, deployed: Deployed
) -> APIRouter:
    """The route of `RELABEL`. Its path, its bodies and its order of frames are those of the gRPC method."""
    router = APIRouter()

    @router.post(RELABEL, include_in_schema=False)
    async def relabel(request: Request) -> Response:
        kind, _ = content_type(request)
        if kind != CONTENT_TYPE:
            raise ApiError(415, f"This route takes {CONTENT_TYPE}: it is for gRPC clients.")
        body = memoryview(await request.body())
        asked = await asyncio.to_thread(read_request, body, limits, deployed.relabel_image_keys)
        scores, model = dict[str, ClipScore](), ""
        with ExitStack() as frames_in_memory:
            frames_in_memory.enter_context(decoders.counted(*asked.frames.values()))
            for key, frames in asked.frames.items():
                clip = Clip(frames, asked.task)
                outcome = checked(await backend.run(ScoreRequest(clip, "prefix", asked.positions)), metrics)
                scores[key], model = cast(ClipScore, outcome.value), outcome.model
        return Response(answer_of(scores, model), media_type=CONTENT_TYPE)

    return router


def read_request(body: memoryview, limits: Limits, image_keys: Sequence[str]) -> RelabelRequest:
    """Read a `RelabelRewardsRequest`.

    Raises:
        ApiError: 400 for a malformed message, 413 for too much of anything, 422 for an input that cannot be scored.
    """
    reader = Reader(MAX_FIELDS)
    top = _read_top(reader, body, limits)
    shown = slice(top.first, max(indices := top.indices()) + 1)
    check_prefixes(shown.stop - shown.start, "transitions")
    transitions = [(i, _observations(reader, top.transitions[i], image_keys)) for i in range(shown.start, shown.stop)]
    first, found = transitions[0]
    if not found:
        keys = ", ".join(image_keys)
        raise ApiError(422, f"Field 'transitions[{first}].obs' has none of {keys} (serve.relabel_image_keys).")
    frames, room_bytes = {}, limits.max_upload_bytes
    for key in found:
        frames[key] = _frames(key, transitions, limits, room_bytes)
        room_bytes -= frames[key].nbytes
    return RelabelRequest(top.task, frames, tuple(i - top.first for i in indices))


def answer_of(scores: Mapping[str, ClipScore], model: str) -> bytes:
    """A `RelabelRewardsResponse` with the scores of each observation."""
    entries = []
    for key, score in scores.items():
        values = (score.progress, score.success)
        predictions = b"".join(chunk(i + 1, v.astype("<f4").tobytes()) for i, v in enumerate(values))
        entries.append(chunk(5, chunk(1, key.encode()) + chunk(2, predictions)))
    return varint(3 << 3 | VARINT) + varint(1) + chunk(4, model.encode()) + b"".join(entries)


@dataclass
class _Top:
    """The fields of a request; `batch_indices` are named by clients that skip steps."""

    transitions: list[memoryview]
    task: str = ""
    start: int = 0
    end: int = 0
    batch_indices: Sequence[int] = ()
    first: int = 0

    def indices(self) -> Sequence[int]:
        """The transitions to answer for, of which there is one at least.

        Raises:
            ApiError: 422, some are not among those that are shown; 413, there are too many.
        """
        total = len(self.transitions)
        indices = self.batch_indices or range(max(self.start, 0), self.end if self.end > 0 else total)
        if not indices:
            raise ApiError(422, f"Transitions {self.start} to before {self.end} are none. Ask for one at least.")
        if min(indices) < self.first or max(indices) >= total:
            asked = f"{min(indices)} to {max(indices)}"
            raise ApiError(422, f"Transitions {asked} are asked for, and {self.first} to {total - 1} can be shown.")
        if len(indices) > MAX_PREFIX_FRAMES:
            raise ApiError(413, f"{len(indices)} transitions are asked for; the limit is {MAX_PREFIX_FRAMES}.")
        return indices


def _read_top(reader: Reader, body: memoryview, limits: Limits) -> _Top:
    top, tasks = _Top([]), list[str]()
    for number, kind, value in reader.fields(body):
        if number == 1:
            top.transitions.append(inner(value, kind))
        elif number == 2 and not tasks:
            tasks.append(text(value, kind, "language_instructions"))
        elif number in (8, 9, 11):
            name = {8: "start", 9: "end", 11: "first"}[number]
            setattr(top, name, int32s(value, kind, 1, name)[-1])
        elif number == 10:
            top.batch_indices = [*top.batch_indices, *int32s(value, kind, MAX_PREFIX_FRAMES, "batch_indices")]
    check_source(len(top.transitions), 1, "transitions", limits)
    if not 0 <= top.first < len(top.transitions):
        raise ApiError(422, f"Field 'trajectory_start_idx' is {top.first}, of {len(top.transitions)} transitions.")
    top.task = checked_task(tasks[0] if tasks else None, "language_instructions")
    return top


def _observations(reader: Reader, transition: memoryview, image_keys: Sequence[str]) -> dict[str, memoryview]:
    """The `.npy` files of the cameras among a transition's observations, in the order of `image_keys`."""
    found = {}
    for number, kind, value in reader.fields(transition):
        if number != 2:
            continue
        key, data = "", memoryview(b"")
        for entry_number, entry_kind, entry_value in reader.fields(inner(value, kind)):
            if entry_number == 1:
                key = text(entry_value, entry_kind, "obs")
            elif entry_number == 2:
                parts = reader.fields(inner(entry_value, entry_kind))
                data = next((inner(v, k) for n, k, v in parts if n == 1), data)
        found[key] = data
    return {key: found[key] for key in image_keys if key in found}


def _frames(
    key: str, transitions: Sequence[tuple[int, Mapping[str, memoryview]]], limits: Limits, room_bytes: int
) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] of one camera. All are read as one array, so that their colours mean the same."""
    pictures = list[np.ndarray]()
    for i, observations in transitions:
        field = f"transitions[{i}].obs['{key}']"
        if key not in observations:
            raise ApiError(422, f"Field '{field}' is missing. Every transition needs it, as the first one has it.")
        pictures.append(_picture(observations[key], field, limits))
        if pictures[-1].shape != pictures[0].shape or pictures[-1].dtype != pictures[0].dtype:
            sizes = f"{_size(pictures[-1])} and {_size(pictures[0])}"
            raise ApiError(422, f"Field '{field}' differs from the frames before it: {sizes}. Send frames of one size.")
    if len(pictures) * pictures[0].shape[0] * pictures[0].shape[1] * 3 > room_bytes:
        raise ApiError(413, f"The frames take more than {limits.max_upload_bytes} bytes (serve.max_upload_bytes).")
    return as_frames(np.stack(pictures), f"obs['{key}']")


def _picture(data: memoryview, field: str, limits: Limits) -> np.ndarray:
    """The picture [H, W, C] in a `.npy` file, or the last one where it holds several."""
    if not data:
        raise ApiError(422, f"Field '{field}' is empty.")
    header = read_npy_header(bytes(data[:HEAD_BYTES]), field)
    shape = header.shape
    if len(shape) not in (3, 4) or shape[-1] not in (1, 3):
        raise ApiError(422, f"Field '{field}' must be a picture [H, W, 3], not {header}.")
    check_source(shape[0] if len(shape) == 4 else 1, shape[-3] * shape[-2], field, limits)
    values = read_npy(data, header, field)
    return values[-1] if values.ndim == 4 else values


def _size(picture: np.ndarray) -> str:
    return f"{picture.dtype} {list(picture.shape)}"
