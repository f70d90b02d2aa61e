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


def load(overrides: Sequence[str] = ()) -> Config:
    """The configuration under `overrides` such as `train.steps=500`, `model=rewind_scaled` or `recipe=quickstart`.

    Raises:
        ConfigError: an unknown key or group, a value of the wrong type, or values that contradict each other.
        PathError: a path or URI that its stage cannot use.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("robometer.configs", version_base="1.3"):
            composed = compose("config", overrides=[as_given(override) for override in overrides])
        return cast(Config, OmegaConf.to_object(composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_sentence(error)) from error


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
    """Inverse of `to_dict`; unknown keys raise `ConfigError`."""
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), dict(values))))
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from error


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with dotted keys changed, such as `{"loss.preference_weight": 0.5}`."""
    tree = OmegaConf.merge(OmegaConf.structured(Config), to_dict(config))
    try:
        for key, value in values.items():
            OmegaConf.update(tree, key, value)
        return cast(Config, OmegaConf.to_object(tree))
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from error


def save(config: Config, path: str | Path) -> None:
    """Write the configuration as YAML, without its secrets."""
    Path(path).write_text(yaml.safe_dump(without_secrets(to_dict(config)), sort_keys=False))
