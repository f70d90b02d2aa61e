"""Ask a scorer about planned queries on Ray, in parts that outlive a killed run.

A part is a file of records, written whole by the worker that made it. Its name follows from its queries and from the
scorer's identity. A run that was killed therefore goes on with the missing parts, and asks nothing twice. A clip that
cannot be scored is a record with its error; the next run asks again for its part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray

from pipelines.cluster import connected
from pipelines.stage import Actors, crash_mark, run_actors
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.evaluation.plan import Query
from robometer.evaluation.predict import ClipSource, failed, predict_each
from robometer.evaluation.predictions import Prediction, from_table, to_table
from robometer.scorers import ScorerReference
from robometer.scoring import Scorer

logger = logging.getLogger(__name__)

PARTS, MARK = "parts", ".begun"
SCORER, SPENT = "scorer", "spent"
"""Keys of a part's metadata."""

QUERIES_PER_PART = 32
"""Clips and pairs that each actor predicts again at most after a kill."""

ANSWERS_VERSION = 3
"""Increase it where a change of the code gives other answers; 3 asks baselines in their published wording."""


class EvaluationFailed(RobometerError):
    """The scorer answered nothing, or a worker failed; the message says why."""


@dataclass(frozen=True)
class Part:
    """A worker's answers to a part of the queries.

    Attributes:
        scorer: name of the scorer.
        spent: `busy_seconds`, and what was asked of an API (`baselines.api.Usage`), by name.
        records: the answers.
    """

    scorer: str
    spent: Mapping[str, float]
    records: Sequence[Prediction]

    @classmethod
    def read(cls, storage: Storage, name: str) -> Part:
        """Read what `Predictor` wrote under this name."""
        table = storage.read_parquet(_file(name))
        metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        return cls(metadata[SCORER], json.loads(metadata[SPENT]), from_table(table))

    @property
    def failed(self) -> bool:
        """Whether a clip or pair was not scored."""
        return any(getattr(record, "error", "") for record in self.records)


def predict_queries(
    config: Config, corpus: Corpus, queries: Sequence[Query], scorer: ScorerReference, identity: str
) -> list[Part]:
    """Answers to all queries, in parts. Uses the parts in `evaluate.output`, and deletes those of other scorers.

    Args:
        identity: of the scorer.

    Raises:
        EvaluationFailed: a worker failed.
    """
    storage = Storage(config.evaluate.output)
    parts = _named_parts(queries, f"form {ANSWERS_VERSION} {corpus.content_hash} {config.evaluate.mode} {identity}")
    answered = {name: Part.read(storage, name) for name in parts if storage.exists(_file(name))}
    answered = {name: part for name, part in answered.items() if not part.failed}
    missing = [(name, part) for name, part in parts.items() if name not in answered]
    if answered:
        logger.info("evaluate: using %d of %d parts from an earlier run", len(answered), len(parts))
    if missing:
        with connected(config):  # only here: the metrics need no Ray
            _predict_parts(config, corpus, missing, scorer)
    storage.remove_stale(PARTS, keep=set(parts), age_s=0.0)
    return [answered[name] if name in answered else Part.read(storage, name) for name in parts]


def _named_parts(queries: Sequence[Query], context: str) -> dict[str, Sequence[Query]]:
    """Queries by the name of their part, which follows from them and from `context`."""
    parts = [queries[start : start + QUERIES_PER_PART] for start in range(0, len(queries), QUERIES_PER_PART)]
    return {hashlib.sha256(f"{context} {part}".encode()).hexdigest()[:24]: part for part in parts}


def _file(part: str) -> str:
    return f"{PARTS}/{part}.parquet"


def _predict_parts(
    config: Config, corpus: Corpus, parts: Sequence[tuple[str, Sequence[Query]]], scorer: ScorerReference
) -> None:
    settings, scorer = config.evaluate, scorer.for_workers()
    start = partial(
        Predictor,
        partial(scorer.load, "cuda" if settings.num_gpus > 0 else "cpu"),
        corpus=corpus.storage.path,
        manifest=ray.put(corpus.manifest),  # each node holds it once
        output=Storage(settings.output).path,
        batch_size=settings.batch_size,
        mode=settings.mode,
        run=uuid.uuid4().hex,
    )
    actors = Actors(settings.actors, settings.num_gpus, scorer.runtime_env)
    for _ in run_actors("evaluate", parts, start, EvaluationFailed, actors, size=lambda part: len(part[1])):
        pass  # each wrote its own file


class Predictor:
    """Holds a scorer and the corpus in an actor; turns each part of the queries into a file of records.

    A crash mark lies beside the part on which it works. An actor that finds the mark of the same run replaces one that
    died, and asks one query at a time. A query that kills two more actors becomes a record with its error.
    """

    def __init__(
        self,
        load: Callable[[], Scorer],
        corpus: str,
        manifest: ray.ObjectRef[pa.Table],
        output: str,
        batch_size: int,
        mode: str,
        run: str,
    ) -> None:
        self._scorer = load()
        self._source = ClipSource.for_scorer(Corpus(corpus, ray.get(manifest)), self._scorer)
        self._storage, self._run = Storage(output), run
        self._records = partial(predict_each, self._scorer, self._source, batch_size=batch_size, mode=mode)

    def __call__(self, part: tuple[str, Sequence[Query]]) -> None:
        """Answer the queries of a part, and write its file."""
        name, queries = part
        if self._scorer.info.compares_only:
            queries = [query for query in queries if query.pair_kind]
        mark = f"{PARTS}/{name}{MARK}"
        with crash_mark(self._storage, mark, self._run.encode()) as crashed:
            started, before = time.monotonic(), self._scorer.info.spent
            table = to_table(self._answers(queries, mark, crashed))
            spent = {"busy_seconds": time.monotonic() - started}
            spent |= {name: value - before[name] for name, value in self._scorer.info.spent.items()}
            metadata = {SCORER: self._scorer.name, SPENT: json.dumps(spent)}
            self._storage.write_parquet(_file(name), table.replace_schema_metadata(metadata))

    def _answers(self, queries: Sequence[Query], mark: str, crashed: bytes | None) -> list[Prediction]:
        if crashed is None:
            return self._records(queries)
        run, *killers = crashed.decode().split() or [""]
        if run != self._run:
            self._storage.write_bytes(mark, self._run.encode())
            return self._records(queries)
        records: list[Prediction] = []
        for number, query in enumerate(queries):
            if killers.count(str(number)) > 1:  # once may be the node's fault
                records.append(failed(self._source, query, "the worker that scored it alone was killed twice"))
                continue
            self._storage.write_bytes(mark, " ".join([run, *killers, str(number)]).encode())
            records += self._records([query])
        return records


def what_it_took(parts: Sequence[Part]) -> str:
    """Time of the scoring in words, and requests and tokens of an API."""
    total: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part.spent.items():
            total[name] += value
    records, seconds = sum(len(part.records) for part in parts), total.pop("busy_seconds")
    words = [f"{records} answers in {seconds:.1f} s of actors' time, {records / seconds:.3g} a second"]
    return ", ".join(words + [f"{name.replace('_', ' ')} {value:,.0f}" for name, value in total.items() if value])
