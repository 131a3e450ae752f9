"""
Law 7: after random programs, the past is what the witness saw, can be written back, and differs from itself rightly.

``SQLAUDIT_PROGRAMS=1000`` runs so many programs on each database.
"""

import asyncio
import itertools
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import async_sessionmaker

from conformance.test_random_programs import (
    Base,
    Line,
    Note,
    Order,
    Program,
    Warning_,
    delete_note,
    delete_order,
    programs,
    run,
    set_note,
    update_orders,
)
from conformance_setup import Maker, start_audit
from databases import Database, mariadb_database, postgresql_database, sqlite_database
from sqlaudit.timetravel import (
    MISSING,
    FieldDiff,
    diff_resource,
    get_resource_snapshot,
    get_snapshots,
    load_as_of,
    restore_resource,
    undo_transaction,
)
from witness import Story, witnessed

State = dict[str, Any] | None

MODELS: list[Any] = [Order, Line, Note, Warning_]
TABLES: list[sa.Table] = [model.__table__ for model in MODELS]
LABELS = {"order": "Order", "line": "Line", "note": "Note", "warning": "Warning_"}


def states_of(story: Story) -> list[State]:
    """Return the states that the witness saw a row in, one after each event."""
    states: list[State] = []
    row: State = None
    for operation, fields in story:
        row = None if operation == "delete" else {**(row or {}), **{name: new for name, (_, new) in fields.items()}}
        states.append(row)
    return states


async def moments_of(maker: Maker, table: sa.Table) -> dict[int, list[tuple[int, State]]]:
    """
    Return the moments of each row of a table: the id of a change, and what the witness saw the row as after it.

    What went from SQL NULL to the JSON value null, or back, is no event for the witness.
    """
    async with maker() as session:
        query = sa.text(
            "SELECT id, resource_id, operation, old_values, new_values FROM sqlaudit_change "
            "WHERE resource_type = :label ORDER BY id"
        )
        rows = (await session.execute(query, {"label": LABELS[table.name]})).all()
        keys = {int(row.resource_id) for row in rows}
        stories = await session.run_sync(
            lambda sync: {key: witnessed(sync.connection(), table, {"id": key}) for key in keys}
        )
    found: dict[int, list[tuple[int, State]]] = {}
    for key in keys:
        ids = [row.id for row in rows if int(row.resource_id) == key and is_event(row)]
        states = states_of(stories[key])
        assert len(ids) == len(states)
        found[key] = list(zip(ids, states, strict=True))
    return found


def is_event(row: Any) -> bool:
    """Return whether the witness, which compares as Python does, sees a change of the trail."""
    sides = [json.loads(side) if isinstance(side, str) else side for side in (row.old_values, row.new_values)]
    if row.operation != "update":
        return True
    nothing: tuple[Any, ...] = (None, {"$json": None})
    return any(sides[0][key] not in nothing or sides[1][key] not in nothing for key in sides[0])


async def check(database: Database, program: Program) -> None:
    """Run *program* on an empty database, and look into its past."""
    engine = database.make_async_engine()
    try:
        maker = async_sessionmaker(engine)
        await start_audit(maker, Base)
        async with maker() as session:
            await session.run_sync(run, program)

        moments = {table.name: await moments_of(maker, table) for table in TABLES}
        for table in TABLES:
            await check_snapshots(maker, table, moments[table.name])
        await check_inheritance(maker, moments)
        await check_all(maker, moments["order"])
        await check_diffs(maker, moments["order"])
        await check_restored(maker, moments["order"])
        await check_undone(maker, moments)
    finally:
        await engine.dispose()


async def check_snapshots(maker: Maker, table: sa.Table, moments: dict[int, list[tuple[int, State]]]) -> None:
    """After each change, and between changes, a snapshot is the row that the witness saw."""
    async with maker() as session:
        for key, of_row in moments.items():
            for change_id, state in of_row:
                snapshot = await get_resource_snapshot(table, key, session=session, at=change_id)
                assert snapshot.state == state
                assert snapshot.change_id == change_id
            first = await get_resource_snapshot(table, key, session=session, at=of_row[0][0] - 1)
            assert first.state is None
            last = await get_resource_snapshot(table, key, session=session)
            assert last.state == of_row[-1][1]


async def check_inheritance(maker: Maker, moments: dict[str, dict[int, list[tuple[int, State]]]]) -> None:
    """An object of two tables is what the witness saw of both."""
    async with maker() as session:
        for key, of_row in moments["warning"].items():
            for change_id in sorted({each for each, _ in (*of_row, *moments["note"][key])}):
                both = [state_at(moments[name][key], change_id) for name in ("note", "warning")]
                expected = None if None in both else {**(both[0] or {}), **(both[1] or {})}
                for model in (Warning_, Note):
                    snapshot = await get_resource_snapshot(model, key, session=session, at=change_id)
                    assert snapshot.state == expected
                    assert snapshot.model is (Warning_ if expected else model)


def state_at(of_row: list[tuple[int, State]], change_id: int) -> State:
    """Return what the witness saw a row as at the time of a change."""
    return next((state for each, state in reversed(of_row) if each <= change_id), None)


async def check_all(maker: Maker, moments: dict[int, list[tuple[int, State]]]) -> None:
    """All rows of a moment, found by the trail, are those that the witness saw, also as instances."""
    ids = sorted({change_id for of_row in moments.values() for change_id, _ in of_row})
    async with maker() as session:
        for change_id in ids[:: max(1, len(ids) // 5)]:
            found = {each.resource_id: each.state async for each in get_snapshots(Order, session=session, at=change_id)}
            states = {key: state_at(of_row, change_id) for key, of_row in moments.items()}
            assert found == {key: state for key, state in states.items() if state is not None}
            for key, state in states.items():
                instance = await load_as_of(Order, key, session=session, at=change_id)
                assert (None if instance is None else {name: getattr(instance, name) for name in state or ()}) == state


async def check_diffs(maker: Maker, moments: dict[int, list[tuple[int, State]]]) -> None:
    """A diff is that of what the witness saw, and two diffs in a row are one."""
    async with maker() as session:
        for key, of_row in moments.items():
            picked = of_row[:: max(1, len(of_row) // 3)]
            for (one, before), (two, _), (three, after) in itertools.product(picked, repeat=3):
                whole = await diff_resource(Order, key, one, three, session=session)
                assert {name: (each.old, each.new) for name, each in visible(whole).items()} == difference(
                    before, after
                )
                halves = [
                    await diff_resource(Order, key, *pair, session=session) for pair in ((one, two), (two, three))
                ]
                assert visible(composed(*halves)) == visible(whole)


def visible(diff: dict[str, FieldDiff]) -> dict[str, FieldDiff]:
    """Leave out what differs between SQL NULL and the JSON value null."""
    return {name: each for name, each in diff.items() if (each.old, each.new) != (None, None)}


def difference(before: State, after: State) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two rows differ."""
    sides = {
        name: ((before or {}).get(name, MISSING), (after or {}).get(name, MISSING))
        for name in {**(before or {}), **(after or {})}
    }
    return {name: (old, new) for name, (old, new) in sides.items() if old is not new and old != new}


def composed(first: dict[str, FieldDiff], second: dict[str, FieldDiff]) -> dict[str, FieldDiff]:
    """Return the diff that two in a row amount to."""
    both = {}
    for name in {**first, **second}:
        old = first[name].old if name in first else second[name].old
        new = second[name].new if name in second else first[name].new
        if old is not new and old != new:
            both[name] = FieldDiff(old, new)
    return both


async def check_restored(maker: Maker, moments: dict[int, list[tuple[int, State]]]) -> None:
    """What is restored is in the table again; but for the version counter, which goes on."""
    table = TABLES[0]
    async with maker() as session:
        for key, of_row in moments.items():
            for change_id, state in of_row[:: max(1, len(of_row) // 4)]:
                await restore_resource(Order, key, session=session, at=change_id, delete=True)
                row = (await session.execute(sa.select(table).where(table.c.id == key))).mappings().one_or_none()
                assert without_version(row) == without_version(state)
                trail = (await get_resource_snapshot(table, key, session=session)).state
                assert without_version(trail) == without_version(state)
                await session.rollback()


async def check_undone(maker: Maker, moments: dict[str, dict[int, list[tuple[int, State]]]]) -> None:
    """Undone from the newest on, each transaction leaves the tables as they were before it."""
    async with maker() as session:
        query = sa.text("SELECT transaction_id, min(id) AS first FROM sqlaudit_change GROUP BY 1 ORDER BY 2 DESC")
        for transaction_id, first in (await session.execute(query)).all():
            # What was undone already is a later change, too.
            await undo_transaction(uuid.UUID(str(transaction_id)), session=session, metadata=Base.metadata, force=True)
            for table in TABLES:
                rows = {row["id"]: dict(row) for row in (await session.execute(sa.select(table))).mappings()}
                states = {key: state_at(of_row, first - 1) for key, of_row in moments[table.name].items()}
                assert {key: without_version(row) for key, row in rows.items()} == {
                    key: without_version(state) for key, state in states.items() if state is not None
                }
        await session.rollback()


def without_version(row: Any) -> State:
    """Leave out what SQLAlchemy counts."""
    return None if row is None else {name: value for name, value in row.items() if name != "version"}


_settings = settings(
    max_examples=int(os.environ.get("SQLAUDIT_PROGRAMS", "10")),
    # One run is as another, but where many programs are asked for.
    derandomize="SQLAUDIT_PROGRAMS" not in os.environ,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("step", [delete_note, set_note])
async def test_the_past_of_programs_that_are_known(database: Database, step: Any) -> None:
    """Programs that are worth being run each time have the past that the witness saw."""
    await check(database, [(delete_order, 0, None), (update_orders, 0, None), (step, 0, None)])


@_settings
@given(programs)
def test_the_past_of_random_programs_on_sqlite(program: Program) -> None:
    """On SQLite, snapshots, diffs and restored rows are those that the witness saw."""
    with tempfile.TemporaryDirectory() as folder, sqlite_database(Path(folder)) as database:
        asyncio.run(check(database, program))


@_settings
@given(program=programs)
def test_the_past_of_random_programs_on_postgresql(postgresql_server: URL, program: Program) -> None:
    """On PostgreSQL, snapshots, diffs and restored rows are those that the witness saw."""
    with postgresql_database(postgresql_server) as database:
        asyncio.run(check(database, program))


@_settings
@given(program=programs)
def test_the_past_of_random_programs_on_mariadb(mariadb_server: URL, program: Program) -> None:
    """On MariaDB, snapshots, diffs and restored rows are those that the witness saw."""
    with mariadb_database(mariadb_server) as database:
        asyncio.run(check(database, program))
