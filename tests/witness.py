"""
The independent witness: plain triggers that log what really happened to each row.

Written without the library's code. What a trigger saw is kept in a table of the
same column types as the watched one, so that it reads back as Python values.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Connection, Identity, Integer, MetaData, String, Table, select, text
from sqlalchemy.schema import CreateTable

from sqlaudit import FieldChange


def watch_rows(connection: Connection, *tables: Table) -> None:
    """Install the triggers on *tables*, which exist."""
    for table in tables:
        log = _log_table(table)
        connection.execute(CreateTable(log))
        for statement in _triggers(connection, table, log):
            connection.execute(text(statement))


def _log_table(table: Table) -> Table:
    def copies(side: str) -> list[Column[Any]]:
        return [Column(f"{side}_{column.name}", column.type) for column in table.columns]

    return Table(
        f"witness_{table.name}",
        MetaData(),
        Column("id", Integer, Identity(), primary_key=True),
        Column("operation", String(6), nullable=False),
        *copies("old"),
        *copies("new"),
        sqlite_autoincrement=True,
    )


def _triggers(connection: Connection, table: Table, log: Table) -> list[str]:
    quote = connection.dialect.identifier_preparer.quote
    names = [column.name for column in table.columns]
    statements = []
    for operation in ("insert", "update", "delete"):
        sides = {"insert": ["new"], "delete": ["old"], "update": ["old", "new"]}[operation]
        targets = ", ".join(quote(f"{side}_{name}") for side in sides for name in names)
        values = ", ".join(f"{side.upper()}.{quote(name)}" for side in sides for name in names)
        insert = f"INSERT INTO {quote(log.name)} (operation, {targets}) VALUES ('{operation}', {values});"
        trigger = f"{log.name}_{operation}"
        if connection.dialect.name != "postgresql":
            statements.append(
                f"CREATE TRIGGER {trigger} AFTER {operation} ON {quote(table.name)} FOR EACH ROW BEGIN {insert} END"
            )
        else:
            statements.append(
                f"CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {insert} RETURN NULL; END $$"
            )
            statements.append(
                f"CREATE TRIGGER {trigger} AFTER {operation} ON {quote(table.name)} "
                f"FOR EACH ROW EXECUTE FUNCTION {trigger}()"
            )
    return statements


Story = list[tuple[str, dict[str, tuple[Any, Any]]]]
"""What happened, in order: the operation, and old and new value by column name."""


def witnessed(connection: Connection, table: Table, key: dict[str, Any] | None = None) -> Story:
    """Return what the triggers saw of *table*, or of its row *key*; updates that changed nothing are left out."""
    log = _log_table(table)
    story: Story = []
    for row in connection.execute(select(log).order_by(log.c.id)).mappings():
        if key is not None and not any(
            all(row[f"{side}_{name}"] == value for name, value in key.items()) for side in ("old", "new")
        ):
            continue
        fields = {column.name: (row[f"old_{column.name}"], row[f"new_{column.name}"]) for column in table.columns}
        if row["operation"] == "update":
            fields = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
            if not fields:
                continue
        story.append((row["operation"], fields))
    return story


def told(changes: Sequence[FieldChange]) -> Story:
    """Return the same story as the trail tells it: *changes* are of one table, oldest first."""
    story: Story = []
    last: int | None = None
    for change in changes:
        if change.change_id != last:
            story.append((change.operation.value, {}))
            last = change.change_id
        story[-1][1][change.field_name] = (change.old_value, change.new_value)
    return story
