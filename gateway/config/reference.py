"""`${VAR}`, `${VAR:default}` and `${file:/path}` in the values of a document, resolved after it was parsed.

So no value from outside can change the document's structure. `$${` stands for a plain `${`. What a reference brought
in is remembered as not to be printed, the default written beside it too.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Final

from gateway.config.document import Branch, Leaf, Listing, Mistake, Path, Tree, show, typed
from gateway.plugins import did_you_mean

MAX_FILE: Final = 64 * 1024

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Unresolved(Exception):  # noqa: N818 - what is wrong with one reference
    pass


def resolve(root: Tree, environment: Mapping[str, str], folder: FilePath) -> list[Mistake]:
    """Replace every reference below `root`, in place, and return one mistake for each that leads nowhere.

    A value that is one reference and nothing else is typed as if it stood in the document (`"5"` becomes 5), an
    empty one is absent. Files are read relative to `folder`, without the line break at their end.
    """
    mistakes: list[Mistake] = []
    for path, leaf in leaves(root, ()):
        if not (isinstance(leaf.value, str) and "${" in leaf.value):
            continue
        try:
            _fill(leaf, leaf.value, lambda reference: _look_up(reference, environment, folder))
        except _Unresolved as error:
            mistakes.append(Mistake(leaf.line, show(path), str(error)))
            leaf.value = leaf.text = ""
    return mistakes


def leaves(tree: Tree, path: Path) -> Iterator[tuple[Path, Leaf]]:
    """Go through all scalars below a tree, each with its path."""
    match tree:
        case Leaf():
            yield path, tree
        case Listing():
            for index, item in enumerate(tree.items):
                yield from leaves(item, (*path, index))
        case Branch():
            for key, value in tree.items.items():
                yield from leaves(value, (*path, key))


def _fill(leaf: Leaf, source: str, look_up: Callable[[str], str]) -> None:
    references = 0

    def one(match: re.Match[str]) -> str:
        nonlocal references
        if match[0] == "$${":
            return "${"
        if not match[2]:
            raise _Unresolved("'${' has no '}'; write '$${' for a plain '${'")
        references += 1
        return look_up(match[1])

    text = _REFERENCE.sub(one, source)
    whole = _REFERENCE.fullmatch(source)
    leaf.value = _retyped(text) if whole and references else text
    leaf.text = text if references else None


def _retyped(text: str) -> str | int | float | bool | None:
    value = typed(text)
    return text if value is None and text else value


def _look_up(reference: str, environment: Mapping[str, str], folder: FilePath) -> str:
    name, colon, default = reference.partition(":")
    if name == "file" and colon:
        return _checked(_file(folder / default), f"the file of ${{file:{default}}}")
    if not _NAME.match(name):
        raise _Unresolved("'${…}' needs the name of a variable or file:/path; write '$${' for a plain '${'")
    if name in environment:
        return _checked(environment[name], f"the environment variable {name}")
    if colon:
        return default
    near = did_you_mean(name, environment)
    raise _Unresolved(
        f"the environment variable {name} is not set{near}" + ("" if near else "; ${NAME:default} gives a default")
    )


def _file(path: FilePath) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise _Unresolved(f"the file {str(path)!r} cannot be read: {reason}") from error
    if len(data) > MAX_FILE:
        raise _Unresolved(f"the file {str(path)!r} is larger than {MAX_FILE // 1024} KiB")
    return data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def _checked(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Unresolved(f"{where} is not UTF-8 text") from error
    if "\x00" in text:
        raise _Unresolved(f"{where} holds NUL")
    return text
