"""The manual is complete: help of every command, a description of every key, examples that load and name every key."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from gateway import plugins
from gateway.cli import app
from gateway.config import Config, describe, json_schema, parse_config, sample, samples

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"TOKEN": "t" * 32, "HOOK": "h" * 32}


def commands(command=None, name="gateway") -> Iterator[tuple[str, object]]:
    command = command or typer.main.get_command(app)
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {child}")


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_options_has_help(name):
    command = COMMANDS[name]

    assert (command.help or "").strip()
    assert [each.name for each in command.params if each.name != "help" and not getattr(each, "help", None)] == []


def test_the_commands_are_those_of_the_manual():
    assert {name.removeprefix("gateway ") for name in COMMANDS} == {
        "gateway", "run", "check", "migrate", "schema", "create", "connectors", "connectors show",
        "connectors pause", "connectors resume", "send", "status",
        "jobs", "jobs list", "jobs show", "jobs create", "jobs cancel", "jobs retry",
        "schedules", "schedules list", "schedules show", "schedules create", "schedules run", "schedules enable",
        "schedules disable", "schedules delete", "schedules next",
        "positions", "positions list", "positions set",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [None, *plugins.names(plugins.CONNECTORS)])
def test_every_key_has_a_description(kind):
    model = Config if kind is None else plugins.connector_class(kind).config_class

    bare = [key.name for key in describe(model) if not key.description and not re.search(r"(^|\.)type$", key.name)]

    assert bare == []


def test_the_examples_are_all_there():
    files = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))

    assert samples() == files
    assert {"gateway", "bridge", "http", "kafka", "mqtt", "activemq", "signalr"} == set(files)


@pytest.mark.parametrize("name", samples())
def test_an_example_runs_as_it_is(name):
    config = parse_config(sample(name), name=f"{name}.yaml", environment={}, imports=True)

    assert config.notes == ()
    for connector in config.connectors.values():
        assert not connector.warnings()


@pytest.mark.parametrize("name", samples())
def test_what_an_example_has_commented_out_is_right_too(name):
    """Each line that is commented out is put in by itself, so that several alternatives may stand there."""
    lines = sample(name).splitlines()
    for start, end in optional_parts(lines):
        text = "\n".join([*lines[:start], *(uncommented(line) for line in lines[start:end]), *lines[end:]])
        text = without_replaced_key(text, lines, start)
        text = text.replace("${file:", "${FILE_").replace("shop.handlers:place_order", "json:dumps")
        variables = dict.fromkeys(re.findall(r"\$\{(FILE_[^}]*)\}", text), "x" * 32)
        for found in variables:
            text = text.replace(f"${{{found}}}", "x" * 32)
        parse_config(text, name=f"{name}.yaml", environment=ENVIRONMENT)


@pytest.mark.parametrize("kind", sorted({*samples()} & {*plugins.names(plugins.CONNECTORS)}))
def test_an_example_names_every_key_of_its_connector(kind):
    text = sample(kind)

    for key in describe(plugins.connector_class(kind).config_class):
        last = re.split(r"[.\]]", re.sub(r"\([^)]*\)", "", key.name))[-1]
        if key.name.startswith(("inbound[].to.", "inbound[].sample.")):
            continue
        assert re.search(rf"\b{last}:", text), f"{key.name} is not shown"


def test_the_default_names_every_key_of_its_sections():
    for key in describe(Config):
        assert re.search(rf"\b{key.name.rpartition('.')[2]}:", sample("gateway")), f"{key.name} is not shown"


def test_the_schema_is_what_the_examples_point_to():
    for name in samples():
        assert sample(name).startswith("# yaml-language-server: $schema=./gateway.schema.json\n")
    assert json_schema()["$schema"].startswith("https://json-schema.org/")


OPTION = re.compile(r"^ *# [a-z_]+:( |$)")


def optional_parts(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Go through the commented-out keys, each with the lines that are indented below it."""
    for start, line in enumerate(lines):
        if not OPTION.match(line) or line.startswith("# yaml-language-server"):
            continue
        end = start + 1
        while end < len(lines) and re.match(rf"^{re.escape(line[: line.index('#')])}#   ", lines[end]):
            end += 1
        yield start, end


def uncommented(line: str) -> str:
    return line.replace("# ", "", 1)


def without_replaced_key(text: str, lines: list[str], start: int) -> str:
    """Drop the key that the alternative replaces: the same one, active in the lines right above."""
    key = lines[start].strip(" #").partition(":")[0]
    above = start - 1
    while above >= 0 and lines[above].strip().startswith("#"):
        above -= 1
    changed = text.splitlines()
    if re.match(rf"^ *-? *{key}:", lines[above]) and not lines[above].strip().startswith("-"):
        del changed[above]
    return "\n".join(changed)


def test_the_parts_that_are_tried_out_are_really_there():
    lines = sample("http").splitlines()
    found = [uncommented(lines[start]).strip() for start, _ in optional_parts(lines)]

    assert len(found) > 25
    assert yaml.safe_load(found[0]) == {"token": "${file:/run/secrets/admin}"}
