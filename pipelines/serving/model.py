"""The `Model` deployment: holds the scorers of an endpoint's models and answers concurrent requests in batches."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from ray import serve
from ray.serve import metrics

from pipelines.serving.answerer import Answerer
from pipelines.serving.backend import ModelInfo, ModelRequest, Outcome, SessionLimits
from pipelines.serving.batching import Batches
from pipelines.serving.metrics import SESSIONS_METRIC
from pipelines.serving.scaling import LATENCY
from robometer.configs.stages import ServeConfig
from robometer.models.sharing import share_weights
from robometer.scorers import ScorerReference
from robometer.scoring import Scorer

_RECENT_S = 10.0
"""Age of the requests whose time decides over more replicas, at most."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory."""

    info: ModelInfo
    answerer: Answerer
    scorer: Scorer

    @classmethod
    def of(cls, reference: ScorerReference, config: ServeConfig) -> Loaded:
        """Load it, and let it score one clip."""
        scorer = reference.load("cuda" if config.num_gpus > 0 else "cpu")
        told = scorer.info
        info = ModelInfo(scorer.name, dict(told.provenance), told.image_encoder, reference.describe(), told.max_frames)
        answerer = Answerer(scorer, SessionLimits.from_config(config))
        answerer.try_out()
        return cls(info, answerer, scorer)


class Model:
    """One replica. Requests to its models share one batch queue and one thread, but no batch.

    Ray Serve's multiplexing keeps at most `serve.models_per_replica` models beside the first, and sends requests for a
    model to replicas that have it.
    """

    def __init__(
        self,
        scorer: ScorerReference,
        config: ServeConfig,
        others: Mapping[str, ScorerReference] | None = None,
        frames_tag: str = "",
    ) -> None:
        self._frames_tag = frames_tag
        # Torch is very slow when its threads outnumber the cores that Ray gave this replica.
        torch.set_num_threads(max(1, int(config.num_cpus)))
        self._config, self._others = config, dict(others or {})
        at_once = config.models_per_replica or len(self._others)
        with ThreadPoolExecutor(at_once + 1) as threads:  # side by side
            waiting = {name: threads.submit(self._load, name) for name in list(self._others)[:at_once]}
            self._first = Loaded.of(scorer, config)
            self._ready = {name: loading.result() for name, loading in waiting.items()}
        self._all = weakref.WeakSet([self._first])
        for loaded in self._ready.values():
            self._add(loaded)
        self._loading = dict[str, asyncio.Task[Loaded]]()

        async def other(name: str) -> Loaded:
            return await self._other(name)

        self._multiplexed = serve.multiplexed(max_num_models_per_replica=max(at_once, 1))(other)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._times_s = deque[tuple[float, float]](maxlen=1000)
        meaning = "Trajectories of the sessions that a replica keeps."
        self._trajectories = metrics.Gauge(SESSIONS_METRIC, description=meaning, tag_keys=("model",))
        self._batches = Batches[Answerer, ModelRequest, Outcome](
            self._answer_all, config.max_batch_size, config.batch_wait_timeout_s
        )

    async def info(self) -> ModelInfo:
        """What the model that the request asks for says of itself."""
        return (await self._model(serve.get_multiplexed_model_id())).info

    async def run(self, request: ModelRequest, frames_tag: str = "") -> Outcome | None:
        """Answer one request, in a batch with others that wait for the same model.

        Returns:
            None where the frames were made for a model that sees others (`Limits.frames_tag`).
        """
        if frames_tag != self._frames_tag:
            return None
        started_s = time.monotonic()
        model = await self._model(serve.get_multiplexed_model_id())
        outcome = await self._batches.answer(model.answerer, request)
        now_s = time.monotonic()
        self._times_s.append((now_s, now_s - started_s))
        return replace(outcome, seconds=now_s - started_s)

    async def check_health(self) -> None:
        """Raise where a model fails on a clip that must work: Ray Serve then replaces this replica."""
        for model in self._all:
            self._trajectories.set(model.answerer.trajectories, {"model": model.info.name})
            if model.answerer.sick:
                raise RuntimeError(f"the model {model.info.name} fails on any clip ({model.answerer.sick})")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Mean seconds of the latest requests, for `pipelines.serving.scaling`; 0 where there were none."""
        since_s = time.monotonic() - _RECENT_S
        recent = [seconds for at, seconds in self._times_s if at > since_s]
        return {LATENCY: sum(recent) / len(recent) if recent else 0.0}

    async def _model(self, name: str) -> Loaded:
        """The model of this name; the first one for none. Whoever asks for a loaded model waits for no other."""
        if not name:
            return self._first
        for ready in list(self._ready):  # hand over to Ray what loaded before the replica could answer
            await self._multiplexed(ready)
        return await self._multiplexed(name)  # type: ignore[no-any-return]

    async def _other(self, name: str) -> Loaded:
        """Load a model in a thread, once even if who asked for it has gone meanwhile."""
        if name in self._ready:
            return self._ready.pop(name)
        loading = self._loading.get(name)
        if loading is None:
            loading = self._loading[name] = asyncio.create_task(asyncio.to_thread(self._load_late, name))
            loading.add_done_callback(lambda _: self._loading.pop(name))
        return await asyncio.shield(loading)

    def _load(self, name: str) -> Loaded:
        return Loaded.of(self._others[name], self._config)

    def _load_late(self, name: str) -> Loaded:
        return self._add(self._load(name))

    def _add(self, loaded: Loaded) -> Loaded:
        """Count it among the models in memory, which share their equal weights: several adapters hold one base."""
        for other in list(self._all):
            share_weights(loaded.scorer, other.scorer)
        self._all.add(loaded)
        return loaded

    async def _answer_all(self, answerer: Answerer, requests: list[ModelRequest]) -> list[Outcome]:
        # In a thread, so that health checks and the queue go on while the model computes.
        return await asyncio.get_running_loop().run_in_executor(self._thread, answerer.answer, requests)
