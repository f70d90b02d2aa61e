"""The route that lists an endpoint's models."""

from __future__ import annotations

from fastapi import APIRouter

from pipelines.serving.backend import Deployed, Limits
from pipelines.serving.choice import CANARY, DEFAULT, Choice
from pipelines.serving.schemas import ModelsAnswer, NamedModel, error_responses


def routes(choice: Choice, limits: Limits, deployed: Deployed) -> APIRouter:
    """`/v1/models`."""
    router = APIRouter(responses=error_responses(401, 503))
    shares = {CANARY: choice.canary_share if CANARY in choice.checkpoints else 0.0}
    shares[DEFAULT] = 1 - shares[CANARY]
    named = [
        NamedModel(
            model=name,
            checkpoint=choice.checkpoints.get(name, deployed.checkpoint),
            frames=limits.others.get(name, limits.frames).as_dict(),
            share=shares.get(name, 0.0),
        )
        for name in choice.names()
    ]

    @router.get("/v1/models", summary="The models that a request may name")
    async def models() -> ModelsAnswer:
        """`?model=NAME` (or the header `x-robometer-model`) chooses one, on every route; `/v1/model` tells about it."""
        return ModelsAnswer(models=named)

    return router
