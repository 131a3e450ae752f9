"""
The workloads W1 to W9: what an application does, written once for all contestants.

Each is a function of an open `Target`; what it does is measured, and nothing
else. The asynchronous drivers run the same functions, within ``run_sync``; W7
is written with `AsyncSession` as an application would.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from benchmarks.models import Models, as_json, values_of

__all__ = ["FLUSHED_TOGETHER", "HISTORY_KEY", "HISTORY_LENGTH", "WORKLOADS", "Target", "Workload"]

FLUSHED_TOGETHER = 1000
HISTORY_KEY = 7
"""The resource whose history W5 reads."""
HISTORY_LENGTH = 1000
_TASKS = 50

Batch = list[dict[str, Any]]
"""Rows of the trail that one flush would leave."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a workload works on."""

    models: Models
    size: int
    open_session: Callable[[], Session]
    read_history: Callable[[Session, int], int]
    """The contestant's own way to read a resource's history; returns how many entries it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One thing that applications do."""

    name: str
    title: str
    size: int
    """How many objects; scaled for small runs."""
    run: Callable[[Target], None] | None = None
    run_async: Callable[[Models, AsyncEngine, type[AsyncSession], type[Session], int], Awaitable[None]] | None = None
    fixture: str = "empty"
    """Which database it finds: "empty", "filled" with objects, or with a long "history"."""
    left: int = 1
    """How often more objects it finds than it uses; so that workloads can share a fixture."""
    changes: Callable[[int], int] = lambda size: size
    """How many changes a trail must have got."""
    trail: Callable[[int], list[Batch]] = lambda _: []
    """What the floor writes, flush by flush."""


def _change(operation: str, number: int, old: Any, new: Any) -> dict[str, Any]:
    return {
        "operation": operation,
        "resource_type": "Item",
        "resource_id": str(number),
        "changed_by": "42",
        "impersonated_by": None,
        "reason": "benchmark",
        "context": None,
        "old_values": old,
        "new_values": new,
    }


def _inserts(size: int) -> Batch:
    return [_change("insert", number, None, as_json(number)) for number in range(1, size + 1)]


def _updates(size: int) -> Batch:
    return [
        _change(
            "update",
            number,
            {"name": as_json(number)["name"], "price": as_json(number)["price"]},
            {"name": f"Changed {number}", "price": "9.75"},
        )
        for number in range(1, size + 1)
    ]


def _increments(size: int) -> Batch:
    return [
        _change("update", number, {"quantity": number % 1000}, {"quantity": number % 1000 + 1})
        for number in range(1, size + 1)
    ]


def _deletes(size: int) -> Batch:
    return [_change("delete", number, as_json(number), None) for number in range(1, size + 1)]


def _in_batches(rows: Batch) -> list[Batch]:
    return [rows[start : start + FLUSHED_TOGETHER] for start in range(0, len(rows), FLUSHED_TOGETHER)]


def insert_in_one_flush(target: Target) -> None:
    """W1."""
    item = target.models.item
    with target.open_session() as session:
        session.add_all([item(**values_of(number)) for number in range(1, target.size + 1)])
        session.commit()


def insert_one_by_one(target: Target) -> None:
    """W2."""
    item = target.models.item
    for number in range(1, target.size + 1):
        with target.open_session() as session:
            session.add(item(**values_of(number)))
            session.commit()


def change_two_columns(target: Target) -> None:
    """W3."""
    item = target.models.item
    with target.open_session() as session:
        for place, found in enumerate(session.scalars(select(item).order_by(item.id).limit(target.size)).all(), 1):
            found.name = f"Changed {found.id}"
            found.price = values_of(found.id)["price"] + 1
            if place % FLUSHED_TOGETHER == 0:
                session.flush()
        session.commit()


def delete_objects(target: Target) -> None:
    """W4."""
    item = target.models.item
    with target.open_session() as session:
        for found in session.scalars(select(item).order_by(item.id).limit(target.size)).all():
            session.delete(found)
        session.commit()


def read_history(target: Target) -> None:
    """W5."""
    with target.open_session() as session:
        found = target.read_history(session, HISTORY_KEY)
    if found < min(HISTORY_LENGTH, target.size):
        raise RuntimeError(f"The history has {found} entries.")


def update_by_one_statement(target: Target) -> None:
    """W6."""
    item = target.models.item
    with target.open_session() as session:
        session.execute(
            update(item)
            .where(item.id <= target.size)
            .values(quantity=item.quantity + 1)
            .execution_options(synchronize_session=False)
        )
        session.commit()


async def insert_and_change_concurrently(
    models: Models, engine: AsyncEngine, session_class: type[AsyncSession], sync_class: type[Session], size: int
) -> None:
    """W7: *size* transactions, half of them change an object that the one before has made, and its commit expired."""
    await _concurrently(models, engine, session_class, sync_class, size, expire=True)


async def insert_and_change_unexpired(
    models: Models, engine: AsyncEngine, session_class: type[AsyncSession], sync_class: type[Session], size: int
) -> None:
    """W7b: the same without expiry, which some peers need with asyncio, and whose documentation says so."""
    await _concurrently(models, engine, session_class, sync_class, size, expire=False)


async def _concurrently(
    models: Models,
    engine: AsyncEngine,
    session_class: type[AsyncSession],
    sync_class: type[Session],
    size: int,
    *,
    expire: bool,
) -> None:
    async def client(number: int) -> None:
        async with session_class(engine, sync_session_class=sync_class, expire_on_commit=expire) as session:
            for turn in range(size // _TASKS // 2):
                item = models.item(**values_of(number * 1000 + turn))
                session.add(item)
                await session.commit()
                item.name = f"Changed {number}"
                item.quantity = -1
                await session.commit()

    async with asyncio.TaskGroup() as tasks:
        for number in range(_TASKS):
            tasks.create_task(client(number))


def _concurrent_trail(size: int) -> list[Batch]:
    turns = size // _TASKS // 2 * _TASKS
    old = {"name": as_json(1)["name"], "quantity": 1}
    new = {"name": "Changed 1", "quantity": -1}
    return [
        batch
        for number in range(turns)
        for batch in ([_change("insert", number, None, as_json(number))], [_change("update", number, old, new)])
    ]


def touch_without_a_change(target: Target) -> None:
    """W8: what is assigned is what was there."""
    item = target.models.item
    with target.open_session() as session:
        for place, found in enumerate(session.scalars(select(item).order_by(item.id).limit(target.size)).all(), 1):
            found.name = found.name + ""
            found.quantity = found.quantity + 0
            if place % FLUSHED_TOGETHER == 0:
                session.flush()
        session.commit()


def insert_untracked(target: Target) -> None:
    """W9."""
    untracked = target.models.untracked
    with target.open_session() as session:
        session.add_all([untracked(**values_of(number)) for number in range(1, target.size + 1)])
        session.commit()


_ALL = (
    Workload(name="W1", title="insert, one flush", size=10_000, run=insert_in_one_flush, trail=lambda n: [_inserts(n)]),
    Workload(
        name="W2",
        title="insert, a transaction each",
        size=1000,
        run=insert_one_by_one,
        trail=lambda n: [[row] for row in _inserts(n)],
    ),
    Workload(
        name="W3",
        title="load, change 2 columns",
        size=10_000,
        run=change_two_columns,
        fixture="filled",
        trail=lambda n: _in_batches(_updates(n)),
    ),
    Workload(
        name="W4",
        title="load, delete",
        size=5000,
        run=delete_objects,
        fixture="filled",
        left=2,
        trail=lambda n: [_deletes(n)],
    ),
    Workload(
        name="W5",
        title="read 1,000 changes of all",
        size=200_000,
        run=read_history,
        fixture="history",
        changes=lambda _: 0,
    ),
    Workload(
        name="W6",
        title="one update() of all rows",
        size=10_000,
        run=update_by_one_statement,
        fixture="filled",
        trail=lambda n: [_increments(n)],
    ),
    Workload(
        name="W7",
        title="50 concurrent tasks",
        size=2000,
        run_async=insert_and_change_concurrently,
        changes=lambda n: n // _TASKS // 2 * 2 * _TASKS,
        trail=_concurrent_trail,
    ),
    Workload(
        name="W7b",
        title="same, expire_on_commit=False",
        size=2000,
        run_async=insert_and_change_unexpired,
        changes=lambda n: n // _TASKS // 2 * 2 * _TASKS,
        trail=_concurrent_trail,
    ),
    Workload(
        name="W8",
        title="load, nothing changed",
        size=10_000,
        run=touch_without_a_change,
        fixture="filled",
        changes=lambda _: 0,
    ),
    Workload(name="W9", title="insert, untracked model", size=10_000, run=insert_untracked, changes=lambda _: 0),
)

WORKLOADS = {workload.name: workload for workload in _ALL}
