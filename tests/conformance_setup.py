"""What the conformance tests share: an audited database with a witness, and the story of a table."""

import dataclasses
import json
import os
from collections.abc import Collection, Sequence
from pprint import pformat
from typing import Any

from sqlalchemy import Connection, MetaData, Table, inspect, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from sqlaudit import (
    FieldChange,
    SQLAuditConfig,
    create_audit_tables,
    get_resource_changes,
    register_hooks,
    set_config,
)
from sqlaudit.types import Capture
from witness import Story, told, watch_rows, witnessed

Maker = async_sessionmaker[AsyncSession]


def capture_of_tests() -> Capture:
    """Return what records the changes of tests that don't say: see `pytest_generate_tests`."""
    return Capture(os.environ.get("SQLAUDIT_TEST_CAPTURE", Capture.SESSION))


async def start_audit(maker: Maker, models: type[DeclarativeBase] | MetaData) -> None:
    """Create the tables of *models*, the trail and the witness; record what goes through *maker* from now on."""
    metadata = models if isinstance(models, MetaData) else models.metadata
    set_config(SQLAuditConfig(session_factory=maker, capture=capture_of_tests()))
    register_hooks(maker)
    async with maker.kw["bind"].begin() as connection:
        await connection.run_sync(metadata.create_all)
        await create_audit_tables(connection, metadata=metadata)
        await connection.run_sync(watch_rows, *metadata.tables.values())


async def save(session: AsyncSession, *objects: object) -> None:
    """Insert *objects*; they are expired afterwards, unless the session says otherwise."""
    session.add_all(objects)
    await session.commit()


async def story_of(maker: Maker, model: type[Any] | Table, *, only: Collection[str] | None = None) -> Story:
    """
    Return the story of a table as the trail tells it; fail unless the witness saw the same.

    The order is compared for each row, as law 4 says. *only* names the columns that are tracked, if not all are.
    """
    trail, truth = await trail_of(maker, model), await truth_of(maker, model, only=only)
    if trail != truth:
        assert_same_by_row(
            await changes_by_row(maker, model), await truth_by_row(maker, model, only=only), _table(model).name
        )
    return trail


async def trail_of(maker: Maker, model: type[Any] | Table) -> Story:
    """Return the story of a table as the trail tells it, by column name."""
    return told(await _changes_by_column_name(maker, _table(model)))


async def truth_of(maker: Maker, model: type[Any] | Table, *, only: Collection[str] | None = None) -> Story:
    """Return the story of a table as the witness saw it, by column name."""
    async with maker() as session:
        return await session.run_sync(
            lambda sync: restricted(witnessed(sync.connection(), _table(model)), only),
        )


async def changes_of(maker: Maker, model: type[Any] | Table, resource_ids: Any = None) -> list[FieldChange]:
    """Return the trail of a model or table, oldest first."""
    async with maker() as session:
        return await get_resource_changes(model, resource_ids, session=session, sort_direction="asc")


async def _changes_by_column_name(maker: Maker, table: Table) -> list[FieldChange]:
    return [
        dataclasses.replace(change, field_name=table.columns[change.field_name].name)
        for change in await changes_of(maker, table)
    ]


async def changes_by_row(maker: Maker, model: type[Any] | Table) -> dict[Any, Story]:
    """Return the trail of each row of a table, by its key."""
    return told_by_row(await _changes_by_column_name(maker, _table(model)))


async def truth_by_row(
    maker: Maker, model: type[Any] | Table, *, only: Collection[str] | None = None
) -> dict[Any, Story]:
    """Return what the witness saw of each row of a table, by its key."""
    async with maker() as session:
        return await session.run_sync(lambda sync: witnessed_by_row(sync.connection(), _table(model), only=only))


def told_by_row(changes: Sequence[FieldChange]) -> dict[Any, Story]:
    """Return the story of each row, by its key: *changes* are of one table, oldest first."""
    rows: dict[Any, list[FieldChange]] = {}
    for change in changes:
        rows.setdefault(change.resource_id, []).append(change)
    return {key: told(of_row) for key, of_row in rows.items()}


def witnessed_by_row(connection: Connection, table: Table, *, only: Collection[str] | None = None) -> dict[Any, Story]:
    """Return what the witness saw of each row that was inserted or deleted, by its key."""
    names = [column.name for column in table.primary_key]
    keys = {
        tuple(fields[name][0 if operation == "delete" else 1] for name in names)
        for operation, fields in witnessed(connection, table)
        if operation != "update"
    }
    stories = {
        key if len(names) > 1 else key[0]: restricted(
            witnessed(connection, table, dict(zip(names, key, strict=True))), only
        )
        for key in keys
    }
    return {key: story for key, story in stories.items() if story}


def assert_same_by_row(trail: dict[Any, Story], truth: dict[Any, Story], name: str) -> None:
    """Fail unless the trail and the witness tell the same of every row of the table *name*."""
    __tracebackhide__ = True
    for key in {**trail, **truth}:
        if trail.get(key) != truth.get(key):
            raise AssertionError(
                f"Of the row {key!r} of {name}\nthe trail tells\n{pformat(trail.get(key), width=140)}\n"
                f"the witness saw\n{pformat(truth.get(key), width=140)}"
            )


def restricted(story: Story, only: Collection[str] | None) -> Story:
    """Return what *story* says of some columns; updates that say nothing of them are left out."""
    if only is None:
        return story
    shorter = [
        (operation, {name: pair for name, pair in fields.items() if name in only}) for operation, fields in story
    ]
    return [(operation, fields) for operation, fields in shorter if fields or operation != "update"]


async def stored_changes(maker: Maker, label: str) -> list[tuple[str, str, Any, Any]]:
    """Return operation, resource id, old and new values as they are stored, read by plain SQL."""
    query = text(
        "SELECT operation, resource_id, old_values, new_values "
        "FROM sqlaudit_change WHERE resource_type = :label ORDER BY id"
    )
    async with maker() as session:
        rows = (await session.execute(query, {"label": label})).all()
    return [
        (operation, key, *(json.loads(side) if isinstance(side, str) else side for side in sides))
        for operation, key, *sides in rows
    ]


async def read_rows(maker: Maker, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a plain SQL query."""
    async with maker() as session:
        return [tuple(row) for row in await session.execute(text(query), parameters)]


def _table(model: type[Any] | Table) -> Table:
    table = model if isinstance(model, Table) else inspect(model).local_table
    assert isinstance(table, Table)
    return table
