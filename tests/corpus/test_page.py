"""The corpus page: its counts, the clips it shows, their captions, and how a browser renders it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.corpus import main
from robometer.corpus.cards import Card, cards, spread
from robometer.corpus.corpus import Corpus
from robometer.corpus.overview import bin_edges, histogram, overview
from robometer.corpus.page import write_page
from robometer.corpus.storage import Storage
from robometer.corpus.writer import commit_shard
from robometer.sampling.columns import Columns
from robometer.sampling.config import SamplingConfig
from robometer.trajectory import SCHEMA_VERSION
from tests.corpus.test_corpus import rejected, stored

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">'"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path / "corpus"))
    storage.write_bytes("corpus.json", b'{"schema_version": %d, "state": "complete", "settings": {}}' % SCHEMA_VERSION)
    return storage


def opened(storage: Storage, *entries: Any) -> tuple[Corpus, Columns]:
    commit_shard(storage, "a", entries)
    corpus = Corpus(storage.path)
    return corpus, Columns.from_table(corpus.manifest, SamplingConfig())


def card(storage: Storage, num_frames: int = 5, **changes: Any) -> Card:
    corpus, columns = opened(storage, stored(0, num_frames, **changes))
    return next(cards(corpus, columns, [0]))


def test_a_page_is_self_contained_and_says_what_it_left_out(storage: Storage, tmp_path: Path) -> None:
    corpus, _ = opened(storage, *(stored(number) for number in range(5)))
    path = tmp_path / "pages" / "corpus.html"
    assert write_page(corpus, path, max_clips=3) == 3
    page = path.read_text()
    assert "3 of 5 trajectories" in page and "<b>5</b> trajectories" in page and "<b>25</b> frames" in page
    assert page.count("<article") == page.count("data:image/jpeg") == 3
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|https?:", page)
    assert [file.name for file in path.parent.iterdir()] == ["corpus.html"]


def test_a_page_that_fails_leaves_the_last_one(storage: Storage, tmp_path: Path) -> None:
    corpus, _ = opened(storage, stored(0))
    write_page(corpus, tmp_path / "corpus.html")
    before = (tmp_path / "corpus.html").read_text()
    Path(storage.path, "shards", "a.arrow").unlink()
    with pytest.raises(OSError):
        write_page(Corpus(storage.path), tmp_path / "corpus.html")
    assert (tmp_path / "corpus.html").read_text() == before and not list(tmp_path.glob("*.tmp"))


def test_the_command_writes_a_page_where_it_is_told(storage: Storage, tmp_path: Path) -> None:
    opened(storage, stored(0))
    assert main(["show", storage.path, "--page", f"{tmp_path}/look.html"]) == 0
    assert (tmp_path / "look.html").is_file()


def test_a_page_of_one_split_counts_the_whole_corpus(storage: Storage, tmp_path: Path) -> None:
    corpus, _ = opened(storage, *(stored(number) for number in range(5)))
    assert write_page(corpus, tmp_path / "corpus.html", split="held_out") == 1
    page = (tmp_path / "corpus.html").read_text()
    assert "1 of 1 trajectories of split held_out" in page and "<b>5</b> trajectories" in page


def test_an_empty_corpus_has_a_page(storage: Storage, tmp_path: Path) -> None:
    corpus, _ = opened(storage, rejected(1, "corrupt"))
    assert write_page(corpus, tmp_path / "corpus.html") == 0
    assert "0 of 0 trajectories" in (tmp_path / "corpus.html").read_text()


def test_what_is_left_out_by_design_is_not_refused(storage: Storage, tmp_path: Path) -> None:
    corpus, _ = opened(storage, stored(0), rejected(7, "corrupt at frame 7"), rejected(8, "too short", stage="skip"))
    write_page(corpus, tmp_path / "corpus.html")
    page = (tmp_path / "corpus.html").read_text()
    assert re.search(r"Refused \(1\).*corrupt at frame #.*Left out by design \(1\).*too short", page, re.DOTALL)


def test_sources_are_counted_with_their_facts(storage: Storage) -> None:
    entries = [stored(n, n + 3, source="oxe_droid") for n in range(4)] + [stored(5, source="epic", task="wash")]
    corpus, columns = opened(storage, *entries)
    first, second = overview(corpus, columns).sources
    assert (first.name, first.trajectories, first.tasks, first.stored_median) == ("oxe_droid", 4, 2, 4.5)
    assert (first.cutoff, first.supervised, first.by_quality["successful"]) == (0.95, 2, 2)
    assert (second.name, second.preference_only, second.supervised) == ("epic", True, 0)


def test_bins_are_one_per_length_or_grow_with_it() -> None:
    assert list(bin_edges(12, 16)) == [12, 13, 14, 15, 16, 17]
    assert list(bin_edges(7, 7)) == [7, 8]
    edges = np.array(bin_edges(1, 100_000))
    assert edges[0] == 1 and edges[-1] == 100_001 and 15 < len(edges) <= 25 and (np.diff(edges) > 0).all()
    lengths = np.array([3, 40, 40, 9000])
    assert sum(bar.count for bar in histogram("length", lengths).bars) == 4


def table(sources: list[str], tasks: list[str], qualities: list[str]) -> Columns:
    count = len(sources)
    columns = {"source": sources, "task": tasks, "quality_label": qualities, "num_frames": [5] * count}
    columns["is_robot"] = [True] * count
    return Columns.from_table(pa.table({**columns, "partial_success": pa.nulls(count, pa.float32())}), SamplingConfig())


def test_clips_are_spread_over_sources_tasks_and_qualities() -> None:
    qualities = ["successful", "suboptimal", "failure"]
    rare = table(["big"] * 60 + ["small"] * 2, [f"task {i // 6}" for i in range(62)], (qualities * 21)[:62])
    chosen = spread(rare, np.arange(62), 8)
    assert [rare.source_of(row) for row in chosen] == ["big"] * 6 + ["small"] * 2
    assert len({rare.text_of(row) for row in chosen[:6]}) == 6
    assert {rare.quality[row] for row in chosen[:6]} == {0, 1, 2}
    assert spread(rare, np.arange(62), 100) == sorted(range(62), key=lambda r: (r >= 60, r // 6, r % 3, r))
    assert spread(rare, np.arange(0), 8) == []


def test_a_chart_is_what_is_trained(storage: Storage) -> None:
    made_card = card(storage, 20, source="oxe_droid")  # its demonstrations are done at 0.95
    assert made_card.chart.target.split()[0] == "0.00,100.00" and made_card.chart.target.split()[-1] == "100.00,0.00"
    assert made_card.chart.cutoff == pytest.approx(100 * 18 / 19, abs=0.01)
    assert made_card.chart.success[0].left == pytest.approx(100 * 17.5 / 19, abs=0.01)
    assert made_card.note == "progress supervised, cut-off 0.95"
    assert len(made_card.captions) == 16 and (made_card.across, made_card.down) == (8, 2)
    assert made_card.captions[0].splitlines() == ["1 of 20 · 0.0 s", "target 0.00 · reward 0.00"]
    assert "success · done" in made_card.captions[-1]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"source": "epic"}, "preference only"),
        ({"quality_label": "failure"}, "progress not supervised"),
        ({"partial_success": 0.4}, "progress supervised up to partial success"),
    ],
)
def test_what_is_not_trained_is_not_drawn(storage: Storage, changes: dict[str, Any], note: str) -> None:
    made_card = card(storage, **changes)
    assert made_card.note == note and made_card.chart.cutoff is None
    assert bool(made_card.chart.target) == ("partial_success" in changes)
    assert not made_card.chart.target or made_card.chart.target.endswith("100.00,60.00")


def browse(page: Path, fragment: str = "") -> str:
    """The document as a browser leaves it once the page's script has run."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no chromium here")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command = [binary, *flags, f"--user-data-dir={page.parent / 'browser'}", page.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_link_with_filters_shows_what_matches(storage: Storage, tmp_path: Path) -> None:
    corpus, _ = opened(storage, *(stored(number) for number in range(5)))
    write_page(corpus, tmp_path / "corpus.html")
    dom = browse(tmp_path / "corpus.html", "#quality=suboptimal&task=TASK+1")
    articles = re.findall(r"<article[^>]*>", dom)
    visible = [article for article in articles if " hidden" not in article]
    assert len(articles) == 5 and len(visible) == 1 and "1 of 5 match" in dom
    assert 'data-quality="suboptimal"' in visible[0] and 'data-task="task 1"' in visible[0]


def test_hostile_text_is_inert(storage: Storage, tmp_path: Path) -> None:
    names = {key: HOSTILE for key in ("task", "source", "episode_key", "view", "split")}
    corpus, _ = opened(storage, stored(0, **names), rejected(7, HOSTILE))
    write_page(corpus, tmp_path / "corpus.html")
    page = (tmp_path / "corpus.html").read_text()
    assert page.count("<script") == page.count("</script") == 1 and "<img src=x" not in page
    assert "<title>Corpus: 1 trajectories</title>" in browse(tmp_path / "corpus.html")
