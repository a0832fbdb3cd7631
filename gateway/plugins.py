"""Connectors, handlers and coordinators by name: entry points of installed packages, imported when they are needed.

A name is looked up, never interpreted: what stands in a message or a row cannot choose code, because only an
installed package's metadata, or the operator's own `handlers:` map, says where a name leads.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, TypeAlias

from gateway.connector import Connector
from gateway.errors import PluginNotFound

CONNECTORS = "gateway.connectors"
HANDLERS = "gateway.handlers"
COORDINATORS = "gateway.coordinators"

HandlerFunction: TypeAlias = Callable[..., Any]
"""What a handler's name leads to: a plain or async function, or what `@handler` made of one."""


def names(group: str) -> list[str]:
    """Return the names that installed packages register in a group, sorted. Imports none of them."""
    return sorted(installed(group).names)


def connector_class(name: str) -> type[Connector[Any]]:
    """Return the connector of that type. Raises `PluginNotFound` if there is none, or it cannot be imported."""
    found = load(CONNECTORS, name)
    if not (isinstance(found, type) and issubclass(found, Connector)):
        raise PluginNotFound(f"the connector '{name}' is no subclass of gateway.connector.Connector")
    return found


def handler_names(mapped: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of all handlers: the installed ones and those of the operator's map, sorted."""
    return sorted({*names(HANDLERS), *(mapped or {})})


def installed(group: str) -> EntryPoints:
    """Return what installed packages register in a group. Reads the metadata of all of them: call it once for many."""
    return entry_points(group=group)


def handler(name: str, mapped: Mapping[str, str] | None = None, *, known: EntryPoints | None = None) -> HandlerFunction:
    """Return the handler of that name; `mapped` (name to `module:attribute`) goes before the installed ones.

    `known` is what `installed` returned for the handlers, which is read again without. Raises `PluginNotFound` if
    there is none of that name, or it cannot be imported.
    """
    if mapped and name in mapped:
        target = mapped[name]
        found = _import(target, f"the handler '{name}' ({target}, named in the configuration)")
    else:
        found = load(HANDLERS, name, also=mapped or (), known=known)
    if not callable(found):
        raise PluginNotFound(f"the handler '{name}' is not callable: {type(found).__name__}")
    return found


def load(group: str, name: str, *, also: Iterable[str] = (), known: EntryPoints | None = None) -> object:
    """Import what a group registers under a name.

    Raises `PluginNotFound` with the nearest name (also among `also`), or the extra to install, when there is none,
    when two packages claim it, and when its import fails in whatever way.
    """
    kind = group.removeprefix("gateway.").removesuffix("s")
    known = installed(group) if known is None else known
    found = {entry.value: entry for entry in known.select(name=name)}
    match list(found.values()):
        case []:
            raise PluginNotFound(_unknown(kind, name, known, {*known.names, *also}))
        case [entry]:
            return _import(entry.value, f"the {kind} '{name}' ({entry.value}{_from(entry)})", hint=_hint(entry))
        case several:
            places = " and ".join(f"{entry.value}{_from(entry)}" for entry in several)
            raise PluginNotFound(f"the {kind} '{name}' is registered twice, uninstall one of them: {places}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` with the name nearest to `word`, or nothing if none is near."""
    by_folded = {name.casefold(): name for name in known}
    near = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f", did you mean '{by_folded[near[0]]}'?" if near else ""


def listed(known: Iterable[str], most: int = 20) -> str:
    """Return names as a person wants to read them, sorted, not more than a line or two."""
    all_names = sorted(known)
    return (
        ", ".join(all_names[:most]) + (f" and {len(all_names) - most} more" if len(all_names) > most else "") or "none"
    )


def _unknown(kind: str, name: str, entries: EntryPoints, known: Iterable[str]) -> str:
    what = f"no {kind} named '{name}' is installed"
    suggestion = did_you_mean(name, known)
    if suggestion:
        return what + suggestion
    commands = {_install(entry, name) for entry in entries if name in _extras(entry)}
    if kind == "connector" and commands:
        return f"{what}: {' or '.join(sorted(commands))}"
    return f"{what}, there are: {listed(known)}"


def _import(target: str, what: str, hint: str = "") -> object:
    """Import `module:attribute`; whatever the module does while it is imported becomes one readable error."""
    module, _, attribute = target.partition(":")
    try:
        found: object = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        needed = "" if error.name == module else hint
        raise PluginNotFound(f"{what} cannot be imported: {error}{needed}") from error
    except (Exception, SystemExit) as error:
        raise PluginNotFound(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    return found


def _extras(entry: EntryPoint) -> list[str]:
    return list(entry.dist.metadata.get_all("Provides-Extra") or ()) if entry.dist else []


def _install(entry: EntryPoint, extra: str) -> str:
    return f"pip install '{entry.dist.name if entry.dist else ''}[{extra}]'"


def _from(entry: EntryPoint) -> str:
    return f", from {entry.dist.name} {entry.dist.version}" if entry.dist else ""


def _hint(entry: EntryPoint) -> str:
    return f"; {_install(entry, entry.name)} brings what it needs" if entry.name in _extras(entry) else ""
