"""Subscribers hear of what was committed: all of it, in its order, when it is over, and of nothing else."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, ForeignKey, Table, create_engine, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from conformance_setup import Maker
from databases import Database, mariadb_database, postgresql_database, sqlite_database
from observing import sent_statements, stored_trail
from sqlaudit import (
    Capture,
    Change,
    SQLAuditConfig,
    _delivery,
    audit_context,
    create_audit_tables_sync,
    drain_changes,
    drain_changes_sync,
    get_audit_context,
    get_changes,
    get_changes_sync,
    on_change,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.exceptions import ConfigurationError


class Base(DeclarativeBase):
    pass


@track_table(masked_fields=["token"])
class Account(Base):
    __tablename__ = "heard_account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    token: Mapped[str | None]


@track_table(capture=Capture.TRIGGERS)
class Watched(Base):
    __tablename__ = "heard_watched"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


@track_table()
class Animal(Base):
    __tablename__ = "heard_animal"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]


class Dog(Animal):
    """In the table of its base class."""

    __mapper_args__ = {"polymorphic_identity": "dog"}


class Bird(Animal):
    """With a row in a table of its own, too."""

    __tablename__ = "heard_bird"
    __mapper_args__ = {"polymorphic_identity": "bird"}

    id: Mapped[int] = mapped_column(ForeignKey("heard_animal.id"), primary_key=True)
    wings: Mapped[int]


class Note(Base):
    """Nobody tracks it."""

    __tablename__ = "heard_note"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class Heard(list[Change]):
    """A subscriber that remembers."""

    def __call__(self, change: Change) -> None:
        self.append(change)

    @property
    def what(self) -> list[tuple[str, str, Any]]:
        """Return operation, label and key of what was heard."""
        return [(str(change.operation), change.resource_type, change.resource_id) for change in self]


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test hears what another one has subscribed to."""
    monkeypatch.setattr(_delivery, "_subscribers", ())


@pytest.fixture(name="started")
async def _started(engine: AsyncEngine, maker: Maker) -> AsyncIterator[Maker]:
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    await create(engine)
    yield maker
    await drain_changes()


async def create(engine: AsyncEngine) -> None:
    """Create the tables, the trail and the triggers."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(create_audit_tables_sync)


async def add(maker: Maker, *objects: object) -> None:
    """Insert *objects* in a transaction of their own."""
    async with maker() as session:
        session.add_all(objects)
        await session.commit()


# --- what is told ----------------------------------------------------------------------------------------------------


async def test_subscribers_hear_what_the_trail_tells(started: Maker) -> None:
    """Whole changes, of flushes and statements, each once, as get_changes() returns them, in the order of the trail."""
    heard = Heard()
    on_change(heard)

    async with started() as session:
        with audit_context(user_id=42, reason="because", request="r-1"):
            session.add_all([Account(id=1, name="a", token="t"), Account(id=2, name="b")])
            await session.flush()
            await session.execute(update(Account).values(name="c"))
            await session.execute(insert(Animal), [{"id": 1, "kind": "animal"}])
            await session.commit()
        (await session.get_one(Account, 1)).name = "d"
        await session.delete(await session.get_one(Account, 2))
        await session.commit()
    await drain_changes()

    assert heard == await get_changes(newest_first=False)
    assert heard.what == [
        ("insert", "Account", 1),
        ("insert", "Account", 2),
        ("update", "Account", 1),
        ("update", "Account", 2),
        ("insert", "Animal", 1),
        ("update", "Account", 1),
        ("delete", "Account", 2),
    ]
    assert (heard[0].changed_by, heard[0].reason, heard[0].context) == ("42", "because", {"request": "r-1"})


async def test_what_is_heard_is_over(started: Maker) -> None:
    """When a subscriber is called, another session sees the row: it was committed, and the committer has gone on."""
    gone_on, seen = asyncio.Event(), list[str]()

    @on_change()
    async def look(change: Change) -> None:
        await gone_on.wait()
        async with started() as session:
            seen.append((await session.get_one(Account, change.resource_id)).name)

    await add(started, Account(id=1, name="a"))
    gone_on.set()
    await drain_changes()

    assert seen == ["a"]


async def test_nothing_is_told_of_what_was_rolled_back(started: Maker) -> None:
    """Neither a rollback, nor a session closed without a commit, nor a flush that failed, is heard of."""
    heard = Heard()
    on_change(heard)

    async with started() as session:
        session.add(Account(id=1, name="a"))
        session.add(Watched(id=1, name="a"))
        await session.flush()
        await session.rollback()
        session.add(Account(id=2, name="a"))
        session.add(Watched(id=2, name="a"))
        await session.flush()
    with contextlib.suppress(ZeroDivisionError):
        async with started() as session, session.begin():
            session.add(Account(id=3, name="a"))
            await session.flush()
            raise ZeroDivisionError
    await add(started, Account(id=4, name="a"))
    await drain_changes()

    assert heard.what == [("insert", "Account", 4)]


async def test_savepoints_count_when_their_transaction_does(started: Maker) -> None:
    """What a savepoint did is told at the commit, unless it was rolled back."""
    heard = Heard()
    on_change(heard)

    async with started() as session:
        async with session.begin_nested():
            session.add_all([Account(id=1, name="a"), Watched(id=1, name="a")])
        savepoint = await session.begin_nested()
        session.add_all([Account(id=2, name="a"), Watched(id=2, name="a")])
        await session.flush()
        await savepoint.rollback()
        await drain_changes()
        assert heard == []
        await session.commit()
    await drain_changes()

    assert sorted(heard.what) == [("insert", "Account", 1), ("insert", "Watched", 1)]


async def test_what_triggers_record_for_a_session_is_told(started: Maker, engine: AsyncEngine) -> None:
    """Rows that triggers capture are told, with those of the session, whatever statement wrote them; others' aren't."""
    heard = Heard()
    on_change(heard)

    async with started() as session:
        with audit_context(user_id=42):
            session.add_all([Watched(id=1, name="a"), Account(id=1, name="a")])
            await session.flush()
            await session.execute(text("UPDATE heard_watched SET name = 'b' WHERE id = 1"))
            await session.execute(delete(Watched))
            await session.commit()
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO heard_watched (id, name) VALUES (2, 'c')"))
    await drain_changes()

    assert sorted(heard.what[:2]) == [("insert", "Account", 1), ("insert", "Watched", 1)]
    assert heard.what[2:] == [("update", "Watched", 1), ("delete", "Watched", 1)]
    assert {change.changed_by for change in heard} == {"42"}
    assert heard == (await get_changes(newest_first=False))[:-1]


async def test_large_transactions_are_told_in_parts(started: Maker) -> None:
    """More changes than are read at a time come all, once, in the order of the trail."""
    heard = Heard()
    on_change(heard)

    async with started() as session:
        await session.execute(insert(Account), [{"id": number, "name": "a"} for number in range(1100)])
        await session.commit()
    await drain_changes()

    assert [change.change_id for change in heard] == sorted(change.change_id for change in heard)
    assert {change.resource_id for change in heard} == {*range(1100)}
    assert len(heard) == 1100


async def test_concurrent_writers_of_a_row_are_told_in_its_order(started: Maker, database: Database) -> None:
    """The changes of one row are heard in the order in which they happened, whichever sessions made them."""
    heard = Heard()
    on_change(heard, Account)
    await add(started, Account(id=1, name="0"))

    async def write(number: int) -> None:
        async with started() as session, session.begin():
            await session.execute(update(Account).where(Account.id == 1).values(name=str(number)))

    if database.kind == "sqlite":
        for number in range(1, 13):
            await write(number)
    else:
        await asyncio.gather(*map(write, range(1, 13)))
    await drain_changes()

    names = [change.fields["name"] for change in heard]
    assert [new for _, new in names[:-1]] == [old for old, _ in names[1:]]
    assert len(names) == 13


# --- who is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([Animal], [("Animal", 1), ("Animal", 2), ("Animal", 3), ("Bird", 3)]),
        ([Dog], [("Animal", 2)]),
        ([Bird], [("Animal", 3), ("Bird", 3)]),
        ([Dog, Account], [("Account", 1), ("Animal", 2)]),
        ([Account.__table__], [("Account", 1)]),
    ],
    ids=["base class", "of one table", "of joined tables", "several", "table"],
)
async def test_a_subscriber_hears_of_its_models(started: Maker, models: list[Any], expected: list[Any]) -> None:
    """A subscriber that names models hears of their rows alone, those of subclasses and in all their tables too."""
    heard = Heard()
    on_change(heard, *models)

    await add(started, Animal(id=1), Dog(id=2), Bird(id=3, wings=2), Account(id=1, name="a"))
    await drain_changes()

    assert sorted((label, key) for _, label, key in heard.what) == expected


async def test_every_subscriber_hears(started: Maker) -> None:
    """Functions, coroutine functions and objects are called, in the order in which they have subscribed."""
    calls: list[str] = []

    def plain(change: Change) -> None:
        calls.append("plain")

    async def waiting(change: Change) -> None:
        await asyncio.sleep(0)
        calls.append("waiting")

    on_change(waiting)
    on_change(plain, Account)
    on_change(lambda _: calls.append("last"))

    await add(started, Account(id=1, name="a"))
    await add(started, Watched(id=1, name="a"))
    await drain_changes()

    assert calls == ["waiting", "plain", "last", "waiting", "last"]


async def test_a_removed_subscriber_hears_nothing_more(started: Maker) -> None:
    """After remove(), and after the block, nothing comes: not even what waited to be told."""
    first, second, third = Heard(), Heard(), Heard()
    subscription = on_change(first)
    on_change(third)

    with on_change(second):
        await add(started, Account(id=1, name="a"))
        await drain_changes()
        await add(started, Account(id=2, name="a"))
        subscription.remove()
        subscription.remove()
    await add(started, Account(id=3, name="a"))
    await drain_changes()

    assert [len(each) for each in (first, second, third)] == [1, 1, 3]


async def test_a_decorated_function_stays_itself(started: Maker) -> None:
    """As a decorator, with models or without, on_change() returns what it is given."""
    heard: list[str] = []

    @on_change(Account)
    async def of_accounts(change: Change) -> str:
        heard.append(change.resource_type)
        return "returned"

    @on_change()
    def of_all(change: Change) -> str:
        heard.append("any")
        return "returned"

    await add(started, Account(id=1, name="a"), Watched(id=1, name="a"))
    await drain_changes()

    assert sorted(heard) == ["Account", "any", "any"]
    (change, *_) = await get_changes(Account)
    assert (await of_accounts(change), of_all(change)) == ("returned", "returned")


async def test_subscribers_act_for_themselves(started: Maker) -> None:
    """A subscriber is called in no audit context: what it writes isn't attributed to whoever it hears of."""
    contexts: list[Any] = []

    @on_change(Account)
    async def follow(change: Change) -> None:
        contexts.append(get_audit_context().user_id)
        await add(started, Animal(id=change.resource_id))

    async with started() as session:
        with audit_context(user_id=42):
            session.add(Account(id=1, name="a"))
            await session.commit()
            await drain_changes()

    (change,) = await get_changes(Animal)
    assert contexts == [None]
    assert change.changed_by is None


@pytest.mark.parametrize("arguments", [(1,), (print, "Account"), (print, 5), ("Account",)])
def test_what_cannot_subscribe_is_refused(arguments: Any) -> None:
    """A callback that can't be called, and models that are none, are refused at once."""
    with pytest.raises(ConfigurationError, match="expected"):
        on_change(*arguments)


async def test_a_model_that_is_not_tracked_is_said(started: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Who subscribes to an untracked model is told so in the log, and doesn't keep others from hearing."""
    heard = Heard()
    on_change(Heard(), Note)
    on_change(heard)

    await add(started, Account(id=1, name="a"))
    await drain_changes()

    assert len(heard) == 1
    (record,) = [each for each in caplog.records if each.name == "sqlaudit.events"]
    assert "Heard is told nothing: Note is not tracked" in record.getMessage()


# --- the application goes on -----------------------------------------------------------------------------------------


async def test_a_subscriber_that_fails_harms_nobody(started: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """What a subscriber raises reaches the log, not the application, nor the other subscribers; it is called again."""
    heard = Heard()

    @on_change()
    async def failing(change: Change) -> None:
        raise ValueError(change.fields["name"].new)

    @on_change()
    def failing_at_once(change: Change) -> None:
        raise KeyError(change.fields["name"].new)

    on_change(heard)

    await add(started, Account(id=1, name="secret-1"))
    await add(started, Account(id=2, name="secret-2"))
    await drain_changes()

    assert len(heard) == 2
    logged = [record for record in caplog.records if record.name == "sqlaudit.events"]
    assert [(record.levelno, vars(record)["error"], vars(record)["change_id"]) for record in logged] == [
        (logging.WARNING, error, change.change_id) for change in heard for error in ("ValueError", "KeyError")
    ]
    assert vars(logged[0])["transaction_id"] == str(heard[0].transaction_id)
    assert "failing" in logged[0].getMessage()
    assert Path(__file__).name in logged[0].getMessage()
    assert "secret" not in caplog.text


async def test_a_subscriber_that_is_cancelled_harms_nobody(started: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """A CancelledError that comes out of a subscriber is its failure as any other."""
    heard = Heard()

    @on_change()
    async def waits_for_the_cancelled(change: Change) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    on_change(heard)

    for number in (1, 2):
        await add(started, Account(id=number, name="a"))
    await asyncio.wait_for(drain_changes(), 30)

    assert [change.resource_id for change in heard] == [1, 2]
    logged = [vars(record)["error"] for record in caplog.records if record.name == "sqlaudit.events"]
    assert logged == ["CancelledError"] * 2


async def test_who_waits_is_freed_when_the_telling_is_cancelled(
    started: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """If the task that tells is cancelled, the log names what isn't told; nobody waits for it, and the next is told."""
    reached, heard = asyncio.Event(), Heard()

    @on_change()
    async def waits(change: Change) -> None:
        if change.resource_id == 1:
            reached.set()
            await asyncio.sleep(60)
        heard(change)

    for number in (1, 2):
        await add(started, Account(id=number, name="a"))
    await reached.wait()
    draining = asyncio.create_task(drain_changes())
    await asyncio.sleep(0)
    (telling,) = (task for task in asyncio.all_tasks() if task.get_name() == "sqlaudit")
    telling.cancel()
    await asyncio.wait_for(draining, 30)
    await add(started, Account(id=3, name="a"))
    await asyncio.wait_for(drain_changes(), 30)

    assert [change.resource_id for change in heard] == [3]
    lost = [str(change.transaction_id) for change in await get_changes(newest_first=False)][:2]
    logged = [vars(record)["transaction_id"] for record in caplog.records if record.name == "sqlaudit.events"]
    assert logged == lost


def test_a_subscriber_that_ends_the_program_leaves_nobody_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SystemExit reaches the event loop, which ends as it does for any task; if it goes on, so does the telling."""
    heard = Heard()

    @on_change()
    def ends(change: Change) -> None:
        if change.resource_id == 1:
            raise SystemExit(3)
        heard(change)

    with sqlite_database(tmp_path) as database, asyncio.Runner() as runner:
        engine = database.make_async_engine()
        maker = async_sessionmaker(engine)
        set_config(SQLAuditConfig(session_factory=maker))
        register_hooks(maker)
        runner.run(create(engine))

        async def add_and_drain(number: int) -> None:
            await add(maker, Account(id=number, name="a"))
            await asyncio.wait_for(drain_changes(), 30)

        with pytest.raises(SystemExit):
            runner.run(add_and_drain(1))
        runner.run(add_and_drain(2))
        runner.run(engine.dispose())

    assert [change.resource_id for change in heard] == [2]
    assert [record.levelname for record in caplog.records if record.name == "sqlaudit.events"] == ["WARNING"]


# Older Pythons have no eager tasks.
if sys.version_info >= (3, 12):

    async def test_eager_tasks_do_not_run_within_the_commit(started: Maker) -> None:
        """Where tasks begin to run at once, subscribers are called when the committer has gone on all the same."""
        order: list[str] = []

        @on_change()
        def hear(change: Change) -> None:
            order.append("heard")

        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            session = started()
            session.add(Account(id=1, name="a"))
            await session.commit()
            order.append("committed")
            await session.close()
            await drain_changes()
        finally:
            loop.set_task_factory(None)

        assert order == ["committed", "heard"]


async def test_a_slow_subscriber_delays_nobody(started: Maker) -> None:
    """Sessions commit as often as they like while a subscriber has not come to an end."""
    may_go_on, heard = asyncio.Event(), Heard()

    @on_change()
    async def slow(change: Change) -> None:
        await may_go_on.wait()

    on_change(heard)
    for number in range(5):
        await add(started, Account(id=number, name="a"))

    assert heard == []
    may_go_on.set()
    await drain_changes()
    assert [change.resource_id for change in heard] == [0, 1, 2, 3, 4]


async def test_what_waits_is_bounded(
    started: Maker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When too many transactions wait, the next ones aren't told; the log says which, and the trail has them."""
    monkeypatch.setattr(_delivery, "MAX_WAITING", 2)
    reached, may_go_on, heard = asyncio.Event(), asyncio.Event(), Heard()

    @on_change()
    async def slow(change: Change) -> None:
        reached.set()
        await may_go_on.wait()

    on_change(heard)
    await add(started, Account(id=0, name="a"))
    await reached.wait()
    for number in range(1, 5):
        await add(started, Account(id=number, name="a"))
    may_go_on.set()
    await drain_changes()
    await add(started, Account(id=5, name="a"))
    await drain_changes()

    assert [change.resource_id for change in heard] == [0, 1, 2, 5]
    lost = [change for change in await get_changes(newest_first=False) if change.resource_id in (3, 4)]
    logged = [vars(record)["transaction_id"] for record in caplog.records if record.name == "sqlaudit.events"]
    assert logged == [str(change.transaction_id) for change in lost]


async def test_a_trail_that_cannot_be_read_is_said(started: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """When reading the trail fails, the log names the transaction and the kind of error; the next one is told."""
    heard = Heard()
    on_change(heard)

    async with started() as session:
        session.add(Account(id=1, name="secret"))
        await session.flush()
        await session.execute(text("ALTER TABLE sqlaudit_change RENAME TO elsewhere"))
        await session.commit()
    await drain_changes()
    async with started() as session:
        await session.execute(text("ALTER TABLE elsewhere RENAME TO sqlaudit_change"))
        session.add(Account(id=2, name="a"))
        await session.commit()
    await drain_changes()

    first, second = await get_changes(newest_first=False)
    assert heard == [second]
    (record,) = [each for each in caplog.records if each.name == "sqlaudit.events"]
    assert vars(record)["transaction_id"] == str(first.transaction_id)
    assert vars(record)["error"] in {"OperationalError", "ProgrammingError"}
    assert "secret" not in caplog.text


async def test_the_last_connection_is_not_waited_for(database: Database) -> None:
    """With a pool of one connection, changes are told when the application has given it back."""
    engine = database.make_async_engine(pool_size=1, max_overflow=0)
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    await create(engine)
    heard = Heard()
    on_change(heard)

    async with maker() as session:
        for number in range(3):
            session.add(Account(id=number, name="a"))
            await session.commit()
    await drain_changes()
    await engine.dispose()

    assert [change.resource_id for change in heard] == [0, 1, 2]


async def test_nothing_is_done_while_nobody_subscribes(started: Maker, engine: AsyncEngine) -> None:
    """Without subscribers, nothing is read or remembered; with one, one SELECT of another connection is all."""
    heard = Heard()

    async def sent_for(number: int) -> list[str]:
        with sent_statements(engine) as sent:
            async with started() as session:
                session.add(Account(id=number, name="a"))
                await session.flush()
                noted = [key for key in session.sync_session.info if "written" in str(key)]
                assert bool(noted) is _delivery.has_subscribers()
                await session.commit()
            await drain_changes()
        return [each.verb for each in sent]

    without = await sent_for(1)
    subscription = on_change(heard)
    with_one = await sent_for(2)
    subscription.remove()

    assert with_one == [*without, "SELECT"]
    assert await sent_for(3) == without
    with on_change(heard), sent_statements(engine) as sent:
        async with started() as session:
            session.add(Account(id=4, name="a"))
            await session.flush()
            await session.rollback()
        await drain_changes()
    assert [each.verb for each in sent] == without


async def test_a_subscriber_cannot_wait_for_itself(started: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """drain_changes() within a subscriber is an error, not a deadlock."""

    @on_change()
    async def waits(change: Change) -> None:
        await drain_changes()

    await add(started, Account(id=1, name="a"))
    await drain_changes()

    (record,) = [each for each in caplog.records if each.name == "sqlaudit.events"]
    assert vars(record)["error"] == "RuntimeError"


# --- places ----------------------------------------------------------------------------------------------------------


async def test_several_databases(started: Maker, engine: AsyncEngine, tmp_path: Path) -> None:
    """A session that writes to two databases is heard with the changes of both."""
    heard = Heard()
    on_change(heard)
    with sqlite_database(tmp_path) as other:
        second = other.make_async_engine()
        await create(second)
        maker = async_sessionmaker(binds={Account: engine, Animal: second})
        register_hooks(maker)

        await add(maker, Account(id=1, name="a"), Animal(id=1))
        await drain_changes()
        await second.dispose()

    assert sorted(heard.what) == [("insert", "Account", 1), ("insert", "Animal", 1)]


async def test_a_lent_connection_decides_itself(started: Maker, engine: AsyncEngine) -> None:
    """In a transaction that isn't the session's, its commit is none: what counts is how that transaction ends."""
    heard = Heard()
    on_change(heard)
    lent: Any = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}

    for number, ending in enumerate(["rollback", "commit"]):
        async with engine.connect() as connection:
            outer = await connection.begin()
            async with started(bind=connection, **lent) as session:
                session.add_all([Account(id=number, name="a"), Watched(id=number, name="a")])
                await session.commit()
                session.add(Animal(id=number))
                await session.commit()
                await drain_changes()
                assert heard == []
            await getattr(outer, ending)()
            info = (await connection.get_raw_connection()).info
            assert bool(info.get("sqlaudit.left")) is (ending == "commit")
        await drain_changes()

    assert sorted(heard.what) == [("insert", "Account", 1), ("insert", "Animal", 1), ("insert", "Watched", 1)]


async def test_a_lent_connection_that_is_kept_tells_as_well(started: Maker, engine: AsyncEngine) -> None:
    """A joined transaction is told when its connection begins the next one; one of the session's own at once."""
    heard = Heard()
    on_change(heard)

    async with engine.connect() as connection:
        async with connection.begin():
            await add(async_sessionmaker(connection, sync_session_class=started.kw["sync_session_class"]), Animal(id=1))
        async with connection.begin():
            await drain_changes()
            assert heard.what == [("insert", "Animal", 1)]
        await add(async_sessionmaker(connection, sync_session_class=started.kw["sync_session_class"]), Animal(id=2))
        await drain_changes()
        assert heard.what[1:] == [("insert", "Animal", 2)]


async def test_a_lent_connection_that_is_kept_tells_again_and_again(started: Maker, engine: AsyncEngine) -> None:
    """However many joined transactions a connection has, each is told when the next one begins."""
    heard = Heard()
    on_change(heard)

    async with engine.connect() as connection:
        maker = async_sessionmaker(connection, sync_session_class=started.kw["sync_session_class"])
        for number in range(4):
            async with connection.begin():
                await drain_changes()
                assert heard.what == [("insert", "Animal", each) for each in range(number)]
                await add(maker, Animal(id=number))


async def test_a_lost_connection_is_no_hindrance(started: Maker, engine: AsyncEngine) -> None:
    """When a connection is lost within a transaction, the session rolls back as ever, and nothing is told of it."""
    heard = Heard()
    on_change(heard)

    async with started() as session:
        session.add(Account(id=1, name="a"))
        await session.flush()
        await (await session.connection()).invalidate()
        await session.rollback()
        session.add(Account(id=2, name="a"))
        await session.commit()
    async with engine.connect() as connection:
        await connection.begin()
        async with started(bind=connection, join_transaction_mode="rollback_only") as session:
            session.add(Account(id=3, name="a"))
            await session.flush()
            await connection.invalidate()
            await session.rollback()
        async with connection.begin():
            pass
    await drain_changes()

    assert heard.what == [("insert", "Account", 2)]


async def test_two_phases(mariadb_server: URL) -> None:
    """A transaction of two phases is told when both are over; one that is rolled back when prepared isn't."""
    heard = Heard()
    with mariadb_database(mariadb_server) as database:
        engine = database.make_engine()
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            create_audit_tables_sync(connection)
        maker = sessionmaker(engine, twophase=True)
        set_config(SQLAuditConfig(session_factory=sessionmaker(engine)))
        with register_hooks(maker.class_), on_change(heard):
            with maker() as session:
                session.add(Account(id=1, name="a"))
                session.prepare()
                assert drain_changes_sync()
                assert heard == []
                session.commit()
            with maker() as session:
                session.add(Account(id=2, name="a"))
                session.prepare()
                session.rollback()
            assert drain_changes_sync()
        engine.dispose()

    assert heard.what == [("insert", "Account", 1)]


async def test_tenants(postgresql_server: URL) -> None:
    """A schema_translate_map leads to the trail that the transaction has written to."""
    heard = Heard()
    with postgresql_database(postgresql_server) as database, postgresql_database(postgresql_server) as other:
        engine, there = database.make_async_engine(), other.make_async_engine()
        async with there.connect() as connection:
            schema = (await connection.execute(text("SELECT current_schema()"))).scalar_one()
        await create(there)
        maker = async_sessionmaker(engine)
        set_config(SQLAuditConfig(session_factory=maker))
        register_hooks(maker)
        with on_change(heard):
            async with maker() as session:
                await session.connection(execution_options={"schema_translate_map": {None: schema}})
                session.add(Account(id=1, name="a"))
                await session.commit()
            await drain_changes()
        await engine.dispose()
        await there.dispose()

    assert heard.what == [("insert", "Account", 1)]


async def test_a_database_in_memory() -> None:
    """Where all sessions share one connection, it isn't used behind the back of whoever has it next."""
    engine = create_async_engine("sqlite+aiosqlite://")
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with engine.begin() as connection:
        for table in (Account.__table__, Animal.__table__):
            assert isinstance(table, Table)
            await connection.run_sync(table.create)
        await connection.run_sync(create_audit_tables_sync)
    heard = Heard()
    with on_change(heard):
        await add(maker, Account(id=1, name="a"))
        async with maker() as session:
            session.add(Account(id=2, name="a"))
            await session.flush()
            await drain_changes()
            assert len(heard) == 1
            await session.commit()
            session.add(Account(id=3, name="a"))
            await session.flush()
            await session.rollback()
        async with engine.begin() as connection:
            await add(async_sessionmaker(connection, sync_session_class=maker.kw["sync_session_class"]), Animal(id=1))
        await drain_changes()
        assert heard == await get_changes(newest_first=False)
    await engine.dispose()

    assert heard.what == [("insert", "Account", 1), ("insert", "Account", 2), ("insert", "Animal", 1)]


# --- synchronous sessions --------------------------------------------------------------------------------------------


@pytest.fixture(name="sync_maker")
def _sync_maker(database: Database) -> Any:
    engine = database.make_engine()
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        create_audit_tables_sync(connection)
    maker = sessionmaker(engine)
    set_config(SQLAuditConfig(session_factory=maker))
    with register_hooks(maker.class_):
        yield maker
    drain_changes_sync()
    engine.dispose()


def test_synchronous_sessions_are_told_by_a_thread(sync_maker: sessionmaker[Session]) -> None:
    """A thread calls functions and coroutine functions, in order, while the application goes on."""
    heard, threads, may_go_on = Heard(), set[int](), threading.Event()

    @on_change()
    async def waiting(change: Change) -> None:
        await asyncio.sleep(0)
        may_go_on.wait()
        threads.add(threading.get_ident())

    on_change(heard)
    with sync_maker() as session:
        for number in range(3):
            session.add_all([Account(id=number, name="a"), Watched(id=number, name="a")])
            session.commit()
        session.add(Account(id=9, name="a"))
        session.flush()
        session.rollback()
    assert heard == []
    assert not drain_changes_sync(timeout=0)
    may_go_on.set()
    assert drain_changes_sync()

    assert heard == get_changes_sync(newest_first=False)
    assert len(heard) == 6
    assert threading.get_ident() not in threads
    assert drain_changes_sync(timeout=0)


def test_failures_of_a_thread_are_logged(
    sync_maker: sessionmaker[Session], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread, too, a failure is logged without values, waiting for itself is one, and what waits is bounded."""
    monkeypatch.setattr(_delivery, "MAX_WAITING", 1)
    heard, reached, may_go_on = Heard(), threading.Event(), threading.Event()

    @on_change()
    def failing(change: Change) -> None:
        reached.set()
        may_go_on.wait()
        raise ValueError(change.fields["name"].new)

    @on_change()
    def waits(change: Change) -> None:
        drain_changes_sync()

    on_change(heard)
    with sync_maker() as session:
        session.add(Account(id=0, name="secret"))
        session.commit()
        reached.wait()
        for number in (1, 2):
            session.add(Account(id=number, name="secret"))
            session.commit()
        may_go_on.set()
        drain_changes_sync()
        session.add(Account(id=3, name="secret"))
        session.flush()
        session.execute(text("ALTER TABLE sqlaudit_change RENAME TO elsewhere"))
        session.commit()
        drain_changes_sync()

    assert [change.resource_id for change in heard] == [0, 1]
    logged = [vars(record).get("error") for record in caplog.records if record.name == "sqlaudit.events"]
    assert logged[:5] == [None, "ValueError", "RuntimeError", "ValueError", "RuntimeError"]
    assert logged[5] in {"OperationalError", "ProgrammingError"}
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_a_subscriber_raises_the_thread_goes_on(
    sync_maker: sessionmaker[Session], caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """What would end a program or a task ends neither the thread that tells nor those who wait for it."""
    heard = Heard()

    @on_change()
    def fails(change: Change) -> None:
        raise error

    @on_change()
    async def fails_later(change: Change) -> None:
        raise error

    on_change(heard)

    with sync_maker() as session:
        for number in (1, 2):
            session.add(Account(id=number, name="a"))
            session.commit()

    assert drain_changes_sync(timeout=30)
    assert [change.resource_id for change in heard] == [1, 2]
    logged = [vars(record)["error"] for record in caplog.records if record.name == "sqlaudit.events"]
    assert logged == [error.__name__] * 4


def test_a_synchronous_database_in_memory() -> None:
    """A connection that belongs to its thread is read in that thread."""
    engine = create_engine("sqlite://")
    maker = sessionmaker(engine)
    set_config(SQLAuditConfig(session_factory=maker))
    for table in (Account.__table__, Animal.__table__):
        assert isinstance(table, Table)
        table.create(engine)
    with engine.begin() as connection:
        create_audit_tables_sync(connection)
    heard = Heard()

    with register_hooks(maker.class_), on_change(heard), maker() as session:
        session.add(Account(id=1, name="a"))
        session.commit()
        assert drain_changes_sync()

    assert heard.what == [("insert", "Account", 1)]
    engine.dispose()


PROGRAM = """\
import sys

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlaudit import SQLAuditConfig, on_change, register_hooks, set_config, track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)


@on_change(Item)
def tell(change):
    print(change.operation, change.resource_id)


engine = create_engine("sqlite:///" + sys.argv[1])
Base.metadata.create_all(engine)
set_config(SQLAuditConfig())
register_hooks()
with Session(engine) as session:
    for _ in range(3):
        session.add(Item())
        session.commit()
"""


def test_a_program_that_ends_tells_first(tmp_path: Path) -> None:
    """What synchronous sessions have committed is told before the interpreter exits."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), str(tmp_path / "items.sqlite")],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("insert 1\ninsert 2\ninsert 3\n", "")


FORKING = """\
import os
import sys
import threading

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from sqlaudit import SQLAuditConfig, drain_changes_sync, on_change, register_hooks, set_config, track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)


parent, reached, may_go_on = os.getpid(), threading.Event(), threading.Event()


@on_change(Item)
def tell(change):
    print("parent" if os.getpid() == parent else "child", change.resource_id, flush=True)
    if change.resource_id == 1:
        reached.set()
        may_go_on.wait()


def add():
    with Session(engine) as session:
        session.add(Item())
        session.commit()


engine = create_engine("sqlite:///" + sys.argv[1], poolclass=NullPool)
Base.metadata.create_all(engine)
set_config(SQLAuditConfig())
register_hooks()
add()
reached.wait()
add()
child = os.fork()
if child == 0:
    add()
    drain_changes_sync()
    os._exit(0)
os.waitpid(child, 0)
may_go_on.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_forked_process_tells_its_own_changes(tmp_path: Path) -> None:
    """What waited in the parent when it forked is told there, once, and not by the child again."""
    program = tmp_path / "program.py"
    program.write_text(FORKING)

    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "items.sqlite")],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )

    assert done.stdout.splitlines() == ["parent 1", "child 3", "parent 2"]


async def test_both_kinds_of_sessions_are_waited_for(started: Maker, database: Database) -> None:
    """drain_changes() waits for what synchronous sessions have committed, too."""
    heard, engine = Heard(), database.make_engine()
    maker = sessionmaker(engine)
    subscription = register_hooks(maker.class_)
    on_change(heard)

    with maker() as session:
        session.add(Account(id=1, name="a"))
        session.commit()
    await add(started, Account(id=2, name="a"))
    await drain_changes()
    subscription.remove()
    engine.dispose()

    assert sorted(heard.what) == [("insert", "Account", 1), ("insert", "Account", 2)]
    async with AsyncSession(started.kw["bind"]) as session:
        assert len((await session.scalars(select(Account.id))).all()) == 2
    assert len(await stored_trail(started.kw["bind"])) == 2
