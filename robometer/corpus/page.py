"""The corpus as one self-contained HTML file, to look at before training."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robometer.corpus.cards import cards, spread
from robometer.corpus.corpus import Corpus
from robometer.corpus.overview import overview
from robometer.files import atomic_file
from robometer.sampling.columns import Columns
from robometer.sampling.config import SamplingConfig
from robometer.trajectory import QUALITY_LABELS

MAX_CLIPS = 200
FILTERS = {"source": "Source", "quality_label": "Quality", "split": "Split", "view": "View"}
"""Manifest columns that the page can filter by, with their titles on the page."""


def write_page(
    corpus: Corpus,
    path: str | Path,
    max_clips: int = MAX_CLIPS,
    split: str | None = None,
    sampling: SamplingConfig | None = None,
) -> int:
    """Write a page of at most `max_clips` trajectories, spread over sources, tasks and qualities.

    The head counts the whole corpus. Only the frames on the page are read, with one clip in memory at a time.

    Args:
        corpus: the corpus.
        path: HTML file to write, about 40 KB per clip.
        max_clips: most clips on the page, which says how many there are in all.
        split: show only clips of this split.
        sampling: settings of the targets; None means the defaults.

    Returns:
        The number of trajectories on the page.
    """
    sampling = sampling or SamplingConfig()
    columns = Columns.from_table(corpus.manifest, sampling)
    rows = corpus.rows(split)
    chosen = spread(columns, rows, max_clips)
    style, script = (_text(name) for name in ("corpus.css", "corpus.js"))
    page = (
        _environment()
        .get_template("corpus.html.jinja2")
        .stream(
            style=Markup(style),  # noqa: S704  files of this package
            script=Markup(script),  # noqa: S704
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            head=overview(corpus, columns),
            qualities=list(reversed(QUALITY_LABELS)),
            filters=_filters(corpus, chosen),
            tasks=sorted({columns.text_of(row) for row in chosen}),
            cards=cards(corpus, columns, chosen),
            num_clips=len(chosen),
            num_rows=len(rows),
            split=split,
        )
    )
    with atomic_file(path) as staging:
        page.dump(str(staging), encoding="utf-8")
    return len(chosen)


def _filters(corpus: Corpus, rows: Sequence[int]) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """Name, title and values of each filter, with the number of clips on the page that have the value."""
    clips = corpus.manifest.take(list(rows)) if len(rows) else corpus.manifest.slice(0, 0)
    columns = [(name, title, clips[name].to_pylist()) for name, title in FILTERS.items()]
    columns.append(("agent", "By", ["robot" if robot else "human" for robot in clips["is_robot"].to_pylist()]))
    filters = []
    for name, title, values in columns:
        best_first = [label for label in reversed(QUALITY_LABELS) if label in values]
        distinct = best_first if name == "quality_label" else sorted(set(values))
        filters.append((name.removesuffix("_label"), title, [(value, values.count(value)) for value in distinct]))
    return filters


def _text(name: str) -> str:
    return resources.files("robometer.corpus").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("robometer.corpus"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["size"] = _size
    return environment


def _size(size_bytes: int) -> str:
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if size_bytes >= 10**power:
            return f"{size_bytes / 10**power:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} KB"
