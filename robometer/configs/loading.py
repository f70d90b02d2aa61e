"""Compose, save and restore configurations with Hydra and OmegaConf."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robometer.configs.schema import Config, ConfigError
from robometer.runs.redaction import redacted, without_secrets

ConfigStore.instance().store(name="schema", node=Config)

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


def load(overrides: Sequence[str] = ()) -> Config:
    """The configuration under `overrides` such as `train.steps=500`, `model=rewind_scaled` or `recipe=quickstart`.

    Raises:
        ConfigError: an unknown key or group, a value of the wrong type, or values that contradict each other.
        PathError: a path or URI that its stage cannot use.
    """
    for text in overrides:
        _refuse_old_names(text)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("robometer.configs", version_base="1.3"):
            composed = compose("config", overrides=[as_given(override) for override in overrides])
        return cast(Config, OmegaConf.to_object(composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_sentence(error)) from error


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings (nested, or some sections of them) that an earlier version may have written, under today's names.

    Everything that reads settings from a file comes through here, so that old checkpoints and folders stay usable.
    """
    now = {key: dict(section) if isinstance(section, Mapping) else section for key, section in values.items()}
    for key, value in _REMOVED.items():
        section, name = _section(now, key)
        if section.get(name) == value:
            del section[name]
    for (key, old_value), value in RENAMED_VALUES.items():
        section, name = _section(now, key)
        if section.get(name) == old_value:
            section[name] = value
    for old, new in RENAMED.items():
        section, name = _section(now, old)
        if name in section and _section(now, new)[1] not in section:
            section[_section(now, new)[1]] = section.pop(name)
    sweep, _ = _section(now, "sweep.space")
    if "space" in sweep:
        sweep["space"] = [current_entry(entry) for entry in sweep["space"]]
    return now


def current_entry(entry: str) -> str:
    """An entry `KEY=...` of `sweep.space` under today's name of its key."""
    key, equals, rest = entry.partition("=")
    return f"{RENAMED.get(key.strip(), key)}{equals}{rest}"


def first_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings under the names that they had at first.

    Hashes of settings are taken over these, so that a new name makes no new hash.
    """
    then = current(values)
    for old, new in RENAMED.items():
        section, name = _section(then, new)
        if name in section:
            section[_section(then, old)[1]] = section.pop(name)
    for (key, old_value), value in RENAMED_VALUES.items():
        section, name = _section(then, key)
        if section.get(name) == value:
            section[name] = old_value
    for key, value in _REMOVED.items():
        section, name = _section(then, key)
        if section:
            section.setdefault(name, value)
    return then


def _section(values: Mapping[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section that a dotted key lies in, and its name there; an empty section where there is none."""
    section, _, name = key.partition(".")
    entries = values.get(section)
    return (entries if isinstance(entries, dict) else {}), name


def _refuse_old_names(override: str) -> None:
    """Raise `ConfigError` for an override under the name of an earlier version."""
    given, _, value = override.partition("=")
    key = given.lstrip("+~")
    if key in RENAMED:
        raise ConfigError(f"{key} is now called {RENAMED[key]}. Write {RENAMED[key]}=...")
    if new := RENAMED_VALUES.get((key, value.strip("'\""))):
        raise ConfigError(f"{key}={value} is now called {key}={new}. Write {key}={new}.")


def as_given(override: str) -> str:
    """An override whose value is free text, such as a path, quoted for Hydra's grammar, so that it means itself.

    Texts that are quoted already and interpolations (`${oc.env:NAME}`) keep their meaning; overrides of groups,
    numbers, lists and mappings are left as they are.
    """
    key, given, value = override.partition("=")
    if not given or key not in _texts() or _QUOTED.fullmatch(value):
        return override
    literal = value if _INTERPOLATION.search(value) else value.replace("${", r"\${")
    return f"{key}={QuotedString(literal, Quote.single).with_quotes()}"


@cache
def _texts() -> frozenset[str]:
    """The dotted keys of the configuration whose values are free text."""
    return frozenset(_texts_of(Config, ""))


def _texts_of(node: type, prefix: str) -> Iterator[str]:
    for name, kind in get_type_hints(node).items():
        if kind is str:
            yield prefix + name
        elif dataclasses.is_dataclass(kind):
            yield from _texts_of(cast(type, kind), f"{prefix}{name}.")


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_INTERPOLATION = re.compile(r"\$\{[^{}]+\}")


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("object_type", "reference_type", "full_key"))]
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return redacted(f"configuration: {' '.join(kept[:4])}{cause}")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionary of the configuration."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Inverse of `to_dict`, also for what an earlier version wrote; unknown keys raise `ConfigError`."""
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), current(values))))
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from error


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with dotted keys changed, such as `{"loss.preference_weight": 0.5}`."""
    tree = OmegaConf.merge(OmegaConf.structured(Config), to_dict(config))
    for key in values:
        _refuse_old_names(key)
    try:
        for key, value in values.items():
            OmegaConf.update(tree, key, value)
        return cast(Config, OmegaConf.to_object(tree))
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from error


def save(config: Config, path: str | Path) -> None:
    """Write the configuration as YAML, without its secrets."""
    Path(path).write_text(yaml.safe_dump(without_secrets(to_dict(config)), sort_keys=False))
