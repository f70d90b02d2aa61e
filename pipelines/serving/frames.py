"""`/v1/frames`: exactly the frames of a video that a score of it is made from, as an array."""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
from fastapi import APIRouter, Request, Response

from pipelines.serving.bodies import read_fields
from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import ApiError
from pipelines.serving.options import OPTIONS
from pipelines.serving.schemas import error_responses, request_body

FRAMES_HEADER = "x-robometer-frames"
"""Header of the answer: JSON with `frame_index` [T] and `fps`, as in the answer of a score."""

MAX_FRAMES = 1000
"""Frames of one answer, at most: the header holds the number of each."""

_ARRAY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def frames_routes(decoders: Decoders) -> APIRouter:
    """`POST /v1/frames`."""
    router = APIRouter(responses=error_responses(400, 401, 408, 411, 413, 415, 422, 429, 500, 503))

    @router.post(
        "/v1/frames",
        summary="The frames that a score is made from",
        response_class=Response,
        responses={200: {"description": "a .npy file of uint8 [T, H, W, 3] RGB", "content": _ARRAY}},
        openapi_extra={"requestBody": request_body(("",), options=True, task=False)},
    )
    async def frames(request: Request) -> Response:
        """Upload what `/v1/score` takes, without a task. Scored as an array, the answer gives the video's numbers."""
        fields = await read_fields(request, decoders.limits.max_source_frames)
        fields.only([*fields.clip_kinds, *OPTIONS])
        options = fields.options()
        if options.prefixes:
            raise ApiError(422, "Field 'mode' has no meaning here: the frames are the same. Leave it out.")
        decoded = await fields.upload("").decode(options.cut, decoders)
        with decoders.counted(decoded.frames):
            if len(decoded.frames) > MAX_FRAMES:
                sentence = f"These are {len(decoded.frames)} frames, more than the limit of {MAX_FRAMES}."
                raise ApiError(413, f"{sentence} Ask for fewer with max_frames.")
            body = await asyncio.to_thread(_npy, decoded.frames)
        about = json.dumps({"frame_index": decoded.frame_index, "fps": decoded.fps}, separators=(",", ":"))
        return Response(body, media_type="application/octet-stream", headers={FRAMES_HEADER: about})

    return router


def _npy(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, frames)
    return file.getvalue()
