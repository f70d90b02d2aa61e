"""Published reward models other than ours, and trivial ones that keep everyone honest: each a Scorer, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any

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

_PIP = {
    "vlac": [
        "evo_vlac @ git+https://github.com/InternRobotics/VLAC.git",
        "transformers<4.52",
        "trl>=0.13,<0.17",
    ],
}
"""What a baseline's authors need that cannot be installed beside us."""


def load_baseline(name: str, config: BaselineConfig, device: str = "cpu") -> Scorer:
    """The scorer of a baseline.

    Raises:
        ConfigError: no baseline has that name, or its settings cannot work.
    """
    _check(name)
    make: Callable[[str, BaselineConfig, str], Scorer] = import_module(f"robometer.baselines.{_MODULES[name]}").make
    return make(name, config, device)


def _check(name: str) -> None:
    if name not in _MODULES:
        raise ConfigError(f"{PREFIX}{name} is none of {', '.join(PREFIX + known for known in BASELINES)}")


def identity(name: str, config: BaselineConfig) -> str:
    """The settings that answers follow from: all but those of how fast and where they are asked and kept.

    Raises:
        ConfigError: no baseline has that name.
    """
    _check(name)
    kept = {k: v for k, v in asdict(config).items() if k not in _HOW}
    return ",".join([name, *(f"{key}={value}" for key, value in kept.items())])


def runtime_env(name: str) -> dict[str, Any]:
    """The Ray `runtime_env` of the workers that run a baseline; empty where ours will do."""
    return {"pip": list(_PIP[name])} if name in _PIP else {}
