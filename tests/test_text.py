"""Tables for a terminal."""

from __future__ import annotations

from robometer.text import table


def test_columns_of_numbers_are_set_flush_right() -> None:
    rows = [("a long name", "1,234", "0.50 s", "-"), ("b", "7", "", "−0.5")]
    assert table(("name", "n", "time", "difference"), rows).splitlines() == [
        "name             n    time  difference",
        "-----------  -----  ------  ----------",
        "a long name  1,234  0.50 s           -",
        "b                7                −0.5",
    ]


def test_a_column_with_a_word_in_it_is_set_flush_left() -> None:
    assert table(("task", "n"), [("go", "1"), ("stop", "none")]).splitlines()[2:] == ["go    1", "stop  none"]
    assert table(("task", "n"), []) == "task  n\n----  -"
