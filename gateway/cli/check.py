"""`gateway check`: all that can be known before it runs."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

import typer
from rich.text import Text

from gateway import plugins
from gateway.cli.common import (
    Code,
    ConfigOption,
    JsonOption,
    finish,
    load,
    missing_file,
    opened,
    out,
    print_json,
    table,
)
from gateway.config import Config
from gateway.connector import ConnectorConfig
from gateway.coordination import CacheConfig, coordinator_for
from gateway.errors import GatewayError
from gateway.rules import Ruling

_CHECK_SECONDS: Final = 10.0
_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what `check` found out."""

    part: str
    state: Literal["ok", "warning", "failed"]
    text: str


def check(
    config: ConfigOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only the configuration: connect to nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything before it runs: the file, its handlers, the database, the cache and each connector.

    Prints all mistakes with file and line (exit code 2), else what each part answered (1 if one of them failed),
    how often each connector stores a message, what each entry's expressions make of its sample, and what is dangerous
    though allowed.
    """
    settings = load(config, imports=True)
    findings = finish(_findings(settings, offline=offline))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(Text(f.state, _STYLES[f.state]), f.part, f.text) for f in findings]
        out().print(table(("", "part", "finding"), rows))
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(Code.FAILED)


async def _findings(config: Config, *, offline: bool) -> list[Finding]:
    findings = [Finding("configuration", "ok", "no mistakes")]
    findings += [Finding("configuration", "warning", line) for line in config.notes]
    token = config.gateway.admin.token if config.gateway.admin else None
    if token is not None and len(token.get_secret_value()) < 16:
        text = "the token is shorter than 16 characters, it can be guessed"
        findings.append(Finding("gateway.admin", "warning", text))
    if not offline:
        findings += [finding async for finding in _database(config)]
        if config.database.read_only_url is not None:
            findings.append(await _conditions(config.database.read_only_url.get_secret_value()))
    if config.cache is not None:
        findings.append(await _cache(config.cache, offline=offline))
    parts = [_connector(name, section, offline=offline) for name, section in config.connectors.items()]
    return findings + [finding for part in await asyncio.gather(*parts) for finding in part]


async def _database(config: Config) -> AsyncIterator[Finding]:
    missing = missing_file(config)
    if missing is not None:
        yield Finding("database", "ok", f"{missing} will be created by `gateway run`")
        return
    try:
        async with opened(config) as store:
            warnings = await store.durability()
    except GatewayError as error:
        yield Finding("database", "failed", str(error))
    else:
        yield Finding("database", "ok", "connected, the schema is up to date")
        for warning in warnings:
            yield Finding("database", "warning", warning)


async def _cache(section: CacheConfig, *, offline: bool) -> Finding:
    try:
        coordinator = coordinator_for(section)
    except GatewayError as error:
        return Finding("cache", "failed", str(error))
    if offline:
        return Finding("cache", "ok", f"{section.type}; nothing that is promised needs it")
    return await _connection("cache", coordinator)


async def _conditions(url: str) -> Finding:
    from gateway.store.condition import Conditions

    part, conditions = "database.read_only_url", Conditions(url, seconds=_CHECK_SECONDS)
    try:
        await conditions.ping()
        return Finding(part, "ok", "connected, conditions of schedules are asked there")
    except GatewayError as error:
        return Finding(part, "failed", str(error))
    finally:
        await conditions.close()


async def _connector(name: str, section: ConnectorConfig, *, offline: bool) -> list[Finding]:
    part = f"connectors.{name}"
    kind = plugins.connector_class(section.type)
    guarantee = kind.guarantee_of(section)
    findings = [Finding(part, "ok", f"{section.type}: received messages are stored {guarantee}")]
    findings += [Finding(part, "warning", warning) for warning in section.warnings()]
    for index, entry in enumerate(section.inbound):
        if (tried := entry.tried()) is not None:
            findings.append(_sample(f"{part}.inbound[{index}]", tried[1]))
    return findings if offline else [*findings, await _connection(part, kind(section, name=name))]


def _sample(part: str, ruling: Ruling) -> Finding:
    """Say what an entry's expressions make of its sample."""
    if ruling.error is not None:
        return Finding(part, "failed", f"the sample would be stored as Failed: {ruling.error}")
    if not ruling.wanted:
        return Finding(part, "ok", "the sample would be filtered out, as 'when' is false")
    key = None if ruling.ordering is None else ruling.ordering.decode("utf-8", "backslashreplace")
    given = {"dedupe": ruling.dedupe, "ordering": key, "priority": ruling.priority}
    shown = ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in given.items())
    return Finding(part, "ok", f"the sample would be stored: {shown}")


async def _connection(part: str, connector: Any) -> Finding:
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            return Finding(part, "ok", await connector.check())
    except TimeoutError:
        return Finding(part, "failed", f"no answer within {_CHECK_SECONDS:g} s")
    except GatewayError as error:
        return Finding(part, "failed", str(error))
