"""Law 5: who, why and on whose behalf are those of the moment of the flush, and never leak to anybody else."""

import asyncio
import contextlib
import functools
import gc
import random
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session, sessionmaker

from conformance_models import Account, Base, Entry, Maker, Page, begin_auditing
from databases import Database, sqlite_database
from observing import read_trail, sent_statements, stored_rows, stored_trail
from sqlaudit import (
    SQLAuditConfig,
    audit_context,
    bind_audit_context,
    clear_audit_context,
    register_hooks,
    set_audit_context,
    set_config,
)
from sqlaudit.exceptions import ActorCallbackError, ActorRequiredError


async def actors(engine: AsyncEngine) -> list[str | None]:
    """Return who made the changes of the trail, in their order."""
    return [change.changed_by for change in await stored_trail(engine)]


async def actor_of_each(engine: AsyncEngine) -> dict[str, str | None]:
    """Return who made the change of each resource, of which there is one."""
    trail = await stored_trail(engine)
    found = {change.resource_id: change.changed_by for change in trail}
    assert len(found) == len(trail)
    return found


@contextlib.contextmanager
def plain_sessions(database: Database, **config: Any) -> Iterator[sessionmaker[Session]]:
    """Give a maker of audited plain Sessions; the tables are created."""
    engine = database.make_engine()
    maker = sessionmaker(engine)
    Base.metadata.create_all(engine)
    set_config(SQLAuditConfig(**config))
    register_hooks(maker)
    yield maker
    engine.dispose()


# --- contexts --------------------------------------------------------------------------------------------------------


async def test_change_without_a_context_is_anonymous(engine: AsyncEngine, maker: Maker) -> None:
    """Nobody, no reason and no facts are stored as NULL when nobody says any."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()

    (change,) = await stored_trail(engine)
    assert (change.changed_by, change.impersonated_by, change.reason, change.context) == (None, None, None, None)


async def test_actor_impersonator_reason_and_facts_are_stored_with_every_change(
    engine: AsyncEngine, maker: Maker
) -> None:
    """What the context says stands beside each change that was flushed within it."""
    await begin_auditing(engine, maker)
    facts = {"request_id": "r-1", "attempt": 2, "tags": ["a", {"b": None}], "name": "Жанна"}

    async with maker() as session:
        session.add_all([Account(id=1, owner="Ann"), Account(id=2, owner="Bob")])
        with audit_context(user_id=42, impersonated_by="root", reason="GDPR request 17", **facts):
            await session.commit()

    trail = await stored_trail(engine)
    assert [change.resource_id for change in trail] == ["1", "2"]
    for change in trail:
        assert (change.changed_by, change.impersonated_by, change.reason) == ("42", "root", "GDPR request 17")
        assert change.context == facts


async def test_inner_context_inherits_and_the_outer_one_comes_back(engine: AsyncEngine, maker: Maker) -> None:
    """An inner block takes from the outer one what it doesn't say; after it, or an exception, the outer is back."""
    await begin_auditing(engine, maker)

    async with maker() as session:

        async def insert(number: int) -> None:
            session.add(Account(id=number, owner=f"owner {number}"))
            await session.commit()

        with audit_context(user_id=1, reason="outer", request_id="r", place="outer"):
            await insert(1)
            with audit_context(user_id=2, place="inner"):
                await insert(2)
            await insert(3)
            with contextlib.suppress(LookupError), audit_context(reason="inner"):
                await insert(4)
                raise LookupError
            await insert(5)
        await insert(6)

    outer, nothing = {"request_id": "r", "place": "outer"}, None
    assert [(change.changed_by, change.reason, change.context) for change in await stored_trail(engine)] == [
        ("1", "outer", outer),
        ("2", "outer", {"request_id": "r", "place": "inner"}),
        ("1", "outer", outer),
        ("1", "inner", outer),
        ("1", "outer", outer),
        (None, None, nothing),
    ]


async def test_context_of_the_flush_counts_not_that_of_the_assignment(engine: AsyncEngine, maker: Maker) -> None:
    """Who flushes made the change, whoever assigned the attribute."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        with audit_context(user_id=1):
            session.add(Account(id=1, owner="Ann"))
        with audit_context(user_id=2):
            await session.commit()

    assert await actors(engine) == ["2"]


async def test_two_flushes_of_one_transaction_have_their_own_actors(engine: AsyncEngine, maker: Maker) -> None:
    """The actor is asked at each flush, not once for a transaction."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        with audit_context(user_id=1):
            session.add(Account(id=1, owner="Ann"))
            await session.flush()
        with audit_context(user_id=2):
            session.add(Account(id=2, owner="Bob"))
            await session.flush()
        await session.commit()

    assert await actors(engine) == ["1", "2"]


async def test_context_that_was_set_holds_until_it_is_cleared(engine: AsyncEngine, maker: Maker) -> None:
    """set_audit_context() holds for the task until clear_audit_context()."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        set_audit_context(user_id="ann")
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
        clear_audit_context()
        session.add(Account(id=2, owner="Bob"))
        await session.commit()

    assert await actors(engine) == ["ann", None]


async def test_context_when_the_transaction_began_counts_after_its_block(engine: AsyncEngine, maker: Maker) -> None:
    """A dependency that commits after the actor's block has closed commits for the actor of the transaction's begin."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        with audit_context(user_id=5, reason="from the block", request_id="r"):
            await session.execute(select(Entry))
            session.add(Account(id=1, owner="Ann"))
        await session.commit()

    (change,) = await stored_trail(engine)
    assert (change.changed_by, change.reason, change.context) == ("5", "from the block", {"request_id": "r"})


async def test_context_when_the_transaction_began_ends_with_it(engine: AsyncEngine, maker: Maker) -> None:
    """The actor of one transaction's begin is nobody in the next one; and neither is one of a rolled back one."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        with audit_context(user_id=5):
            await session.execute(select(Entry))
        await session.commit()
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
        with audit_context(user_id=6):
            await session.execute(select(Entry))
        await session.rollback()
        session.add(Account(id=2, owner="Bob"))
        await session.commit()

    assert await actors(engine) == [None, None]


async def test_context_of_the_flush_goes_before_that_of_the_begin(engine: AsyncEngine, maker: Maker) -> None:
    """Who flushes goes before who began the transaction."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        with audit_context(user_id=5):
            await session.execute(select(Entry))
        session.add(Account(id=1, owner="Ann"))
        with audit_context(user_id=6):
            await session.commit()

    assert await actors(engine) == ["6"]


async def test_context_of_the_begin_holds_across_savepoints(engine: AsyncEngine, maker: Maker) -> None:
    """A savepoint, released or rolled back, doesn't change who began the transaction."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        with audit_context(user_id=5):
            await session.execute(select(Entry))
        with contextlib.suppress(LookupError), audit_context(user_id=6):
            async with session.begin_nested():
                raise LookupError
        async with session.begin_nested():
            session.add(Account(id=1, owner="Ann"))
        await session.commit()

    assert await actors(engine) == ["5"]


async def test_bound_context_goes_before_the_contextvar(engine: AsyncEngine, maker: Maker) -> None:
    """What is bound to the session goes first; what it doesn't say comes from the task; unbound, it is forgotten."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        with audit_context(user_id=1, reason="task", request_id="r"):
            bind_audit_context(session, user_id=2, impersonated_by=3)
            session.add(Account(id=1, owner="Ann"))
            await session.commit()
            bind_audit_context(session)
            session.add(Account(id=2, owner="Bob"))
            await session.commit()

    assert [
        (change.changed_by, change.impersonated_by, change.reason, change.context)
        for change in await stored_trail(engine)
    ] == [
        ("2", "3", "task", {"request_id": "r"}),
        ("1", None, "task", {"request_id": "r"}),
    ]


async def test_bound_context_is_of_one_session(engine: AsyncEngine, maker: Maker) -> None:
    """A context that is bound to one session says nothing of another one."""
    await begin_auditing(engine, maker)

    async with maker() as bound, maker() as other:
        bind_audit_context(bound, user_id=2)
        other.add(Account(id=1, owner="Ann"))
        await other.commit()
        bound.add(Account(id=2, owner="Bob"))
        await bound.commit()

    assert await actors(engine) == [None, "2"]


# --- the callback and the row ----------------------------------------------------------------------------------------


async def test_callback_names_the_actor_when_no_context_does(engine: AsyncEngine, maker: Maker) -> None:
    """The callback is asked, at each flush, when no context names a user; the context's reason stays."""
    asked: list[int] = []

    def next_user() -> int:
        asked.append(0)
        return 100 + len(asked)

    await begin_auditing(engine, maker, get_user_id_callback=next_user)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
        session.add(Account(id=2, owner="Bob"))
        with audit_context(reason="because"):
            await session.commit()
        session.add(Account(id=3, owner="Cat"))
        with audit_context(user_id=1):
            await session.commit()

    assert [(change.changed_by, change.reason) for change in await stored_trail(engine)] == [
        ("101", None),
        ("102", "because"),
        ("1", None),
    ]
    assert len(asked) == 2


async def test_async_callback_is_awaited_in_the_flush(engine: AsyncEngine, maker: Maker) -> None:
    """An AsyncSession awaits a coroutine function that names the actor, which sees the task's own contextvars."""
    request_user: ContextVar[int] = ContextVar("request_user")

    async def from_request() -> int:
        await asyncio.sleep(0)
        return request_user.get()

    await begin_auditing(engine, maker, get_user_id_callback=from_request)

    async with maker() as session:
        request_user.set(11)
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        request_user.set(12)
        session.add(Account(id=2, owner="Bob"))
        await session.commit()

    assert await actors(engine) == ["11", "12"]


@pytest.mark.parametrize("form", ["lambda", "partial", "object"])
async def test_whatever_returns_an_awaitable_is_awaited(engine: AsyncEngine, maker: Maker, form: str) -> None:
    """A callback need not be a coroutine function to be awaited."""

    async def somebody(user_id: int) -> int:
        await asyncio.sleep(0)
        return user_id

    class Asker:
        async def __call__(self) -> int:
            return await somebody(7)

    callbacks = {"lambda": lambda: somebody(7), "partial": functools.partial(somebody, 7), "object": Asker()}
    await begin_auditing(engine, maker, get_user_id_callback=callbacks[form])

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()

    assert await actors(engine) == ["7"]


async def test_async_callback_may_ask_the_database(engine: AsyncEngine, maker: Maker) -> None:
    """An async callback may open a session of its own, while the flush that asks holds its connection."""

    async def asking() -> int:
        async with maker() as own:
            return (await own.scalar(select(Entry.id))) or 0

    await begin_auditing(engine, maker, get_user_id_callback=asking)
    async with maker() as session:
        session.add(Entry(id=31, line="the user"))
        await session.commit()

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()

    assert await actors(engine) == ["31"]


@pytest.mark.parametrize("form", ["function", "lambda", "partial", "object"])
def test_async_callback_is_refused_on_a_plain_session(database: Database, form: str) -> None:
    """A plain Session can't await: the error says what can, nothing is written, and no coroutine is left behind."""

    async def somebody() -> int:
        return 7

    class Asker:
        async def __call__(self) -> int:
            return 7

    callback = {
        "function": somebody,
        "lambda": lambda: somebody(),  # noqa: PLW0108 (what a user may write)
        "partial": functools.partial(somebody),
        "object": Asker(),
    }[form]

    with plain_sessions(database, get_user_id_callback=callback) as maker, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with maker() as session:
            session.add(Account(id=1, owner="Ann"))
            with pytest.raises(ActorCallbackError, match=r"asynchronous.*AsyncSession"):
                session.commit()
            session.rollback()
            session.add(Account(id=2, owner="Bob"))
            with audit_context(user_id=1):
                session.commit()
            trail = read_trail(session.connection())
            rows = list(session.scalars(select(Account.id)))
        gc.collect()

    assert [(change.resource_id, change.changed_by) for change in trail] == [("2", "1")]
    assert rows == [2]
    assert [str(warning.message) for warning in seen if "never awaited" in str(warning.message)] == []


def test_sync_callback_names_the_actor_of_a_plain_session(database: Database) -> None:
    """A plain Session asks a plain callback."""
    with plain_sessions(database, get_user_id_callback=lambda: "ann") as maker, maker() as session:
        session.add(Account(id=1, owner="Ann"))
        session.commit()
        trail = read_trail(session.connection())

    assert [change.changed_by for change in trail] == ["ann"]


async def test_callback_that_gives_no_id_is_an_error(engine: AsyncEngine, maker: Maker) -> None:
    """What the callback returns must be an id; another object is refused, not stored as its text."""
    await begin_auditing(engine, maker, get_user_id_callback=object)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        with pytest.raises(ActorCallbackError):
            await session.commit()

    assert await stored_rows(engine, "id", "account") == []


async def test_row_names_its_actor_when_nobody_else_does(engine: AsyncEngine, maker: Maker) -> None:
    """The model's user_id_field is the last resort, for each row by itself, at insert, update and delete."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        first, second = Page(id=1, title="a", edited_by=5), Page(id=2, title="b", edited_by=6)
        nobody = Page(id=3, title="c")
        session.add_all([first, second, nobody])
        await session.commit()
        first.edited_by = 7
        await session.flush()
        await session.delete(second)
        await session.commit()

    assert [(change.operation, change.resource_id, change.changed_by) for change in await stored_trail(engine)] == [
        ("insert", "1", "5"),
        ("insert", "2", "6"),
        ("insert", "3", None),
        ("update", "1", "7"),
        ("delete", "2", "6"),
    ]


async def test_context_and_callback_go_before_the_row(engine: AsyncEngine, maker: Maker) -> None:
    """A user whom the context or the callback names goes before the one in the row."""
    users: list[int | None] = [8, None]
    await begin_auditing(engine, maker, get_user_id_callback=lambda: users.pop(0))

    async with maker() as session:
        session.add(Page(id=1, title="a", edited_by=5))
        with audit_context(user_id=9):
            await session.commit()
        session.add(Page(id=2, title="b", edited_by=5))
        await session.commit()
        session.add(Page(id=3, title="c", edited_by=5))
        await session.commit()

    assert await actors(engine) == ["9", "8", "5"]


# --- require_user ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["insert", "update", "delete"])
async def test_anonymous_change_is_refused_before_anything_is_sent(
    engine: AsyncEngine, maker: Maker, operation: str
) -> None:
    """With require_user a change by nobody is refused, no statement is sent, and the session needs no rollback."""
    await begin_auditing(engine, maker, require_user=True)
    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        with audit_context(user_id=1):
            await session.commit()

    async with maker() as session:
        ann = await session.get_one(Account, 1)
        if operation == "insert":
            session.add(Account(id=2, owner="Bob"))
        elif operation == "update":
            ann.balance = 5
        else:
            await session.delete(ann)
        with sent_statements(engine) as sent, pytest.raises(ActorRequiredError, match="Account"):
            await session.commit()
        with audit_context(user_id=2):
            await session.commit()

    assert sent == []
    assert [(change.operation, change.changed_by) for change in await stored_trail(engine)] == [
        ("insert", "1"),
        (operation, "2"),
    ]


async def test_anonymous_change_that_only_the_flush_finds_is_refused(engine: AsyncEngine, maker: Maker) -> None:
    """An expired object that somebody unknown changed isn't written under require_user either."""
    await begin_auditing(engine, maker, require_user=True)

    async with maker() as session:
        ann = Account(id=1, owner="Ann")
        session.add(ann)
        with audit_context(user_id=1):
            await session.commit()
        ann.balance = 5
        with pytest.raises(ActorRequiredError, match="Account"):
            await session.commit()
        await session.rollback()

    assert await stored_rows(engine, "id, balance", "account") == [(1, 0)]
    assert await actors(engine) == ["1"]


async def test_require_user_is_content_with_any_source(engine: AsyncEngine, maker: Maker) -> None:
    """Bound, context, begin, callback or row: require_user asks for an actor, not where it comes from."""
    users: list[int | None] = [4]
    await begin_auditing(engine, maker, require_user=True, get_user_id_callback=lambda: users[0])

    async with maker() as session:
        bind_audit_context(session, user_id=1)
        session.add(Account(id=1, owner="a"))
        await session.commit()
        bind_audit_context(session)
        with audit_context(user_id=2):
            session.add(Account(id=2, owner="b"))
            await session.commit()
        with audit_context(user_id=3):
            await session.execute(select(Entry))
            session.add(Account(id=3, owner="c"))
        await session.commit()
        session.add(Account(id=4, owner="d"))
        await session.commit()
        users[0] = None
        session.add(Page(id=5, title="e", edited_by=5))
        await session.commit()

    assert await actors(engine) == ["1", "2", "3", "4", "5"]


async def test_require_user_asks_nothing_of_what_is_not_tracked(engine: AsyncEngine, maker: Maker) -> None:
    """Untracked models, untracked fields and changes that change nothing need no actor."""
    await begin_auditing(engine, maker, require_user=True)
    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        with audit_context(user_id=1):
            await session.commit()

    async with maker() as session:
        ann = await session.get_one(Account, 1)
        ann.visits += 1
        ann.owner = "Ann"
        session.add(Entry(id=1, line="a", account_id=1))
        await session.commit()

    assert await actors(engine) == ["1"]
    assert await stored_rows(engine, "id, visits", "account") == [(1, 1)]


# --- tasks, threads, connections -------------------------------------------------------------------------------------


async def test_gathered_coroutines_have_their_own_actors(engine: AsyncEngine, maker: Maker) -> None:
    """Coroutines under asyncio.gather() act for themselves, the parent for itself."""
    await begin_auditing(engine, maker)

    async def act(number: int) -> None:
        with audit_context(user_id=number):
            await _insert(maker, number)

    with audit_context(user_id="parent"):
        await asyncio.gather(*(act(number) for number in range(1, 9)))
        await _insert(maker, 100)

    assert await actor_of_each(engine) == {str(number): str(number) for number in range(1, 9)} | {"100": "parent"}


async def test_children_of_a_task_group_inherit_a_copy(engine: AsyncEngine, maker: Maker) -> None:
    """A task acts for who started it, until it sets its own context, which neither parent nor siblings see."""
    await begin_auditing(engine, maker)

    async def act(number: int) -> None:
        if number % 2:
            set_audit_context(user_id=number)
            await asyncio.sleep(0)
        await _insert(maker, number)

    with audit_context(user_id="parent"):
        async with asyncio.TaskGroup() as group:
            for number in range(1, 9):
                group.create_task(act(number))
        await _insert(maker, 100)

    expected = {str(number): str(number) if number % 2 else "parent" for number in range(1, 9)}
    assert await actor_of_each(engine) == expected | {"100": "parent"}


async def test_children_of_an_anyio_task_group_inherit_a_copy(engine: AsyncEngine, maker: Maker) -> None:
    """Anyio's tasks carry the actor as asyncio's do."""
    await begin_auditing(engine, maker)

    async def act(number: int) -> None:
        if number % 2:
            set_audit_context(user_id=number)
            await anyio.lowlevel.checkpoint()
        await _insert(maker, number)

    with audit_context(user_id="parent"):
        async with anyio.create_task_group() as group:
            for number in range(1, 9):
                group.start_soon(act, number)
        await _insert(maker, 100)

    expected = {str(number): str(number) if number % 2 else "parent" for number in range(1, 9)}
    assert await actor_of_each(engine) == expected | {"100": "parent"}


async def test_task_that_was_started_before_does_not_see_the_actor(engine: AsyncEngine, maker: Maker) -> None:
    """A task that runs since before the context was set is nobody's."""
    await begin_auditing(engine, maker)
    go = asyncio.Event()

    async def wait_and_act() -> None:
        await go.wait()
        await _insert(maker, 1)

    task = asyncio.create_task(wait_and_act())
    await asyncio.sleep(0)
    with audit_context(user_id=5):
        go.set()
        await task

    assert await actors(engine) == [None]


async def test_run_sync_keeps_the_actor(engine: AsyncEngine, maker: Maker) -> None:
    """Code under AsyncSession.run_sync() acts for the task, and may open contexts of its own."""
    await begin_auditing(engine, maker)

    def work(session: Session) -> None:
        session.add(Account(id=1, owner="a"))
        session.flush()
        with audit_context(user_id=6):
            session.add(Account(id=2, owner="b"))
            session.flush()
        session.add(Account(id=3, owner="c"))
        session.commit()

    async with maker() as session:
        with audit_context(user_id=5):
            await session.run_sync(work)

    assert await actors(engine) == ["5", "6", "5"]


async def test_to_thread_keeps_the_actor_and_brings_none_back(database: Database, engine: AsyncEngine) -> None:
    """A plain Session under asyncio.to_thread() acts for the task; what the thread sets stays in the thread."""
    with plain_sessions(database) as maker:

        def insert(number: int, user_id: int | None = None) -> None:
            if user_id is not None:
                set_audit_context(user_id=user_id)
            with maker() as session:
                session.add(Account(id=number, owner=f"owner {number}"))
                session.commit()

        with audit_context(user_id=5):
            await asyncio.to_thread(insert, 1)
            await asyncio.to_thread(insert, 2, 6)
            await asyncio.to_thread(insert, 3)
        await asyncio.to_thread(insert, 4)

    assert await actors(engine) == ["5", "6", "5", None]


@pytest.mark.parametrize("form", ["thread", "executor"])
async def test_raw_thread_is_anonymous(database: Database, engine: AsyncEngine, form: str) -> None:
    """A thread or executor that copies no context acts for nobody, whoever started it."""
    with plain_sessions(database) as maker:

        def insert() -> None:
            with maker() as session:
                session.add(Account(id=1, owner="Ann"))
                session.commit()

        with audit_context(user_id=5):
            if form == "executor":
                await asyncio.get_running_loop().run_in_executor(None, insert)
            else:
                thread = threading.Thread(target=insert)
                thread.start()
                await asyncio.to_thread(thread.join)

    assert await actors(engine) == [None]


async def test_raw_thread_is_refused_with_require_user_unless_its_session_is_bound(
    database: Database, engine: AsyncEngine
) -> None:
    """require_user refuses the raw thread, and a context bound to the session gives it its actor back."""
    with plain_sessions(database, require_user=True) as maker:

        def insert(number: int, user_id: int | None) -> None:
            with maker() as session:
                bind_audit_context(session, user_id=user_id)
                session.add(Account(id=number, owner=f"owner {number}"))
                session.commit()

        run = asyncio.get_running_loop().run_in_executor
        with audit_context(user_id=5):
            with pytest.raises(ActorRequiredError):
                await run(None, insert, 1, None)
            await run(None, insert, 2, 6)

    assert await actor_of_each(engine) == {"2": "6"}


async def test_interleaved_sessions_of_one_task_do_not_mix(
    database: Database, engine: AsyncEngine, maker: Maker, tmp_path: Path
) -> None:
    """Two open transactions of one task, each begun, flushed and committed under changing contexts, keep apart."""
    await begin_auditing(engine, maker)
    with sqlite_database(tmp_path) if database.kind == "sqlite" else contextlib.nullcontext(database) as second:
        # SQLite has one writer at a time: the other session writes to another file.
        other = second.make_async_engine()
        async with other.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        async with maker() as first_session, maker(bind=other) as second_session:
            with audit_context(user_id="began first"):
                await first_session.execute(select(Entry))
                with audit_context(user_id="began second"):
                    await second_session.execute(select(Entry))
            first_session.add(Account(id=1, owner="a"))
            second_session.add(Account(id=2, owner="b"))
            await first_session.flush()
            await second_session.flush()
            with audit_context(user_id="both"):
                second_session.add(Account(id=3, owner="c"))
                await second_session.flush()
                first_session.add(Account(id=4, owner="d"))
                await first_session.flush()
            second_session.add(Account(id=5, owner="e"))
            first_session.add(Account(id=6, owner="f"))
            await second_session.commit()
            await first_session.commit()
        found = await actor_of_each(engine) | await actor_of_each(other)
        transactions = {change.transaction_id for each in {engine, other} for change in await stored_trail(each)}
        await other.dispose()

    assert found == {
        "1": "began first",
        "2": "began second",
        "3": "both",
        "4": "both",
        "5": "began second",
        "6": "began first",
    }
    assert len(transactions) == 2


async def test_pooled_connection_carries_nothing_to_its_next_user(database: Database) -> None:
    """The one connection of a pool has served an actor, an anonymous change and a rollback: nothing is left of them."""
    engine = database.make_async_engine(pool_size=1, max_overflow=0)
    maker = Maker(engine)
    await begin_auditing(engine, maker)

    with audit_context(user_id=5, reason="why", request_id="r"):
        await _insert(maker, 1)
    await _insert(maker, 2)
    with audit_context(user_id=6):
        async with maker() as session:
            bind_audit_context(session, user_id=7)
            session.add(Account(id=3, owner="c"))
            await session.flush()
    await _insert(maker, 4)
    trail = await stored_trail(engine)
    await engine.dispose()

    assert [(change.resource_id, change.changed_by, change.reason, change.context) for change in trail] == [
        ("1", "5", "why", {"request_id": "r"}),
        ("2", None, None, None),
        ("4", None, None, None),
    ]


async def test_thousand_tasks_leave_no_change_under_a_wrong_name(database: Database) -> None:
    """1,000 tasks on one engine, with awaits wherever there may be some, and half of them known by a callback only."""
    # SQLite has one writer: more connections would only wait for each other.
    pool_size = 2 if database.kind == "sqlite" else 12
    connect_args = {"timeout": 60} if database.kind == "sqlite" else {}
    engine = database.make_async_engine(
        pool_size=pool_size, max_overflow=0, pool_timeout=120, connect_args=connect_args
    )
    if database.kind == "sqlite":
        _do_not_wait_for_the_disk(engine)
    maker = Maker(engine)
    request_user: ContextVar[str | None] = ContextVar("request_user", default=None)

    async def from_request() -> str | None:
        await asyncio.sleep(0)
        return request_user.get()

    await begin_auditing(engine, maker, get_user_id_callback=from_request)

    async def act(number: int) -> None:
        moments = random.Random(number)
        inserter, updater = f"user {moments.randrange(500)}", f"user {moments.randrange(500)}"

        async def pause() -> None:
            for _ in range(moments.randrange(3)):
                await asyncio.sleep(moments.choice((0, 0, 0, 0.0005)))

        def acting(user: str) -> contextlib.AbstractContextManager[object]:
            if number % 2:
                return audit_context(user_id=user)
            request_user.set(user)
            clear_audit_context()
            return contextlib.nullcontext()

        await pause()
        with acting(inserter):
            await pause()
            async with maker() as session:
                account = Account(id=number, owner=f"{number} by {inserter}")
                session.add(account)
                await pause()
                await session.flush()
                with acting(updater):
                    account.note = updater
                    await pause()
                    await session.commit()

    with audit_context(user_id="whoever started them"):
        async with asyncio.TaskGroup() as group:
            for number in range(1, 1001):
                group.create_task(act(number))
    trail = await stored_trail(engine)
    await engine.dispose()

    wrong = []
    for change in trail:
        assert change.new_values is not None
        rightly = (
            change.new_values["note"] if change.operation == "update" else change.new_values["owner"].split(" by ")[1]
        )
        if change.changed_by != rightly:
            wrong.append((change.what, change.changed_by, rightly))
    assert wrong == []
    assert sorted((change.operation, int(change.resource_id)) for change in trail) == [
        (operation, number) for operation in ("insert", "update") for number in range(1, 1001)
    ]


def _do_not_wait_for_the_disk(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")


async def _insert(maker: Maker, number: int) -> None:
    async with maker() as session:
        session.add(Account(id=number, owner=f"owner {number}"))
        await asyncio.sleep(0)
        await session.commit()
