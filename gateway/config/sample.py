"""The configuration files that come with the package: the embedded default and one example per connector."""

from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from gateway.errors import PluginNotFound
from gateway.plugins import did_you_mean

DEFAULT: Final = "gateway"


def samples() -> list[str]:
    """Return the names of all examples, sorted; `gateway` is the embedded default."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def sample(name: str) -> str:
    """Return the text of an example. Raises `PluginNotFound` if there is none of that name."""
    if name not in samples():
        near = did_you_mean(name, samples()) or f", there are: {', '.join(samples())}"
        raise PluginNotFound(f"there is no example configuration for '{name}'{near}")
    return (_folder() / f"{name}.yaml").read_text("utf-8")


def compose(types: Sequence[str]) -> str:
    """Return one configuration with the example of each type, the built-in default for none.

    The examples agree in everything but `connectors:`, which stands last. Raises `PluginNotFound`.
    """
    first, *others = [sample(name) for name in dict.fromkeys(types)] or [sample(DEFAULT)]
    parts = [other.partition("\nconnectors:\n")[2] for other in others]
    return "\n\n".join(part.strip("\n") for part in (first, *parts)) + "\n"


def _folder() -> Traversable:
    """Installed, the files travel inside the package; in a checkout they stand beside it."""
    packaged = files("gateway") / "_configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"
