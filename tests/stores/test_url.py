import pytest

from gateway.errors import StoreError
from gateway.store.url import engine_url


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("sqlite:///gateway.db", "sqlite+aiosqlite:///gateway.db"),
        ("sqlite:////var/lib/gateway.db", "sqlite+aiosqlite:////var/lib/gateway.db"),
        ("postgresql://u:p@db:5433/jobs", "postgresql+asyncpg://u:p@db:5433/jobs"),
        ("postgres://db/jobs", "postgresql+asyncpg://db/jobs"),
        ("postgresql+asyncpg://db/jobs", "postgresql+asyncpg://db/jobs"),
        ("mysql://root@db/jobs", "mysql+asyncmy://root@db/jobs"),
        ("mariadb://root@db/jobs", "mysql+asyncmy://root@db/jobs"),
    ],
)
def test_a_url_names_the_async_driver(written, used):
    assert engine_url(written).render_as_string(hide_password=False) == used


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("oracle://u:hunter2@db/jobs", "no database is called 'oracle'"),
        ("postgresql+psycopg://u:hunter2@db/jobs", "no database is called 'postgresql\\+psycopg'"),
        ("hunter2", "cannot be read"),
        ("postgresql://u:hunter2@db", "names no database"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_a_wrong_url_is_explained_without_its_password(written, complaint):
    with pytest.raises(StoreError, match=complaint) as caught:
        engine_url(written)
    assert "hunter2" not in str(caught.value)
