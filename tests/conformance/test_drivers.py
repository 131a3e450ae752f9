"""Law 10: every driver of every database leaves the same trail of the same program, and so do the databases."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from databases import Database, mariadb_database, postgresql_database, sqlite_database
from driver_programs import Base, Blob, Book, Chapter, Tag, Thing, basic_program, bytes_program, typed_program
from sqlaudit import (
    SQLAuditConfig,
    create_audit_tables,
    get_resource_changes,
    get_resource_changes_sync,
    register_hooks,
    set_config,
)
from type_cases import CASES, TypeCase
from type_lives import audited, check, lives_of_edges
from witness import Story, told, watch_rows, witnessed

Program = Callable[[Session], None]

MODELS = (Book, Chapter, Tag, Thing, Blob)

DRIVERS = {
    "sqlite": ("aiosqlite", "pysqlite"),
    "postgresql": ("asyncpg", "psycopg", "psycopg_sync"),
    "mariadb": ("asyncmy", "aiomysql", "pymysql"),
}
SYNC = ("pysqlite", "psycopg_sync", "pymysql")
PROGRAMS: list[Program] = [basic_program, typed_program, bytes_program]
LEFT_OUT = {("aiomysql", bytes_program)}
"""aiomysql 0.3 can't send bytes together with the pymysql of today."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program has left: the trail as it is stored, and the story of each table."""

    stored: dict[tuple[str, str], list[Any]]
    stories: dict[str, Any]
    truth: dict[str, Any]


def _stored(session: Session) -> dict[tuple[str, str], list[Any]]:
    """Return the trail of each resource as plain SQL reads it, the ids of transactions replaced by their order."""
    query = sa.text(
        "SELECT resource_type, resource_id, operation, old_values, new_values, transaction_id "
        "FROM sqlaudit_change ORDER BY id"
    )
    transactions: dict[str, int] = {}
    trail: dict[tuple[str, str], list[Any]] = {}
    for resource_type, resource_id, operation, *sides, transaction_id in session.execute(query):
        number = transactions.setdefault(str(transaction_id), len(transactions))
        old, new = (json.loads(side) if isinstance(side, str) else side for side in sides)
        trail.setdefault((resource_type, resource_id), []).append((operation, old, new, number))
    return trail


def _truth(session: Session) -> dict[str, Any]:
    connection = session.connection()
    return {table.name: witnessed(connection, table) for table in Base.metadata.sorted_tables}


async def run_async(database: Database, program: Program, driver: str) -> Outcome:
    """Run *program* through an async driver of *database*."""
    engine = database.make_async_engine(driver=driver)
    maker = async_sessionmaker(engine)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await create_audit_tables(connection)
            await connection.run_sync(watch_rows, *Base.metadata.tables.values())
        set_config(SQLAuditConfig(session_factory=maker))
        register_hooks(maker)
        async with maker() as session:
            await session.run_sync(program)
        async with maker() as session:
            stories = {
                table.name: told(await get_resource_changes(table, session=session, sort_direction="asc"))
                for table in Base.metadata.sorted_tables
            }
            # Both colours read the same.
            again = await session.run_sync(_stories_of)
            assert again == stories
            return Outcome(await session.run_sync(_stored), stories, await session.run_sync(_truth))
    finally:
        await engine.dispose()


def run_sync(database: Database, program: Program) -> Outcome:
    """Run *program* through the sync driver of *database*."""
    engine = database.make_engine()
    maker = sessionmaker(engine)
    try:
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            create_audit_tables(connection)
            watch_rows(connection, *Base.metadata.tables.values())
        set_config(SQLAuditConfig(session_factory=maker))
        register_hooks(maker)
        with maker() as session:
            program(session)
        with maker() as session:
            return Outcome(_stored(session), _stories_of(session), _truth(session))
    finally:
        engine.dispose()


def _stories_of(session: Session) -> dict[str, Any]:
    return {
        table.name: told(get_resource_changes_sync(table, session=session, sort_direction="asc"))
        for table in Base.metadata.sorted_tables
    }


async def run_through(database: Database, program: Program, driver: str) -> Outcome:
    """Run *program* through *driver*."""
    return run_sync(database, program) if driver in SYNC else await run_async(database, program, driver)


def _assert_told(outcome: Outcome) -> None:
    """Fail unless the trail tells of each row what the witness saw; masked values are told as changed."""
    for name, truth in outcome.truth.items():
        assert sorted(_shown(outcome.stories[name])) == sorted(_shown(truth)), name


def _shown(story: Story) -> list[str]:
    return [
        repr((operation, {key: pair for key, pair in fields.items() if key != "secret"})) for operation, fields in story
    ]


@pytest.mark.parametrize(
    ("database", "driver", "program"),
    [
        pytest.param(kind, driver, program, id=f"{kind}-{driver}-{program.__name__}")
        for kind, drivers in DRIVERS.items()
        for driver in drivers
        for program in PROGRAMS
        if (driver, program) not in LEFT_OUT
    ],
    indirect=["database"],
)
async def test_every_driver_tells_what_happened(database: Database, driver: str, program: Program) -> None:
    """A program of objects, statements and savepoints leaves the trail that the witness saw, whatever the driver."""
    _assert_told(await run_through(database, program, driver))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_the_trail_is_the_same_everywhere(
    postgresql_server: URL, mariadb_server: URL, tmp_path: Path, program: Program
) -> None:
    """One program leaves the same stored changes through every driver of every database."""
    trails: dict[str, dict[tuple[str, str], list[Any]]] = {}
    for kind, drivers in DRIVERS.items():
        for driver in drivers:
            if (driver, program) in LEFT_OUT:
                continue
            with _fresh(kind, tmp_path, postgresql_server, mariadb_server) as database:
                trails[driver] = (await run_through(database, program, driver)).stored

    expected = trails.pop("aiosqlite")
    assert len(expected) > 1
    for driver, trail in trails.items():
        assert trail.keys() == expected.keys(), driver
        for resource, changes in expected.items():
            assert trail[resource] == changes, (driver, resource)


def _fresh(kind: str, folder: Path, postgresql_server: URL, mariadb_server: URL) -> Any:
    if kind == "sqlite":
        return sqlite_database(folder)
    return postgresql_database(postgresql_server) if kind == "postgresql" else mariadb_database(mariadb_server)


def _can_send(driver: str, value: Any) -> bool:
    if driver == "aiomysql":
        return not isinstance(value, bytes)
    # With SQLAlchemy 2.0, bits are of a type of asyncpg's own.
    return not type(value).__module__.startswith("asyncpg")


def _of_other_drivers() -> list[Any]:
    """Return each group of types that another async driver can send."""
    groups = {
        (kind, driver, group): [case for case in cases if kind in case.databases and _can_send(driver, case.edges[0])]
        for kind, driver in (("postgresql", "psycopg"), ("mariadb", "aiomysql"))
        for group, cases in CASES.items()
    }
    return [
        pytest.param(kind, driver, cases, id=f"{driver}-{group}")
        for (kind, driver, group), cases in groups.items()
        if cases
    ]


@pytest.mark.filterwarnings("ignore:Type object .* does not refer to an OperatorClass")  # SQLAlchemy 2.1's own types
@pytest.mark.parametrize(("database", "driver", "cases"), _of_other_drivers(), indirect=["database"])
async def test_other_drivers_tell_every_type_as_it_reads(
    database: Database, driver: str, cases: Sequence[TypeCase]
) -> None:
    """NULL, empty, extreme and non-ASCII values of a type are told as they read back through other drivers, too."""
    engine = database.make_async_engine(driver=driver)
    try:
        await check(await audited(cases, async_sessionmaker(engine)), lives_of_edges(cases))
    finally:
        await engine.dispose()
