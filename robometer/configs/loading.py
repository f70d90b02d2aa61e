"""Compose, save and restore configurations: Hydra composes the YAML groups and overrides, pydantic checks the types."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import yaml

from robometer.configs.renamed import RENAMED, current, refuse_old_name, section_of
from robometer.configs.schema import Config
from robometer.errors import RobometerError
from robometer.runs.redaction import redacted, without_secrets
from robometer.settings import ConfigError, did_you_mean, not_a_choice

GROUPS = ("model", "recipe")
"""Groups of settings: folders of `robometer/configs` with a YAML file for each choice."""


def load(overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Config:
    """The configuration under overrides.

    Args:
        overrides: such as `train.steps=500`, `model=rewind_scaled` or `recipe=quickstart`, in Hydra's grammar.
        values: more values by dotted key; texts among them mean themselves letter by letter.

    Raises:
        ConfigError: an unknown key or group, a value of the wrong type, or values that contradict each other.
        PathError: a path or URI that its stage cannot use.
    """
    for override in overrides:
        _check_names(override)
    tree = _composed([as_given(override) for override in overrides])
    for key, value in (values or {}).items():
        section, name = section_of(tree, key)
        section[name] = value
    return _typed(tree)


def _composed(overrides: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_module  # these take a tenth of a second, which --help does not need
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

    _check_grammar(overrides)
    ConfigStore.instance().store(name="schema", node=to_dict(Config()))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("robometer.configs", version_base="1.3"):
            composed = compose("config", overrides=overrides)
        return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except InterpolationResolutionError as error:
        cause = str(error).splitlines()[0]
        means = "${KEY} stands for a setting, ${oc.env:NAME} for a variable of the environment"
        raise ConfigError(redacted(f"{error.full_key}: {cause}. {means}.")) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_sentence(error)) from error


def _check_grammar(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for an override that Hydra cannot read, or that would be several values at once."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for override in overrides:
        shown = redacted(override.lstrip("+"))
        key = shown.partition("=")[0]
        try:
            parsed = parser.parse_override(override)
        except HydraException as error:
            raise ConfigError(
                f"{shown} cannot be read: close its brackets and quotes, and quote text in it."
            ) from error
        if parsed.is_sweep_override():
            raise ConfigError(f"{shown} holds several values. A list needs brackets: {key}=[a,b].")
        kind = get_origin(hint := _hints().get(key))
        if kind in (list, dict) and isinstance(parsed.value(), list | dict) and not isinstance(parsed.value(), kind):
            raise ConfigError(f"{shown} must be {_expected(hint)}.")


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("object_type", "reference_type", "full_key"))]
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return redacted(f"configuration: {' '.join(telling[:4])}{cause}")


def _typed(values: Mapping[str, Any]) -> Config:
    """The tree of settings from nested mappings, each value converted to its type.

    Raises:
        ConfigError, PathError: as `load`.
    """
    from pydantic import ValidationError

    try:
        return cast(Config, _adapter().validate_python(values))
    except ValidationError as error:
        raise _explained(error) from error


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Config)


def _explained(error: Any) -> Exception:
    """The first fault that pydantic found, in our words."""
    fault = error.errors()[0]
    raised = fault.get("ctx", {}).get("error")
    if isinstance(raised, RobometerError):  # of a section's own checks
        return raised
    full = key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "unexpected_keyword_argument":
        return ConfigError(unknown_key(key))
    key = next((name for name in _hints() if key == name or key.startswith(f"{name}.")), key)
    if fault["type"] == "literal_error":
        return ConfigError(redacted(not_a_choice(key, fault["input"], get_args(_hints()[key]))))
    if key not in _hints():
        return ConfigError(f"{key} is a section of settings. Give its keys one by one, such as {_first_key(key)}=...")
    hint = _hints()[key] if full == key else get_args(_hints()[key])[-1]
    return ConfigError(redacted(f"{full}={fault['input']!r} must be {_expected(hint)}."))


def _first_key(section: str) -> str:
    return next(name for name in _hints() if name.startswith(f"{section}."))


def _expected(hint: Any) -> str:
    """What a value of a type is, in words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_expected, get_args(hint)))
    texts = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
    return texts.get(hint) or {list: "a list, such as [a,b]", dict: "a mapping, such as {a: 1}"}[get_origin(hint)]


def _check_names(override: str) -> None:
    """Raise `ConfigError` for an override of a key or a group that does not exist."""
    left, _, value = override.partition("=")
    key, value = left.lstrip("+~"), value.strip("'\"")
    refuse_old_name(key, value)
    if key in GROUPS:
        choices = sorted(path.stem for path in (Path(__file__).parent / key).glob("*.yaml"))
        if value not in choices:
            raise ConfigError(not_a_choice(key, value, choices))
    elif not is_setting(key):
        raise ConfigError(unknown_key(key))


def is_setting(key: str) -> bool:
    """Whether a key names a setting, a section of settings, a group, or a setting of an earlier version."""
    return (
        key in GROUPS
        or key in RENAMED
        or any(name == key or name.startswith(f"{key}.") or _is_entry(key, name) for name in _hints())
    )


def setting_keys() -> list[str]:
    """The dotted keys of all settings, in their order."""
    return list(_hints())


def _is_entry(key: str, name: str) -> bool:
    """Whether `key` names an entry of the mapping `name`, such as `sampling.source_weights.lab`."""
    return get_origin(_hints()[name]) is dict and key.startswith(f"{name}.")


def unknown_key(key: str) -> str:
    """The sentence about a key that no setting has."""
    names = list(_hints())
    nearest = did_you_mean(key, names)
    if not nearest:  # perhaps without its section, or in another one
        ends = {name.rpartition(".")[2]: name for name in reversed(names)}
        close = get_close_matches(key.rpartition(".")[2], ends, n=1, cutoff=0.75)
        nearest = f" Did you mean {ends[close[0]]}?" if close else ""
    return f"There is no setting {redacted(key)}.{nearest}"


@cache
def _hints() -> dict[str, Any]:
    """The type of each setting, by its dotted key."""
    return dict(_hints_of(Config, ""))


def _hints_of(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _hints_of(cast(type, hint), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint


def as_given(override: str) -> str:
    """An override in Hydra's grammar: free text, such as a path, is quoted, so that it means itself.

    Texts that are quoted already and interpolations (`${oc.env:NAME}`) keep their meaning; overrides of groups,
    numbers, lists and mappings are left as they are. `++` lets a mapping get new entries.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    key, equals, value = override.partition("=")
    if is_setting(key := key.lstrip("+")) and key not in GROUPS:
        override = f"++{key}{equals}{value}"
    if not equals or _hints().get(key) is not str or _QUOTED.fullmatch(value):
        return override
    literal = value if _INTERPOLATION.search(value) else value.replace("${", r"\${")
    return f"++{key}={QuotedString(literal, Quote.single).with_quotes()}"


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_INTERPOLATION = re.compile(r"\$\{[^{}]+\}")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionary of the configuration."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Inverse of `to_dict`, also for what an earlier version wrote; unknown keys raise `ConfigError`."""
    return _typed(current(values))


def first_change(stored: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting whose value is another one now: its key, the stored value and today's; None if there is none.

    Args:
        stored: sections of settings, which an earlier version may have written: a setting that it did not have yet
            counts as one with its default.
        now: the same sections.
    """
    before, defaults = current(stored), to_dict(Config())
    for section, values in now.items():
        known = defaults.get(section, {}) | before.get(section, {})
        for key, value in values.items():
            if known.get(key) != value:
                return f"{section}.{key}", known.get(key), value
    return None


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with dotted keys changed, such as `{"loss.preference_weight": 0.5}`."""
    tree = to_dict(config)
    for key, value in values.items():
        refuse_old_name(key, value)
        if key not in _hints():
            raise ConfigError(unknown_key(key))
        *sections, name = key.split(".")
        reduce(getitem, sections, tree)[name] = value
    return _typed(tree)


def save(config: Config, path: str | Path) -> None:
    """Write the configuration as YAML, without its secrets."""
    Path(path).write_text(yaml.safe_dump(without_secrets(to_dict(config)), sort_keys=False))
