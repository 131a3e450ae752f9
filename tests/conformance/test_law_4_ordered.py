"""Laws 4 and 9: ids and times of a resource's changes follow the database's order; what is stored stays as it is."""

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_models import Account, Base, Entry, Maker, Page, Topic, Truck, begin_auditing
from databases import Database
from observing import TRAIL, StoredChange, sent_statements, stored_rows, stored_trail
from sqlaudit import audit_context, get_resource_changes, track_table
from witness import watch_rows, witnessed

ACCOUNT = Base.metadata.tables["account"]


@pytest.fixture(name="contended")
async def _contended(database: Database) -> AsyncIterator[AsyncEngine]:
    """
    An engine on which two transactions may contend for a row.

    On PostgreSQL the second waits for the row. SQLite has no row locks, and
    a transaction that has read can't wait: there, the second waits at BEGIN.
    """
    if database.kind != "sqlite":
        engine = database.make_async_engine()
    else:
        url = database.make_async_engine().url
        engine = create_async_engine(url, connect_args={"timeout": 30})

        @event.listens_for(engine.sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine.sync_engine, "begin")
        def _(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    yield engine
    await engine.dispose()


def told_of(trail: list[StoredChange], resource_id: int) -> list[StoredChange]:
    """Return the updates of one account, in the order of their ids."""
    return [each for each in trail if each.what == ("update", "Account", str(resource_id))]


def chain(updates: list[StoredChange], field: str) -> list[tuple[Any, Any]]:
    """Return old and new value of one field, update by update."""
    return [
        (each.old_values[field], each.new_values[field])
        for each in updates
        if each.old_values is not None and each.new_values is not None
    ]


async def fill(maker: Maker, count: int) -> None:
    """Store accounts 1 to *count*, with nothing on them."""
    async with maker() as session:
        session.add_all([Account(id=number, owner=f"owner {number}") for number in range(1, count + 1)])
        await session.commit()


async def until_blocked(engine: AsyncEngine, task: asyncio.Task[None]) -> None:
    """Return when *task*'s transaction waits for another one, as the database says; SQLite doesn't."""
    if engine.dialect.name == "sqlite":
        await asyncio.sleep(0.2)
        assert not task.done()
        return
    waiting = text(
        "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p "
        "ON p.id = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.db = :schema"
        if engine.dialect.name == "mariadb"
        else "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() "
        "AND query LIKE '%account%' AND :schema = ANY(SELECT nspname FROM pg_namespace WHERE nspname = :schema) "
        "AND pid IN (SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema)"
    )
    async with asyncio.timeout(30), engine.connect() as connection:
        schema = await connection.scalar(
            text("SELECT database()" if engine.dialect.name == "mariadb" else "SELECT current_schema()")
        )
        while not await connection.scalar(waiting, {"schema": schema}):
            assert not task.done()
            # InnoDB shows what it knew when somebody last asked, unless that is a tenth of a second ago.
            await asyncio.sleep(0.15)
            await connection.rollback()


# --- two transactions, one row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["for-update", "expired"])
async def test_second_transaction_waits_and_its_change_comes_second(contended: AsyncEngine, how: str) -> None:
    """The change that waits for another's lock has the greater id, and its old value is the other's new one."""
    maker = Maker(contended)
    await begin_auditing(contended, maker)
    await fill(maker, 1)

    async def follow(session: AsyncSession, account: Account) -> None:
        if how == "for-update":
            await session.refresh(account, with_for_update=True)
        account.balance = 20
        with audit_context(user_id="second"):
            await session.commit()

    async with maker() as first, maker() as second:
        followed = await second.get_one(Account, 1)
        await second.commit()
        leading = await first.get_one(Account, 1)
        leading.balance = 10
        with audit_context(user_id="first"):
            await first.flush()
        task = asyncio.create_task(follow(second, followed))
        await until_blocked(contended, task)
        await first.commit()
        await task

    updates = told_of(await stored_trail(contended), 1)
    assert [each.changed_by for each in updates] == ["first", "second"]
    assert chain(updates, "balance") == [(0, 10), (10, 20)]
    assert updates[0].recorded_at <= updates[1].recorded_at


async def test_rolled_back_first_transaction_is_not_in_the_chain(contended: AsyncEngine) -> None:
    """When the one that held the lock rolls back, the one that waited tells of the row as it was before both."""
    maker = Maker(contended)
    await begin_auditing(contended, maker)
    await fill(maker, 1)

    async def follow(session: AsyncSession, account: Account) -> None:
        account.balance = 20
        await session.commit()

    async with maker() as first, maker() as second:
        followed = await second.get_one(Account, 1)
        await second.commit()
        leading = await first.get_one(Account, 1)
        leading.balance = 10
        await first.flush()
        task = asyncio.create_task(follow(second, followed))
        await until_blocked(contended, task)
        await first.rollback()
        await task

    assert chain(told_of(await stored_trail(contended), 1), "balance") == [(0, 20)]


async def test_deleted_row_that_was_waited_for_is_told_as_deleted_last(contended: AsyncEngine) -> None:
    """A delete that waits for an update has the greater id, and tells of the updated row."""
    maker = Maker(contended)
    await begin_auditing(contended, maker)
    await fill(maker, 1)

    async def follow(session: AsyncSession) -> None:
        account = await session.get_one(Account, 1, with_for_update=True)
        await session.delete(account)
        await session.commit()

    async with maker() as first, maker() as second:
        leading = await first.get_one(Account, 1)
        leading.balance = 10
        await first.flush()
        task = asyncio.create_task(follow(second))
        await until_blocked(contended, task)
        await first.commit()
        await task

    _, update, delete = await stored_trail(contended)
    assert (update.operation, delete.operation) == ("update", "delete")
    assert delete.old_values is not None
    assert delete.old_values["balance"] == 10


async def test_many_transactions_leave_one_chain_per_row(contended: AsyncEngine) -> None:
    """Whatever many tasks do to few rows, each row's old values follow from its new ones, and time never runs back."""
    maker = Maker(contended)
    await begin_auditing(contended, maker)
    async with contended.begin() as connection:
        await connection.run_sync(watch_rows, ACCOUNT)
    await fill(maker, 3)

    async def work(number: int) -> None:
        moments = random.Random(number)
        for _ in range(8):
            async with maker() as session:
                account = await session.get_one(Account, moments.randrange(1, 4), with_for_update=True)
                await asyncio.sleep(moments.choice((0, 0.001)))
                account.balance += moments.randrange(1, 10)
                await session.flush()
                await asyncio.sleep(moments.choice((0, 0.001)))
                await (session.rollback() if moments.random() < 0.2 else session.commit())

    with audit_context(user_id=1):
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(work(number))

    trail = await stored_trail(contended)
    async with contended.connect() as connection:
        for resource_id in (1, 2, 3):
            story = await connection.run_sync(witnessed, ACCOUNT, {"id": resource_id})
            seen = [fields["balance"] for operation, fields in story if operation == "update"]
            updates = told_of(trail, resource_id)
            assert len(seen) > 1
            assert chain(updates, "balance") == seen
            assert [old for old, _ in seen[1:]] == [new for _, new in seen[:-1]]
            times = [each.recorded_at for each in updates]
            assert times == sorted(times)


# --- one transaction -------------------------------------------------------------------------------------------------


async def test_ids_follow_the_order_of_the_statements(engine: AsyncEngine, maker: Maker) -> None:
    """Within a flush, and from flush to flush, the ids of each row's changes grow in the order of its statements."""
    await begin_auditing(engine, maker)
    async with engine.begin() as connection:
        await connection.run_sync(watch_rows, ACCOUNT)

    async with maker() as session:
        accounts = [Account(id=number, owner=f"owner {number}") for number in (5, 3, 9, 1)]
        session.add_all(accounts)
        await session.flush()
        for account in reversed(accounts):
            account.balance = account.id
        await session.flush()
        await session.delete(accounts[0])
        accounts[1].balance = 7
        session.add(Account(id=4, owner="new"))
        await session.flush()
        session.add(Account(id=5, owner="again"))
        await session.commit()

    trail = await stored_trail(engine)
    async with engine.connect() as connection:
        for resource_id in (1, 3, 4, 5, 9):
            story = await connection.run_sync(witnessed, ACCOUNT, {"id": resource_id})
            told = [each.operation for each in trail if each.resource_id == str(resource_id)]
            assert told == [operation for operation, _ in story]
    assert len(trail) == 12


async def test_resource_key_that_is_given_up_and_taken_in_one_flush_is_told_in_that_order(
    engine: AsyncEngine, maker: Maker
) -> None:
    """When one row gives up its key and a new one takes it in the same flush, the first life ends before the second."""

    class Models(DeclarativeBase):
        pass

    @track_table(resource_id_field="number")
    class Seat(Models):
        __tablename__ = "seat"

        id: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[str] = mapped_column(unique=True)

    await begin_auditing(engine, maker)
    async with engine.begin() as connection:
        await connection.run_sync(Models.metadata.create_all)

    async with maker(expire_on_commit=False) as session:
        seat = Seat(id=1, number="1A")
        session.add(seat)
        await session.commit()
        seat.number = "2A"
        session.add(Seat(id=2, number="1A"))
        await session.commit()

    trail = await stored_trail(engine)
    assert await stored_rows(engine, "id, number", "seat") == [(1, "2A"), (2, "1A")]
    assert [each.operation for each in trail if each.resource_id == "1A"] == ["insert", "delete", "insert"]
    assert [each.operation for each in trail if each.resource_id == "2A"] == ["insert"]


async def test_second_life_of_a_key_comes_after_its_first(engine: AsyncEngine, maker: Maker) -> None:
    """A key that is deleted and used again is told in that order, also within one transaction."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        account = Account(id=1, owner="first")
        session.add(account)
        await session.flush()
        await session.delete(account)
        await session.flush()
        session.add(Account(id=1, owner="second"))
        await session.commit()

    assert [each.operation for each in await stored_trail(engine)] == ["insert", "delete", "insert"]


async def test_ids_are_never_given_again(engine: AsyncEngine, maker: Maker) -> None:
    """The ids of a rolled back transaction, or of changes that retention has removed, aren't below those to come."""
    await begin_auditing(engine, maker)
    await fill(maker, 3)
    highest = max(each.id for each in await stored_trail(engine))
    async with engine.begin() as connection:
        await connection.execute(text(f"DELETE FROM {TRAIL}"))

    async with maker() as session:
        session.add(Account(id=4, owner="later"))
        await session.commit()

    (change,) = await stored_trail(engine)
    assert change.id > highest


# --- time ------------------------------------------------------------------------------------------------------------


async def clock(connection: AsyncConnection) -> dt.datetime:
    """Return the clock that `recorded_at` is said to be of: the database's; for SQLite the process's."""
    if connection.dialect.name == "sqlite":
        return dt.datetime.now(dt.UTC)
    now = "clock_timestamp()" if connection.dialect.name == "postgresql" else "utc_timestamp(6)"
    read: dt.datetime = (await connection.execute(text(f"SELECT {now}"))).scalar_one()
    return read if read.tzinfo is not None else read.replace(tzinfo=dt.UTC)


async def test_recorded_at_is_the_time_of_the_statement(engine: AsyncEngine, maker: Maker) -> None:
    """A change is recorded at the clock's time when it was flushed, not when its transaction began or ended."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        connection = await session.connection()
        began = await clock(connection)
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_sleep(0.05)"))
        before = await clock(connection)
        session.add(Account(id=1, owner="a"))
        await session.flush()
        between = await clock(connection)
        session.add(Account(id=2, owner="b"))
        await session.flush()
        after = await clock(connection)
        await session.commit()

    first, second = [each.recorded_at for each in await stored_trail(engine)]
    assert began < before <= first <= between <= second <= after


async def test_recorded_at_has_microseconds(engine: AsyncEngine, maker: Maker) -> None:
    """Times are stored with microseconds: of twenty changes one at least isn't at a whole millisecond."""
    await begin_auditing(engine, maker)

    async with maker() as session:
        for number in range(20):
            session.add(Account(id=number + 1, owner=f"owner {number}"))
            await session.flush()
        await session.commit()

    assert any(each.recorded_at.microsecond % 1000 for each in await stored_trail(engine))


async def test_time_never_runs_backwards_along_the_ids(engine: AsyncEngine, maker: Maker) -> None:
    """Ids and times of one writer's changes grow together, within a flush, a transaction and from one to the next."""
    await begin_auditing(engine, maker)

    async with maker(expire_on_commit=False) as session:
        accounts = [Account(id=number, owner=f"owner {number}") for number in range(1, 11)]
        session.add_all(accounts)
        await session.commit()
        for balance in range(1, 6):
            for account in accounts:
                account.balance = balance
            await session.flush()
            if balance % 2:
                await session.commit()
        await session.commit()

    times = [each.recorded_at for each in await stored_trail(engine)]
    assert len(times) == 60
    assert times == sorted(times)


# --- law 9: append-only ----------------------------------------------------------------------------------------------


async def test_stored_changes_are_never_updated_or_deleted(engine: AsyncEngine, maker: Maker) -> None:
    """Whatever a program does, the trail is sent nothing but INSERTs and SELECTs, and what was stored stays."""
    await begin_auditing(engine, maker)

    with sent_statements(engine) as sent, audit_context(user_id=1):
        async with maker() as session:
            ann, truck = Account(id=1, owner="Ann"), Truck(id=1, plate="AB", load=1)
            session.add_all([ann, truck, Page(id=1, title="a"), Topic(id=1, name="a")])
            await session.commit()
            before = await stored_trail(engine)
            ann.balance = 5
            truck.load, truck.plate = 2, "CD"
            await session.flush()
            ann.note = "expired before"
            await session.commit()
            savepoint = await session.begin_nested()
            ann.balance = Account.balance + 1
            await session.flush()
            await savepoint.rollback()
            await session.delete(truck)
            await session.delete(await session.get_one(Page, 1))
            await session.flush()
            session.add(Page(id=1, title="again"))
            await session.commit()
            session.add(Entry(id=1, line="a"))
            await session.rollback()
            await get_resource_changes(Account, session=session)

    concerning = {each.verb for each in sent if each.concerns_trail}
    after = await stored_trail(engine)
    assert concerning == {"INSERT", "SELECT"}
    assert after[: len(before)] == before
    assert [each.operation for each in after[len(before) :]] == [
        "update",
        "update",
        "update",
        "update",
        "delete",
        "delete",
        "delete",
        "insert",
    ]
    assert await stored_rows(engine, "id, balance", "account") == [(1, 5)]
