"""An alias moves to a model that is better on clips that chose nothing, and to no other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import publish
from pipelines import promotion
from pipelines.evaluate import run_evaluate
from pipelines.promotion import criterion, promote
from robometer.configs import load
from robometer.configs.loading import override
from robometer.configs.schema import Config
from robometer.evaluation.paired import Difference
from robometer.models.checkpoint import save_checkpoint
from robometer.models.rewind import Rewind
from robometer.runs import tracking
from robometer.runs.publishing import Publication, PublishingError, prepare
from robometer.runs.tracking import TrackingError
from robometer.settings import ConfigError
from tests.conftest import TINY

NAME, ALIAS = "drawer-reward", "champion"
VOC = "held_out/reward_alignment/voc"


@pytest.fixture
def config(tiny_corpus: str, tmp_path: Path) -> Config:
    settings = [f"corpus.path={tiny_corpus}", "evaluate.splits=[held_out]", "evaluate.bootstrap=100"]
    settings += ["evaluate.evaluations=[reward_alignment]", "evaluate.actors=1"]
    return load([*TINY, *settings, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"])


def publication(folder: Path, config: Config, seed: int) -> Publication:
    """A random ReWiND."""
    torch.manual_seed(seed)
    model = Rewind(64, 32, 32, 1, 2, 16, 10)
    config = override(config, {"model.max_len": 16, "model.kind": "rewind"})
    save_checkpoint(folder, model.state_dict(), config, {"corpus": "c0ffee", "trajectories": 66, "sources": {}})
    return prepare(str(folder))


def evaluated(config: Config, folder: Path, scorer: str) -> str:
    run_evaluate(override(config, {"evaluate.scorer": scorer, "evaluate.output": str(folder)}))
    return str(folder)


@pytest.mark.slow
def test_an_alias_moves_to_a_better_model_only(
    ray_local: None, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (publication(tmp_path / f"model{seed}", config, seed) for seed in (0, 1))
    by = criterion(VOC)
    weak = evaluated(config, tmp_path / "weak", str(tmp_path / "model0"))
    said = promote(first, config, NAME, ALIAS, weak, by)
    assert said == f"models:/{NAME}/1 has the alias {ALIAS} now, which no version had"
    assert tracking.version_of_alias(config, NAME, ALIAS) == "1"
    assert promote(first, config, NAME, ALIAS, weak, by).endswith("is this model; nothing is published")

    said = promote(second, config, NAME, ALIAS, weak, by)  # as good as the one that has it
    assert f"models:/{NAME}/2 is published; the alias {ALIAS} stays at models:/{NAME}/1" in said
    assert "difference +0 [+0, +0]" in said
    assert tracking.version_of_alias(config, NAME, ALIAS) == "1"

    strong = evaluated(config, tmp_path / "strong", "baseline:clock")
    said = promote(second, config, NAME, ALIAS, strong, by)
    assert said.startswith(f"models:/{NAME}/3 has the alias {ALIAS} now, from models:/{NAME}/1: {VOC}")
    assert tracking.version_of_alias(config, NAME, ALIAS) == "3"
    assert (tmp_path / "strong/current/metrics.json").is_file(), "the one that had it was scored on the same clips"

    for split in ("seen", "train"):
        with pytest.raises(ConfigError, match=r"the new model was trained or chosen by .* no test of it"):
            promote(first, config, NAME, ALIAS, weak, criterion(f"{split}/reward_alignment/voc"))
    for alias in ("v1", "latest"):
        with pytest.raises(ConfigError, match="means a version to MLflow"):
            promote(first, config, NAME, alias, weak, by)
    with pytest.raises(TrackingError, match=r"'my alias' of drawer-reward cannot be used: .*Invalid alias"):
        promote(first, config, NAME, "my alias", weak, by)
    with pytest.raises(ConfigError, match="has no held_out/preference/accuracy_quality"):
        promote(first, config, NAME, ALIAS, weak, criterion("held_out/preference/accuracy_quality"))

    third = publication(tmp_path / "model2", config, 2)
    tracking.set_alias(config, NAME, ALIAS, "1")

    def meanwhile(*arguments: Any) -> Difference:
        tracking.set_alias(config, NAME, ALIAS, "2")
        return Difference(0.1, 0.05, 0.2, 0.01, 12, "clips", 4)

    monkeypatch.setattr(promotion, "differences", lambda *runs: {("reward_alignment", "held_out", "voc"): meanwhile()})
    with pytest.raises(PublishingError, match="given to version 2 meanwhile: run the same command again"):
        promote(third, config, NAME, ALIAS, strong, by)
    assert tracking.version_of_alias(config, NAME, ALIAS) == "2"


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [
        (0.01, 0.2, True, False),
        (0.0, 0.2, False, False),
        (-0.1, 0.2, False, False),
        (-0.2, 0.0, False, False),
        (-0.2, -0.01, False, True),
        (math.nan, math.nan, False, False),
    ],
)
def test_better_is_an_interval_on_the_right_side_of_0(low: float, high: float, higher: bool, lower: bool) -> None:
    difference = Difference(0.05, low, high, 0.1, 12, "clips", 4)
    assert criterion(VOC).is_better(difference) is higher
    assert criterion("held_out/partial_success/mae").is_better(difference) is lower


@pytest.mark.parametrize("name", ["voc", "held_out/voc", "held_out/reward_alignment/voc_reversed", "/preference/x"])
def test_a_metric_whose_better_side_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--metric must be SPLIT/METRIC"):
        criterion(name)


@pytest.mark.parametrize("options", [["--alias", "a"], ["--mlflow", "m", "--alias", "a", "--metric", VOC]])
def test_an_alias_needs_all_that_decides_about_it(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    where = [] if "--mlflow" in options else ["--output", "x"]
    assert publish.main(["checkpoint", *where, *options]) == 2
    assert "An alias needs all of --alias, --metric, --evaluation and --mlflow" in capsys.readouterr().err
