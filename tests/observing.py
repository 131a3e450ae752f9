"""What the tests see without the library's help: the stored trail by raw SQL, and the statements that are sent."""

import contextlib
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

TRAIL = "sqlaudit_change"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChange:
    """A row of the trail as it stands in the database; JSON parsed, nothing decoded."""

    id: int
    transaction_id: str
    recorded_at: dt.datetime
    operation: str
    resource_type: str
    resource_id: str
    changed_by: str | None
    impersonated_by: str | None
    reason: str | None
    context: dict[str, Any] | None
    old_values: dict[str, Any] | None
    new_values: dict[str, Any] | None

    @property
    def what(self) -> tuple[str, str, str]:
        """Return operation, resource type and resource id."""
        return self.operation, self.resource_type, self.resource_id


def read_trail(connection: Connection) -> list[StoredChange]:
    """Return the trail as *connection* sees it, in the order of the ids."""
    rows = connection.execute(text(f"SELECT * FROM {TRAIL} ORDER BY id")).mappings()
    return [_stored(dict(row)) for row in rows]


async def stored_trail(engine: AsyncEngine) -> list[StoredChange]:
    """Return what is committed of the trail, as a connection of its own sees it."""
    async with engine.connect() as connection:
        return await connection.run_sync(read_trail)


async def trail_within(session: AsyncSession) -> list[StoredChange]:
    """Return the trail as the transaction of *session* sees it; nothing is flushed."""
    return await (await session.connection()).run_sync(read_trail)


async def stored_rows(engine: AsyncEngine, columns: str, table: str) -> list[tuple[Any, ...]]:
    """Return what is committed of a table, sorted by *columns*."""
    async with engine.connect() as connection:
        result = await connection.execute(text(f"SELECT {columns} FROM {table} ORDER BY {columns}"))
        return [tuple(row) for row in result]


def _stored(row: dict[str, Any]) -> StoredChange:
    for key in ("context", "old_values", "new_values"):
        row[key] = json.loads(row[key]) if isinstance(row[key], str) else row[key]
    if isinstance(row["recorded_at"], str):
        row["recorded_at"] = dt.datetime.fromisoformat(row["recorded_at"])
    if row["recorded_at"].tzinfo is None:
        row["recorded_at"] = row["recorded_at"].replace(tzinfo=dt.UTC)
    row["transaction_id"] = str(row["transaction_id"]).replace("-", "")
    return StoredChange(**row)


@dataclass(frozen=True, slots=True)
class Sent:
    """One execution of a statement, with all its parameter sets."""

    sql: str
    parameters: str

    @property
    def verb(self) -> str:
        """Return the statement's first word."""
        return self.sql.split(maxsplit=1)[0]

    @property
    def concerns_trail(self) -> bool:
        """Whether the trail's table is in the statement."""
        return TRAIL in self.sql


@contextlib.contextmanager
def sent_statements(engine: AsyncEngine | Engine) -> Iterator[list[Sent]]:
    """Give the list of what *engine* sends in the block, but for the BEGIN of SQLite's test engine."""
    sent: list[Sent] = []
    target = engine.sync_engine if isinstance(engine, AsyncEngine) else engine

    def listen(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(Sent(" ".join(statement.split()), repr(parameters)))

    event.listen(target, "before_cursor_execute", listen)
    try:
        yield sent
    finally:
        event.remove(target, "before_cursor_execute", listen)
