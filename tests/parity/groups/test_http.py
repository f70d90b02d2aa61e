"""`e_http`: every request is answered with upstream's numbers, and would not be if upstream's numbers were others."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from parity.groups.http import rows
from parity.recorded_set import RecordedSet
from tests.parity.perturbed import shifted


@pytest.fixture
def cases(golden: Path) -> list[dict]:
    if not (golden / "e_http").is_dir():
        pytest.skip("e_http is not part of this golden set")
    return json.loads((golden / "e_http" / "cases.json").read_text())


def test_every_request_is_answered_as_upstream_answers_it(golden: Path, cases: list[dict]) -> None:
    made = list(rows(RecordedSet(golden)))
    assert [row for row in made if not row.passed] == []
    assert {row.case for row in made} == {f"e_http/{case['name']}" for case in cases}
    refused = {f"e_http/{case['name']}" for case in cases if case["status"] != 200}
    assert {row.case for row in made if row.reason} >= refused
    assert all(row.ours for row in made if row.reason)


def test_other_numbers_than_upstreams_fail(golden: Path, cases: list[dict], tmp_path: Path) -> None:
    (tmp_path / "e_http").mkdir()
    for file in (golden / "e_http").iterdir():
        if file.name != "cases.json":
            (tmp_path / "e_http" / file.name).symlink_to(file)
    (tmp_path / "d_rbm").symlink_to(golden / "d_rbm")
    changed = [
        {**c, "response": shifted(c["response"]), "client_return": shifted(c.get("client_return"))} for c in cases
    ]
    (tmp_path / "e_http" / "cases.json").write_text(json.dumps(changed))
    numbers = [row for row in rows(RecordedSet(tmp_path)) if not row.reason and not row.what.startswith("frames of")]
    assert numbers and not any(row.passed for row in numbers)
    assert any(math.isfinite(row.error) for row in numbers)
