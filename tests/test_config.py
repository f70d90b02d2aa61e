"""Configuration: overrides, groups, and mistakes that end in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from robometer.configs import ConfigError, from_dict, load, override, save, to_dict


def test_overrides_and_groups_reach_the_typed_tree() -> None:
    config = load(["model=rewind", "train.steps=7", "loss.preference_weight=0.5"])
    assert (config.model.hidden_dim, config.train.steps, config.loss.preference_weight) == (512, 7, 0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=5"], "Key 'stepz' not in 'TrainConfig'"),
        (["model=nothing"], "Could not find 'model/nothing'"),
        (["train.steps=many"], "could not be converted to Integer"),
        (["train.zero_stage=9"], "train.zero_stage must be 0, 1, 2 or 3"),
        (["train.batch_size=7", "train.num_workers=2"], "must be a multiple"),
        (["train.validation_gpus=1"], "needs train.validate_async=true"),
        (["evaluate.actors=0"], "evaluate.actors must be at least 1"),
        (["evaluate.confidence=95"], "must be between 0 and 1"),
        (["loss.compat=old"], "none of fixed, upstream"),
        (["sampling.max_frames=64", "model.kind=rewind"], "more than model.max_len"),
    ],
)
def test_a_mistake_is_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(overrides)
    assert "\n" not in str(caught.value)


def test_a_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = load(["recipe=quickstart", "sweep.num_trials=3"])
    save(config, tmp_path / "config.yaml")
    assert from_dict(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


def test_override_changes_a_copy_and_refuses_unknown_keys() -> None:
    config = load()
    assert override(config, {"train.steps": 3}).train.steps == 3
    assert config.train.steps != 3
    with pytest.raises(ConfigError, match="stepz"):
        override(config, {"train.stepz": 3})


def test_every_recipe_and_model_composes() -> None:
    folder = Path(__file__).resolve().parents[1] / "robometer/configs"
    names = [(group, path.stem) for group in ("model", "recipe") for path in (folder / group).glob("*.yaml")]
    assert len(names) >= 3
    for group, name in names:
        assert to_dict(load([f"{group}={name}"]))
