"""The configuration's keys as data: JSON Schema for editors, and a list for people."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from gateway import plugins
from gateway.config.models import Config
from gateway.errors import PluginNotFound
from gateway.message import Json

_REFERENCE: Final[Json] = {
    "type": "string",
    "pattern": r"\$\{",
    "description": "${VAR}, ${VAR:default} or ${file:/path}",
}
_TYPES: Final = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "keys with values",
    "array": "list",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class KeyDoc:
    """One key of a model, `inbound[].handler` for nested ones. `default` is JSON; None if there is none."""

    name: str
    type: str
    required: bool
    default: str | None
    description: str


def json_schema() -> Json:
    """Return the JSON Schema of a whole configuration, with the section of each connector that is installed."""
    schema = Config.model_json_schema()
    del schema["$defs"]["ConnectorConfig"]
    kinds = dict(_connector_models())
    branches = []
    for kind, model in kinds.items():
        section = model.model_json_schema(ref_template=f"#/$defs/{kind}.{{model}}")
        schema["$defs"] |= {f"{kind}.{name}": inner for name, inner in section.pop("$defs", {}).items()}
        schema["$defs"][kind] = section
        condition = {"properties": {"type": {"const": kind}}, "required": ["type"]}
        branches.append({"if": condition, "then": {"$ref": f"#/$defs/{kind}"}})
    schema["properties"]["connectors"] = {
        "type": "object",
        "description": Config.model_fields["connectors"].description,
        "additionalProperties": {
            "type": "object",
            "properties": {"type": {"enum": list(kinds), "description": "which connector this is"}},
            "required": ["type"],
            "allOf": branches,
        },
    }
    schema["patternProperties"] = {"^x-": {"description": "not read: a place for anchors"}}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Ingestion Gateway"}
    admitted: Json = _admit_references(schema)
    return {**head, **{key: value for key, value in admitted.items() if key != "title"}}


def describe(model: type[BaseModel]) -> list[KeyDoc]:
    """Return every key of a model in the order of its definition, nested ones after the one that holds them."""
    schema = model.model_json_schema()
    return list(_rows(schema, schema, ""))


def _connector_models() -> Iterator[tuple[str, type[BaseModel]]]:
    """Go through the installed connectors; one whose library is missing has no section."""
    for kind in plugins.names(plugins.CONNECTORS):
        try:
            yield kind, plugins.connector_class(kind).config_class
        except PluginNotFound:
            continue


def _admit_references(place: Any) -> Any:
    """Let `${…}` stand where a number, a choice or true/false is expected; text admits it anyway."""
    if isinstance(place, list):
        return [_admit_references(item) for item in place]
    if not isinstance(place, dict):
        return place
    if place.get("type") in ("integer", "number", "boolean") or "enum" in place:
        notes = {key: place[key] for key in ("description", "default", "title") if key in place}
        return {**notes, "anyOf": [{key: value for key, value in place.items() if key not in notes}, _REFERENCE]}
    return {key: _admit_references(value) if key != "if" else value for key, value in place.items()}


def _rows(schema: Json, place: Json, prefix: str) -> Iterator[KeyDoc]:
    required = place.get("required", ())
    for name, inner in place.get("properties", {}).items():
        members = list(_members(schema, inner))
        yield KeyDoc(
            name=prefix + name,
            type=" or ".join(
                dict.fromkeys(_type(schema, member) for member in members if member.get("type") != "null")
            ),
            required=name in required,
            default=json.dumps(inner["default"], ensure_ascii=False) if inner.get("default") is not None else None,
            description=inner.get("description") or next((m["description"] for m in members if "description" in m), ""),
        )
        for member in members:
            yield from _nested(schema, member, prefix + name)


def _nested(schema: Json, member: Json, name: str) -> Iterator[KeyDoc]:
    if member.get("type") == "array":
        for item in _members(schema, member.get("items", {})):
            yield from _nested(schema, item, f"{name}[]")
    elif "properties" in member:
        kind = member["properties"].get("type", {}).get("const")
        yield from _rows(schema, member, f"{name}({kind})." if kind else f"{name}.")


def _members(schema: Json, place: Json) -> Iterator[Json]:
    if "$ref" in place:
        place = schema["$defs"][place["$ref"].rsplit("/", 1)[-1]]
    members = place.get("anyOf") or place.get("oneOf")
    if members:
        for member in members:
            yield from _members(schema, member)
    else:
        yield place


def _type(schema: Json, member: Json) -> str:
    if "const" in member:
        return repr(member["const"])
    if "enum" in member:
        return ", ".join(map(repr, member["enum"]))
    if member.get("format") == "password":
        return "secret text"
    kind: str = member.get("type", "anything")
    if kind == "array" and member.get("items"):
        return "list of " + " or ".join(
            dict.fromkeys(_type(schema, item) for item in _members(schema, member["items"]))
        )
    return _TYPES.get(kind, kind)
