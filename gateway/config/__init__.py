"""YAML to frozen, strict models: the only reader of configuration files and of the environment they refer to."""

from gateway.config.loader import find_config, load_config, parse_config
from gateway.config.models import AdminConfig, Config, DatabaseConfig, GatewayConfig, JobsConfig
from gateway.config.sample import compose, sample, samples
from gateway.config.schema import KeyDoc, describe, json_schema

__all__ = [
    "AdminConfig",
    "Config",
    "DatabaseConfig",
    "GatewayConfig",
    "JobsConfig",
    "KeyDoc",
    "compose",
    "describe",
    "find_config",
    "json_schema",
    "load_config",
    "parse_config",
    "sample",
    "samples",
]
