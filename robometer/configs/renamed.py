"""Names that settings had in earlier versions: refused on the command line, read in stored settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from robometer.settings import ConfigError

RENAMED = {
    "evaluate.checkpoint": "evaluate.scorer",
    "ingest.data_source": "ingest.source_name",
    "ingest.source": "ingest.format",
    "sampling.max_success": "sampling.default_cutoff",
    "sampling.min_success": "sampling.not_done_below_progress",
}
"""Keys of earlier versions, and what they are called now."""

RENAMED_VALUES = {
    ("recipe", "libero"): "robometer_4b_short",
    ("sampling.mode", "rbm"): "trajectory_first",
}
"""Values of earlier versions, with their key, and what they are called now."""

_REMOVED = {"loss.compat": "fixed", "sampling.compat": "fixed"}
"""Keys that are gone, with the value that says what every run does now."""


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings (nested, or some sections of them) that an earlier version may have written, under today's names.

    Everything that reads settings from a file comes through here, so that old checkpoints and folders stay usable.
    """
    now = {key: dict(section) if isinstance(section, Mapping) else section for key, section in values.items()}
    for key, value in _REMOVED.items():
        section, name = section_of(now, key)
        if section.get(name) == value:
            del section[name]
    for (key, old_value), value in RENAMED_VALUES.items():
        section, name = section_of(now, key)
        if section.get(name) == old_value:
            section[name] = value
    for old, new in RENAMED.items():
        section, name = section_of(now, old)
        if name in section and section_of(now, new)[1] not in section:
            section[section_of(now, new)[1]] = section.pop(name)
    sweep, _ = section_of(now, "sweep.space")
    if "space" in sweep:
        sweep["space"] = [current_entry(entry) for entry in sweep["space"]]
    return now


def current_entry(entry: str) -> str:
    """An entry of `sweep.space` under today's names of its keys."""
    return re.sub(r"[\w.]+", lambda word: RENAMED.get(word[0], word[0]), entry)


def first_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings under the names that they had at first.

    Hashes of settings are taken over these, so that a new name makes no new hash.
    """
    then = current(values)
    for old, new in RENAMED.items():
        section, name = section_of(then, new)
        if name in section:
            section[section_of(then, old)[1]] = section.pop(name)
    for (key, old_value), value in RENAMED_VALUES.items():
        section, name = section_of(then, key)
        if section.get(name) == value:
            section[name] = old_value
    for key, value in _REMOVED.items():
        section, name = section_of(then, key)
        if section:
            section.setdefault(name, value)
    return then


def refuse_old_name(key: str, value: object = None) -> None:
    """Raise `ConfigError` with the new name, if this key, or this value of it, is one of an earlier version."""
    if key in RENAMED:
        raise ConfigError(f"{key} is now called {RENAMED[key]}. Write {RENAMED[key]}=...")
    if isinstance(value, str) and (new := RENAMED_VALUES.get((key, value))):
        raise ConfigError(f"{key}={value} is now called {new}. Write {key}={new}.")


def section_of(values: Mapping[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section that a dotted key lies in, and its name there; an empty section where there is none."""
    section, _, name = key.partition(".")
    entries = values.get(section)
    return (entries if isinstance(entries, dict) else {}), name
