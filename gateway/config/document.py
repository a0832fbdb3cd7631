"""YAML text as a tree that remembers its lines.

Only the plain part of YAML is understood: mappings with text keys, lists, and scalars by the rules of YAML 1.2
(`yes` and `12:30` are text). Everything else is a mistake with its line: tags, duplicate keys, a second document,
aliases that grow or turn in circles, text too large or too deep to be a configuration.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES: Final = 256 * 1024
MAX_NODES: Final = 20_000
MAX_DEPTH: Final = 40

_FLOAT = re.compile(r"[-+]? ( (0|[1-9][0-9]*) (\.[0-9]* | (?=[eE])) | \.[0-9]+ ) ([eE][-+]?[0-9]{1,3})?", re.VERBOSE)

Scalar: TypeAlias = str | int | float | bool | None
Path: TypeAlias = tuple[str | int, ...]


@dataclass(slots=True)
class Leaf:
    """A scalar. `text`: what replaced a `${…}`, before it was typed again; such a value is never printed."""

    value: Scalar
    line: int
    text: str | None = None


@dataclass(slots=True)
class Branch:
    """A mapping. `key_lines` says where each key stands."""

    line: int
    items: dict[str, "Tree"] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Listing:
    """A list."""

    line: int
    items: list["Tree"] = field(default_factory=list)


Tree: TypeAlias = Leaf | Branch | Listing


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One mistake, printed as `gateway.yaml:12: connectors.web: what is wrong`."""

    line: int
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


def show(path: Path) -> str:
    """Return a path as people write it: `connectors.web.inbound[0].handler`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read(text: str) -> tuple[Branch, list[Mistake]]:
    """Return the tree of a document, and what is wrong in it. Raises nothing, whatever the text is."""
    reader = _Reader()
    root: Tree | None = None
    try:
        root = reader.document(text)
    except _Refused as refused:
        reader.mistakes.append(refused.mistake)
    except yaml.MarkedYAMLError as error:
        reader.mistakes.append(_syntax(error, text))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reader.mistakes.append(Mistake(line, "", f"the character U+{_code(error.character):04X} is not allowed"))
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        reader.mistakes.append(Mistake(1, "", f"this is no YAML that can be read: {type(error).__name__}"))
    if root is not None and not isinstance(root, Branch):
        reader.mistakes.append(Mistake(root.line, "", "expected keys with values, such as 'connectors:'"))
    return (root if isinstance(root, Branch) else Branch(1)), reader.mistakes


def typed(text: str) -> Scalar:
    """Return what a plain scalar means by YAML 1.2, minus what surprises: no octal, no infinity, no `0123`."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,17})", text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


class _Refused(Exception):  # noqa: N818 - carries a mistake out of the depths of the parser
    def __init__(self, node: Node | yaml.Event, text: str) -> None:
        super().__init__(text)
        self.mistake = Mistake(_line(node), "", text)


class _Loader(yaml.SafeLoader):
    """Composes nodes only. No tag is resolved and none is allowed, so no constructor ever runs."""

    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012 - shape given by PyYAML

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call] # PyYAML's stubs leave it out
        if getattr(event, "tag", None) is not None:
            raise _Refused(event, "YAML tags (words that start with !) mean nothing here; put text with ! in quotes")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(event, f"nested deeper than {MAX_DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Reader:
    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.nodes = 0
        self.open: set[int] = set()

    def document(self, text: str) -> Tree | None:
        if len(text.encode("utf-8", "replace")) > MAX_BYTES:
            self.mistakes.append(Mistake(1, "", f"larger than {MAX_BYTES // 1024} KiB"))
            return None
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is None or (isinstance(node, ScalarNode) and node.style is None and typed(node.value) is None):
            return None
        return self.tree(node, ())

    def tree(self, node: Node, path: Path) -> Tree:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Refused(node, f"more than {MAX_NODES} values, aliases counted each time they are used")
        if id(node) in self.open:
            raise _Refused(node, "an alias points to what it is part of")
        self.open.add(id(node))
        try:
            return self.made(node, path)
        finally:
            self.open.discard(id(node))

    def made(self, node: Node, path: Path) -> Tree:
        if isinstance(node, MappingNode):
            return self.branch(node, path)
        if isinstance(node, SequenceNode):
            items = [self.tree(item, (*path, i)) for i, item in enumerate(node.value)]
            return Listing(_line(node), items)
        assert isinstance(node, ScalarNode)
        return Leaf(typed(node.value) if node.style is None else self.clean(node, path), _line(node))

    def clean(self, node: ScalarNode, path: Path) -> str:
        text: str = node.value
        if "\x00" in text or not _encodable(text):
            self.mistakes.append(Mistake(_line(node), show(path), "holds NUL or half of a surrogate pair"))
            return ""
        return text

    def branch(self, node: MappingNode, path: Path) -> Branch:
        branch = Branch(_line(node))
        merged: list[Tree] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.mistakes.append(Mistake(_line(key_node), show(path), "a key must be text"))
                continue
            key = self.clean(key_node, path)
            value = self.tree(value_node, (*path, key))
            if key == "<<" and key_node.style is None:
                merged += value.items if isinstance(value, Listing) else [value]
            elif key in branch.items:
                first = branch.key_lines[key]
                text = f"the key stands here twice, first in line {first}"
                self.mistakes.append(Mistake(_line(key_node), show((*path, key)), text))
            else:
                branch.items[key], branch.key_lines[key] = value, _line(key_node)
        self.merge(branch, merged, path)
        return branch

    def merge(self, branch: Branch, merged: list[Tree], path: Path) -> None:
        for part in merged:
            if not isinstance(part, Branch):
                self.mistakes.append(Mistake(part.line, show((*path, "<<")), "expected an alias of keys with values"))
                continue
            for key, value in part.items.items():
                if key not in branch.items:
                    branch.items[key], branch.key_lines[key] = value, part.key_lines[key]


def _line(place: Node | yaml.Event) -> int:
    return int(place.start_mark.line) + 1 if place.start_mark else 1


def _code(character: object) -> int:
    return character if isinstance(character, int) else ord(str(character)[0])


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Mistake:
    """Say what the parser found. What it quotes may be somebody's password, so only its own words are kept."""
    mark = error.problem_mark or error.context_mark
    line = int(mark.line) + 1 if mark else 1
    lines = text.splitlines()
    source = lines[line - 1] if line <= len(lines) else ""
    problem = re.sub(r"'(?![<\\])\S[^'\s]+'", "…", error.problem or error.context or "this is no YAML")
    return Mistake(line, "", f"not valid YAML: {problem}{_advice(problem, source)}")


def _advice(problem: str, source: str) -> str:
    if "${" in source and re.search(r"[{\[]", source.replace("${", "")):
        return "; inside {…} and […] put ${…} in quotes"
    if "\\t" in problem or source.startswith("\t"):
        return "; indent with spaces, not with tabs"
    if "mapping values" in problem:
        return "; text that holds ': ' needs quotes"
    if "alias" in problem:
        return "; text that starts with * needs quotes"
    if "another document" in problem:
        return "; '---' may stand in the first line only"
    return ""
