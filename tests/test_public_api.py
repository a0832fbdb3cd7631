import subprocess
import sys

import pytest

import gateway


def test_the_public_names_are_what_all_says_and_few():
    assert len(gateway.__all__) <= 20
    assert gateway.__all__ == sorted(gateway.__all__)


@pytest.mark.parametrize("name", gateway.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(gateway, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Handler"):
        gateway.Handler  # noqa: B018 - the access is the test


@pytest.mark.parametrize(
    "statement",
    [
        "from gateway import handler; assert handler.__name__ == 'handler'; handler(lambda context: None)",
        "import gateway.handler; from gateway import handler; handler(lambda context: None)",
        "from gateway.handler import Context; import gateway; gateway.handler(timeout=3)(lambda context: None)",
        "from gateway import *; handler(lambda context: None); Retry(delay=1)",
    ],
)
def test_handler_is_the_decorator_whatever_was_imported_before(statement):
    _run(statement)


def test_importing_the_package_loads_nothing_heavy():
    _run(
        "import gateway, gateway.errors, sys;"
        "heavy = {'sqlalchemy', 'aiohttp', 'pydantic', 'structlog', 'alembic', 'prometheus_client'} & set(sys.modules);"
        "assert not heavy, heavy"
    )


def _run(statement):
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
