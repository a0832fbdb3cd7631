"""A gateway beside message brokers: every message becomes a durable job, whose effects commit exactly once.

The names below are the public API. They are loaded when first used, so that a program starts quickly and can
install its signal handlers before anything heavy is imported.
"""

# ruff: noqa: TC004 - the names in __all__ are loaded when they are asked for

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.connector import Connector
    from gateway.errors import Cancel, ConfigError, DeliveryError, Discard, Disconnected, GatewayError, Retry
    from gateway.handler import Context, PlainContext, handler
    from gateway.job import Direction, JobHistory, JobStatus, JobType, QueueJob
    from gateway.message import Message

__all__ = [
    "Cancel",
    "ConfigError",
    "Connector",
    "Context",
    "DeliveryError",
    "Direction",
    "Discard",
    "Disconnected",
    "Gateway",
    "GatewayError",
    "JobHistory",
    "JobStatus",
    "JobType",
    "Message",
    "PlainContext",
    "QueueJob",
    "Retry",
    "handler",
]

__version__ = version("ingestion-gateway")

_MODULES = {
    "app": ("Gateway",),
    "connector": ("Connector",),
    "errors": ("Cancel", "ConfigError", "DeliveryError", "Discard", "Disconnected", "GatewayError", "Retry"),
    "handler": ("Context", "PlainContext", "handler"),
    "job": ("Direction", "JobHistory", "JobStatus", "JobType", "QueueJob"),
    "message": ("Message",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    """Loads public names at their first use, and keeps `handler` the decorator.

    Importing the submodule of that name would otherwise put itself in the decorator's place.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'gateway' has no attribute {name!r}")
        value = getattr(import_module(f"gateway.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "handler" and isinstance(value, ModuleType):
            value = value.handler
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
