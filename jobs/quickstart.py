"""Job: the whole system, from raw videos to a served reward, on the bundled corpus (`robometer quickstart`).

Each step is the same code as its own job, in the order in which one would submit them to a cluster; only the settings
(`robometer/configs/recipe/quickstart.yaml`) are small.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs import common
from jobs.grammar import Call, Command
from pipelines import serve
from pipelines.cluster import connected, free_port
from pipelines.embed import run_embed
from pipelines.evaluate import run_evaluate
from pipelines.ingest import run_ingest
from pipelines.serving.front import ENVIRONMENT
from pipelines.sweep import run_sweep
from pipelines.train import run_train
from robometer.client import RemoteScorer
from robometer.configs import Config, override
from robometer.corpus.corpus import Corpus
from robometer.corpus.page import write_page
from robometer.corpus.summary import render, summarise
from robometer.report.png import plot_curve
from robometer.runs import paths
from robometer.scoring import Clip
from robometer.trajectory import QUALITY_LABELS

logger = logging.getLogger(__name__)

NO_TRANSFER = (
    "This model saw simulated Meta-World arms only. What it says of real video is no better than chance: "
    "train on real data before you use it there."
)


def quickstart(config: Config) -> None:
    """Run every job, then print the results and where they are."""
    started = time.monotonic()
    for name, path in (("corpus.path", config.corpus.path), ("evaluate.output", config.evaluate.output)):
        paths.absolute_path(name, paths.check_local(name, path))  # it writes more files beside them, with plain paths
    with connected(config, ENVIRONMENT):
        with _step("ingest"):
            run_ingest(config)
        with _step("embed"):
            run_embed(config)
        corpus = Corpus(config.corpus.path)
        print(render(summarise(corpus)))
        page = Path(config.corpus.path, "corpus.html")
        write_page(corpus, page, sampling=config.sampling)
        with _step("train"):
            training = run_train(config)
        with _step("sweep"):
            sweep = run_sweep(_sweep_config(config))
        with _step("evaluate"):
            record = run_evaluate(config)
        with _step("serve and score"):
            scores = _serve_and_score(config, corpus)
    print("\n" + common.metrics_table(record))
    print("\nSweep of the loss weights (short runs), best first:")
    print(sweep)
    places = {
        "report": Path(config.evaluate.output, "report.html"),
        "corpus": page,
        "training plot": Path(config.train.output, "training.png"),
        "sweep page": sweep.page,
        "scores": scores,
        "checkpoint": training.best,
        "MLflow": f"mlflow ui --backend-store-uri {config.tracking.uri}",
    }
    print("\n" + "\n".join(f"{name:14} {place}" for name, place in places.items()))
    print(f"\n{NO_TRANSFER}\nquickstart took {time.monotonic() - started:.0f} s")


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.monotonic()
    logger.info("== %s", name)
    yield
    logger.info("== %s: %.1f s", name, time.monotonic() - started)


def _sweep_config(config: Config) -> Config:
    """Trials are a fraction of the main run: enough to tell weights apart, short enough to wait for."""
    steps = max(1, config.train.steps // 10)
    return override(config, {"train.steps": steps, "train.checkpoint_every": max(1, steps // 2)})


def _serve_and_score(config: Config, corpus: Corpus) -> Path:
    """Serve the checkpoint on a free port and score a held-out clip of each quality over HTTP."""
    folder = Path(config.evaluate.output).parent / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    url = serve.start(override(config, {"serve.port": free_port(config.serve.host), "serve.max_jobs": 0}))
    try:
        scorer = RemoteScorer(url)
        for name, clip in _clips(corpus):
            score = scorer.score([clip])[0]
            plot_curve(clip.frames, score, clip.task, folder / f"{name}.png")
            values = {"task": clip.task, "progress": score.progress.tolist(), "success": score.success.tolist()}
            (folder / f"{name}.json").write_text(json.dumps(values))
            logger.info("scored %s: progress %.2f -> %.2f", name, score.progress[0], score.progress[-1])
    finally:
        serve.stop()
    return folder


def _clips(corpus: Corpus) -> Iterator[tuple[str, Clip]]:
    quality = corpus.manifest["quality_label"].to_pylist()
    for label in QUALITY_LABELS:
        row = next(int(row) for row in corpus.rows("held_out") if quality[row] == label)
        yield f"held_out_{label}", corpus.clip(row)


def _run(call: Call) -> None:
    quickstart(call.config)


COMMAND = Command(
    "quickstart",
    _run,
    "The whole system on the bundled corpus, in minutes, on a CPU: ingest, embed, train, sweep, evaluate, serve, and "
    "score over HTTP. It shows that the system works; its model saw simulated arms only, and does not transfer to real "
    "video.",
    details={
        "Writes": "outputs/quickstart: corpus/, train/, sweep/, evaluation/report.html, scores/*.png and mlflow.db.",
        "Rerun": "The same command resumes every step.",
    },
    examples="""
robometer quickstart
robometer quickstart train.steps=3000 sweep.num_trials=8
robometer quickstart train.num_workers=2 train.zero_stage=3
""",
    sections=("ingest", "embed", "sampling", "model", "train", "sweep", "evaluate"),
    recipe="quickstart",
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
