"""Whether the database is as the declarations say: tables, columns, triggers."""

from collections.abc import Awaitable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, overload

from sqlalchemy import Connection, Engine, MetaData, Table, inspect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sqlaudit._places import schema_of
from sqlaudit.capture.division import tables_with_triggers, tracked_here
from sqlaudit.capture.triggers.installing import column_names, standing_objects, wanted_objects
from sqlaudit.capture.triggers.objects import DatabaseObject
from sqlaudit.config import SQLAuditConfig
from sqlaudit.exceptions import CaptureError
from sqlaudit.schema import AnyBind, is_append_only, run, run_sync, trail_of
from sqlaudit.tracking import Tracking

__all__ = ["SchemaFinding", "check_audit_schema", "check_audit_schema_sync"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaFinding:
    """Something in the database that isn't as it should be. Its text says what, and what to do."""

    kind: Literal["table", "column", "trigger", "function", "label"]
    """What it is; a table is the trail's, or one that triggers need."""
    problem: Literal["missing", "outdated", "foreign", "shared"]
    """
    *missing*: it isn't there; *outdated*: it isn't what today's declarations and
    this release would make, or was altered or disabled; *foreign*: it is one of
    sqlaudit's that nothing declared here wants, so that changes may be recorded
    twice; or another application's; *shared*: another table has the label, too, so
    that the trail doesn't tell the rows of one from those of the other.
    """
    name: str
    table: str | None
    """The table that it belongs to, with its schema where it has one."""

    def __str__(self) -> str:
        of = "" if self.table is None or self.kind == "table" else f" of {self.table}"
        remedy = "call create_audit_tables(engine), or make a migration"
        if self.kind == "label":
            remedy = "give each table its own, with table_label="
        elif self.kind == "column":
            remedy = "migrate the table, or track other fields"
        elif self.problem == "foreign":
            name = str(self.table).rpartition(".")[-1]
            remedy = (
                f"create_audit_tables(engine), or a migration, drops it if its table is tracked here, "
                f"op.drop_audit_triggers(\"{name}\") if it isn't any more; leave it, if it is another application's"
            )
        return f"The {self.kind} {self.name}{of} is {self.problem}; {remedy}."


@overload
def check_audit_schema(
    bind: AsyncEngine | AsyncConnection, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> Awaitable[list[SchemaFinding]]: ...
@overload
def check_audit_schema(
    bind: Engine | Connection, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> list[SchemaFinding]: ...
def check_audit_schema(
    bind: AnyBind, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> Awaitable[list[SchemaFinding]] | list[SchemaFinding]:
    """
    Compare a database with what is declared: for a check at start-up, or in CI after the migrations.

    Tables of the application that aren't in this database are left out.

    Args:
        bind: an engine or a connection. Await the result if it is asynchronous.
        config: instead of the default configuration, which need not be there.
        metadata: the tables of this one alone, where others have tracked tables of the same names.

    Returns:
        What isn't as it should be: missing, outdated and foreign triggers, tracked
        columns that their table lacks, the trail's table and columns, labels that tables
        of several `MetaData` share. Empty if all is well.

    Raises:
        CaptureError: this user of the database may not look into the triggers.
        TrackingError: several `MetaData` have a table of one name, declared in different ways.
        TypeError: *bind* is neither.
    """
    return run(bind, lambda connection: _findings(connection, config, metadata))


def check_audit_schema_sync(
    bind: Engine | Connection, *, config: SQLAuditConfig | None = None, metadata: MetaData | None = None
) -> list[SchemaFinding]:
    """
    Compare a database with what is declared: `check_audit_schema` for synchronous code.

    Raises:
        TypeError: *bind* is no `Engine` or `Connection`.
    """
    return run_sync(bind, lambda connection: _findings(connection, config, metadata))


def _findings(connection: Connection, config: SQLAuditConfig | None, metadata: MetaData | None) -> list[SchemaFinding]:
    trail = trail_of(config)
    inspector = inspect(connection)
    tracked = {
        table: tracking
        for table, tracking in tracked_here(None if metadata is None else {metadata})
        if inspector.has_table(table.name, schema=schema_of(connection, table))
    }
    return [
        *_missing_columns(connection, trail, tracked),
        *_shared_labels(connection, tracked),
        *_triggers(connection, trail, config, metadata),
    ]


def _missing_columns(
    connection: Connection, trail: Table, tracked: Mapping[Table, Tracking]
) -> Iterator[SchemaFinding]:
    if not inspect(connection).has_table(trail.name, schema=schema_of(connection, trail)):
        yield SchemaFinding(kind="table", problem="missing", name=trail.fullname, table=trail.fullname)
    else:
        yield from _lacking(connection, trail, trail.columns.keys())
    for table, tracking in tracked.items():
        yield from _lacking(connection, table, tracking.recorded)


def _lacking(connection: Connection, table: Table, keys: Iterable[str]) -> Iterator[SchemaFinding]:
    there = column_names(connection, table.name, schema_of(connection, table))
    for name in (table.columns[key].name for key in keys):
        if name not in there:
            yield SchemaFinding(kind="column", problem="missing", name=name, table=table.fullname)


def _shared_labels(connection: Connection, tracked: Mapping[Table, Tracking]) -> Iterator[SchemaFinding]:
    """Yield the labels of several tables; within one `MetaData` they are refused when they are declared."""
    owners: dict[str, dict[tuple[str | None, str], str]] = {}
    for table, tracking in tracked.items():
        schema = schema_of(connection, table) or connection.dialect.default_schema_name
        for label in tracking.labels:
            owners.setdefault(label, {})[schema, table.name] = table.fullname
    for label, names in owners.items():
        for name in names.values() if len(names) > 1 else ():
            yield SchemaFinding(kind="label", problem="shared", name=label, table=name)


def _triggers(
    connection: Connection, trail: Table, config: SQLAuditConfig | None, metadata: MetaData | None
) -> Iterator[SchemaFinding]:
    standing = {each.identity: each for each in standing_objects(connection, trail)}
    expected = tables_with_triggers(None if metadata is None else {metadata})
    wanted = wanted_objects(connection, trail, expected, append_only=is_append_only(config))
    for each in wanted:
        there = standing.pop(each.identity, None)
        if there is None:
            yield _finding(each, "missing")
        elif not there.is_readable:
            raise CaptureError(
                f"This user of the database may not look into the {there.kind} {there.name}; check as one who may "
                f"(on MariaDB: with the right TRIGGER, and SELECT on mysql.proc)."
            )
        elif there.definition != each.definition:
            yield _finding(each, "outdated")
    for each in standing.values():
        # A function, or table, that nothing uses any more does nothing.
        if each.is_recording:
            yield _finding(each, "foreign")


def _finding(each: DatabaseObject, problem: Literal["missing", "outdated", "foreign"]) -> SchemaFinding:
    table = each.table if each.schema is None or each.table is None else f"{each.schema}.{each.table}"
    return SchemaFinding(kind=each.kind, problem=problem, name=each.name, table=table)
