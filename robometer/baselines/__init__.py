"""Published reward models other than ours, and trivial ones that keep everyone honest: each a Scorer, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module

from robometer.configs.schema import BaselineConfig, ConfigError
from robometer.scoring import Scorer

PREFIX = "baseline:"

_MODULES = {
    "clock": "trivial",
    "constant": "trivial",
    "random": "trivial",
    "frame_difference": "trivial",
    "gvl": "gvl",
    "rl_vlm_f": "rl_vlm_f",
    "topreward": "topreward",
    "roboreward": "roboreward",
    "robo_dopamine": "robo_dopamine",
    "vlac": "vlac",
}
"""The module of each; its `make(name, config, device)` makes the scorer, and is all that is imported of it here."""

_HOW = ("requests_per_minute", "concurrency", "cache", "timeout_s")

BASELINES = tuple(_MODULES)


def load_baseline(name: str, config: BaselineConfig, device: str = "cpu") -> Scorer:
    """The scorer of a baseline.

    Raises:
        ConfigError: no baseline has that name, or its settings cannot work.
    """
    if name not in _MODULES:
        raise ConfigError(f"{PREFIX}{name} is none of {', '.join(PREFIX + known for known in BASELINES)}")
    make: Callable[[str, BaselineConfig, str], Scorer] = import_module(f"robometer.baselines.{_MODULES[name]}").make
    return make(name, config, device)


def identity(config: BaselineConfig) -> str:
    """The settings that answers follow from: all but those of how fast and where they are asked and kept."""
    kept = {k: v for k, v in asdict(config).items() if k not in _HOW}
    return ",".join(f"{name}={value}" for name, value in kept.items())
