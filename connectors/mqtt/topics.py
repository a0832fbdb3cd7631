"""Topic filters with named captures, and which of them takes a topic."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CAPTURE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What MQTT forbids in its strings, or lets a broker end the connection for."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A topic filter: `levels` as the broker knows them, and the names of those that are captured."""

    levels: tuple[str, ...]
    names: Mapping[int, str]

    def __str__(self) -> str:
        """Return it as the broker knows it."""
        return "/".join(self.levels)

    def match(self, topic: str) -> dict[str, str] | None:
        """Return the captures if the filter takes the topic, else None."""
        parts = topic.split("/")
        levels = self.levels
        if parts[0].startswith("$") and levels[0] in ("+", "#"):
            return None
        if levels[-1] == "#":
            levels = levels[:-1]
            parts = parts[: len(levels)]
        if len(parts) != len(levels) or any(
            level not in ("+", part) for level, part in zip(levels, parts, strict=True)
        ):
            return None
        return {name: parts[index] for index, name in self.names.items()}

    def overlaps(self, other: "Filter") -> bool:
        """Say whether some topic is taken by both."""
        mine, yours = self.levels, other.levels
        if any(a[0] in ("+", "#") and b[0].startswith("$") for a, b in ((mine, yours), (yours, mine))):
            return False
        for index in range(max(len(mine), len(yours)) + 1):
            a = mine[index] if index < len(mine) else None
            b = yours[index] if index < len(yours) else None
            if a == "#" or b == "#":
                return True
            if a is None or b is None:
                return a is b
            if "+" not in (a, b) and a != b:
                return False
        return True


def parse_filter(text: str) -> Filter:
    """Read a filter whose levels may be `+`, `{name}` (a `+` with a name) and, as the last one, `#`.

    Raises `ValueError` if it is none.
    """
    if not text or len(text.encode("utf-8", "replace")) > 65_000 or _CONTROL.search(text):
        raise ValueError("a topic filter is text of 1 to 65000 bytes, without control characters")
    if text.startswith("$share/"):
        raise ValueError("a shared subscription is written as 'share: GROUP', and 'topic' without it")
    levels, names = text.split("/"), dict[int, str]()
    for index, level in enumerate(levels):
        if capture := _CAPTURE.fullmatch(level):
            names[index], levels[index] = capture[1], "+"
        elif any(sign in level for sign in "{}"):
            raise ValueError(f"a capture is a whole level between slashes, as in a/{{name}}/b, not {level!r}")
        elif (level != "+" and "+" in level) or ("#" in level and (level != "#" or index + 1 < len(levels))):
            raise ValueError("'+' is a whole level between slashes, and '#' the whole last one")
    if len(set(names.values())) < len(names):
        raise ValueError("each capture of a topic filter has a name of its own")
    return Filter(tuple(levels), names)


def overlapping(filters: Sequence[Filter]) -> tuple[int, int] | None:
    """Return the first two filters that some topic fits both of, by their places."""
    for later, one in enumerate(filters):
        for earlier, other in enumerate(filters[:later]):
            if one.overlaps(other):
                return earlier, later
    return None


def complaint(topic: str) -> str | None:
    """Say why nothing can be published to a topic, or return None if it can."""
    if not topic:
        return "it is empty"
    if "+" in topic or "#" in topic:
        return "it has a wildcard"
    if _CONTROL.search(topic):
        return "it has a control character"
    return "it is longer than 65535 bytes" if len(topic.encode()) > 65_535 else None


def clean(text: str) -> str:
    """Return text with U+FFFD for what MQTT does not allow in it."""
    return _CONTROL.sub("\ufffd", text)
