"""The spread over training seeds: which runs form a group, how the page shows it, and what a checkpoint records."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from pipelines.train import _FREE
from robometer.configs.loading import load, save, to_dict
from robometer.configs.renamed import current
from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.metrics import Estimate
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Metric, Result
from robometer.evaluation.seeds import seed_groups, seed_tables, spread
from robometer.report import exports
from robometer.report import page as report
from robometer.report.comparison import compare_runs
from robometer.report.runs import EvaluationRun
from robometer.runs.provenance import recipe, trained_by
from tests.evaluation.pages import Tags

FACTS = {"recipe": "abc123", "mode": "whole clip"}


def run_of(seed: int, value: float, **facts: Any) -> EvaluationRun:
    metric = Metric("voc", Estimate(value, value - 0.1, value + 0.1, 9, "task", 9), "clips", "")
    model = f"rewind@{seed}{value}"
    provenance = {"model": model} | FACTS | {"train_seed": seed} | facts
    result = Result("reward_alignment", "seen", [metric])
    return EvaluationRun(model, Predictions(), provenance, [result], EvaluateConfig(splits=["seen"]))


RUNS = [run_of(3, 0.8), run_of(1, 0.6), run_of(2, 0.7)]


def test_the_spread_is_over_the_runs_that_differ_in_the_seed_alone() -> None:
    others = [run_of(4, 0.1, recipe="other"), run_of(5, 0.1, mode="prefixes"), run_of(6, 0.1, recipe=None)]
    groups = seed_groups([*others, *RUNS])
    assert [group.seeds for group in groups] == [[1, 2, 3]]
    values = [0.6, 0.7, 0.8]
    over_seeds = spread(groups[0], "reward_alignment", "seen", "voc")
    assert over_seeds is not None and (over_seeds.low, over_seeds.high, over_seeds.n) == (0.6, 0.8, 3)
    assert (over_seeds.mean, over_seeds.std) == pytest.approx((statistics.mean(values), statistics.stdev(values)))


def test_one_seed_twice_is_no_spread() -> None:
    again = run_of(3, 0.9)
    assert seed_groups([RUNS[0], again]) == [] and seed_tables([RUNS[0], again]) == []
    assert [run.name for run in seed_groups([RUNS[0], again, RUNS[1]])[0].runs] == ["rewind@10.6", "rewind@30.8"]


def test_a_seed_without_the_metric_is_left_out_and_said() -> None:
    without = run_of(9, float("nan"))
    cell = seed_tables([*RUNS, without])[0]["rows"][0]["cells"][0]
    assert cell == {"value": "0.700 ± 0.100", "range": "0.600 to 0.800, 3 of 4 seeds"}
    assert seed_tables([RUNS[0], without])[0]["rows"][0]["cells"][0]["value"] == "–"


def test_the_table_is_in_every_file_and_says_what_it_is_over() -> None:
    comparison = compare_runs(RUNS)
    html = report.render(comparison, None)
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and 'id="seeds"' in html and "0.700 ± 0.100" in html and "0.600 to 0.800" in html
    assert "the training itself was repeated" in html and "3 (1, 2, 3)" in html
    texts = exports.files(comparison)
    assert "| rewind, recipe abc123 | 3 (1, 2, 3) | 0.700 ± 0.100 (0.600 to 0.800) |" in texts["report.md"]
    assert r"0.700 $\pm$ 0.100 \\ \scriptsize 0.600 to 0.800" in texts["report.tex"]
    rows = list(csv.DictReader(io.StringIO(texts["report.csv"]), strict=True))
    over = {row["statistic"]: float(row["value"]) for row in rows if row["over"] == "seeds"}
    assert over == pytest.approx(
        {"mean over seeds": 0.7, "standard deviation over seeds": 0.1, "minimum over seeds": 0.6}
        | {"maximum over seeds": 0.8}
    )
    assert all(None not in row and None not in row.values() for row in rows)


def test_without_two_seeds_nothing_is_shown() -> None:
    comparison = compare_runs([RUNS[0], run_of(1, 0.6, recipe="other")])
    texts = exports.files(comparison) | {"html": report.render(comparison, None)}
    assert not any(re.search(r"over seeds", text, re.IGNORECASE) for text in texts.values())


def test_a_checkpoint_tells_its_recipe_and_its_seed(tmp_path: Path) -> None:
    def recipe_of(*overrides: str, corpus: str = "c1") -> dict[str, str | int]:
        save(load(overrides), tmp_path / "config.yaml")
        (tmp_path / "provenance.json").write_text(json.dumps({"corpus": corpus, "step": 200}))
        return trained_by(tmp_path)

    first = recipe_of("train.seed=1", "train.output=a")
    assert first == recipe_of("train.seed=2", "train.output=b", "train.num_workers=2") | {"train_seed": 1}
    changes = (
        "train.steps=7",
        "train.tf32=true",
        "loss.progress_weight=2",
        "sampling.max_frames=8",
        "embed.image_encoder=other",
    )
    recipes = [recipe_of(change)["recipe"] for change in changes] + [recipe_of(corpus="c2")["recipe"]]
    assert len({first["recipe"], *recipes}) == 7


OLD = {
    "sampling": {"mode": "rbm", "min_success": 0.4, "max_success": 0.9, "compat": "fixed"},
    "model": {"kind": "rewind"},
    "loss": {"compat": "fixed", "balance_success": True},
    "train": {"steps": 7, "seed": 1},
    "embed": {"image_encoder": "x"},
}
"""Settings as an earlier version wrote them."""


def test_a_recipe_keeps_its_hash_when_settings_get_new_names_or_there_are_new_ones() -> None:
    """Otherwise runs of one recipe trained before and after that would not count as repetitions."""
    newer = OLD | {"train": {"steps": 7, "seed": 1, "tf32": False}}
    assert recipe(newer, {"corpus": "c"}) == recipe(OLD, {"corpus": "c"})
    assert recipe(OLD, {"corpus": "c"}) == recipe(current(OLD), {"corpus": "c"}) == "6a3340c4b221"


def test_what_may_differ_when_a_run_is_resumed_makes_no_other_recipe() -> None:
    """The length of a run is the exception."""
    config = to_dict(load())

    def of(key: str) -> str:
        moved = config["train"] | ({key: "other"} if key else {})
        return recipe(config | {"train": moved}, {"corpus": "c"})

    assert {key for key in _FREE if of(key) != of("")} == {"steps"}


@pytest.mark.parametrize("missing", ["config.yaml", "provenance.json"])
def test_a_folder_that_does_not_say_has_no_recipe(tmp_path: Path, missing: str) -> None:
    save(load(), tmp_path / "config.yaml")
    (tmp_path / "provenance.json").write_text('{"corpus": "c"}')
    assert trained_by(tmp_path)
    (tmp_path / missing).unlink()
    assert trained_by(tmp_path) == {}
    assert trained_by("baseline:clock") == trained_by("http://127.0.0.1:1") == {}


def test_a_public_configuration_of_another_form_has_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model:\n  base_model_id: other\n")
    (tmp_path / "provenance.json").write_text("{}")
    assert trained_by(tmp_path) == {}
