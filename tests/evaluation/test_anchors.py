"""The published tables are complete, and each printed average is that of its rows unless the entry says otherwise."""

from __future__ import annotations

import pytest

from robometer.evaluation.anchors import Anchor, anchors, common_caveats
from robometer.sampling.groups import members

PRINTED = [(name, average.name) for name, anchor in anchors().items() for average in anchor.averages]


def test_all_tables_are_there() -> None:
    assert len(anchors()) == 13
    rows = {name: len(anchor.rows) for name, anchor in anchors().items()}
    assert (rows["reward_alignment"], rows["trajectory_ranking"], rows["preference_task"]) == (15, 6, 6)
    assert len(common_caveats()) == 6
    for anchor in anchors().values():
        assert anchor.source and anchor.date
        assert all(set(row.values) <= set(anchor.models) for row in anchor.rows)


@pytest.mark.parametrize(("table", "name"), PRINTED)
def test_a_printed_average_is_the_mean_of_its_rows_unless_it_says_not(table: str, name: str) -> None:
    anchor = anchors()[table]
    average = next(a for a in anchor.averages if a.name == name)
    digits = 1 if anchor.scale == 100 else 2 if "short" in name or table == "offline_rl" else 3
    close = 0.6 * 10**-digits
    wrong = {model for model, mean in anchor.recomputed(average).items() if abs(mean - average.values[model]) > close}
    assert wrong == set(average.differs)


def test_the_long_and_the_short_table_disagree_on_two_models() -> None:
    differs = {(a.name, m) for a in anchors()["reward_alignment"].averages for m in a.differs}
    assert ("ID average", "VLAC-8B") in differs
    assert {model for _, model in differs} == {"GVL", "VLAC-8B"}


def test_data_sources_are_those_of_our_evaluation_groups() -> None:
    sources = {*members("rbm-1m-id-eval"), *members("rbm-1m-ood")}
    named = {row.data_source for anchor in anchors().values() for row in anchor.rows if row.data_source}
    assert named <= sources and len(named) == 15


def test_a_counterpart_names_an_evaluation_and_its_metric() -> None:
    linked: list[Anchor] = [anchor for anchor in anchors().values() if anchor.evaluation]
    assert {(a.evaluation, a.metric) for a in linked} >= {
        ("reward_alignment", "voc"),
        ("policy_ranking", "kendall_last"),
        ("confusion_matrix", "diagonal_share"),
        ("preference", "accuracy_quality"),
    }
