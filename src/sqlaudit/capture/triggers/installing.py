"""How triggers come into a database, and leave it."""

import importlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Inspector, MetaData, Table, inspect, text
from sqlalchemy.exc import DBAPIError

from sqlaudit._places import schema_of, schemas_of
from sqlaudit.capture.division import capture_of, tables_with_triggers, tracked_here
from sqlaudit.capture.rows import AuditedTable, narrowed_table
from sqlaudit.capture.triggers.objects import DatabaseObject
from sqlaudit.exceptions import CaptureError, TrackingError, TriggersMissingError
from sqlaudit.tracking import Tracking
from sqlaudit.types import Capture

__all__ = [
    "column_names",
    "drop_triggers",
    "install_triggers",
    "places_of",
    "refuse_missing_triggers",
    "standing_objects",
    "statements_to_install",
    "uninstall_triggers",
    "wanted_objects",
]

_MODULES: Final = {"postgresql": "postgresql", "sqlite": "sqlite", "mysql": "mysql", "mariadb": "mysql"}


def install_triggers(
    connection: Connection, trail: Table, *, append_only: bool, metadatas: Collection[MetaData] | None = None
) -> None:
    """
    Bring the triggers of the tracked tables that are in this database to the state that is wanted.

    What is as it should be isn't touched. What is left of tables that are tracked
    here, and aren't captured by triggers any more, goes; what records others may be
    another application's. A guard is never taken away.

    Raises:
        TrackingError: a column can't be recorded by triggers, or two declarations claim a table.
    """
    for statement in statements_to_install(connection, trail, append_only=append_only, metadatas=metadatas):
        _execute(connection, statement)


def statements_to_install(
    connection: Connection, trail: Table, *, append_only: bool, metadatas: Collection[MetaData] | None = None
) -> list[str]:
    """Return what `install_triggers` has to do: nothing if all is as it should be."""
    tables = tables_with_triggers(metadatas)
    wanted = wanted_objects(connection, trail, tables, append_only=append_only)
    return _statements_towards(connection, trail, wanted, (table for table, _ in tracked_here(metadatas)))


def uninstall_triggers(connection: Connection, trail: Table, tables: Iterable[Table]) -> None:
    """Drop what `install_triggers` has made for *tables*, but for the guards."""
    for statement in _statements_towards(connection, trail, (), tables):
        _execute(connection, statement)


def _statements_towards(
    connection: Connection, trail: Table, expected: Iterable[DatabaseObject], own: Iterable[Table]
) -> list[str]:
    wanted = {each.identity: each for each in expected}
    standing = {each.identity: each for each in standing_objects(connection, trail)}
    same = {identity for identity, each in wanted.items() if standing.get(identity) == each}
    unwanted = {identity: each for identity, each in standing.items() if identity not in wanted}
    left_over = {identity: each for identity, each in unwanted.items() if each.is_recording}
    places = places_of(connection, own if left_over else ())
    inspector = inspect(connection)
    gone = {
        identity
        for identity, each in left_over.items()
        if not places.isdisjoint({(each.schema, each.table), *each.serves})
        # What records a table that was dropped fails each write of the one that it fires for.
        or not all(inspector.has_table(name, schema=schema) for schema, name in each.serves)
    }
    if all(identity in gone or each.kind != "trigger" for identity, each in unwanted.items()) and not wanted:
        # What triggers use goes with the last of them.
        gone |= {identity for identity, each in unwanted.items() if not each.is_guard}
    drops = [each.drop for each in reversed(standing.values()) if each.identity in gone | (wanted.keys() - same)]
    return drops + [each.create for identity, each in wanted.items() if identity not in same]


def places_of(connection: Connection, tables: Iterable[Table]) -> set[tuple[str | None, str]]:
    """Return schema and name of tables, as a `DatabaseObject` has them."""
    module = _module(connection)
    return {module.place_of(connection, table) for table in tables}


def drop_triggers(connection: Connection, trail: Table, is_of: Callable[[DatabaseObject], bool]) -> None:
    """Drop those triggers, and functions of single tables, for which *is_of* says so."""
    for each in reversed(standing_objects(connection, trail)):
        if is_of(each):
            _execute(connection, each.drop)


def wanted_objects(
    connection: Connection, trail: Table, tables: Iterable[tuple[Table, Tracking]], *, append_only: bool
) -> Iterator[DatabaseObject]:
    """Yield what should stand in a database, in the order of creation: for what of *tables* is there."""
    module = _module(connection)
    audited = list(_in_database(connection, tables))
    wanted = [*(module.wanted(connection, audited, trail) if audited else ())]
    if append_only:
        # Both may use the same.
        wanted += [each for each in module.guards(connection, trail) if each not in wanted]
    yield from wanted


def _in_database(connection: Connection, tables: Iterable[tuple[Table, Tracking]]) -> Iterator[AuditedTable]:
    inspector = inspect(connection)
    declarations: dict[tuple[str | None, str], Any] = {}
    for table, tracking in tables:
        audited = _as_it_is(connection, inspector, table, tracking)
        if audited is None:
            continue
        place = schema_of(connection, table), table.name
        if place not in declarations:
            declarations[place] = _recorded_by(audited)
            yield audited
        elif declarations[place] != _recorded_by(audited):
            raise TrackingError(
                f"Several MetaData have a tracked table {table.fullname}, declared in different ways, and the database has "
                f"one; say whose triggers it shall have: create_audit_tables(engine, metadata=Base.metadata)."
            )


def _recorded_by(audited: AuditedTable) -> Any:
    tracking, columns = audited.tracking, audited.table.columns
    types = [repr(columns[key].type) for key in tracking.recorded]
    return tracking.label, tracking.recorded, tracking.masked, tracking.resource_key, tracking.user_key, types


def _as_it_is(connection: Connection, inspector: Inspector, table: Table, tracking: Tracking) -> AuditedTable | None:
    """
    Return what triggers can record of a table today; None if it isn't in the database.

    A column may be declared, and be waiting for its migration: the triggers do without.
    """
    schema = schema_of(connection, table)
    if not inspector.has_table(table.name, schema=schema):
        return None
    names = column_names(connection, table.name, schema)
    keys = {key for key, column in table.columns.items() if column.name in names}
    return narrowed_table(table, tracking, connection.dialect, keys)


def column_names(connection: Connection, name: str, schema: str | None) -> set[str]:
    """Return the names of the columns of a table that is there."""
    query = _COLUMN_NAMES.get(connection.dialect.name)
    if query is None:
        return {column["name"] for column in inspect(connection).get_columns(name, schema=schema)}
    return {*connection.scalars(text(query), {"name": name, "schema": schema})}


# Reflection warns of types that SQLAlchemy doesn't know.
_COLUMN_NAMES: Final = {
    "postgresql": """
        SELECT CAST(attname AS text) FROM pg_attribute
        WHERE attrelid = to_regclass(concat(quote_ident(:schema) || '.', quote_ident(:name)))
          AND attnum > 0 AND NOT attisdropped
    """,
} | dict.fromkeys(
    ("mysql", "mariadb"),
    """
        SELECT column_name FROM information_schema.columns
        WHERE table_schema = coalesce(:schema, database()) AND table_name = :name
    """,
)


def standing_objects(connection: Connection, trail: Table) -> list[DatabaseObject]:
    """Return what stands there of ours, in an order of creation."""
    return list(_module(connection).standing(connection, trail))


def refuse_missing_triggers(connection: Connection, trail: Table, metadatas: Collection[MetaData]) -> None:
    """
    Make sure, once for each engine, that what triggers alone capture of the tables of *metadatas* is captured.

    Raises:
        TriggersMissingError: they aren't in the database.
    """
    expected = [pair for pair in tables_with_triggers(metadatas) if capture_of(pair[1]) is Capture.TRIGGERS]
    situation = (frozenset(schemas_of(connection).items()), frozenset(table.key for table, _ in expected))
    known = _found.setdefault(connection.engine, set())
    if situation in known:
        return
    standing = {each.identity for each in standing_objects(connection, trail)}
    wanted = wanted_objects(connection, trail, expected, append_only=False)
    # Who may write need not see the functions.
    missing = {each.table or each.name for each in wanted if each.kind != "function" and each.identity not in standing}
    if missing:
        raise TriggersMissingError(missing)
    known.add(situation)


_found: WeakKeyDictionary[Engine, set[tuple[Any, ...]]] = WeakKeyDictionary()
"""Which tables, at which places, were seen to have their triggers."""


def _execute(connection: Connection, statement: str) -> None:
    # Without parameters no driver takes a % for the place of one; and it is no write of the application's.
    try:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True, "sqlaudit": False})
    except DBAPIError as error:
        module = _module(connection)
        remedy = module.missing_right(error) if module.__name__.endswith(".mysql") else None
        if remedy is None:
            raise
        raise CaptureError(f"The triggers can't be installed: {remedy}.") from error


def _module(connection: Connection) -> Any:
    name = _MODULES.get(connection.dialect.name)
    if name is None:
        raise CaptureError(
            f"Triggers can be had on PostgreSQL, SQLite and MariaDB; this database is {connection.dialect.name}."
        )
    return importlib.import_module(f"sqlaudit.capture.triggers.{name}")
