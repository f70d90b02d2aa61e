"""The routes of the public Robometer server, for clients that were written for it (`pipelines.serving.samples`).

They differ from it where it is wrong: bad input is a 4xx with a sentence, every sample gets one value per frame, and an
answer never holds NaN or null among its numbers. `docs/serving.md` lists the differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from fastapi import APIRouter, Request

from pipelines.serving.backend import Backend, CompareRequest, Deployed, Limits, ModelRequest, Outcome, ScoreRequest
from pipelines.serving.bodies import content_type
from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import ApiError
from pipelines.serving.metrics import Metrics
from pipelines.serving.outcomes import checked
from pipelines.serving.records import stage
from pipelines.serving.samples import SampleReader, SampleRequest, clips_of
from pipelines.serving.schemas import (
    EvaluationAnswer,
    GpuAnswer,
    ModelInfoAnswer,
    PreferenceOutputs,
    ProgressOutputs,
    SuccessOutputs,
    error_responses,
    samples_body,
)
from pipelines.serving.shares import Shares
from robometer.scoring import Clip, ClipScore


def probe_routes(backend: Backend, deployed: Deployed) -> APIRouter:
    """`/model_info` and `/gpu_status`."""
    router = APIRouter(responses=error_responses(401, 503))

    @router.get("/model_info", summary="The checkpoint and its sizes (public server)")
    async def model_info() -> ModelInfoAnswer:
        info = await backend.info()
        return ModelInfoAnswer(
            model_path=deployed.checkpoint,
            num_gpus=deployed.num_gpus,
            name=info.name,
            image_encoder=info.image_encoder,
            **{"experiment_config": {}, "model_architecture": {}, **info.description},
        )

    @router.get("/gpu_status", summary="GPUs of the endpoint (public server)")
    async def gpu_status() -> GpuAnswer:
        return GpuAnswer(
            total_gpus=deployed.num_gpus,
            available_gpus=deployed.num_gpus,
            max_workers=deployed.replicas,
            pool_size=deployed.replicas,
            gpu_stats={},
        )

    return router


def sample_routes(backend: Backend, limits: Limits, decoders: Decoders, metrics: Metrics, shares: Shares) -> APIRouter:
    """`/evaluate_batch` and `/evaluate_batch_npy`."""
    router = APIRouter(responses=error_responses(400, 401, 408, 411, 413, 415, 422, 429, 500, 503))

    async def reader() -> SampleReader:
        return SampleReader(limits, (await backend.info()).image_encoder)

    async def answer(request: SampleRequest) -> EvaluationAnswer:
        clips = [clip for sample in request.samples for clip in clips_of(sample)]
        with decoders.counted(*(clip.frames for clip in clips)):
            outcomes = await _run(_requests(request), shares, backend, metrics)
        return _answer(request, outcomes)

    @router.post("/evaluate_batch_npy", summary="Samples with .npy parts (public server)", openapi_extra=samples_body())
    async def evaluate_batch_npy(request: Request) -> EvaluationAnswer:
        """Fields `sample_0`, `sample_1`, ... hold JSON, which refers to `.npy` parts of the same form."""
        kind, parameters = content_type(request)
        if kind != "multipart/form-data":
            raise ApiError(415, "This route takes multipart/form-data. For JSON there is /evaluate_batch.")
        body, read = await request.body(), (await reader()).form
        with stage("decode"):
            samples = await asyncio.to_thread(read, body, parameters.get("boundary", ""))
        return await answer(samples)

    @router.post("/evaluate_batch", summary="Samples as JSON (public server)", openapi_extra=samples_body("json"))
    async def evaluate_batch(request: Request) -> EvaluationAnswer:
        """An object with `samples` and `use_frame_steps`; frames are nested lists of whole numbers."""
        kind, _ = content_type(request)
        if kind != "application/json":
            raise ApiError(415, "This route takes application/json. For arrays there is /evaluate_batch_npy.")
        body, read = await request.body(), (await reader()).json
        with stage("decode"):
            samples = await asyncio.to_thread(read, body)
        return await answer(samples)

    return router


def _requests(request: SampleRequest) -> list[ModelRequest]:
    mode = "prefix" if request.use_frame_steps else "whole"
    return [
        ScoreRequest(sample, mode) if isinstance(sample, Clip) else CompareRequest(*sample)
        for sample in request.samples
    ]


async def _run(requests: Sequence[ModelRequest], shares: Shares, backend: Backend, metrics: Metrics) -> list[Outcome]:
    """The outcomes of all requests, in their order; the first failure ends the others."""

    async def run(position: int) -> Outcome:
        async with shares.places:
            outcome = await backend.run(requests[position])
        error = outcome.error and f"in sample_{position} {outcome.error}"
        return checked(replace(outcome, error=error), metrics)

    return await shares.each(len(requests), run)


def _answer(request: SampleRequest, outcomes: Sequence[Outcome]) -> EvaluationAnswer:
    """As the public server answers: scores and preferences apart, each in the order of the request."""
    scores, probabilities = list[ClipScore](), list[float]()
    for sample, outcome in zip(request.samples, outcomes, strict=True):
        if isinstance(sample, Clip):
            scores.append(cast(ClipScore, outcome.value))
        else:
            probabilities.append(cast(float, outcome.value))
    answer = EvaluationAnswer(outputs_preference=None, outputs_progress=None, outputs_success=None)
    if probabilities:
        answer.outputs_preference = PreferenceOutputs(
            predictions=[int(probability > 0.5) for probability in probabilities],
            prediction_probs=probabilities,
            preference_labels=[1.0] * len(probabilities),  # it takes the first of a pair for the better one
        )
    if scores:
        answer.outputs_progress = ProgressOutputs(progress_pred=[score.progress.tolist() for score in scores])
        answer.outputs_success = SuccessOutputs(success_probs=[score.success.tolist() for score in scores])
    return answer
