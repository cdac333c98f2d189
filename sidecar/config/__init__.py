"""Configuration: `load_config` reads and checks, `build` makes ready values, `json_schema` helps editors."""

from sidecar.config.load import ConfigError, load_config
from sidecar.config.models import Config

__all__ = ["Config", "ConfigError", "load_config"]
