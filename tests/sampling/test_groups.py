"""Groups of sources have the members of upstream's lists, and missing sources are named."""

from __future__ import annotations

import re

import pytest

from robometer.configs import load
from robometer.configs.loading import from_dict, to_dict
from robometer.sampling.config import SamplingConfig
from robometer.sampling.groups import caches, group_names, members, resolve, source_weights
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import SamplingError
from robometer.settings import ConfigError
from tests.conftest import SHARED
from tests.sampling.manifest import manifest

SPEC = SHARED / "spec" / "data.md"
CATEGORIES = ("preference_only", "paired", "suboptimal_fail", "failure")


def test_a_name_that_is_no_group_is_a_source() -> None:
    assert members("lab") == ("lab",)
    assert resolve(["lab", "b"], ["b", "lab", "other"]) == ["lab", "b"]


def test_a_source_named_twice_is_there_once() -> None:
    available = list(members("failure"))
    assert resolve(["failure", "libero_10_failure", "failure"], available) == available


@pytest.mark.parametrize("name", group_names())
def test_every_group_resolves_where_the_corpus_has_all_of_it(name: str) -> None:
    available = [member.replace("*", "bridge") for member in members(name)]
    assert resolve([name], ["unrelated", *available]) == available


@pytest.mark.parametrize("name", group_names())
def test_a_missing_member_fails_by_its_name(name: str) -> None:
    """The run fails and names the missing source."""
    first, last, *rest = [member.replace("*", "bridge") for member in members(name)]
    with pytest.raises(SamplingError) as failure:
        resolve([name], rest)
    for missing in (first, last):
        assert f"{missing} (of group {name})" in str(failure.value)
    assert "ingest them, or name only sources of the corpus" in str(failure.value)


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(SamplingError, match=r"no trajectory of one, two: .* only sources of the corpus \(lab\)"):
        resolve(["one", "lab", "two"], ["lab"])


def test_names_that_converters_write_are_members() -> None:
    """The other name counts if the corpus has no source of the first."""
    others = [m for m in members("suboptimal_fail") if not m.startswith(("racer", "auto_eval"))]
    assert set(resolve(["suboptimal_fail"], [*others, "racer", "autoeval"])) == {*others, "racer", "autoeval"}
    assert resolve(["auto_eval_rfm"], ["autoeval", "auto_eval_rfm"]) == ["auto_eval_rfm"]
    assert resolve(["hand_paired_human", "hand_paired_robot"], ["hand_paired"]) == ["hand_paired"]


def test_one_cache_of_upstream_is_every_roboreward_source() -> None:
    assert resolve(["roboreward_*"], ["roboreward_a", "lab", "roboreward_b"]) == ["roboreward_a", "roboreward_b"]


def test_every_member_of_the_published_groups_has_a_cache() -> None:
    named = {member for group in group_names() if group.startswith("rbm") for member in members(group)}
    assert set(caches()) == named
    directories = [directory for names in caches().values() for directory in names]
    assert len(directories) == len(set(directories)) == len(named) + 2  # two members have two names
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in directories)


@pytest.mark.skipif(not SPEC.exists(), reason="../shared/spec is absent")
def test_groups_are_those_of_the_spec() -> None:
    text = SPEC.read_text()
    lists = {"rbm-1m-id": "rbm-1m-id / train", "rbm-1m-id-eval": "rbm-1m-id / eval", "rbm-1m-ood": "rbm-1m-ood / eval"}
    for group, title in lists.items():
        line = next(line for line in text.splitlines() if line.startswith(f"* **{title}**"))
        expected = (
            line.split("): ")[1].replace("~", "_converted_externally_to_rlds").replace("$", "_dataset").split(", ")
        )
        assert [caches()[member][0] for member in members(group)] == expected
    for category in CATEGORIES:
        line = next(line for line in text.splitlines() if line.startswith(f"* data_source category **{category}**"))
        expected = line.split(": ")[1].replace("rldsroboarena", "rlds").split(", ")
        assert list(members(category)) == expected


def test_weights_are_one_unless_given_and_a_source_overrules_its_group() -> None:
    available = ["lab", *members("failure")]
    weights = {"libero_10_failure": 3.0, "failure": 2.0}
    assert source_weights(weights, available).tolist() == [1.0, 2.0, 3.0, 2.0, 2.0, 2.0]
    assert source_weights({}, ["a", "b"]).tolist() == [1.0, 1.0]


def test_two_weights_of_one_source_are_refused() -> None:
    available = list(dict.fromkeys(members("suboptimal_fail") + members("preference_only")))
    with pytest.raises(SamplingError, match="two weights, through suboptimal_fail and preference_only: set one"):
        source_weights({"suboptimal_fail": 2.0, "preference_only": 3.0}, available)


def test_only_the_chosen_sources_are_sampled() -> None:
    table = manifest([{"source": name, "task": task} for name in "abc" for task in ("one", "two")])
    config = SamplingConfig(sources=["a", "c"])
    index = ManifestIndex.from_table(table, config)
    rows = [clip.row for i in range(300) for s in [plan(index, config, 0, i)] for clip in (s.a, s.b) if clip]
    assert set(rows) == {0, 1, 4, 5}


def test_a_source_that_the_corpus_lacks_is_one_sentence() -> None:
    table = manifest([{}])
    with pytest.raises(SamplingError, match="no trajectory of nowhere: ingest them"):
        ManifestIndex.from_table(table, SamplingConfig(sources=["nowhere"]))
    with pytest.raises(SamplingError, match="no trajectory of nowhere: ingest them"):
        ManifestIndex.from_table(table, SamplingConfig(source_weights={"nowhere": 1.0}))
    with pytest.raises(SamplingError, match=r"with these sampling.preference_strategies and sampling.source_weights"):
        ManifestIndex.from_table(table, SamplingConfig(source_weights={"lab": 0.0}))


def test_sources_and_weights_come_from_the_command_line() -> None:
    config = load(["sampling.sources=[lab,rbm-1m-ood]", "+sampling.source_weights={lab:2,rbm-1m-ood:0.5}"])
    assert config.sampling.sources == ["lab", "rbm-1m-ood"]
    assert config.sampling.source_weights == {"lab": 2.0, "rbm-1m-ood": 0.5}
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match="source_weights must be numbers that are not negative"):
        load(["+sampling.source_weights={lab:-1}"])
