"""What may leave the trail, and who may do what to it."""

import datetime as dt
from collections.abc import Awaitable
from typing import Any, Final, overload

from sqlalchemy import Connection, Engine, delete, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sqlaudit._places import schema_of
from sqlaudit.capture.connections import OWN, is_autocommit
from sqlaudit.capture.listeners import attend_engine
from sqlaudit.capture.publishing import retention
from sqlaudit.config import SQLAuditConfig
from sqlaudit.exceptions import CaptureError, RetentionError
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

    Nothing is executed: who may grant is the administrator. On MariaDB it is the administrator, too, who asks:
    the rights that the user has are looked into. Where triggers alone
    write the trail on PostgreSQL, their owner does, and reading is enough.

    Args:
        bind: an engine or a connection. Await the result if it is asynchronous.
        role: the user of the database; on MariaDB ``user@host``.
        config: instead of the default configuration, which need not be there.

    Returns:
        Statements in their order; none on SQLite, which has no users.

    Raises:
        CaptureError: on MariaDB, the user has rights to the whole schema, or the server, which can't be taken
            away from one table; or whoever asks may not look into them; or this is MySQL.
        TypeError: *bind* is neither.
    """
    return run(bind, lambda connection: _grants(connection, config, role))


def append_only_grants_sync(bind: Engine | Connection, role: str, *, config: SQLAuditConfig | None = None) -> list[str]:
    """
    Return the SQL of the grants: `append_only_grants` for synchronous code.

    Raises:
        CaptureError: as there.
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    return run_sync(bind, lambda connection: _grants(connection, config, role))


def _grants(connection: Connection, config: SQLAuditConfig | None, role: str) -> list[str]:
    preparer = connection.dialect.identifier_preparer
    trail = trail_of(config)
    schema = schema_of(connection, trail)
    table = preparer.quote(trail.name) if schema is None else f"{preparer.quote(schema)}.{preparer.quote(trail.name)}"
    if connection.dialect.name == "sqlite":
        return []
    if connection.dialect.name == "postgresql":
        user = preparer.quote(role)
        return [
            f"REVOKE ALL ON TABLE {table} FROM PUBLIC, {user}",
            f"GRANT SELECT, INSERT ON TABLE {table} TO {user}",
        ]
    schema = schema or str(connection.scalar(text("SELECT DATABASE()")))
    return [
        *_revokes(connection, schema, trail.name, role),
        f"GRANT SELECT, INSERT ON {table} TO {_account(*role.rsplit('@', 1))}",
    ]


# --- MariaDB, where rights only add up -------------------------------------------------------------------------------


def _revokes(connection: Connection, schema: str, name: str, role: str) -> list[str]:
    """Return what takes the rights to the trail away; refuse rights to more than this table, which stay."""
    dialect: Any = connection.dialect
    if not dialect.is_mariadb:
        raise CaptureError(
            "The grants of an append-only trail can be had on PostgreSQL and MariaDB; this server is MySQL, which has "
            "other rights and roles. Look at SHOW GRANTS, and grant SELECT and INSERT by hand."
        )
    place = {"schema": schema, "name": name}
    grantees = _grantees(connection, role)
    wide = [each for each in connection.execute(text(_WIDE), place) if each.grantee in grantees]
    dangerous = sorted({each.privilege_type for each in wide} & _DANGEROUS)
    if dangerous:
        owners = ", ".join(sorted({each.grantee for each in wide if each.privilege_type in _DANGEROUS}))
        raise CaptureError(
            f"{role} has {', '.join(dangerous)} on more than the trail (granted to {owners}), and MariaDB takes "
            f"nothing away from a single table; revoke that, grant what the application needs table by table, or keep "
            f"the trail in a schema of its own."
        )
    quote = connection.dialect.identifier_preparer.quote
    table = f"{quote(schema)}.{quote(name)}"
    narrow = [each for each in connection.execute(text(_NARROW), place) if each.grantee in grantees]
    may_grant = {each.grantee for each in narrow if each.is_grantable == "YES"}
    may_more = {each.grantee for each in narrow if each.privilege_type != "USAGE"}
    # In this order: without rights there is no grant any more, and nothing to revoke.
    return [
        *(f"REVOKE GRANT OPTION ON {table} FROM {grantees[each]}" for each in sorted(may_grant)),
        *(f"REVOKE ALL PRIVILEGES ON {table} FROM {grantees[each]}" for each in sorted(may_more)),
    ]


def _grantees(connection: Connection, role: str) -> dict[str, str]:
    """Return whose rights a user has, his roles' and everybody's, too: by information_schema's names, for REVOKE."""
    user, _, host = role.rpartition("@") if "@" in role else (role, "", "%")
    found = {f"'{user}'@'{host}'": _account(user, host), "'PUBLIC'@''": "PUBLIC", f"'{user}'@''": _account(user)}
    try:
        granted = connection.execute(text("SELECT user, host, role FROM mysql.roles_mapping")).all()
        found |= {f"''@'{each}'": _account("", each) for each in connection.scalars(text(_ANONYMOUS))}
    except DBAPIError as error:
        raise CaptureError(
            f"This user of the database may not look into the rights of {role}; ask for the grants as one who may "
            f"SELECT from the schema mysql."
        ) from error
    waiting = {*found}
    while waiting:
        known = waiting.pop()
        for its_user, its_host, its_role in granted:
            grantee = f"'{its_role}'@''"
            if f"'{its_user}'@'{its_host}'" == known and grantee not in found:
                found[grantee] = _account(its_role)
                waiting.add(grantee)
    return found


def _account(*parts: str) -> str:
    return "@".join("'{}'".format(part.replace("'", "''")) for part in parts)


_DANGEROUS: Final = frozenset({"UPDATE", "DELETE", "DELETE HISTORY", "DROP", "ALTER", "TRIGGER", "SUPER", "SET USER"})

_WIDE: Final = """
SELECT grantee, privilege_type FROM information_schema.user_privileges
UNION ALL
SELECT grantee, privilege_type FROM information_schema.schema_privileges WHERE :schema LIKE table_schema
"""

_NARROW: Final = """
SELECT grantee, privilege_type, is_grantable FROM information_schema.table_privileges
WHERE table_schema = :schema AND table_name = :name
UNION
SELECT grantee, privilege_type, 'NO' FROM information_schema.column_privileges
WHERE table_schema = :schema AND table_name = :name
"""

_ANONYMOUS: Final = "SELECT host FROM mysql.db WHERE user = ''"
"""Rights to a schema that nobody is named for are everybody's."""
