"""Configuration: overrides, groups, and mistakes that end in one sentence."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from robometer.configs import ConfigError, from_dict, load, override, save, to_dict
from robometer.configs.loading import as_given, first_change
from robometer.configs.renamed import RENAMED, RENAMED_VALUES, current
from robometer.corpus.formats import list_units
from robometer.runs.paths import PathError
from robometer.runs.redaction import redacted
from robometer.settings import settings
from robometer.training.config import SweepConfig

TEXTS = ("data ü", "robot (copy)", "日本語 😀", "a=b", "x,y", "[1]", "{a: b}", "it's", 'say "hi"', "'a'b'", "#1", "a$b",
         "${", "a${b", "  blanks  ", "~/x", "!x", "&", "back\\slash", "end\\", "\\'", "new\nline", "tab\t", "null",
         "true", "007", "1e5", "choice(1,2)", "range(1,3)", "*.mp4", "\udcff", "s3://b/a?x=1&y=2", "", ".")  # fmt: skip


def test_overrides_and_groups_reach_the_typed_tree() -> None:
    config = load(["model=rewind", "train.steps=7", "loss.preference_weight=0.5"])
    assert (config.model.hidden_dim, config.train.steps, config.loss.preference_weight) == (512, 7, 0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=5"], r"There is no setting train\.stepz\. Did you mean train\.steps\?"),
        (["steps=5"], r"Did you mean train\.steps\?"),
        (["trian.steps=5"], r"Did you mean train\.steps\?"),
        (["qwerty=5"], r"There is no setting qwerty\.$"),
        (["train.steps.more=5"], r"There is no setting train\.steps\.more\."),
        (["model=rewnd"], r"model='rewnd' is none of .*\. Did you mean rewind\?"),
        (["recipe=nothing"], "recipe='nothing' is none of quickstart, "),
        (["recipe="], "recipe='' is none of quickstart, "),
        (["train.steps=many"], r"^train\.steps='many' must be a whole number\.$"),
        (["train.steps="], r"^train\.steps='' must be a whole number\.$"),
        (["train.steps=1.5"], r"^train\.steps=1\.5 must be a whole number\.$"),
        (["train.steps=[1"], r"^train\.steps=\[1 cannot be read: close its brackets and quotes"),
        (["train.steps=\uff15"], "^train.steps=\uff15 cannot be read"),
        (["train.steps=1,2"], r"^train\.steps=1,2 holds several values\. A list needs brackets"),
        (["train.steps=${steps}"], r"^train\.steps: Interpolation key 'steps' not found\. \$\{KEY\} stands for"),
        (["train=5"], r"^train is a section of settings\. Give its keys one by one, such as train\.output=\.\.\.$"),
        (["train.validate=maybe"], r"^train\.validate='maybe' must be true or false\.$"),
        (["train.learning_rate=nan"], r"^train\.learning_rate=nan is no number that can be used\.$"),
        (["train.learning_rate=inf"], r"^train\.learning_rate=inf is no number that can be used\.$"),
        (["train.learning_rate=0"], r"^train\.learning_rate=0\.0 must be above 0\.$"),
        (["loss.preference_weight=-1"], r"^loss\.preference_weight=-1\.0 must be at least 0\.$"),
        (["serve.port=65536"], r"^serve\.port=65536 must be from 1 to 65535\.$"),
        (["model.num_heads=7"], "^model.num_heads=7 does not divide model.hidden_dim=512$"),
        (["evaluate.splits=seen"], r"^evaluate\.splits='seen' must be a list, such as \[a,b\]\.$"),
        (["evaluate.splits={a: 1}"], r"^evaluate\.splits=\{a: 1\} must be a list, such as \[a,b\]\.$"),
        (["sampling.source_weights=[1]"], r"^sampling\.source_weights=\[1\] must be a mapping, such as \{a: 1\}\.$"),
        (["sampling.source_weights.lab=x"], r"^sampling\.source_weights\.lab='x' must be a finite number\.$"),
        (["sampling.source_weights.lab=-1"], "sampling.source_weights must be numbers that are not negative"),
        (["baseline.temperature=hot"], r"^baseline\.temperature='hot' must be a finite number or null\.$"),
        (["baseline.temperature=-1"], r"^baseline\.temperature=-1\.0 must be at least 0\.$"),
        (["train.zero_stage=9"], "train.zero_stage=9 is none of 0, 1, 2, 3"),
        (["train.precision=bf61"], r"train\.precision='bf61' is none of fp32, bf16\. Did you mean bf16\?"),
        (["train.batch_size=7", "train.num_workers=2"], "must be a multiple"),
        (["train.validation_gpus=1"], "needs train.validate_async=true"),
        (["evaluate.actors=0"], r"evaluate\.actors=0 must be at least 1\.$"),
        (["evaluate.confidence=95"], r"evaluate\.confidence=95\.0 must be above 0 and below 1\.$"),
        (["sampling.max_frames=1"], "sampling.max_frames=1 must be at least 2"),
        (["model.attention=old"], "none of full, causal, state"),
        (["ingest.input=file:///data"], "write the plain path"),
        (["sampling.max_frames=64", "model.kind=rewind"], "more than model.max_len"),
    ],
)
def test_a_mistake_is_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises((ConfigError, PathError), match=message) as caught:
        load(overrides)
    assert "\n" not in str(caught.value)


def test_a_choice_is_checked_wherever_the_settings_come_from() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.search='optuma' is none of random, optuna\. Did you mean optuna\?"):
        SweepConfig(search="optuma")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model.kind='rewond'"):
        override(load(), {"model.kind": "rewond"})
    stored = to_dict(load())
    stored["evaluate"]["mode"] = "hole"
    with pytest.raises(ConfigError, match="Did you mean whole"):
        from_dict(stored)


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_entries_of_a_mapping_are_settings_too(plus: str) -> None:
    assert load([f"{plus}sampling.source_weights.lab=2"]).sampling.source_weights == {"lab": 2.0}
    assert load([f"{plus}sampling.source_weights={{lab: 2}}"]).sampling.source_weights == {"lab": 2.0}


def test_every_number_has_a_range_which_its_help_gives() -> None:
    numbers = [
        one
        for name in to_dict(load())
        for one in settings(name, type(getattr(load(), name)))
        if one.hint in (int, float)
    ]
    ranged = re.compile(r"(At least|At most|Above|From) -?[\d.]+( (and below|and at most|to) \d+)?\.$")
    assert [one.key for one in numbers if not ranged.search(one.meaning)] == []
    assert len(numbers) > 80
    plain = load()
    for one in numbers:  # the limits themselves: what lies outside on the left is refused
        with pytest.raises(ConfigError, match=f"^{one.key}=-2(.0)? must be "):
            override(plain, {one.key: -2})


def test_help_needs_neither_hydra_nor_anything_heavy() -> None:
    code = "import sys, robometer.configs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"hydra", "omegaconf", "torch", "ray", "pyarrow", "cv2", "av"} & set(done.stdout.split())


def test_any_text_of_a_shell_means_itself() -> None:
    # paths among them would be refused some of these (~x, s3:x), which mean themselves all the same
    keys = ("ingest.source_name", "ingest.split", "tracking.run_name", "tracking.experiment", "sampling.split")
    for number in range(0, len(TEXTS), len(keys)):
        values = dict(zip(keys, TEXTS[number:], strict=False))
        config = load([f"{key}={text}" for key, text in values.items()])
        assert {key: getattr(getattr(config, (at := key.split("."))[0]), at[1]) for key in values} == values


def test_a_folder_of_any_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~", "$HOME", "s3:x", "a b:c", "robot (copy)", "data ü", "[1], {2}", "it's"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trajectories.jsonl").write_text('{"video": "a.mp4", "task": "t"}')
        config = load([f"ingest.input={name}"])
        (unit,) = list_units("mp4_jsonl", config.ingest.input)
        assert unit.uri == str(tmp_path / name / "a.mp4") and unit.source == name


def test_random_texts_mean_themselves() -> None:
    rng, parser = random.Random(0), OverridesParser.create()
    for _ in range(400):
        text = "".join(rng.choices("aü \\'\"()[]{},=:#$~!&%\n.1", k=rng.randrange(1, 12)))
        if not (text[0] == text[-1] and text[0] in "'\"") and "${" not in text:
            assert parser.parse_override(as_given(f"ingest.input={text}")).value() == text


def test_what_hydra_has_a_meaning_for_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    overrides = ["ingest.input=${oc.env:DATA}/a (b)", "corpus.path='a b'", 'train.output="it\'s"', 
             "sampling.sources=[a,b]", "+sampling.source_weights={lab:2}", "train.learning_rate=1e-3", "model=rewind",
             "sampling.split=val"]  # fmt: skip
    config = load(overrides)
    assert (config.ingest.input, config.corpus.path, config.train.output) == ("/data/a (b)", "a b", "it's")
    assert (config.sampling.sources, config.sampling.source_weights) == (["a", "b"], {"lab": 2.0})
    assert (config.train.learning_rate, config.model.hidden_dim, config.sampling.split) == (1e-3, 512, "val")


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


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_is_refused_with_its_new_name_and_read_in_stored_settings(old: str, new: str) -> None:
    for text in (f"{old}=0.25", f"++{old}=0.25"):
        with pytest.raises(ConfigError, match=f"^{old} is now called {new}. Write {new}=...$"):
            load([text])
    with pytest.raises(ConfigError, match=f"is now called {new}"):
        override(load(), {old: 0.25})  # as sweep.space gives it
    (section, name), today = old.split("."), new.split(".")[1]
    stored = to_dict(load())
    stored[section][name] = stored[section].pop(today)
    assert from_dict(stored) == load()
    stored[section][today] = stored[section][name]
    with pytest.raises(ConfigError, match=name):  # which of the two was meant?
        from_dict(stored)
    space = ["a+{key}=simplex(1)", "{key} = choice(1,2)", "b=uniform(0,1) if {key}=1"]
    stored_space, today_space = ([entry.format(key=key) for entry in space] for key in (old, new))
    assert current({"sweep": {"space": stored_space}})["sweep"]["space"] == today_space


def test_a_stored_setting_that_is_another_one_now_is_named() -> None:
    today = to_dict(load())
    assert first_change(today, today) is None
    assert first_change(today, today | {"loss": today["loss"] | {"success_weight": 9.0}}) == (
        "loss.success_weight", 1.0, 9.0)  # fmt: skip
    older = today | {"train": {key: value for key, value in today["train"].items() if key != "tf32"}}
    assert first_change(older, today) is None  # it had no such setting, and did what is the default now
    later = today | {"train": today["train"] | {"tf32": True}}
    assert first_change(older, later) == first_change(today, later) == ("train.tf32", False, True)
    assert first_change({"corpus": {"content_hash": "a"}}, {"corpus": {"content_hash": "b"}}) == (
        "corpus.content_hash", "a", "b")  # fmt: skip
    old = {"sampling": {"mode": "rbm"}}
    assert first_change(old, {"sampling": {"mode": "trajectory_first"}}) is None  # written under its old name


@pytest.mark.parametrize(("key", "old"), RENAMED_VALUES)
def test_an_old_value_is_refused_with_its_new_name(key: str, old: str) -> None:
    for text in (old, f"'{old}'"):
        with pytest.raises(ConfigError, match=f"Write {key}={RENAMED_VALUES[key, old]}"):
            load([f"{key}={text}"])


def test_what_every_run_does_now_may_stand_in_stored_settings() -> None:
    stored = to_dict(load())
    stored["sampling"] |= {"mode": "rbm", "compat": "fixed"}
    stored["loss"] |= {"compat": "fixed"}
    assert from_dict(stored) == load()
    stored["loss"]["compat"] = "upstream"
    with pytest.raises(ConfigError, match="compat"):
        from_dict(stored)


def test_every_recipe_and_model_composes() -> None:
    folder = Path(__file__).resolve().parents[2] / "robometer/configs"
    names = [(group, path.stem) for group in ("model", "recipe") for path in (folder / group).glob("*.yaml")]
    assert len(names) >= 3
    for group, name in names:
        assert to_dict(load([f"{group}={name}"]))


def test_a_configuration_is_saved_without_its_secrets(tmp_path: Path) -> None:
    secrets = {
        "serve.token": "of-the-endpoint",
        "tracking.uri": "postgresql://me:of-the-store@host/runs?password=of-the-query",
        "baseline.base_url": "https://of-the-api@host/v1",
    }
    save(override(load(), secrets), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "of-the-" not in text
    read = from_dict(yaml.safe_load(text))  # what is left is still a configuration
    assert read.serve.token == "***"
    assert read.tracking.uri == "postgresql://***@host/runs?password=***"


@pytest.mark.parametrize(
    ("text", "redaction"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'authorization': 'basic YWJj'}", "{'authorization': 'basic ***'}"),
        ("serve.token='one two' x", "serve.token=*** x"),
        ("MLFLOW_TRACKING_PASSWORD=abc", "MLFLOW_TRACKING_PASSWORD=***"),
        ("MLFLOW_TRACKING_TOKEN=abc", "MLFLOW_TRACKING_TOKEN=***"),
        ("client_secret=abc&x=1", "client_secret=***&x=1"),
        ("api-key=abc", "api-key=***"),
        ("max_tokens=5 model.per_frame_progress_token=true", "max_tokens=5 model.per_frame_progress_token=true"),
        ("a bearer token is wanted: give serve.token", "a bearer token is wanted: give serve.token"),
    ],
)
def test_what_looks_like_a_secret_is_left_out(text: str, redaction: str) -> None:
    assert redacted(text) == redaction == redacted(redaction)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["://a:b", "x@://a:b", "://a:1/", "token='", "authorization ", "api_"])
def test_the_time_that_secrets_take_grows_with_the_text(text: str) -> None:
    redacted(100_000 * text)
    redacted(100_000 * text + "@")


def test_a_mistake_does_not_quote_a_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        load(["serve.token=[of-the-endpoint", "train.stepz=1"])
    assert "of-the-endpoint" not in str(caught.value)
