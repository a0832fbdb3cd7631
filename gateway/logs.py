"""The log: events as lines, coloured on a terminal, JSON elsewhere; never a payload, never a secret."""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

import structlog

from gateway import telemetry
from gateway.errors import GatewayError
from gateway.outcome import describe

MAX_TEXT = 4000
"""Characters of one value that are shown."""
QUIET = 30.0
"""Seconds in which the same trouble is told once; how often it came meanwhile is told with the next."""
_MAX_TROUBLES = 1000

_LEVELS = {
    "job.claimed": "debug",
    "job.started": "debug",
    "job.lost": "warning",
    "job.abandoned": "warning",
    "job.rescued": "warning",
    "inbox.committed": "debug",
    "inbox.waiting": "warning",
    "loop.blocked": "warning",
    "outbox.delivered": "debug",
    "outbox.failed": "warning",
    "janitor.promoted": "debug",
    "schedule.fired": "debug",
    "schedule.invalid": "error",
    "cache.failed": "debug",
    "store.unavailable": "warning",
    "store.weak": "warning",
    "service.error": "error",
    "connector.warning": "warning",
    "gateway.waiting": "warning",
}
_SKIPPED = {"condition": "debug", "error": "warning"}
_BAD_STATES = frozenset({"failed", "degraded"})
_TROUBLES = frozenset(
    {"inbox.waiting", "store.unavailable", "service.error", "connector.state", "cache.state", "gateway.waiting"}
)


@contextmanager
def logged(
    stream: TextIO = sys.stderr, *, as_json: bool | None = None, level: str = "info", secrets: Sequence[str] = ()
) -> Iterator[None]:
    """Write a line for every event, and for what libraries log, while the block runs.

    `as_json` None chooses by whether `stream` is a terminal. `secrets` are replaced wherever they would appear.
    """
    json = not stream.isatty() if as_json is None else as_json
    writer = _Writer(stream, json=json, secrets=secrets)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    log = _Log(writer, threshold)
    bridge = _Bridge(log)
    root = logging.getLogger()
    before = root.level
    root.addHandler(bridge)
    root.setLevel(max(threshold, logging.WARNING))
    try:
        with telemetry.subscribed(log.event):
            yield
    finally:
        root.removeHandler(bridge)
        root.setLevel(before)


class _Log:
    def __init__(self, writer: "_Writer", threshold: int) -> None:
        self._writer = writer
        self._threshold = threshold
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def event(self, event: str, fields: dict[str, Any]) -> None:
        level = _level(event, fields)
        if logging.getLevelNamesMapping()[level.upper()] < self._threshold:
            return
        shown = {name: value for name, value in fields.items() if value is not None}
        error = shown.get("error")
        if isinstance(error, BaseException):
            shown["error"] = describe(error)
            if level == "error" and not isinstance(error, GatewayError):
                shown["exception"] = "".join(traceback.format_exception(error, limit=-20))
        if event in _TROUBLES and level != "info":
            repeated = self._repeated(event, shown)
            if repeated is None:
                return
            shown |= {"repeated": repeated} if repeated else {}
        self._writer.write(level, event, shown)

    def line(self, level: str, text: str, fields: dict[str, Any]) -> None:
        self._writer.write(level, text, fields)

    def _repeated(self, event: str, fields: dict[str, Any]) -> int | None:
        """Return how often the same was kept back since it was told last; None if it is kept back now."""
        key = (event, *(str(fields.get(name))[:120] for name in ("connector", "service", "state", "reason", "error")))
        with self._lock:
            now = monotonic()
            told_at, count = self._told.get(key, (-QUIET, 0))
            if now - told_at < QUIET:
                self._told[key] = (told_at, count + 1)
                return None
            if len(self._told) >= _MAX_TROUBLES:
                self._told.clear()
            self._told[key] = (now, 0)
            return count


class _Bridge(logging.Handler):
    """What libraries log, on the same stream."""

    def __init__(self, log: _Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {"logger": record.name}
            if record.exc_info is not None and record.exc_info[1] is not None:
                fields["exception"] = "".join(traceback.format_exception(record.exc_info[1], limit=-20))
            self._log.line(record.levelname.lower(), record.getMessage(), fields)
        except Exception:  # noqa: BLE001 - logging's own convention: a bad record must not hurt who logs
            self.handleError(record)


class _Writer:
    """Renders and writes one line at a time, from any thread."""

    def __init__(self, stream: TextIO, *, json: bool, secrets: Sequence[str]) -> None:
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)
        self._json = json
        renderer: structlog.typing.Processor = (
            structlog.processors.JSONRenderer(ensure_ascii=False)
            if json
            else structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(stream),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                self._clean,
                renderer,
            ],
            wrapper_class=structlog.BoundLogger,
            cache_logger_on_first_use=True,
        )

    def write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        getattr(self._logger, level if level in ("debug", "info", "warning", "error", "critical") else "info")(
            event, **{name: value for name, value in fields.items() if name != "event"}
        )

    def _clean(self, _logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        first = {name: fields[name] for name in ("timestamp", "level", "event")}
        return {name: self._safe(name, value) for name, value in {**first, **fields}.items()}

    def _safe(self, name: str, value: Any) -> Any:
        if isinstance(value, bool | int | float):
            return round(value, 6) if isinstance(value, float) else value
        text = str(value)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if name == "exception":
            lines = [escaped(line) for line in text[-4 * MAX_TEXT :].splitlines()]
            return "\n".join(lines)
        return escaped(text)


def escaped(text: str) -> str:
    """Return `text` with whatever could forge a line, colour a terminal or turn its direction made visible."""
    shown = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def _level(event: str, fields: dict[str, Any]) -> str:
    if event == "connector.state":
        return "warning" if fields.get("state") in _BAD_STATES else "info"
    if event == "cache.state":
        return "warning" if fields.get("state") == "unavailable" else "info"
    if event == "job.finished":
        return "info" if fields.get("error") is None else "warning"
    if event == "schedule.skipped":
        return _SKIPPED.get(str(fields.get("reason")), "info")
    return _LEVELS.get(event, "info")
