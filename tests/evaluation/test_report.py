"""The report is self-contained, comes with strict JSON, and escapes its input."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from robometer.baselines.trivial import FrameDifference
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation import suite
from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.metrics import Estimate
from robometer.evaluation.plan import plan_split
from robometer.evaluation.predict import ClipSource, predict
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Metric
from robometer.report import page as report
from robometer.report import tables
from robometer.report.clips import clip_cards
from robometer.report.comparison import compare_runs
from robometer.report.runs import EvaluationRun
from tests.evaluation.corpora import build_corpus
from tests.evaluation.pages import Tags

CONFIG = EvaluateConfig(bootstrap=20)
PROVENANCE = {"model": "<b>model</b>", "date": "today", "splits": {"seen": "30 clips"}, "config": {"a": "</pre><i>"}}


def test_numbers_are_written_as_they_are() -> None:
    assert [tables.number(value) for value in (0.25, -1.0, 0.12345, math.nan, 7, "text")] == [
        "0.250", "−1.000", "0.123", "–", "7", "text",
    ]  # fmt: skip
    assert [tables.signed(value) for value in (0.25, -0.25, 0.0)] == ["+0.250", "−0.250", "0.000"]
    assert (tables.interval(-0.25, 0.5), tables.interval(math.nan, math.nan)) == ("−0.250 to 0.500", "")
    estimate = Estimate(0.5, 0.25, 0.75, 12, "task", 3, effective_n=4.26)
    assert tables.extent(Metric("voc", estimate, "clips", "")) == "12 clips (effective 4.3)"
    assert tables.extent(Metric("voc", replace(estimate, effective_n=42.6), "clips", "")) == "12 clips (effective 43)"
    assert tables.extent(Metric("voc", replace(estimate, effective_n=math.nan), "clips", "")) == "12 clips"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus, Predictions]:
    folder = tmp_path_factory.mktemp("report")
    corpus, scorer = build_corpus(folder / "corpus"), FrameDifference()
    units = [u for split in CONFIG.splits for u in plan_split(corpus, split, 1000, 5, 0, CONFIG.evaluations)]
    predictions = Predictions.of(predict(scorer, ClipSource.for_scorer(corpus, scorer), units, 16))
    report.write(Storage(str(folder)), suite.evaluate_all(predictions, CONFIG), predictions, PROVENANCE, corpus)
    return folder, corpus, predictions


def run_of(predictions: Predictions) -> EvaluationRun:
    return EvaluationRun("model", predictions, PROVENANCE, suite.evaluate_all(predictions, CONFIG), CONFIG)


def test_the_page_is_well_formed_and_fetches_nothing(written: tuple[Path, Corpus, Predictions]) -> None:
    html = (written[0] / report.REPORT).read_text()
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.fetched == []
    assert all(url.startswith("data:image/jpeg;base64,") for url in re.findall(r"url\(([^)]{0,40})", html))
    assert tags.classes.count("clip") == 2 * 3 * 2  # splits, qualities, a typical and a badly judged one
    assert "NaN" not in html and "nan" not in re.findall(r">([^<]*)<", html)


def test_text_from_outside_is_escaped(written: tuple[Path, Corpus, Predictions]) -> None:
    html = (written[0] / report.REPORT).read_text()
    assert "<b>model</b>" not in html and "&lt;b&gt;model&lt;/b&gt;" in html
    assert "</pre><i>" not in html


def test_metrics_json_is_strict_and_equals_the_table(written: tuple[Path, Corpus, Predictions]) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((written[0] / report.METRICS_JSON).read_text(), parse_constant=refuse)
    rows = pq.read_table(written[0] / report.METRICS_TABLE).to_pylist()
    assert len(rows) > 60
    for row in rows:
        entry = content["metrics"][row["split"]][row["evaluation"]][row["metric"]]
        assert entry["value"] == row["value"] and entry["n"] == row["n"]
        assert entry["effective_n"] == (row["effective_n"] if math.isfinite(row["effective_n"]) else None)
    assert sum(math.isfinite(row["effective_n"]) for row in rows) > 40


def test_without_the_corpus_there_are_no_clips(written: tuple[Path, Corpus, Predictions]) -> None:
    html = report.render(compare_runs([run_of(written[2])]), None)
    assert "there are no clips" in html
    assert "data:image" not in html and "Ranking by quality" in html


def test_a_report_of_nothing_still_renders() -> None:
    html = report.render(compare_runs([run_of(Predictions())]), None)
    assert "no successful clips" in html


def test_frames_that_are_shown_follow_the_cursor(written: tuple[Path, Corpus, Predictions]) -> None:
    for group in clip_cards([run_of(written[2])], written[1], CONFIG.splits):
        for card in group["clips"]:
            assert card["data"]["cell"] == list(range(card["frames"]))
            assert all(len(values) == card["frames"] for values in card["data"]["series"])
            assert card["thumbs"][0] == 0 and card["thumbs"][-1] == card["cells"] - 1
