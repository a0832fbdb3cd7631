"""The coordinator that a configuration asks for."""

from gateway import plugins
from gateway.coordination.coordinator import Coordinator
from gateway.coordination.settings import CacheConfig
from gateway.errors import PluginNotFound


def coordinator_for(config: CacheConfig | None) -> Coordinator:
    """Return the coordinator for a cache, None for none. Connects to nothing.

    Raises `PluginNotFound` if there is none of its name, or its library is not installed.
    """
    if config is None:
        return Coordinator()
    found = plugins.load(plugins.COORDINATORS, config.type)
    if not (isinstance(found, type) and issubclass(found, Coordinator)):
        raise PluginNotFound(f"the coordinator '{config.type}' is no subclass of gateway.coordination.Coordinator")
    return found(config)
