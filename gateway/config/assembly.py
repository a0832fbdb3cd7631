"""Every section of a document against its model, and against what it refers to."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from pydantic import BaseModel

from gateway import plugins
from gateway.config.document import Branch, Leaf, Listing, Mistake, Path, Tree, show
from gateway.config.mistakes import hide, locate, plain, unknown_key, validate
from gateway.config.models import Config, DatabaseConfig, GatewayConfig, JobsConfig
from gateway.config.schedules import wrong
from gateway.connector import ConnectorConfig
from gateway.coordination import CacheConfig
from gateway.errors import PluginNotFound
from gateway.job import PUBLISH
from gateway.schedules import NAME, ScheduleConfig

_SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "gateway": GatewayConfig,
    "database": DatabaseConfig,
    "jobs": JobsConfig,
}
_KEYS: Final = (*_SECTIONS, "cache", "connectors", "schedules", "handlers")


class Assembly:
    """One document on its way to a `Config`; every step adds to `mistakes` and goes on."""

    def __init__(self, root: Branch) -> None:
        self.root = root
        self.mistakes: list[Mistake] = []
        self.notes: list[str] = []

    def config(self, *, imports: bool) -> Config | None:
        """Return the configuration; None if there are mistakes. With `imports`, its handlers are imported too."""
        self._top_level()
        values: dict[str, object] = {key: self._section(key, model) for key, model in _SECTIONS.items()}
        values["cache"] = self._section("cache", CacheConfig) if self._branch("cache").items else None
        handlers = self._handlers()
        connectors = dict(self._connectors())
        schedules = dict(self._schedules(values["database"]))
        used = self._used_handlers()
        if imports:
            self._import_handlers(used, handlers)
        if self.mistakes:
            return None
        config = Config.model_validate(
            {**values, "connectors": connectors, "schedules": schedules, "handlers": handlers, "notes": (*self.notes,)}
        )
        placed = {name: each.of_instance(config.gateway.name, name) for name, each in connectors.items()}
        return config.model_copy(update={"connectors": placed})

    def _top_level(self) -> None:
        for where in ((), ("gateway",), ("jobs",)):
            branch, path, _ = locate(self.root, where, 1)
            if path == where and isinstance(branch, Branch) and branch.items.pop("use_redis", None) is not None:
                self.notes.append(
                    f"{show((*path, 'use_redis'))} has no effect: 'cache.url' says which cache there is, if any"
                )
        for key, line in self.root.key_lines.items():
            if key in self.root.items and key not in _KEYS and not key.startswith("x-"):
                self.mistakes.append(Mistake(line, key, unknown_key(key, _KEYS)))

    def _section(self, key: str, model: type[BaseModel]) -> BaseModel | None:
        branch = self._branch(key)
        made, mistakes = validate(model, branch, (key,), self.root.key_lines.get(key, 1))
        self.mistakes += mistakes
        return made

    def _branch(self, key: str) -> Branch:
        """Return a section; what is missing, or has all its keys commented out, is empty."""
        tree, line = self.root.items.get(key), self.root.key_lines.get(key, 1)
        if isinstance(tree, Branch):
            return tree
        if tree is not None and plain(tree) is not None:
            self.mistakes.append(Mistake(line, key, "expected keys with values"))
        return Branch(line)

    def _connectors(self) -> Iterator[tuple[str, ConnectorConfig]]:
        branch = self._branch("connectors")
        for name, tree in branch.items.items():
            path, line = ("connectors", name), branch.key_lines[name]
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
                text = "a connector's name is made of letters, digits and '_', '.', '-', at most 64"
                self.mistakes.append(Mistake(line, show(path), text))
            model = self._connector_model(tree, path, line)
            if model is not None:
                made, mistakes = validate(model, tree, path, line)
                self.mistakes += mistakes
                if made is not None:
                    yield name, made

    def _connector_model(self, tree: Tree, path: Path, line: int) -> type[ConnectorConfig] | None:
        kind, found, at = locate(tree, ("type",), line)
        where = show((*path, "type"))
        if not isinstance(tree, Branch):
            self.mistakes.append(Mistake(line, show(path), "expected keys with values, at least 'type'"))
        elif not found:
            types = ", ".join(plugins.names(plugins.CONNECTORS))
            self.mistakes.append(Mistake(at, where, f"this key is required: the type of connector ({types})"))
        elif not (isinstance(kind, Leaf) and isinstance(kind.value, str)):
            self.mistakes.append(Mistake(at, where, "expected text"))
        else:
            try:
                return plugins.connector_class(kind.value).config_class
            except PluginNotFound as error:
                self.mistakes.append(Mistake(at, where, hide(str(error), kind)))
        return None

    def _schedules(self, database: object) -> Iterator[tuple[str, ScheduleConfig]]:
        branch = self._branch("schedules")
        for name, tree in branch.items.items():
            path, line = ("schedules", name), branch.key_lines[name]
            if not re.search(NAME, name):
                text = "a schedule's name is one line of at most 255 characters, without spaces around it"
                self.mistakes.append(Mistake(line, show(path), text))
                continue
            made, mistakes = validate(ScheduleConfig, tree, path, line)
            self.mistakes += mistakes
            if made is not None:
                for key, text in wrong(made, database if isinstance(database, DatabaseConfig) else None):
                    place, found, at = locate(tree, (key,), line)
                    self.mistakes.append(Mistake(at, show((*path, *found)), hide(text, place)))
                yield name, made

    def _handlers(self) -> dict[str, str]:
        branch = self._branch("handlers")
        made: dict[str, str] = {}
        for name, tree in branch.items.items():
            where, line = show(("handlers", name)), branch.key_lines[name]
            value = tree.value if isinstance(tree, Leaf) else None
            if not re.fullmatch(r"[^\s\x00-\x1f]{1,255}", name):
                self.mistakes.append(Mistake(line, where, "a handler's name has no spaces and at most 255 characters"))
            elif name == PUBLISH:
                self.mistakes.append(Mistake(line, where, "this name belongs to outbound messages, choose another"))
            elif not (isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value)):
                self.mistakes.append(
                    Mistake(line, where, "expected module:attribute, such as shop.handlers:place_order")
                )
            else:
                made[name] = value
        return made

    def _used_handlers(self) -> dict[str, tuple[Path, Leaf]]:
        """Check the names that entries refer to; return the known handlers among them, each with a place."""
        mapped, connectors = self._branch("handlers"), self._branch("connectors").items
        known = {*plugins.handler_names(), *mapped.items}
        used: dict[str, tuple[Path, Leaf]] = {
            name: (("handlers", name), tree) for name, tree in mapped.items.items() if isinstance(tree, Leaf)
        }
        for path, entry in self._entries():
            name, leaf = _text_at(entry, ("handler",))
            if name in known:
                used.setdefault(name, ((*path, "handler"), leaf))
            elif name:
                self._refuse((*path, "handler"), leaf, f"unknown handler '{name}'{_nearest(name, known)}")
            name, leaf = _text_at(entry, ("to", "connector"))
            if name and name not in connectors:
                text = f"no connector is named '{name}'{_nearest(name, connectors)}"
                self._refuse((*path, "to", "connector"), leaf, text)
        return used

    def _entries(self) -> Iterator[tuple[Path, Branch]]:
        """Go through what has a handler as it was written, entries of mistaken connectors too."""
        for name, schedule in self._branch("schedules").items.items():
            if isinstance(schedule, Branch):
                yield ("schedules", name), schedule
        for name, connector in self._branch("connectors").items.items():
            inbound, found, _ = locate(connector, ("inbound",), 0)
            for index, entry in enumerate(inbound.items if found and isinstance(inbound, Listing) else ()):
                if isinstance(entry, Branch):
                    yield ("connectors", name, "inbound", index), entry

    def _import_handlers(self, used: Mapping[str, tuple[Path, Leaf]], mapped: Mapping[str, str]) -> None:
        known = plugins.installed(plugins.HANDLERS)
        for name, (path, leaf) in used.items():
            if path[0] != "handlers" or name in mapped:
                try:
                    plugins.handler(name, mapped, known=known)
                except PluginNotFound as error:
                    self._refuse(path, leaf, str(error))

    def _refuse(self, path: Path, leaf: Leaf, text: str) -> None:
        self.mistakes.append(Mistake(locate(self.root, path, 1)[2], show(path), hide(text, leaf)))


def _text_at(tree: Tree, path: Path) -> tuple[str, Leaf]:
    leaf, found, line = locate(tree, path, 0)
    if found == path and isinstance(leaf, Leaf) and isinstance(leaf.value, str):
        return leaf.value, leaf
    return "", Leaf(None, line)


def _nearest(name: str, known: Collection[str]) -> str:
    return plugins.did_you_mean(name, known) or f", there are: {plugins.listed(known)}"
