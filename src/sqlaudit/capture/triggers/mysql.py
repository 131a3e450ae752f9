"""
The triggers of MariaDB. MySQL, which its SQLAlchemy dialect is of, too, is refused.

They fire for each row. What a foreign key does to the rows that refer fires
nothing, so the triggers of the table that they refer to record it. TRUNCATE
can't be seen: don't grant DROP, which it needs.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import DBAPIError

from sqlaudit._places import schema_of
from sqlaudit.capture.rows import AuditedTable
from sqlaudit.capture.triggers.mysql_cascades import cascades, foreign_keys
from sqlaudit.capture.triggers.mysql_changes import Place, Writer
from sqlaudit.capture.triggers.mysql_values import FUNCTIONS, identifier, literal
from sqlaudit.capture.triggers.objects import GUARD, UNREADABLE, DatabaseObject, no_table
from sqlaudit.exceptions import CaptureError
from sqlaudit.tracking import all_tracked

__all__ = ["guards", "missing_right", "place_of", "standing", "wanted"]

_SQL_MODE: Final = "STRICT_ALL_TABLES"
"""A trigger has the mode of its creation: nothing is cut off, whatever the mode of the writer."""

_MAX_NAME: Final = 64


def wanted(connection: Connection, tables: Sequence[AuditedTable], trail: Table) -> Iterator[DatabaseObject]:
    """
    Yield what should stand for *tables*, which are in the database, in the order of creation.

    Raises:
        CaptureError: this is MySQL, not MariaDB.
        TrackingError: MariaDB can't write the values of a column, or a table is a view.
    """
    _refuse_mysql(connection)
    default, trail_place = _default_schema(connection), _place_of(connection, trail)
    writers: dict[Place, Writer] = {}
    kind = text("SELECT table_type FROM information_schema.tables WHERE table_schema = :schema AND table_name = :name")
    for audited in tables:
        place = _place_of(connection, audited.table)
        if connection.scalar(kind, place._asdict()) == "VIEW":
            raise no_table(audited.table)
        writers[place] = Writer(place, audited, trail, trail_place, connection.dialect)
    triggers = list(_triggers(connection, writers, default))
    # A trigger finds the functions of its own schema.
    for schema in sorted({trigger.schema or default for trigger in triggers}):
        for name, (parameters, body) in FUNCTIONS.items():
            yield _function(None if schema == default else schema, name, parameters, body)
    yield from triggers


def guards(connection: Connection, trail: Table) -> Iterator[DatabaseObject]:
    """
    Yield what refuses to update or delete what *trail* holds; TRUNCATE, which needs the right to DROP, can't be.

    Raises:
        CaptureError: this is MySQL, not MariaDB.
    """
    _refuse_mysql(connection)
    default, place = _default_schema(connection), _place_of(connection, trail)
    for event, unless in (("UPDATE", "FALSE"), ("DELETE", "JSON_VALUE(@sqlaudit_published, '$.retention') <=> 1")):
        yield _trigger(
            place, _name(f"{GUARD}_{event.lower()}_", place.name), f"BEFORE {event}", _GUARD.format(unless), default
        )


def _refuse_mysql(connection: Connection) -> None:
    dialect: Any = connection.dialect
    if not dialect.is_mariadb:
        raise CaptureError(
            "Triggers can be had on PostgreSQL, SQLite and MariaDB; this server is MySQL, which reads their SQL otherwise. "
            "Record tables with capture=Capture.SESSION there, and leave out append_only=True."
        )


_GUARD: Final = """\
BEGIN
  -- sqlaudit, version 1: the trail is only added to
  IF NOT ({}) THEN
    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the audit trail is append-only; purge_changes() deletes old changes';
  END IF;
END"""


def place_of(connection: Connection, table: Table) -> tuple[str | None, str]:
    """Return schema and name of a table, as those of triggers are: no schema where it is the default one."""
    place = _place_of(connection, table)
    return None if place.schema == _default_schema(connection) else place.schema, place.name


def standing(connection: Connection, trail: Table) -> Iterator[DatabaseObject]:
    """Yield what stands there of ours: in the schemas of the connection, of tracked tables and *trail*."""
    default = _default_schema(connection)
    schemas = {default, *(schema_of(connection, table) or default for table in (trail, *all_tracked()))}
    schemas |= {key.referred.schema for key in foreign_keys(connection, schemas)}
    functions = text("SELECT routine_name FROM information_schema.routines WHERE routine_schema = :schema")
    for schema in sorted(schemas):
        there = set(connection.scalars(functions, {"schema": schema}))
        for name, (parameters, _) in FUNCTIONS.items():
            if name in there:
                mode, body = _shown(connection, f"FUNCTION {identifier(schema, name)}", r"\n(?=BEGIN)")
                yield _function(None if schema == default else schema, name, parameters, body, mode)
    triggers = text(
        "SELECT event_object_table, trigger_name, action_timing, event_manipulation FROM information_schema.triggers "
        # A trigger is in the schema of its table; asked otherwise, the server opens the tables of all schemas.
        "WHERE event_object_schema = :schema AND trigger_name LIKE 'sqlaudit%'"
    )
    for schema in sorted(schemas):
        for table, name, timing, event in connection.execute(triggers, {"schema": schema}).all():
            if name.startswith(_PREFIXES):
                mode, body = _shown(connection, f"TRIGGER {identifier(schema, name)}", r"(?i:FOR EACH ROW)\s")
                yield _trigger(Place(schema, table), name, f"{timing} {event}", body, default, mode)


def _shown(connection: Connection, what: str, head: str) -> tuple[str, str]:
    """
    Return the sql_mode of a trigger or function, and its body, which comes after *head*.

    In information_schema literals are unescaped.
    """
    try:
        shown = connection.exec_driver_sql(f"SHOW CREATE {what}", execution_options={"no_parameters": True}).one()
    except DBAPIError as error:
        if _number(error) not in _DENIED:
            raise
        return _SQL_MODE, UNREADABLE
    return shown[1], UNREADABLE if shown[2] is None else re.split(head, shown[2], maxsplit=1)[-1]


_DENIED: Final = {1044, 1142, 1227, 1305, 1370, 1419}
"""The errors of a missing right; functions that one may not execute don't exist."""


def _number(error: DBAPIError) -> int | None:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


def missing_right(error: DBAPIError) -> str | None:
    """Return what to do about an error of installing that comes from a missing right; None for other errors."""
    if _number(error) not in _DENIED:
        return None
    return (
        "this user of the database may not create triggers. GRANT TRIGGER, CREATE ROUTINE and ALTER ROUTINE on the schema "
        "to who installs them; where the binary log is on, SUPER, too, or set log_bin_trust_function_creators = 1. Who "
        "only writes rows needs none of it"
    )


# --- the triggers ----------------------------------------------------------------------------------------------------


def _triggers(connection: Connection, writers: Mapping[Place, Writer], default: str) -> Iterator[DatabaseObject]:
    for place, writer in writers.items():
        for event, body in (("INSERT", writer.insert()), ("UPDATE", writer.update()), ("DELETE", writer.delete())):
            name = _name(f"sqlaudit_{event.lower()}_", place.name)
            yield _trigger(place, name, f"AFTER {event}", body, default)
    keys = foreign_keys(connection, {place.schema for place in writers})
    for place, event, body in cascades(keys, writers):
        name = _name(f"sqlaudit_before_{event.lower()}_", place.name)
        yield _trigger(place, name, f"BEFORE {event}", body, default)


_PREFIXES: Final = tuple(
    f"sqlaudit_{event}_" for event in ("insert", "update", "delete", "before_update", "before_delete", "guard")
)


def _name(prefix: str, table: str) -> str:
    """Return the name of a trigger: with a hash where the table's doesn't fit, or could be mistaken for another."""
    if re.fullmatch("[a-z0-9_]+", table) and len(prefix + table) <= _MAX_NAME:
        return prefix + table
    digest = hashlib.sha256(table.encode()).hexdigest()[:8]
    return f"{(prefix + table)[: _MAX_NAME - 9]}_{digest}"


def _trigger(place: Place, name: str, event: str, body: str, default: str, sql_mode: str = _SQL_MODE) -> DatabaseObject:
    schema = None if place.schema == default else place.schema
    trigger = identifier(schema, name)
    return DatabaseObject(
        kind="trigger",
        schema=schema,
        table=place.name,
        name=name,
        definition=f"{event}, {sql_mode}\n{body}",
        create=(
            f"{_WITH_MODE}CREATE TRIGGER {trigger} {event} ON {identifier(schema, place.name)}\nFOR EACH ROW\n{body}"
        ),
        drop=f"DROP TRIGGER IF EXISTS {trigger}",
        serves=frozenset(_recorded_by(event, body, place, default)),
    )


def _recorded_by(event: str, body: str, place: Place, default: str) -> Iterator[tuple[str | None, str]]:
    """Yield the tables whose rows a trigger records: for what foreign keys do, those whose rows its body reads."""
    named = _NAMED.findall(body) if event.startswith("BEFORE") else [place]
    for names in named:
        schema, name = (each.replace("``", "`") for each in names)
        yield None if schema == default else schema, name


_NAMED: Final = re.compile(r"`((?:[^`]|``)+)`\.`((?:[^`]|``)+)` AS `row")
"""What a body reads the rows of: see `mysql_cascades`."""


def _function(schema: str | None, name: str, parameters: str, body: str, sql_mode: str = _SQL_MODE) -> DatabaseObject:
    returns = "BOOLEAN" if name == "sqlaudit_same" else "LONGTEXT CHARACTER SET utf8mb4"
    return DatabaseObject(
        kind="function",
        schema=schema,
        table=None,
        name=name,
        definition=f"{sql_mode}\n{body}",
        create=f"{_WITH_MODE}CREATE FUNCTION {identifier(schema, name)}({parameters}) RETURNS {returns} "
        f"DETERMINISTIC NO SQL\n{body}",
        drop=f"DROP FUNCTION IF EXISTS {identifier(schema, name)}",
    )


_WITH_MODE: Final = f"/*M! SET STATEMENT sql_mode = {literal(_SQL_MODE)} FOR */\n"


# --- the database ----------------------------------------------------------------------------------------------------


def _default_schema(connection: Connection) -> str:
    schema = connection.exec_driver_sql("SELECT DATABASE()").scalar()
    if schema is None:
        raise CaptureError("The connection has no default database, so triggers have no place; name one in its URL.")
    return str(schema)


def _place_of(connection: Connection, table: Table) -> Place:
    return Place(schema_of(connection, table) or _default_schema(connection), table.name)
