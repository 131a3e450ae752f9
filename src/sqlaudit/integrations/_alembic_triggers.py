"""How migrations keep the triggers of tracked tables right: a part of `sqlaudit.integrations.alembic`."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import Operations
from alembic.operations.ops import (
    AddColumnOp,
    DropColumnOp,
    DropTableOp,
    MigrateOperation,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.util import PriorityDispatchResult
from sqlalchemy import Connection, MetaData, Table

from sqlaudit._upgrades import parts_there
from sqlaudit.capture.division import tables_leading_to_triggers, tables_with_triggers, tracked_here
from sqlaudit.capture.triggers.installing import (
    drop_triggers,
    install_triggers,
    places_of,
    standing_objects,
    statements_to_install,
    uninstall_triggers,
    wanted_objects,
)
from sqlaudit.capture.triggers.objects import DatabaseObject
from sqlaudit.config import has_config
from sqlaudit.exceptions import CaptureError
from sqlaudit.schema import is_append_only, trail_of
from sqlaudit.tables import is_trail
from sqlaudit.tracking import all_tracked

__all__ = ["DropAuditTriggersOp", "UpdateAuditTriggersOp", "compare_triggers"]


@Operations.register_operation("update_audit_triggers")
class UpdateAuditTriggersOp(MigrateOperation):
    """Bring the triggers to what is declared: what a migration of tables that have some ends with."""

    def __init__(self, *, dropped_on_the_way_back: Collection[str] = ()) -> None:
        self.dropped_on_the_way_back = tuple(dropped_on_the_way_back)

    @classmethod
    def update_audit_triggers(cls, operations: Operations) -> None:
        """
        Bring the triggers to what is declared, as ``op.update_audit_triggers()`` in a migration.

        They record what today's declarations name, of the tables and columns that
        are there at this moment of the migration: none where the trail isn't there.
        A migration that changes rows, too, calls it before: what it does is recorded.

        Args:
            operations: given by Alembic.

        Raises:
            CaptureError: there is no database to compare with (``--sql``).
            TrackingError: triggers can't record a column as declared.
        """
        operations.invoke(cls())

    def reverse(self) -> "DropAuditTriggersOp":
        """Return what the way back begins with."""
        return DropAuditTriggersOp(self.dropped_on_the_way_back)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` says of it."""
        return ("update_audit_triggers",)


@Operations.register_operation("drop_audit_triggers")
class DropAuditTriggersOp(MigrateOperation):
    """Drop triggers that would be in the way of a migration: what it begins with, before it updates them."""

    def __init__(self, table_names: Collection[str] | None, *, schema: str | None = None) -> None:
        self.table_names = None if table_names is None else tuple(table_names)
        self.schema = schema

    @classmethod
    def drop_audit_triggers(cls, operations: Operations, *table_names: str, schema: str | None = None) -> None:
        """
        Drop the triggers of tables, as ``op.drop_audit_triggers("customer")`` in a migration.

        What is done to their rows until ``op.update_audit_triggers()`` isn't recorded.

        Args:
            operations: given by Alembic.
            table_names: the tables, as they are called now; if none is given, all of
                env.py's MetaData, and what their triggers use.
            schema: the schema of the tables.

        Raises:
            CaptureError: there is no database that could say what stands there (``--sql``).
        """
        operations.invoke(cls(table_names or None, schema=schema))

    def reverse(self) -> UpdateAuditTriggersOp:
        """Return what the way back ends with."""
        return UpdateAuditTriggersOp(dropped_on_the_way_back=self.table_names or ())

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` says of it."""
        return "drop_audit_triggers", self.schema, self.table_names


@Operations.implementation_for(UpdateAuditTriggersOp)
def _update(operations: Operations, operation: UpdateAuditTriggersOp) -> None:
    connection, metadatas = _online(operations, "update_audit_triggers")
    trail = _trail_among(metadatas)
    if parts_there(connection, trail):
        install_triggers(connection, trail, append_only=is_append_only(None), metadatas=metadatas)
        return
    uninstall_triggers(connection, trail, (table for table, _ in tracked_here(metadatas)))
    # What guarded a trail that isn't there any more guards nothing.
    guards = {each.identity for each in wanted_objects(connection, trail, (), append_only=True) if each.is_guard}
    drop_triggers(connection, trail, lambda each: each.identity in guards)


@Operations.implementation_for(DropAuditTriggersOp)
def _drop(operations: Operations, operation: DropAuditTriggersOp) -> None:
    connection, metadatas = _online(operations, "drop_audit_triggers")
    trail = _trail_among(metadatas)
    if operation.table_names is None:
        uninstall_triggers(connection, trail, _declared(metadatas))
        return
    places = {_place(connection, operation.schema, name) for name in operation.table_names}
    drop_triggers(connection, trail, lambda each: each.is_recording and _is_of(connection, each, places))


def _online(operations: Operations, name: str) -> tuple[Connection, list[MetaData] | None]:
    context = operations.get_context()
    if context.as_sql:
        raise CaptureError(
            f"op.{name}() compares the triggers of a database with what is declared, and a script made with --sql has "
            f"none; run the migration online, or put the call under `if not context.is_offline_mode():`, with "
            f"`from alembic import context`, and let create_audit_tables(engine) follow the script."
        )
    return operations.get_bind(), _metadatas(context.opts)


def _metadatas(options: Mapping[str, Any]) -> list[MetaData] | None:
    """Return the ``target_metadata`` of env.py."""
    target: Any = options.get("target_metadata")
    return [target] if isinstance(target, MetaData) else target and [*target]


def _declared(metadatas: Collection[MetaData] | None) -> Iterator[Table]:
    """Yield the tables of env.py's MetaData; where it names none, of each that has tracked ones."""
    for metadata in {table.metadata for table in all_tracked()} if metadatas is None else metadatas:
        yield from metadata.tables.values()


def _trail_among(metadatas: Collection[MetaData] | None) -> Table:
    """Return the trail of the configuration; without one, that of env.py's MetaData."""
    trails = [table for metadata in metadatas or () for table in metadata.tables.values() if is_trail(table)]
    return trails[0] if len(trails) == 1 and not has_config() else trail_of(None)


def _is_of(connection: Connection, each: DatabaseObject, places: Collection[Any]) -> bool:
    """Return whether a trigger fires for one of the tables, or records it."""
    return any(_place(connection, *names) in places for names in ((each.schema, each.table), *each.serves))


def _place(connection: Connection, schema: str | None, table: str | None) -> tuple[str | None, str | None]:
    return schema or connection.dialect.default_schema_name, table


@renderers.dispatch_for(UpdateAuditTriggersOp)
def _render_update(autogen_context: AutogenContext, operation: UpdateAuditTriggersOp) -> str:
    return "op.update_audit_triggers()"


@renderers.dispatch_for(DropAuditTriggersOp)
def _render_drop(autogen_context: AutogenContext, operation: DropAuditTriggersOp) -> list[str]:
    if operation.table_names == ():
        return []
    arguments = [*map(repr, operation.table_names or ())]
    arguments += [] if operation.schema is None else [f"schema={operation.schema!r}"]
    return [f"op.drop_audit_triggers({', '.join(arguments)})"]


def compare_triggers(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Runs when all tables have been compared, and trails: triggers follow what becomes of theirs."""
    connection = autogen_context.connection
    assert connection is not None  # noqa: S101 for the type checkers: there is nothing to compare with otherwise
    metadatas = _metadatas(autogen_context.opts)
    trail, append_only = _trail_among(metadatas), is_append_only(None)
    standing = standing_objects(connection, trail)
    # What triggers use is no table of the application's.
    own = {each.name for each in standing if each.kind == "table"}
    upgrade_ops.ops[:] = [
        each for each in upgrade_ops.ops if not (isinstance(each, DropTableOp) and each.table_name in own)
    ]
    places = {_place(connection, each.schema, each.table) for each in standing if each.kind == "trigger"}
    places |= {
        _place(connection, table.schema, table.name)
        for table in tables_leading_to_triggers()
        if metadatas is None or table.metadata in metadatas
    }
    is_touched = any(
        _place(connection, getattr(each, "schema", None), getattr(each, "table_name", None)) in places
        for each in upgrade_ops.ops
    )
    is_different = bool(statements_to_install(connection, trail, append_only=append_only, metadatas=metadatas))
    no_longer = [*_no_longer_tracked(autogen_context, standing, trail)]
    if is_touched or is_different or no_longer:
        there = {*_tables_that_lose(DropColumnOp, upgrade_ops, connection, places)}
        there |= {table.name for table in no_longer if table.schema is None}
        back = {*_tables_that_lose(AddColumnOp, upgrade_ops, connection, places)}
        upgrade_ops.ops.insert(0, DropAuditTriggersOp(sorted(there)))
        for table in no_longer:
            if table.schema is not None:
                upgrade_ops.ops.insert(0, DropAuditTriggersOp([table.name], schema=table.schema))
        upgrade_ops.ops.append(UpdateAuditTriggersOp(dropped_on_the_way_back=sorted(back)))
    return PriorityDispatchResult.CONTINUE


def _no_longer_tracked(
    autogen_context: AutogenContext, standing: Collection[DatabaseObject], trail: Table
) -> Iterator[Table]:
    """Yield the tables of env.py that triggers record, and nobody here tracks: a migration names what shall go."""
    connection = autogen_context.connection
    assert connection is not None  # noqa: S101 as above
    metadatas = _metadatas(autogen_context.opts)
    expected = wanted_objects(connection, trail, tables_with_triggers(metadatas), append_only=False)
    wanted = {each.identity for each in expected}
    tracked = places_of(connection, (table for table, _ in tracked_here(metadatas)))
    foreign = [each.serves for each in standing if each.is_recording and each.identity not in wanted]
    recorded = {place for places in foreign for place in places} - tracked
    for table in sorted(_declared(metadatas or ()), key=lambda table: table.fullname):
        is_meant = autogen_context.run_object_filters(table, table.name, "table", reflected=False, compare_to=None)
        if recorded and is_meant and not recorded.isdisjoint(places_of(connection, [table])):
            yield table


def _tables_that_lose(
    kind: type[MigrateOperation], upgrade_ops: UpgradeOps, connection: Connection, places: Collection[Any]
) -> Iterator[str]:
    """Yield the tables whose columns SQLite would refuse to drop because a trigger names them."""
    if connection.dialect.name != "sqlite":
        return
    for each in upgrade_ops.ops:
        if not isinstance(each, ModifyTableOps) or _place(connection, each.schema, each.table_name) not in places:
            continue
        if any(isinstance(part, kind) for part in each.ops):
            yield each.table_name
