"""Fixtures: a fresh database for each test, on every kind; no configuration or hooks left over."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from databases import (
    Database,
    create_contrib,
    find_mariadb,
    find_postgresql,
    has_contrib,
    mariadb_database,
    postgresql_database,
    sqlite_database,
)
from sqlaudit import clear_audit_context
from sqlaudit.config import clear_config
from sqlaudit.hooks import Subscription


@pytest.fixture(scope="session", name="postgresql_server")
def _postgresql_server() -> URL:
    return find_postgresql()


@pytest.fixture(scope="session", name="mariadb_server")
def _mariadb_server() -> URL:
    server = find_mariadb()
    assert server is not None, "the tests of MariaDB would have been left out"
    return server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Leave out the tests of MariaDB where there is none, and count them; CI names one, which must answer.

    So, too, those of PostgreSQL's extensions on the embedded server, which has none.
    """
    left_out = []
    if find_mariadb() is None:
        left_out += [
            item
            for item in items
            if "mariadb" in getattr(item, "callspec", item).__dict__.get("params", {}).values()
            or "mariadb_server" in getattr(item, "fixturenames", ())
        ]
    of_contrib = [item for item in items if "contrib_maker" in getattr(item, "fixturenames", ())]
    if of_contrib and not has_contrib(find_postgresql()):
        left_out += of_contrib
    if not left_out:
        return
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"], name="database")
def _database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        with sqlite_database(tmp_path) as database:
            yield database
    elif request.param == "mariadb":
        with mariadb_database(request.getfixturevalue("mariadb_server")) as database:
            yield database
    else:
        with postgresql_database(request.getfixturevalue("postgresql_server")) as database:
            yield database


@pytest.fixture(name="engine")
async def _engine(database: Database) -> AsyncIterator[AsyncEngine]:
    engine = database.make_async_engine()
    yield engine
    await engine.dispose()


@pytest.fixture(name="maker")
def _maker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine)


@pytest.fixture(name="contrib_maker")
async def _contrib_maker(database: Database, postgresql_server: URL) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Sessions that find the types of PostgreSQL's extensions, too; for tests of that database alone."""
    create_contrib(postgresql_server)
    finding = database.make_async_engine()
    async with finding.connect() as connection:
        schema = (await connection.execute(text("SELECT current_schema()"))).scalar_one()
    await finding.dispose()
    engine = database.make_async_engine(connect_args={"server_settings": {"search_path": f"{schema}, public"}})
    yield async_sessionmaker(engine)
    await engine.dispose()


@pytest.fixture(autouse=True)
def _nothing_left_over() -> Iterator[None]:
    """Each test configures, registers and acts for itself."""
    yield
    clear_config()
    clear_audit_context()
    Subscription(Session).remove()
