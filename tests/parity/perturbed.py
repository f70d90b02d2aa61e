"""Recorded numbers that are no longer upstream's."""

from __future__ import annotations

from typing import Any


def shifted(value: Any) -> Any:
    """A nested value with every number in it moved, by more than any tolerance."""
    if isinstance(value, dict):
        return {key: shifted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shifted(item) for item in value]
    return value if isinstance(value, bool | str) or value is None else value + 1
