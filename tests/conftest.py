"""Fixtures: a fresh database for each test, on every kind; no configuration or hooks left over."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from databases import (
    BROKERS,
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

# What is tested together with fastapi-users, which takes no later SQLAlchemy than 2.0: with that, it must be there.
collect_ignore = [] if sqlalchemy.__version__.startswith("2.0.") else ["sqlalchemy20"]


@pytest.fixture(scope="session", name="postgresql_server")
def _postgresql_server() -> URL:
    return find_postgresql()


@pytest.fixture(scope="session", name="mariadb_server")
def _mariadb_server() -> URL:
    server = find_mariadb()
    assert server is not None, "the tests of MariaDB would have been left out"
    return server


@pytest.fixture(scope="session", name="redis_url")
def _redis_url() -> str:
    return os.environ[BROKERS["redis_url"]]


@pytest.fixture(scope="session", name="rabbitmq_url")
def _rabbitmq_url() -> str:
    return os.environ[BROKERS["rabbitmq_url"]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Leave out the tests of MariaDB where there is none, and count them; CI names one, which must answer.

    So, too, those of PostgreSQL's extensions on the embedded server, which has none, and those of brokers that
    aren't named.
    """
    left_out = []
    if find_mariadb() is None:
        left_out += [
            item
            for item in items
            if "mariadb" in getattr(item, "callspec", item).__dict__.get("params", {}).values()
            or "mariadb_server" in getattr(item, "fixturenames", ())
        ]
    for broker, variable in BROKERS.items():
        if not os.environ.get(variable):
            left_out += [
                item
                for item in items
                if broker in getattr(item, "fixturenames", ())
                or broker in getattr(item, "callspec", item).__dict__.get("params", {}).values()
            ]
    of_contrib = [item for item in items if "contrib_maker" in getattr(item, "fixturenames", ())]
    if of_contrib and not has_contrib(find_postgresql()):
        left_out += of_contrib
    if not left_out:
        return
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


_OF_BOTH_CAPTURES = frozenset(
    {
        "test_inheritance",
        "test_keys",
        "test_masking",
        "test_random_programs",
        "test_types",
        "test_types_of_users",
        "test_types_once_wrong",
        "test_unit_of_work_deletes",
        "test_unit_of_work_fields",
        "test_unit_of_work_inserts",
        "test_unit_of_work_json",
        "test_unit_of_work_relationships",
        "test_unit_of_work_updates",
    }
)
"""The modules whose tests are run with each capture: the trail has to be the same."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of some modules with both captures, unless they say that they are of sessions alone."""
    if metafunc.module.__name__.rpartition(".")[2] in _OF_BOTH_CAPTURES:
        is_of_sessions = any(metafunc.definition.iter_markers("session_capture"))
        metafunc.parametrize("capture", ["session"] if is_of_sessions else ["session", "triggers"], indirect=True)


@pytest.fixture(autouse=True, name="capture")
def _capture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What records the changes of tests that don't say."""
    monkeypatch.setenv("SQLAUDIT_TEST_CAPTURE", getattr(request, "param", "session"))


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
