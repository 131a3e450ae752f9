"""What may leave the trail, and who may do what to it."""

import datetime as dt
from collections.abc import Awaitable
from typing import overload

from sqlalchemy import Connection, Engine, delete
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sqlaudit.capture.connections import OWN, is_autocommit
from sqlaudit.capture.listeners import attend_engine
from sqlaudit.capture.publishing import retention
from sqlaudit.config import SQLAuditConfig
from sqlaudit.exceptions import RetentionError
from sqlaudit.schema import AnyBind, is_append_only, run, run_sync, trail_of

__all__ = ["append_only_grants", "append_only_grants_sync", "purge_changes", "purge_changes_sync"]


@overload
def purge_changes(
    bind: AsyncEngine | AsyncConnection, *, before: dt.datetime, config: SQLAuditConfig | None = None
) -> Awaitable[int]: ...
@overload
def purge_changes(bind: Engine | Connection, *, before: dt.datetime, config: SQLAuditConfig | None = None) -> int: ...
def purge_changes(bind: AnyBind, *, before: dt.datetime, config: SQLAuditConfig | None = None) -> Awaitable[int] | int:
    """
    Delete the changes that were recorded before a moment, of all resources; also from an append-only trail.

    What is told of a resource begins in the middle of its life afterwards: its
    states can be asked for from its next baseline on, see `create_baseline`.

    Args:
        bind: an engine, or a connection whose transaction shall be used. Await
            the result if it is asynchronous.
        before: an aware datetime.
        config: instead of the default configuration, which need not be there.

    Returns:
        How many changes were deleted.

    Raises:
        RetentionError: *before* is no aware datetime, or is in the future.
        TypeError: *bind* is neither.
    """
    _check(before)
    return run(bind, lambda connection: _purge(connection, config, before))


def purge_changes_sync(bind: Engine | Connection, *, before: dt.datetime, config: SQLAuditConfig | None = None) -> int:
    """
    Delete the changes that were recorded before a moment: `purge_changes` for synchronous code.

    Raises:
        RetentionError: *before* is no aware datetime, or is in the future.
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    _check(before)
    return run_sync(bind, lambda connection: _purge(connection, config, before))


def _check(before: object) -> None:
    if not isinstance(before, dt.datetime) or before.tzinfo is None:
        raise RetentionError(f"before is a {type(before).__name__} without a time zone; give an aware datetime.")
    if before > dt.datetime.now(dt.UTC):
        raise RetentionError("before is in the future: changes that nobody has made yet can't be purged.")


def _purge(connection: Connection, config: SQLAuditConfig | None, before: dt.datetime) -> int:
    trail = trail_of(config)
    old = delete(trail).where(trail.c.recorded_at < before).execution_options(**OWN)
    if is_autocommit(connection) and not is_append_only(config):
        return connection.execute(old).rowcount
    attend_engine(connection)
    # The guard may have been made by a configuration that isn't known here.
    with retention(connection):
        return connection.execute(old).rowcount


@overload
def append_only_grants(
    bind: AsyncEngine | AsyncConnection, role: str, *, config: SQLAuditConfig | None = None
) -> Awaitable[list[str]]: ...
@overload
def append_only_grants(bind: Engine | Connection, role: str, *, config: SQLAuditConfig | None = None) -> list[str]: ...
def append_only_grants(
    bind: AnyBind, role: str, *, config: SQLAuditConfig | None = None
) -> Awaitable[list[str]] | list[str]:
    """
    Return the SQL that leaves a user of the database nothing but to add to the trail and to read it.

    Nothing is executed: who may grant is the administrator. Where triggers alone
    write the trail on PostgreSQL, their owner does, and reading is enough.

    Args:
        bind: an engine or a connection. Await the result if it is asynchronous.
        role: the user of the database; on MariaDB and MySQL ``user@host``.
        config: instead of the default configuration, which need not be there.

    Returns:
        Statements in their order; none on SQLite, which has no users.

    Raises:
        TypeError: *bind* is neither.
    """
    return run(bind, lambda connection: _grants(connection, config, role))


def append_only_grants_sync(bind: Engine | Connection, role: str, *, config: SQLAuditConfig | None = None) -> list[str]:
    """
    Return the SQL of the grants: `append_only_grants` for synchronous code.

    Raises:
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    return run_sync(bind, lambda connection: _grants(connection, config, role))


def _grants(connection: Connection, config: SQLAuditConfig | None, role: str) -> list[str]:
    preparer = connection.dialect.identifier_preparer
    trail = trail_of(config)
    places = connection.get_execution_options().get("schema_translate_map") or {}
    schema = places.get(trail.schema, trail.schema)
    table = preparer.quote(trail.name) if schema is None else f"{preparer.quote(schema)}.{preparer.quote(trail.name)}"
    if connection.dialect.name == "sqlite":
        return []
    if connection.dialect.name == "postgresql":
        user = preparer.quote(role)
        return [
            f"REVOKE ALL ON TABLE {table} FROM PUBLIC, {user}",
            f"GRANT SELECT, INSERT ON TABLE {table} TO {user}",
        ]
    account = "@".join("'{}'".format(part.replace("'", "''")) for part in role.rsplit("@", 1))
    return [f"GRANT SELECT, INSERT ON {table} TO {account}"]
