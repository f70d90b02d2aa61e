"""A contact sheet: the corpus as one self-contained HTML file, to look at before anything is trained on it."""

from __future__ import annotations

import base64
import html
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from robometer.corpus.corpus import Corpus
from robometer.corpus.summary import Summary, summarise
from robometer.trajectory import QUALITY_LABELS
from robometer.video import encode_jpeg, thin

MAX_CLIPS = 120
STRIP_FRAMES = 8
THUMBNAIL_HEIGHT = 96

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16191d;--dim:#667080;--line:#e1e5ea;
--failure:#c8373c;--suboptimal:#b9770b;--successful:#1e8449;--reward:#2f6fde}
@media(prefers-color-scheme:dark){:root{--bg:#101316;--card:#1a1e23;--ink:#e8ebef;--dim:#98a2b0;--line:#2b3138;
--failure:#ff7b7f;--suboptimal:#f0b354;--successful:#5fd08b;--reward:#7fabff}}
*{box-sizing:border-box}body{margin:0;padding:16px;background:var(--bg);color:var(--ink);
font:15px/1.45 system-ui,sans-serif}main{max-width:1000px;margin:auto}h1{font-size:22px;margin:8px 0}
h2{font-size:16px;margin:28px 0 8px;position:sticky;top:0;background:var(--bg);padding:6px 0;z-index:1}
.counts{display:flex;flex-wrap:wrap;gap:8px;padding:0;list-style:none}.counts li{background:var(--card);
border:1px solid var(--line);border-radius:8px;padding:6px 12px}.counts b{display:block;font-size:18px}
.note,.meta{color:var(--dim);font-size:13px}article{background:var(--card);border:1px solid var(--line);
border-left:4px solid var(--quality);border-radius:8px;padding:8px 10px;margin:8px 0}
.failure{--quality:var(--failure)}.suboptimal{--quality:var(--suboptimal)}.successful{--quality:var(--successful)}
.quality{color:var(--quality);font-weight:600}.meta{display:flex;flex-wrap:wrap;gap:2px 12px;margin-bottom:6px}
.meta code{font-size:12px}.strip{display:grid;grid-template-columns:repeat(8,1fr);gap:2px}
.strip img{width:100%;height:auto;border-radius:3px}@media(max-width:600px){.strip{grid-template-columns:repeat(4,1fr)}}
.curve{display:block;width:100%;height:34px;margin-top:4px}
.curve path{fill:none;stroke:var(--reward);stroke-width:1.5;vector-effect:non-scaling-stroke}
.curve rect{fill:var(--successful);opacity:.22}
"""


def write_contact_sheet(corpus: Corpus, path: str | Path, max_clips: int = MAX_CLIPS, split: str | None = None) -> int:
    """Write the sheet of at most `max_clips` trajectories, spread over tasks and qualities; returns how many it shows.

    Args:
        corpus: what to show.
        path: HTML file to write, about 30 KB per clip.
        max_clips: cap; the sheet says so where it left some out.
        split: show this split only.
    """
    rows = corpus.rows(split)
    chosen = _spread(corpus, rows, max_clips)
    by_task: dict[str, list[int]] = defaultdict(list)
    for row in chosen:
        by_task[corpus.manifest["task"][row].as_py()].append(row)
    sections = []
    for task in sorted(by_task):
        clips = "".join(_clip(corpus, row) for row in by_task[task])
        sections.append(f"<section><h2>{html.escape(task)}</h2>{clips}</section>")
    note = f"{len(chosen)} of {len(rows)} trajectories are shown, spread over tasks and qualities."
    page = _page(summarise(corpus), note, "".join(sections))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")
    return len(chosen)


def _spread(corpus: Corpus, rows: np.ndarray, max_clips: int) -> list[int]:
    """Rows taken in turn from every (task, quality), best quality first within a task."""
    tasks, labels = corpus.manifest["task"].to_pylist(), corpus.manifest["quality_label"].to_pylist()
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in rows.tolist():
        groups[tasks[row], -QUALITY_LABELS.index(labels[row])].append(row)
    keys = sorted(groups)
    turns = [(turn, key) for key in keys for turn in range(len(groups[key]))]
    kept = sorted(sorted(turns)[:max_clips], key=lambda item: (item[1], item[0]))
    return [groups[key][turn] for turn, key in kept]


def _clip(corpus: Corpus, row: int) -> str:
    record = corpus.manifest.slice(row, 1).to_pylist()[0]
    positions = thin(record["num_frames"], STRIP_FRAMES)
    images = "".join(_thumbnail(frame) for frame in corpus.frames(row, positions))
    truth = corpus.record(row)
    quality = record["quality_label"]
    judged = record["partial_success"]
    partial = "" if judged is None else f"<span>partial success {judged:.2f}</span>"
    seconds = record["source_num_frames"] / record["source_fps"] if record["source_fps"] else 0.0
    return (
        f'<article class="{quality}"><div class="meta"><span class="quality">{quality}</span>'
        f"<span>{html.escape(record['split'])}</span><span>{html.escape(record['source'])} · "
        f"{html.escape(record['episode_key'])} · {html.escape(record['view'])}</span>"
        f"<span>{record['num_frames']} of {record['source_num_frames']} frames, {seconds:.1f} s</span>{partial}"
        f'<code>{record["id"][:12]}</code></div><div class="strip">{images}</div>'
        f"{_curve(truth['env_reward'], truth['success'])}</article>"
    )


def _thumbnail(frame: np.ndarray) -> str:
    width = max(1, round(frame.shape[1] * THUMBNAIL_HEIGHT / frame.shape[0]))
    small = cv2.resize(frame, (width, THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA)
    data = base64.b64encode(encode_jpeg(small, 80)).decode()
    return f'<img alt="" width="{width}" height="{THUMBNAIL_HEIGHT}" src="data:image/jpeg;base64,{data}">'


def _curve(reward: Sequence[float] | None, success: Sequence[int] | None) -> str:
    """The simulator's reward per frame as a line, and the frames where the task is done as a band behind it."""
    count = len(reward or success or ())
    if count < 2:
        return ""
    marks = "".join(
        f'<rect x="{i - 0.5}" y="0" width="1" height="30"/>' for i, done in enumerate(success or ()) if done
    )
    line = ""
    if reward:
        low, high = min(reward), max(reward)
        points = [f"{i} {28 - 26 * (value - low) / ((high - low) or 1):.1f}" for i, value in enumerate(reward)]
        line = f'<path d="M{" L".join(points)}"/>'
        title = f"simulator reward {low:.2f} to {high:.2f}"
    else:
        title = "frames where the simulator says that the task is done"
    return (
        f'<svg class="curve" viewBox="-0.5 0 {count} 30" preserveAspectRatio="none" role="img">'
        f"<title>{title}</title>{marks}{line}</svg>"
    )


def _page(summary: Summary, note: str, body: str) -> str:
    facts = {
        "trajectories": summary.trajectories,
        "tasks": len(summary.by_task),
        "frames": summary.frames,
        **{label: summary.by_quality[label] for label in reversed(QUALITY_LABELS)},
        **{f"split {name}": count for name, count in summary.by_split.items()},
        "refused": sum(summary.refused.values()),
    }
    items = "".join(f"<li><b>{count:,}</b>{html.escape(name)}</li>" for name, count in facts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Corpus</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>Corpus</h1>"
        f'<ul class="counts">{items}</ul><p class="note">{html.escape(note)} The line under a strip is the '
        f"simulator's reward, the band marks the frames where it says that the task is done. Content "
        f"{summary.content_hash[:12]}.</p>{body}</main></body></html>\n"
    )
