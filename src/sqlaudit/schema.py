"""How the tables of the trail are created, and whether they are there."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from sqlalchemy import Connection, Engine, MetaData, Table, event, inspect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sqlaudit.config import SQLAuditConfig, get_config, has_config
from sqlaudit.exceptions import TrailMissingError, TrailOutdatedError
from sqlaudit.tables import change_table, is_trail

__all__ = [
    "check_audit_tables",
    "check_audit_tables_sync",
    "create_audit_tables",
    "create_audit_tables_sync",
]

AnyBind = AsyncEngine | AsyncConnection | Engine | Connection
Result = TypeVar("Result")


@overload
def create_audit_tables(
    bind: AsyncEngine | AsyncConnection, *, config: SQLAuditConfig | None = None
) -> Awaitable[None]: ...
@overload
def create_audit_tables(bind: Engine | Connection, *, config: SQLAuditConfig | None = None) -> None: ...
def create_audit_tables(bind: AnyBind, *, config: SQLAuditConfig | None = None) -> Awaitable[None] | None:
    """
    Create the trail's table, which the configuration names, where it doesn't exist yet.

    ``MetaData.create_all()`` of tracked models does it, too. With Alembic, use
    `audit_metadata` instead.

    Args:
        bind: an engine, or a connection whose transaction shall be used. Await
            the result if it is asynchronous.
        config: instead of the default configuration, which need not be there.

    Raises:
        TypeError: *bind* is neither.
    """
    return _run(bind, lambda connection: _create(connection, _trail(config)))


def create_audit_tables_sync(bind: Engine | Connection, *, config: SQLAuditConfig | None = None) -> None:
    """
    Create the trail's table where it doesn't exist yet: `create_audit_tables` for synchronous code.

    Raises:
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    _run_sync(bind, lambda connection: _create(connection, _trail(config)))


@overload
def check_audit_tables(
    bind: AsyncEngine | AsyncConnection, *, config: SQLAuditConfig | None = None
) -> Awaitable[None]: ...
@overload
def check_audit_tables(bind: Engine | Connection, *, config: SQLAuditConfig | None = None) -> None: ...
def check_audit_tables(bind: AnyBind, *, config: SQLAuditConfig | None = None) -> Awaitable[None] | None:
    """
    Make sure that the trail's table is in a database: for each engine, when the application starts.

    Args:
        bind: an engine or a connection. Await the result if it is asynchronous.
        config: instead of the default configuration, which need not be there.

    Raises:
        TrailMissingError: the table isn't there.
        TrailOutdatedError: it lacks columns.
        TypeError: *bind* is neither.
    """
    return _run(bind, lambda connection: _check(connection, _trail(config)))


def check_audit_tables_sync(bind: Engine | Connection, *, config: SQLAuditConfig | None = None) -> None:
    """
    Make sure that the trail's table is in a database: `check_audit_tables` for synchronous code.

    Raises:
        TrailMissingError: the table isn't there.
        TrailOutdatedError: it lacks columns.
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    _run_sync(bind, lambda connection: _check(connection, _trail(config)))


def create_trail_with(metadata: MetaData) -> None:
    """Make ``metadata.create_all()`` create the trail, too: tracked tables can't be written without it."""
    if not event.contains(metadata, "after_create", _create_with):
        event.listen(metadata, "after_create", _create_with)


def _create_with(metadata: MetaData, connection: Connection, **_: Any) -> None:
    # A trail that is a part of *metadata* was created with it.
    if not any(is_trail(table) for table in metadata.tables.values()):
        _create(connection, _trail(None))


def _trail(config: SQLAuditConfig | None) -> Table:
    if config is None and not has_config():
        return change_table
    return (config or get_config()).trail


def _create(connection: Connection, trail: Table) -> None:
    trail.create(connection, checkfirst=True)


def _check(connection: Connection, trail: Table) -> None:
    inspector = inspect(connection)
    places = connection.get_execution_options().get("schema_translate_map") or {}
    schema = places.get(trail.schema, trail.schema)
    if not inspector.has_table(trail.name, schema=schema):
        raise TrailMissingError(trail.fullname)
    there = {column["name"] for column in inspector.get_columns(trail.name, schema=schema)}
    missing = [column.name for column in trail.columns if column.name not in there]
    if missing:
        raise TrailOutdatedError(trail.fullname, missing)


def _run(bind: AnyBind, work: Callable[[Connection], Result]) -> Result | Awaitable[Result]:
    if isinstance(bind, (AsyncEngine, AsyncConnection)):
        return _run_async(bind, work)
    return _run_sync(bind, work)


def _run_sync(bind: Engine | Connection, work: Callable[[Connection], Result]) -> Result:
    if isinstance(bind, Connection):
        return work(bind)
    if not isinstance(bind, Engine):
        raise TypeError(f"bind is a {type(bind).__name__}; expected an Engine or Connection.")
    with bind.begin() as connection:
        return work(connection)


async def _run_async(bind: AsyncEngine | AsyncConnection, work: Callable[[Connection], Result]) -> Result:
    if isinstance(bind, AsyncConnection):
        return await bind.run_sync(work)
    async with bind.begin() as connection:
        return await connection.run_sync(work)
