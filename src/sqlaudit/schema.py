"""How the tables of the trail are created and upgraded, and whether they are there."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from sqlalchemy import Connection, Engine, MetaData, Table, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sqlaudit._upgrades import parts_there, statements_between, version_there
from sqlaudit.capture.triggers.installing import install_triggers
from sqlaudit.config import SQLAuditConfig, get_config, has_config
from sqlaudit.exceptions import TrailMissingError, TrailOutdatedError
from sqlaudit.tables import change_table, is_trail, newest_version

__all__ = [
    "check_audit_tables",
    "check_audit_tables_sync",
    "create_audit_tables",
    "create_audit_tables_sync",
    "upgrade_audit_tables",
    "upgrade_audit_tables_sync",
]

AnyBind = AsyncEngine | AsyncConnection | Engine | Connection
Result = TypeVar("Result")


@overload
def create_audit_tables(
    bind: AsyncEngine | AsyncConnection, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> Awaitable[None]: ...
@overload
def create_audit_tables(
    bind: Engine | Connection, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> None: ...
def create_audit_tables(
    bind: AnyBind, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> Awaitable[None] | None:
    """
    Create what auditing needs in the database, where it isn't there yet: the trail's table, and triggers.

    The triggers of tracked tables that are in this database are brought to what
    is declared today; those of tables that nobody here declares are left alone.
    ``MetaData.create_all()`` of tracked models does it all, too. With Alembic, use
    `audit_metadata` instead.

    Args:
        bind: an engine, or a connection whose transaction shall be used. Await
            the result if it is asynchronous.
        config: instead of the default configuration, which need not be there.
        metadata: the tables of this one alone shall have their triggers made, where
            others have tracked tables of the same names.

    Raises:
        TrackingError: triggers can't record a column as declared, or several
            `MetaData` have a table of one name, declared in different ways.
        TypeError: *bind* is neither.
    """
    return run(bind, lambda connection: _create(connection, config, metadata))


def create_audit_tables_sync(
    bind: Engine | Connection, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> None:
    """
    Create what auditing needs in the database: `create_audit_tables` for synchronous code.

    Raises:
        TrackingError: triggers can't record a column as declared, or several
            `MetaData` have a table of one name, declared in different ways.
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    run_sync(bind, lambda connection: _create(connection, config, metadata))


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
    return run(bind, lambda connection: _check(connection, trail_of(config)))


def check_audit_tables_sync(bind: Engine | Connection, *, config: SQLAuditConfig | None = None) -> None:
    """
    Make sure that the trail's table is in a database: `check_audit_tables` for synchronous code.

    Raises:
        TrailMissingError: the table isn't there.
        TrailOutdatedError: it lacks columns.
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    run_sync(bind, lambda connection: _check(connection, trail_of(config)))


@overload
def upgrade_audit_tables(
    bind: AsyncEngine | AsyncConnection, *, config: SQLAuditConfig | None = None
) -> Awaitable[None]: ...
@overload
def upgrade_audit_tables(bind: Engine | Connection, *, config: SQLAuditConfig | None = None) -> None: ...
def upgrade_audit_tables(bind: AnyBind, *, config: SQLAuditConfig | None = None) -> Awaitable[None] | None:
    """
    Bring the trail's table, which an earlier release of sqlaudit made, to what this one writes.

    Adds the columns and indexes that aren't there. What is stored stays as it
    is, and earlier releases can go on writing. Doing it twice is doing it once.
    With Alembic, make a new revision instead: ``--autogenerate`` finds the same.

    Args:
        bind: an engine, or a connection whose transaction shall be used. Await
            the result if it is asynchronous.
        config: instead of the default configuration, which need not be there.

    Raises:
        TrailMissingError: the table isn't there.
        TrailOutdatedError: it is no trail.
        TypeError: *bind* is neither.
    """
    return run(bind, lambda connection: _upgrade(connection, trail_of(config)))


def upgrade_audit_tables_sync(bind: Engine | Connection, *, config: SQLAuditConfig | None = None) -> None:
    """
    Bring the trail's table to what this release writes: `upgrade_audit_tables` for synchronous code.

    Raises:
        TrailMissingError: the table isn't there.
        TrailOutdatedError: it is no trail.
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    run_sync(bind, lambda connection: _upgrade(connection, trail_of(config)))


def create_trail_with(metadata: MetaData) -> None:
    """Make ``metadata.create_all()`` create the trail, too: tracked tables can't be written without it."""
    if not event.contains(metadata, "after_create", _create_with):
        event.listen(metadata, "after_create", _create_with)


def _create_with(metadata: MetaData, connection: Connection, **_: Any) -> None:
    # A trail that is a part of *metadata* was created with it.
    own = [table for table in metadata.tables.values() if is_trail(table)]
    trail = own[0] if own and not has_config() else trail_of(None)
    if not own:
        trail.create(connection, checkfirst=True)
    install_triggers(connection, trail, append_only=is_append_only(None), metadatas={metadata})


def trail_of(config: SQLAuditConfig | None) -> Table:
    """Return the table that holds the trail: the default one if there is no configuration."""
    known = _known(config)
    return change_table if known is None else known.trail


def is_append_only(config: SQLAuditConfig | None) -> bool:
    """Return whether the trail shall be guarded."""
    known = _known(config)
    return known is not None and known.append_only


def _known(config: SQLAuditConfig | None) -> SQLAuditConfig | None:
    return get_config() if config is None and has_config() else config


def _create(connection: Connection, config: SQLAuditConfig | None, metadata: MetaData | None) -> None:
    trail = trail_of(config)
    trail.create(connection, checkfirst=True)
    metadatas = None if metadata is None else {metadata}
    install_triggers(connection, trail, append_only=is_append_only(config), metadatas=metadatas)


def _check(connection: Connection, trail: Table) -> None:
    there = parts_there(connection, trail)
    if not there:
        raise TrailMissingError(trail.fullname)
    missing = [column.name for column in trail.columns if column.name not in there]
    if missing:
        raise TrailOutdatedError(trail.fullname, missing)


def _upgrade(connection: Connection, trail: Table) -> None:
    version = version_there(connection, trail)
    if version == 0:
        raise TrailMissingError(trail.fullname)
    there = parts_there(connection, trail)
    for statement in statements_between(trail, version, newest_version(), connection.dialect, there=there):
        connection.execute(statement)


def run(bind: AnyBind, work: Callable[[Connection], Result]) -> Result | Awaitable[Result]:
    """Do *work* in a transaction of *bind*, of either colour."""
    if isinstance(bind, (AsyncEngine, AsyncConnection)):
        return _run_async(bind, work)
    return run_sync(bind, work)


def run_sync(bind: Engine | Connection, work: Callable[[Connection], Result]) -> Result:
    """Do *work* in a transaction of *bind*, without an event loop."""
    if isinstance(bind, Connection):
        return work(bind)
    if isinstance(bind, (AsyncEngine, AsyncConnection)):
        raise TypeError(f"bind is an {type(bind).__name__}; await the function without _sync in its name.")
    if not isinstance(bind, Engine):
        raise TypeError(f"bind is a {type(bind).__name__}; expected an engine or a connection of SQLAlchemy's.")
    with bind.begin() as connection:
        return work(connection)


async def _run_async(bind: AsyncEngine | AsyncConnection, work: Callable[[Connection], Result]) -> Result:
    if isinstance(bind, AsyncConnection):
        return await bind.run_sync(work)
    async with bind.begin() as connection:
        return await connection.run_sync(work)
