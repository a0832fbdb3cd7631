"""Plug-ins are found by name, imported late, and every way of not finding one says what to do."""

import sys
from pathlib import Path

import pytest

from gateway import plugins
from gateway.connector import Connector
from gateway.errors import PluginNotFound


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a small package with the given entry points, as pip would, for the length of a test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(entry_points: str, *, name: str = "shop", modules: dict[str, str] | None = None, extras: str = ""):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{extras}")
        (info / "entry_points.txt").write_text(entry_points)
        for module, source in (modules or {}).items():
            (tmp_path / f"{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_the_installed_connectors_are_listed_without_importing_them():
    assert {"http", "memory"} <= set(plugins.names(plugins.CONNECTORS))


def test_a_connector_is_found_by_its_type():
    assert issubclass(plugins.connector_class("memory"), Connector)


def test_a_handler_of_an_installed_package_is_imported_only_when_asked_for(package):
    package(
        "[gateway.handlers]\norder.process = shop_lazy:place\n",
        modules={"shop_lazy": "def place(context): return 'placed'\n"},
    )

    assert "order.process" in plugins.handler_names()
    assert "shop_lazy" not in sys.modules
    assert plugins.handler("order.process")(None) == "placed"


def test_the_operators_map_goes_before_installed_packages(package):
    package(
        "[gateway.handlers]\norder.process = shop_mapped:place\n",
        modules={"shop_mapped": "def place(context): return 1\nclass Shop:\n    def place(context): return 2\n"},
    )

    assert plugins.handler("order.process", {"order.process": "shop_mapped:Shop.place"})(None) == 2
    assert plugins.handler_names({"mine": "a:b"}).count("order.process") == 1


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(PluginNotFound, match=r"no connector named 'memry' is installed, did you mean 'memory'\?"):
        plugins.connector_class("memry")


def test_the_nearest_name_may_come_from_the_operators_map():
    with pytest.raises(PluginNotFound, match=r"did you mean 'order\.process'\?"):
        plugins.handler("order.proces", {"order.process": "shop:place"})


def test_a_connector_that_is_an_extra_names_the_command(package):
    package(
        "[gateway.connectors]\nwidget = shop_extra:Widget\n",
        modules={"shop_extra": "import a_library_nobody_has\n"},
        extras="Provides-Extra: widget\nProvides-Extra: zebra\n",
    )

    with pytest.raises(PluginNotFound, match=r"a_library_nobody_has.*; pip install 'shop\[widget\]' brings"):
        plugins.connector_class("widget")
    with pytest.raises(PluginNotFound, match=r"no connector named 'zebra' is installed: pip install 'shop\[zebra\]'"):
        plugins.connector_class("zebra")


def test_a_name_like_no_other_gets_the_list_of_all():
    with pytest.raises(PluginNotFound, match=r"there are: .*http.*memory"):
        plugins.connector_class("qqqqqqqq")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def (:", "SyntaxError"),
        ("", "AttributeError: .*'place'"),
    ],
)
def test_an_import_that_fails_names_the_entry_point_and_the_reason(package, source, what):
    package("[gateway.handlers]\nbroken.one = shop_broken:place\n", modules={"shop_broken": source})

    with pytest.raises(PluginNotFound, match=rf"'broken\.one' \(shop_broken:place, from shop 1\.0\).*{what}"):
        plugins.handler("broken.one")


@pytest.mark.parametrize("target", ["no_such_module:f", ":f", ".relative:f", "json:", "json"])
def test_a_mapped_target_that_leads_nowhere_names_the_handler(target):
    with pytest.raises(PluginNotFound, match="the handler 'mine'"):
        plugins.handler("mine", {"mine": target})


def test_what_is_not_callable_is_no_handler():
    with pytest.raises(PluginNotFound, match="the handler 'mine' is not callable: float"):
        plugins.handler("mine", {"mine": "math:pi"})


def test_what_is_no_connector_class_is_no_connector(package):
    package("[gateway.connectors]\nfake = json:dumps\n")

    with pytest.raises(PluginNotFound, match="'fake' is no subclass"):
        plugins.connector_class("fake")


def test_a_name_registered_by_two_packages_is_refused(package):
    package("[gateway.handlers]\nsame = json:dumps\n", name="shop")
    package("[gateway.handlers]\nsame = json:loads\n", name="other")

    with pytest.raises(PluginNotFound, match=r"'same' is registered twice.*from (shop|other) 1.0 and "):
        plugins.handler("same")


@pytest.mark.parametrize("name", ["os:system", "builtins.eval", "../shop", "__import__", "json:dumps", ""])
def test_a_name_is_never_taken_for_code(name):
    with pytest.raises(PluginNotFound):
        plugins.handler(name)
