"""The pages in docs/ run: their own source, their lines of JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from robometer.corpus.sources.mp4_jsonl import _check
from tests.sources.raw import ingest, roll_out, rows, shows

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Fenced code of a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_example_of_an_own_source_reads_arrays(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("bring_your_own_data.md", "python")
    (tmp_path / "my_source.py").write_text(code)
    (tmp_path / "raw").mkdir()
    for i, quality in enumerate(("successful", "failure")):
        np.save(tmp_path / "raw" / f"do_it_{i}.{quality}.npy", roll_out(i, quality).frames)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import ray

    ray.get(ray.remote(lambda path: sys.path.insert(0, path)).remote(str(tmp_path)))
    corpus = ingest(tmp_path, "my_source")
    assert rows(corpus, "source", "task", "quality_label", "view") == [
        ("my_robot", "do it 0", "successful", "front"),
        ("my_robot", "do it 1", "failure", "front"),
    ]
    assert all(shows(corpus, row, roll_out(i, q).frames) for row, i, q in order(corpus))


def order(corpus) -> list[tuple[int, int, str]]:  # type: ignore[no-untyped-def]
    found = corpus.manifest.to_pylist()
    return [(row, int(record["task"][-1]), record["quality_label"]) for row, record in enumerate(found)]


def test_the_lines_of_json_are_valid() -> None:
    for block in blocks("bring_your_own_data.md", "json"):
        for line in block.splitlines():
            _check(json.loads(line))
