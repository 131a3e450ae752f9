"""
How Alembic makes and upgrades trail and triggers: import it in ``env.py``, and ``--autogenerate`` does the rest.

::

    import sqlaudit.integrations.alembic

    target_metadata = [Base.metadata, sqlaudit.audit_metadata]

A migration says ``op.migrate_audit_trail("sqlaudit_change", from_version=0, to_version=1)``: the versions are
those of the trail's schema, 0 is no trail at all, and what a version is never changes. So a migration does the
same whatever release of sqlaudit runs it.

A migration of tables that triggers record ends with ``op.update_audit_triggers()``, which brings the triggers to what
is declared: in the migration's transaction, where the database has one for that. On SQLite it begins with
``op.drop_audit_triggers("customer")`` if it drops a column, which a trigger would refuse; on each database, if the
table isn't tracked any more.
"""

from typing import Any, Self

from sqlaudit._upgrades import parts_there, statements_between, version_there
from sqlaudit.exceptions import MissingExtraError
from sqlaudit.tables import is_trail, newest_version, trail_table

try:
    from alembic.autogenerate import comparators, renderers
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations import Operations
    from alembic.operations.ops import CreateTableOp, DropTableOp, MigrateOperation, UpgradeOps
    from alembic.util import DispatchPriority, PriorityDispatchResult
except ImportError as missing:
    raise MissingExtraError(__name__, "alembic") from missing

from sqlaudit.integrations._alembic_triggers import DropAuditTriggersOp, UpdateAuditTriggersOp, compare_triggers

__all__ = ["DropAuditTriggersOp", "MigrateAuditTrailOp", "UpdateAuditTriggersOp"]


@Operations.register_operation("migrate_audit_trail")
class MigrateAuditTrailOp(MigrateOperation):
    """Make one version of a trail's schema of another: create it, upgrade it, and the way back."""

    def __init__(self, table_name: str, *, from_version: int, to_version: int, schema: str | None = None) -> None:
        self.table_name = table_name
        self.from_version = from_version
        self.to_version = to_version
        self.schema = schema

    @classmethod
    def migrate_audit_trail(
        cls,
        operations: Operations,
        table_name: str,
        *,
        from_version: int,
        to_version: int,
        schema: str | None = None,
    ) -> None:
        """
        Make one version of a trail's schema of another, as ``op.migrate_audit_trail()`` in a migration.

        Args:
            operations: given by Alembic.
            table_name: the name of the trail's table.
            from_version: the version that is there; 0 if there is no trail yet.
            to_version: the version to make of it; 0 drops the trail, and all that it tells.
            schema: the schema of the trail's table.

        Raises:
            TrailVersionError: this release of sqlaudit doesn't know the version.
        """
        operations.invoke(cls(table_name, from_version=from_version, to_version=to_version, schema=schema))

    def reverse(self) -> Self:
        """Return the way back."""
        return type(self)(
            self.table_name, from_version=self.to_version, to_version=self.from_version, schema=self.schema
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` says of it."""
        return "migrate_audit_trail", self.schema, self.table_name, self.from_version, self.to_version


@Operations.implementation_for(MigrateAuditTrailOp)
def _migrate(operations: Operations, operation: MigrateAuditTrailOp) -> None:
    trail = trail_table(operation.table_name, schema=operation.schema)
    context = operations.get_context()
    # On MariaDB a migration that failed leaves what it did; an index may have been made beforehand, concurrently.
    there = set[str]() if context.as_sql else parts_there(operations.get_bind(), trail)
    versions = operation.from_version, operation.to_version
    for statement in statements_between(trail, *versions, context.dialect, there=there):
        operations.execute(statement)


@renderers.dispatch_for(MigrateAuditTrailOp)
def _render(autogen_context: AutogenContext, operation: MigrateAuditTrailOp) -> str:
    schema = f", schema={operation.schema!r}" if operation.schema else ""
    return (
        f"op.migrate_audit_trail({operation.table_name!r}, from_version={operation.from_version}, "
        f"to_version={operation.to_version}{schema})"
    )


# After Alembic's own: it compares tables as they are told, and a trail is told by its version.
@comparators.dispatch_for("schema", priority=DispatchPriority.LAST)
def _compare_trails(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Runs when Alembic has compared all tables: what it found of trails gives way to what their versions say."""
    connection = autogen_context.connection
    assert connection is not None  # noqa: S101 for the type checkers: there is nothing to compare with otherwise
    trails = [table for table in autogen_context.sorted_tables if is_trail(table)]
    # What changes a table that is there has no schema in the default one, even if the table names it.
    default = connection.dialect.default_schema_name
    of_trails = {(trail.schema, trail.name) for trail in trails}
    of_trails |= {(None, trail.name) for trail in trails if trail.schema == default}
    of_trails |= {
        (operation.schema, operation.table_name)
        for operation in upgrade_ops.ops
        # Nobody's trail is dropped because env.py doesn't name its MetaData.
        if isinstance(operation, DropTableOp) and is_trail(operation.to_table(autogen_context.migration_context))
    }
    upgrade_ops.ops[:] = [
        operation
        for operation in upgrade_ops.ops
        if (getattr(operation, "schema", None), getattr(operation, "table_name", None)) not in of_trails
    ]
    for operation in upgrade_ops.ops:
        if isinstance(operation, CreateTableOp):
            _forget_tracking(operation)
    for trail in trails:
        # Neither reflected, nor compared with what is.
        if not autogen_context.run_object_filters(trail, trail.name, "table", False, None):  # noqa: FBT003 its signature
            continue
        there, newest = version_there(connection, trail), newest_version()
        if there != newest:
            step = MigrateAuditTrailOp(trail.name, from_version=there, to_version=newest, schema=trail.schema)
            # Before the application's tables: their changes are written to it from the beginning.
            upgrade_ops.ops.insert(0, step)
    return PriorityDispatchResult.CONTINUE


comparators.dispatch_for("schema", priority=DispatchPriority.LAST)(compare_triggers)


def _forget_tracking(operation: CreateTableOp) -> None:
    """Take from a new table's info what sqlaudit keeps there: it would be rendered, and is no Python."""
    for key in [key for key in operation.info if str(key).startswith("sqlaudit")]:
        del operation.info[key]
