"""What a model refuses, said in the words and at the line of the document."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.document import Branch, Leaf, Listing, Mistake, Path, Scalar, Tree, show
from gateway.config.reference import leaves
from gateway.message import Json
from gateway.plugins import did_you_mean, listed

M = TypeVar("M", bound=BaseModel)

_TEXTS: Final[Mapping[str, str]] = {
    "missing": "this key is required",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "int_parsing_size": "expected a smaller number",
    "float_type": "expected a number",
    "finite_number": "expected a number",
    "bool_type": "expected true or false",
    "datetime_type": "expected a time, such as 2030-12-31 23:59:59",
    "datetime_parsing": "expected a time, such as 2030-12-31 23:59:59",
    "datetime_from_date_parsing": "expected a time, such as 2030-12-31 23:59:59",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "set_type": "expected a list",
    "iterable_type": "expected a list",
    "dict_type": "expected keys with values",
    "mapping_type": "expected keys with values",
    "model_type": "expected keys with values",
    "model_attributes_type": "expected keys with values",
    "literal_error": "expected {expected}",
    "enum": "expected {expected}",
    "union_tag_invalid": "its {discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "its key {discriminator} is required",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} items",
    "string_pattern_mismatch": "must match {pattern}",
}


def validate(model: type[M], tree: Tree, path: Path, line: int) -> tuple[M | None, list[Mistake]]:
    """Return the tree as a model, or None and every mistake below `path`, which stands in `line`.

    What a reference brought in was typed as YAML would do it; where the model wanted text, it gets the text.
    """
    while True:
        try:
            return model.model_validate_json(json.dumps(plain(tree))), []
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            untyped = [leaf for detail in errors if (leaf := _retyped_leaf(tree, detail)) is not None]
            for leaf in untyped:
                leaf.value = leaf.text
            if not untyped:
                return None, list(_merged(_mistake(detail, model, tree, path, line) for detail in errors))


def plain(tree: Tree) -> Json | list[Any] | Scalar:
    """Return a tree as the values that JSON knows."""
    match tree:
        case Leaf():
            return tree.value
        case Listing():
            return [plain(item) for item in tree.items]
        case Branch():
            return {key: plain(value) for key, value in tree.items.items()}


def locate(tree: Tree, location: Iterable[str | int], line: int) -> tuple[Tree, Path, int]:
    """Follow a location as far as the document goes; names of union members on the way are stepped over."""
    path: list[str | int] = []
    for part in location:
        if isinstance(tree, Branch) and isinstance(part, str) and part in tree.items:
            line, tree = tree.key_lines[part], tree.items[part]
        elif isinstance(tree, Listing) and isinstance(part, int) and part < len(tree.items):
            tree = tree.items[part]
            line = tree.line
        else:
            continue
        path.append(part)
    return tree, tuple(path), line


def hide(text: str, tree: Tree) -> str:
    """Return `text` without anything that a reference brought into this part of the document."""
    hidden = sorted((leaf.text for _, leaf in leaves(tree, ()) if leaf.text), key=len, reverse=True)
    for value in hidden:
        text = text.replace(value, "…")
    return re.sub(
        r"'([^']+)'", lambda quoted: "'…'" if any(quoted[1] in value for value in hidden) else quoted[0], text
    )


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, with the nearest known one, or all of them."""
    known = sorted(known)
    near = did_you_mean(key, known)
    return f"unknown key{near}" if near or not known else f"unknown key, there are: {listed(known, 40)}"


def known_keys(schema: Json, tree: Tree, path: Path) -> set[str]:
    """Return the keys that a JSON Schema allows at a place of the document."""
    places, here = [schema], tree
    for part in path:
        places = [inner for place in places for inner in _step(schema, place, here, part)]
        here, _, _ = locate(here, (part,), 0)
    return {key for place in places for one in _alternatives(schema, place, here) for key in one.get("properties", {})}


def _retyped_leaf(tree: Tree, detail: ErrorDetails) -> Leaf | None:
    place, _, _ = locate(tree, detail["loc"], 0)
    return place if isinstance(place, Leaf) and place.text is not None and place.value != place.text else None


def _mistake(detail: ErrorDetails, model: type[BaseModel], tree: Tree, path: Path, line: int) -> Mistake:
    place, found, at = locate(tree, detail["loc"], line)
    if detail["type"] == "missing":
        return Mistake(at, show((*path, *found, detail["loc"][-1])), _TEXTS["missing"])
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        known = known_keys(model.model_json_schema(), tree, found[:-1])
        return Mistake(at, show((*path, *found)), unknown_key(key, known))
    return Mistake(at, show((*path, *found)), _text(detail, place))


def _text(detail: ErrorDetails, place: Tree) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind not in _TEXTS:
        return hide(str(context.get("error", detail["msg"])), place)
    numbers = {key: f"{value:g}" for key, value in context.items() if isinstance(value, float)}
    text = _TEXTS[kind].format_map(context | numbers)
    if not isinstance(place, Leaf) or place.text is not None:
        return text
    if kind == "string_type" and place.value is not None:
        return f"{text}, write it in quotes"
    if kind in ("literal_error", "enum") and isinstance(place.value, str):
        return text + did_you_mean(place.value, re.findall(r"'([^']+)'", text))
    return text


def _merged(mistakes: Iterable[Mistake]) -> Iterator[Mistake]:
    """Make one mistake of what the members of a union said about the same place."""
    places: dict[tuple[int, str], list[str]] = {}
    for mistake in mistakes:
        texts = places.setdefault((mistake.line, mistake.path), [])
        if mistake.text not in texts:
            texts.append(mistake.text)
    for (line, path), texts in places.items():
        if all(text.startswith("expected ") for text in texts):
            yield Mistake(line, path, " or ".join([texts[0], *(text.removeprefix("expected ") for text in texts[1:])]))
        else:
            yield from (Mistake(line, path, text) for text in texts)


def _step(schema: Json, place: Json, tree: Tree, part: str | int) -> Iterator[Json]:
    for one in _alternatives(schema, place, tree):
        if isinstance(part, int):
            inner = one.get("items")
        else:
            inner = one.get("properties", {}).get(part, one.get("additionalProperties"))
        if isinstance(inner, dict):
            yield inner


def _alternatives(schema: Json, place: Json, tree: Tree) -> list[Json]:
    """Resolve references and unions; of a union told apart by a constant, only the member that was meant."""
    if "$ref" in place:
        place = schema["$defs"][place["$ref"].rsplit("/", 1)[-1]]
    members = place.get("anyOf") or place.get("oneOf")
    if not members:
        return [place]
    found = [inner for member in members for inner in _alternatives(schema, member, tree)]
    return [one for one in found if _is_meant(one, tree)] or found


def _is_meant(alternative: Json, tree: Tree) -> bool:
    for key, value in alternative.get("properties", {}).items():
        leaf = tree.items.get(key) if isinstance(tree, Branch) else None
        if "const" in value and isinstance(leaf, Leaf) and leaf.value == value["const"]:
            return True
    return False
