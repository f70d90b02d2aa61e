"""Configuration: `load(overrides)` composes the YAML groups under Hydra-style overrides into a typed `Config`."""

from robometer.configs.loading import from_dict, load, override, save, to_dict
from robometer.configs.schema import Config
from robometer.settings import ConfigError

__all__ = ["Config", "ConfigError", "from_dict", "load", "override", "save", "to_dict"]
