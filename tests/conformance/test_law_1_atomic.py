"""Law 1: a change and its trail are in the same transaction and savepoint; both commit, or neither."""

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import delete, insert, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from conformance_models import Account, Maker, begin_auditing
from databases import Database
from observing import StoredChange, sent_statements, stored_rows, stored_trail, trail_within
from sqlaudit import audit_context, create_audit_tables
from sqlaudit.exceptions import ActorCallbackError, CaptureError, TrailMissingError


async def stored_accounts(engine: AsyncEngine) -> list[int]:
    """Return the ids of the accounts that are committed."""
    return [id_ for (id_,) in await stored_rows(engine, "id", "account")]


def inserted(trail: list[StoredChange]) -> list[int]:
    """Return the ids of the accounts whose insert the trail tells, which is all that it tells."""
    assert {change.operation for change in trail} <= {"insert"}
    return [int(change.resource_id) for change in trail]


# --- transactions and savepoints -------------------------------------------------------------------------------------


async def test_commit_keeps_the_row_and_its_trail(engine: AsyncEngine, maker: Maker) -> None:
    """A commit makes the row and its trail permanent together."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()

    assert await stored_accounts(engine) == [1]
    assert inserted(await stored_trail(engine)) == [1]


async def test_rollback_leaves_neither_row_nor_trail(engine: AsyncEngine, maker: Maker) -> None:
    """A rollback takes back what was flushed, and the trail of it."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        written = inserted(await trail_within(session))
        await session.rollback()

    assert written == [1]
    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


async def test_rolled_back_update_and_delete_leave_the_earlier_trail(engine: AsyncEngine, maker: Maker) -> None:
    """What was committed before stays, rows and trail, when an update and a delete are rolled back."""
    await begin_auditing(engine, maker)

    async with maker(expire_on_commit=False) as session:
        ann, bob = Account(id=1, owner="Ann"), Account(id=2, owner="Bob")
        session.add_all([ann, bob])
        await session.commit()
        before = await stored_trail(engine)
        ann.balance = 5
        await session.delete(bob)
        await session.flush()
        within = await trail_within(session)
        await session.rollback()

    assert [change.operation for change in within] == ["insert", "insert", "update", "delete"]
    assert await stored_rows(engine, "id, balance", "account") == [(1, 0), (2, 0)]
    assert await stored_trail(engine) == before


async def test_closing_without_commit_leaves_neither_row_nor_trail(engine: AsyncEngine, maker: Maker) -> None:
    """A session that is closed without a commit leaves nothing of what it flushed."""
    await begin_auditing(engine, maker)
    session = maker()
    session.add(Account(id=1, owner="Ann"))
    await session.flush()
    written = inserted(await trail_within(session))

    await session.close()

    assert written == [1]
    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


async def test_exception_in_a_begin_block_leaves_neither_row_nor_trail(engine: AsyncEngine, maker: Maker) -> None:
    """An exception that leaves `async with maker.begin()` takes the rows and their trail with it."""
    await begin_auditing(engine, maker)

    async def fail() -> None:
        async with maker.begin() as session:
            session.add(Account(id=1, owner="Ann"))
            await session.flush()
            raise LookupError

    with pytest.raises(LookupError):
        await fail()

    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


async def test_savepoint_rolled_back_takes_only_its_own_changes(engine: AsyncEngine, maker: Maker) -> None:
    """A savepoint that is rolled back takes its rows and their trail; what is outside of it stays."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        savepoint = await session.begin_nested()
        session.add(Account(id=2, owner="Bob"))
        await session.flush()
        within = inserted(await trail_within(session))
        await savepoint.rollback()
        session.add(Account(id=3, owner="Cat"))
        await session.commit()

    assert within == [1, 2]
    assert await stored_accounts(engine) == [1, 3]
    assert inserted(await stored_trail(engine)) == [1, 3]


async def test_first_changes_of_a_transaction_may_be_in_a_rolled_back_savepoint(
    engine: AsyncEngine, maker: Maker
) -> None:
    """When the first changes of a transaction vanish with their savepoint, those after it are recorded all the same."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        savepoint = await session.begin_nested()
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        await savepoint.rollback()
        session.add(Account(id=2, owner="Bob"))
        await session.commit()

    assert await stored_accounts(engine) == [2]
    assert inserted(await stored_trail(engine)) == [2]


async def test_released_savepoint_vanishes_with_the_one_around_it(engine: AsyncEngine, maker: Maker) -> None:
    """A released inner savepoint goes with the outer one that is rolled back; the transaction goes on."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        outer = await session.begin_nested()
        session.add(Account(id=2, owner="Bob"))
        async with session.begin_nested():
            session.add(Account(id=3, owner="Cat"))
        within = inserted(await trail_within(session))
        await outer.rollback()
        await session.commit()

    assert within == [1, 2, 3]
    assert await stored_accounts(engine) == [1]
    assert inserted(await stored_trail(engine)) == [1]


async def test_released_savepoint_vanishes_with_the_transaction(engine: AsyncEngine, maker: Maker) -> None:
    """A released savepoint is only as permanent as the transaction around it."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        async with session.begin_nested():
            session.add(Account(id=1, owner="Ann"))
        within = inserted(await trail_within(session))
        await session.rollback()

    assert within == [1]
    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


async def test_statement_in_a_rolled_back_savepoint_leaves_no_trail(engine: AsyncEngine, maker: Maker) -> None:
    """What a bulk statement did and its trail vanish with the savepoint, and with the transaction."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add_all([Account(id=1, owner="Ann"), Account(id=2, owner="Bob")])
        await session.commit()
        savepoint = await session.begin_nested()
        await session.execute(update(Account).values(balance=3))
        within = [change.what for change in (await trail_within(session))[2:]]
        await savepoint.rollback()
        await session.execute(update(Account).where(Account.id == 1).values(balance=4))
        await session.commit()
        await session.execute(delete(Account))
        await session.rollback()

    assert sorted(within) == [("update", "Account", "1"), ("update", "Account", "2")]
    assert await stored_rows(engine, "id, balance", "account") == [(1, 4), (2, 0)]
    assert [change.what for change in (await stored_trail(engine))[2:]] == [("update", "Account", "1")]


async def test_failed_statement_leaves_no_trail(engine: AsyncEngine, maker: Maker) -> None:
    """A bulk statement that the database refuses leaves no trail within its savepoint; the outer changes stay."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add_all([Account(id=1, owner="Ann"), Account(id=2, owner="Bob")])
        await session.flush()
        savepoint = await session.begin_nested()
        with pytest.raises(IntegrityError):
            await session.execute(update(Account).values(owner="same"))
        await savepoint.rollback()
        await session.commit()

    assert await stored_rows(engine, "id, owner", "account") == [(1, "Ann"), (2, "Bob")]
    assert inserted(await stored_trail(engine)) == [1, 2]


async def test_update_is_told_again_after_its_savepoint_was_rolled_back(engine: AsyncEngine, maker: Maker) -> None:
    """The old value after a rolled back savepoint is the one from before it, not the one that never came to be."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        ann = Account(id=1, owner="Ann", balance=1)
        session.add(ann)
        await session.commit()
        savepoint = await session.begin_nested()
        ann.balance = 2
        await session.flush()
        await savepoint.rollback()
        ann.balance = 3
        await session.commit()

    _, update = await stored_trail(engine)
    assert (update.old_values, update.new_values) == ({"balance": 1}, {"balance": 3})


async def test_transaction_id_is_one_across_flushes_and_savepoints(engine: AsyncEngine, maker: Maker) -> None:
    """The changes of one transaction bear one id, also those in savepoints; the next transaction has its own."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        async with session.begin_nested():
            session.add(Account(id=2, owner="Bob"))
        session.add(Account(id=3, owner="Cat"))
        await session.commit()
        session.add(Account(id=4, owner="Dan"))
        await session.commit()

    first, second, third, fourth = [change.transaction_id for change in await stored_trail(engine)]
    assert first == second == third != fourth


async def test_trail_is_written_by_the_flush_and_seen_by_others_after_the_commit(
    engine: AsyncEngine, maker: Maker
) -> None:
    """After flush() the trail is there on the session's connection; others see it when it is committed."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        own = inserted(await trail_within(session))
        others = await stored_trail(engine)
        await session.commit()

    assert own == [1]
    assert others == []
    assert inserted(await stored_trail(engine)) == [1]


# --- what fails ------------------------------------------------------------------------------------------------------


async def test_failed_flush_leaves_no_trail(engine: AsyncEngine, maker: Maker) -> None:
    """A flush that fails leaves no trail; after the rollback the next commit is recorded, and nothing besides."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
        session.add(Account(id=2, owner="Bob"))
        await session.flush()
        session.add_all([Account(id=3, owner="Cat"), Account(id=4, owner="Ann")])
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        session.add(Account(id=5, owner="Eve"))
        await session.commit()

    assert await stored_accounts(engine) == [1, 5]
    assert inserted(await stored_trail(engine)) == [1, 5]


async def test_failed_update_leaves_no_trail(engine: AsyncEngine, maker: Maker) -> None:
    """An UPDATE that the database refuses leaves no trail; made possible, it is recorded once."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        ann, bob = Account(id=1, owner="Ann"), Account(id=2, owner="Bob")
        session.add_all([ann, bob])
        await session.commit()
        ann.balance = 7
        bob.owner = "Ann"
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        bob.owner = "Bert"
        await session.commit()

    update = (await stored_trail(engine))[2:]
    assert [(change.what, change.old_values, change.new_values) for change in update] == [
        (("update", "Account", "2"), {"owner": "Bob"}, {"owner": "Bert"})
    ]
    assert await stored_rows(engine, "id, balance", "account") == [(1, 0), (2, 0)]


async def test_failed_flush_in_a_savepoint_leaves_the_outer_changes(engine: AsyncEngine, maker: Maker) -> None:
    """A flush that fails within a savepoint takes the savepoint's changes and no others."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        savepoint = await session.begin_nested()
        session.add(Account(id=2, owner="Bob"))
        await session.flush()
        session.add(Account(id=3, owner="Ann"))
        with pytest.raises(IntegrityError):
            await session.flush()
        await savepoint.rollback()
        session.add(Account(id=4, owner="Dan"))
        await session.commit()

    assert await stored_accounts(engine) == [1, 4]
    assert inserted(await stored_trail(engine)) == [1, 4]


async def test_missing_trail_fails_the_change(engine: AsyncEngine, maker: Maker) -> None:
    """Without the trail's table a change isn't made; the error says how to create it, and then the session works."""
    await begin_auditing(engine, maker)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE sqlaudit_change"))

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        with pytest.raises(TrailMissingError, match="create_audit_tables"):
            await session.commit()
        with pytest.raises(PendingRollbackError):
            await session.commit()
        await session.rollback()
        without_trail = await stored_accounts(engine)
        await create_audit_tables(engine)
        session.add(Account(id=2, owner="Bob"))
        await session.commit()

    assert without_trail == []
    assert await stored_accounts(engine) == [2]
    assert inserted(await stored_trail(engine)) == [2]


async def test_trail_that_cannot_be_written_fails_the_change(engine: AsyncEngine, maker: Maker) -> None:
    """Whatever the database says against the trail's INSERT, it says against the change."""
    await begin_auditing(engine, maker)
    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE UNIQUE INDEX only_one ON sqlaudit_change (resource_type)"))

    async with maker() as session:
        ann = await session.get_one(Account, 1)
        ann.balance = 9
        with pytest.raises(DBAPIError):
            await session.commit()

    assert await stored_rows(engine, "id, balance", "account") == [(1, 0)]


async def test_failing_callback_fails_the_change(engine: AsyncEngine, maker: Maker) -> None:
    """When the callback that names the actor raises, nothing is written; named otherwise, the change is made."""

    def fail() -> int:
        raise LookupError("no request")

    await begin_auditing(engine, maker, get_user_id_callback=fail)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        with pytest.raises(ActorCallbackError, match="LookupError") as raised:
            await session.commit()
        await session.rollback()
        after_failure = await stored_accounts(engine), await stored_trail(engine)
        session.add(Account(id=2, owner="Bob"))
        with audit_context(user_id=1):
            await session.commit()

    assert isinstance(raised.value.__cause__, LookupError)
    assert after_failure == ([], [])
    assert await stored_accounts(engine) == [2]
    assert inserted(await stored_trail(engine)) == [2]


async def test_failing_async_callback_fails_the_change(engine: AsyncEngine, maker: Maker) -> None:
    """When a coroutine that names the actor raises after it has awaited, nothing is written."""

    async def fail() -> int:
        await asyncio.sleep(0)
        raise LookupError("no request")

    await begin_auditing(engine, maker, get_user_id_callback=fail)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        with pytest.raises(ActorCallbackError, match="LookupError"):
            await session.flush()
        await session.rollback()
        await session.commit()

    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["flush", "commit"])
async def test_task_cancelled_while_the_callback_awaits_leaves_neither(
    engine: AsyncEngine, maker: Maker, step: str
) -> None:
    """A task that is cancelled in the middle of its flush, the row sent and the trail not yet, leaves nothing."""
    asked = asyncio.Event()

    async def never() -> int:
        asked.set()
        await asyncio.Event().wait()
        return 1

    await begin_auditing(engine, maker, get_user_id_callback=never)

    async def work() -> None:
        async with maker() as session:
            session.add(Account(id=1, owner="Ann"))
            await getattr(session, step)()

    task = asyncio.create_task(work())
    async with asyncio.timeout(30):
        await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


async def test_session_records_exactly_after_a_flush_was_timed_out(engine: AsyncEngine, maker: Maker) -> None:
    """A session whose flush was cancelled by a timeout is rolled back and goes on; only what comes then is recorded."""
    limit = asyncio.timeout(30)

    async def never() -> int:
        # However slow the machine is: it was asked for, and the time is over.
        limit.reschedule(asyncio.get_running_loop().time() + 0.01)
        await asyncio.Event().wait()
        return 1

    await begin_auditing(engine, maker, get_user_id_callback=never)

    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with limit:
                await session.commit()
        assert asyncio.get_running_loop().time() < began + 29
        await session.rollback()
        session.add(Account(id=2, owner="Bob"))
        async with asyncio.timeout(30):
            with audit_context(user_id=7):
                await session.commit()

    assert await stored_accounts(engine) == [2]
    (change,) = await stored_trail(engine)
    assert (change.what, change.changed_by) == (("insert", "Account", "2"), "7")


# A connection that is cancelled while it opens is left to the garbage collector, by aiosqlite.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_rows_and_trail_agree_wherever_a_task_is_cancelled(engine: AsyncEngine, maker: Maker) -> None:
    """Tasks that are cancelled at any moment of their flushes and commits leave rows with a trail, or neither."""

    async def somebody() -> int:
        await asyncio.sleep(0)
        return 1

    await begin_auditing(engine, maker, get_user_id_callback=somebody)
    moments = random.Random(1)

    async def work(number: int) -> None:
        async with maker() as session:
            session.add(Account(id=number, owner=f"owner {number}"))
            await session.flush()
            session.add(Account(id=1000 + number, owner=f"other {number}"))
            await session.commit()

    cancelled = 0
    for number in range(1, 61):
        task = asyncio.create_task(work(number))
        for _ in range(moments.randrange(60)):
            await asyncio.sleep(0.0001 if moments.random() < 0.2 else 0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        cancelled += outcome is not None
    gc.collect()

    assert cancelled
    rows = await stored_accounts(engine)
    assert sorted(inserted(await stored_trail(engine))) == rows
    assert {id_ for id_ in rows if id_ < 1000} == {id_ - 1000 for id_ in rows if id_ > 1000}


# --- connections -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def autocommitting(database: Database, engine: AsyncEngine, *, of_engine: bool) -> AsyncIterator[AsyncEngine]:
    """Give an engine in AUTOCOMMIT mode, by itself or by its execution options; SQLite's sends no BEGIN."""
    options = {"isolation_level": "AUTOCOMMIT"} if of_engine else {}
    unsafe = unprepared(database, engine, **options)
    try:
        yield unsafe if of_engine else unsafe.execution_options(isolation_level="AUTOCOMMIT")
    finally:
        await unsafe.dispose()


def unprepared(database: Database, engine: AsyncEngine, **options: Any) -> AsyncEngine:
    """Return an engine that leaves it to the driver when SQLite's transactions begin."""
    return (
        create_async_engine(engine.url, **options)
        if database.kind == "sqlite"
        else database.make_async_engine(**options)
    )


@pytest.mark.parametrize("of_engine", [True, False], ids=["engine", "execution-options"])
async def test_autocommit_engine_is_refused_before_anything_is_sent(
    database: Database, engine: AsyncEngine, maker: Maker, of_engine: bool
) -> None:
    """Where every statement commits by itself, a tracked change is refused, and no row is left without a trail."""
    await begin_auditing(engine, maker)

    async with autocommitting(database, engine, of_engine=of_engine) as unsafe:
        with sent_statements(unsafe) as sent:
            async with maker(bind=unsafe) as session:
                session.add(Account(id=1, owner="Ann"))
                with pytest.raises(CaptureError, match="AUTOCOMMIT"):
                    await session.commit()

    assert sent == []
    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


async def test_autocommit_connection_of_a_session_is_refused_before_anything_is_sent(
    database: Database, engine: AsyncEngine, maker: Maker
) -> None:
    """A session that puts its own connection into AUTOCOMMIT mode is refused its tracked changes."""
    await begin_auditing(engine, maker)
    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
    unsafe = unprepared(database, engine)

    async with maker(bind=unsafe) as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        ann = await session.get_one(Account, 1)
        ann.balance = 5
        with sent_statements(unsafe) as sent, pytest.raises(CaptureError, match="AUTOCOMMIT"):
            await session.flush()
    await unsafe.dispose()

    assert sent == []
    assert await stored_rows(engine, "id, balance", "account") == [(1, 0)]
    assert inserted(await stored_trail(engine)) == [1]


@pytest.mark.parametrize("verb", ["insert", "update", "delete"])
async def test_autocommit_statement_is_refused_before_anything_is_sent(
    database: Database, engine: AsyncEngine, maker: Maker, verb: str
) -> None:
    """Where every statement commits by itself, a bulk statement on a tracked table is refused."""
    await begin_auditing(engine, maker)
    async with maker() as session:
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
    statement = {
        "insert": insert(Account).values(id=2, owner="Bob"),
        "update": update(Account).values(balance=3),
        "delete": delete(Account),
    }[verb]

    async with autocommitting(database, engine, of_engine=True) as unsafe, maker(bind=unsafe) as session:
        with sent_statements(unsafe) as sent, pytest.raises(CaptureError, match="AUTOCOMMIT"):
            await session.execute(statement)

    assert sent == []
    assert await stored_rows(engine, "id, balance", "account") == [(1, 0)]
    assert inserted(await stored_trail(engine)) == [1]


async def test_transactional_connection_of_an_autocommit_engine_is_accepted(
    database: Database, engine: AsyncEngine, maker: Maker
) -> None:
    """A session that leaves its engine's AUTOCOMMIT mode for a real isolation level is audited, and rolls back."""
    await begin_auditing(engine, maker)

    async with autocommitting(database, engine, of_engine=True) as unsafe, maker(bind=unsafe) as session:
        await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        session.add(Account(id=1, owner="Ann"))
        await session.commit()
        await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        session.add(Account(id=2, owner="Bob"))
        await session.flush()
        await session.rollback()

    assert await stored_accounts(engine) == [1]
    assert inserted(await stored_trail(engine)) == [1]


@pytest.mark.parametrize("mode", ["create_savepoint", "conditional_savepoint", "rollback_only"])
async def test_session_joined_into_an_outer_transaction_leaves_nothing_after_its_rollback(
    engine: AsyncEngine, maker: Maker, mode: str
) -> None:
    """The recipe of test suites: the session commits, the connection's transaction is rolled back, nothing is left."""
    await begin_auditing(engine, maker)

    async with engine.connect() as connection:
        outer = await connection.begin()
        async with maker(bind=connection, join_transaction_mode=mode) as session:
            session.add(Account(id=1, owner="Ann"))
            await session.commit()
            within = inserted(await trail_within(session))
        await outer.rollback()

    assert within == [1]
    assert await stored_accounts(engine) == []
    assert await stored_trail(engine) == []


@pytest.mark.parametrize("mode", ["create_savepoint", "conditional_savepoint", "rollback_only", "control_fully"])
async def test_session_joined_into_an_outer_transaction_is_kept_with_it(
    engine: AsyncEngine, maker: Maker, mode: str
) -> None:
    """What a joined session commits is permanent, rows and trail, when the connection's transaction is."""
    await begin_auditing(engine, maker)

    async with engine.connect() as connection:
        outer = await connection.begin()
        async with maker(bind=connection, join_transaction_mode=mode) as session:
            session.add(Account(id=1, owner="Ann"))
            await session.commit()
        if outer.is_active:
            await outer.commit()

    assert await stored_accounts(engine) == [1]
    assert inserted(await stored_trail(engine)) == [1]


async def test_rollback_of_a_joined_session_takes_only_its_own_savepoint(engine: AsyncEngine, maker: Maker) -> None:
    """In the test suite recipe session.rollback() takes back what the session did since its last commit."""
    await begin_auditing(engine, maker)

    async with engine.connect() as connection:
        outer = await connection.begin()
        async with maker(bind=connection, join_transaction_mode="create_savepoint") as session:
            session.add(Account(id=1, owner="Ann"))
            await session.commit()
            session.add(Account(id=2, owner="Bob"))
            await session.flush()
            await session.rollback()
            session.add(Account(id=3, owner="Cat"))
            await session.commit()
        await outer.commit()

    assert await stored_accounts(engine) == [1, 3]
    assert inserted(await stored_trail(engine)) == [1, 3]


async def test_trail_is_written_on_the_connection_of_its_rows(engine: AsyncEngine) -> None:
    """A session without a bind of its own writes the trail where it writes the row: on the connection it is given."""
    maker = async_sessionmaker(class_=AsyncSession)
    await begin_auditing(engine, maker)

    async with engine.begin() as connection, maker(bind=connection) as session:
        session.add(Account(id=1, owner="Ann"))
        await session.flush()
        within = inserted(await trail_within(session))
        elsewhere = await stored_trail(engine)

    assert within == [1]
    assert elsewhere == []
