"""Raw formats: one module each, with a function `read(input)` that lists episodes without decoding any video.

A module is found by its name, so that the libraries of one format are imported by those only who read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from robometer.errors import RobometerError
from robometer.trajectory import Episode

SOURCES = ("mp4_jsonl",)


class SourceError(RobometerError):
    """Raw data that cannot be listed at all; the message says what is missing and where."""


@dataclass(frozen=True)
class Refused:
    """An entry of the raw data that is no episode, and why; it becomes a row in quarantine."""

    uri: str
    error: str
    source: str = ""
    episode_key: str = ""


def list_episodes(source: str, input: str) -> Iterator[Episode | Refused]:
    """Everything that `input` holds in the format `source`, in the data's own order.

    Raises:
        SourceError: an unknown format, or no such data.
    """
    if source not in SOURCES:
        raise SourceError(f"ingest.source={source!r} is none of {', '.join(SOURCES)}")
    yield from import_module(f"robometer.corpus.sources.{source}").read(input)
