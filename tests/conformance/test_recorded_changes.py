"""What tests of users see of the trail: the changes that a session records within a block."""

import time
import uuid
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from conformance_setup import Maker
from databases import Database, sqlite_database
from observing import sent_statements
from sqlaudit import (
    Capture,
    Change,
    SQLAuditConfig,
    audit_context,
    create_audit_tables_sync,
    get_changes,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.exceptions import RetrievalError
from sqlaudit.testing import Recording, assert_changed, assert_unchanged, recorded_changes


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "tested_customer"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


@track_table(capture=Capture.TRIGGERS)
class Watched(Base):
    __tablename__ = "tested_watched"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


@track_table(resource_id_field="code")
class Product(Base):
    __tablename__ = "tested_product"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    code: Mapped[str]


@pytest.fixture(name="hooked")
async def _hooked(engine: AsyncEngine, maker: Maker) -> Maker:
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    await create(engine)
    return maker


async def create(engine: AsyncEngine) -> None:
    """Create the tables, the trail and the triggers."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(create_audit_tables_sync)


def what(changes: list[Change]) -> list[tuple[str, str, Any]]:
    """Return operation, label and key of *changes*."""
    return [(str(change.operation), change.resource_type, change.resource_id) for change in changes]


async def test_what_is_committed_in_a_block_is_recorded(hooked: Maker) -> None:
    """Of several transactions of a session, in order, whole; not what came before or after, nor of other sessions."""
    async with hooked() as session, hooked() as other:
        customer = Customer(id=1, name="a")
        session.add(customer)
        await session.commit()
        async with recorded_changes(session) as changes:
            with audit_context(user_id=42):
                await session.refresh(customer)
                customer.name = "b"
                await session.commit()
                await session.delete(customer)
                await session.commit()
            other.add(Customer(id=2, name="a"))
            await other.commit()
            assert changes == []
        session.add(Customer(id=3, name="a"))
        await session.commit()

    assert_changed(changes, (Customer, 1), name=("a", "b"), by=42)
    assert what(changes) == [("update", "Customer", 1), ("delete", "Customer", 1)]
    assert changes == [each for each in await get_changes(newest_first=False) if each.changed_by == "42"]


async def test_what_is_not_committed_is_recorded_too(hooked: Maker) -> None:
    """What is pending at the beginning isn't part of it, what is pending at the end is; nothing is committed."""
    async with hooked() as session:
        customer = Customer(id=1, name="a")
        session.add(customer)
        await session.flush()
        session.add(Customer(id=2, name="a"))
        async with recorded_changes(session) as changes:
            customer.name = "b"
            await session.flush()
            session.add(Watched(id=1, name="a"))
        await session.rollback()

    assert what(changes) == [("update", "Customer", 1), ("insert", "Watched", 1)]
    assert_unchanged(changes, (Customer, 2))
    assert await get_changes() == []


async def test_what_was_rolled_back_is_not_recorded(hooked: Maker) -> None:
    """Neither what a savepoint undid, nor a transaction, nor a flush that failed."""
    async with hooked() as session:
        async with recorded_changes(session) as changes:
            session.add(Customer(id=1, name="a"))
            savepoint = await session.begin_nested()
            session.add(Customer(id=2, name="a"))
            await session.flush()
            await savepoint.rollback()
            await session.commit()
            session.add(Customer(id=3, name="a"))
            await session.flush()
            await session.rollback()
            session.add(Customer(id=1, name="again"))
            with pytest.raises(IntegrityError):
                await session.flush()
        await session.rollback()

    assert what(changes) == [("insert", "Customer", 1)]


async def test_what_triggers_record_is_recorded(hooked: Maker) -> None:
    """Rows that triggers capture come, too, whatever statement wrote them."""
    async with hooked() as session:
        session.add(Watched(id=1, name="a"))
        await session.flush()
        async with recorded_changes(session) as changes:
            await session.execute(text("UPDATE tested_watched SET name = 'b' WHERE id = 1"))
            await session.execute(update(Watched).values(name="c"))

    assert [dict(change.fields) for change in changes] == [{"name": ("a", "b")}, {"name": ("b", "c")}]


async def test_a_block_leaves_the_session_as_it_was(hooked: Maker, engine: AsyncEngine) -> None:
    """No transaction is begun, nothing expires, and without changes nothing is sent."""
    async with hooked(expire_on_commit=False) as session:
        customer = Customer(id=1, name="a")
        async with recorded_changes(session):
            assert not session.in_transaction()
            async with session.begin():
                session.add(customer)
        assert not session.in_transaction()
        assert customer.name == "a"
        with sent_statements(engine) as sent:
            async with recorded_changes(session) as changes:
                pass
        assert (changes, sent) == ([], [])


async def test_a_block_that_raises_raises(hooked: Maker) -> None:
    """The error of a block comes through as it is, and the session records for nobody any more."""
    changes: list[Change] = []
    async with hooked() as session:
        with suppress(ZeroDivisionError):
            async with recorded_changes(session) as changes:
                session.add(Customer(id=1, name="a"))
                await session.flush()
                raise ZeroDivisionError
            pytest.fail("the error was swallowed")
        session.add(Customer(id=2, name="a"))
        await session.flush()
        listeners = [value for key, value in session.sync_session.info.items() if "listeners" in str(key)]

    assert changes == []
    assert listeners == [()]


async def test_the_classical_setup_of_tests(hooked: Maker, engine: AsyncEngine) -> None:
    """A session in a transaction that the test rolls back records its commits, though nothing is committed."""
    async with engine.connect() as connection:
        outer = await connection.begin()
        async with hooked(bind=connection, join_transaction_mode="create_savepoint") as session:
            session.add(Customer(id=1, name="a"))
            await session.commit()
            async with recorded_changes(session) as changes:
                session.add(Customer(id=2, name="a"))
                await session.commit()
                session.add(Customer(id=3, name="a"))
                await session.rollback()
                session.add(Watched(id=1, name="a"))
                await session.commit()
        assert outer.is_active
        await outer.rollback()

    assert what(changes) == [("insert", "Customer", 2), ("insert", "Watched", 1)]
    assert await get_changes() == []


async def test_a_connection_without_a_transaction_is_left_without_one(hooked: Maker, engine: AsyncEngine) -> None:
    """What a session has committed on a connection that was lent to it is read there, and no transaction stays open."""
    async with engine.connect() as connection:
        async with hooked(bind=connection) as session, recorded_changes(session) as changes:
            session.add(Customer(id=1, name="a"))
            await session.commit()
        assert not connection.in_transaction()

    assert what(changes) == [("insert", "Customer", 1)]


async def test_the_only_connection_is_used(database: Database) -> None:
    """With a pool of one connection, a session that has begun another transaction reads on it."""
    engine = database.make_async_engine(pool_size=1, max_overflow=0)
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig())
    register_hooks(maker)
    await create(engine)
    async with maker() as session, recorded_changes(session) as changes:
        session.add(Customer(id=1, name="a"))
        await session.commit()
        await session.get_one(Customer, 1)
    await engine.dispose()

    assert what(changes) == [("insert", "Customer", 1)]


async def test_frozen_time(hooked: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """When time stands still, transactions are told apart, and changes come in their order."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    async with hooked() as session, hooked() as other, recorded_changes(session) as changes:
        for number in range(3):
            session.add(Customer(id=number, name="a"))
            await session.commit()
            other.add(Customer(id=100 + number, name="a"))
            await other.commit()

    assert [change.resource_id for change in changes] == [0, 1, 2]
    assert len({change.transaction_id for change in changes}) == 3


async def test_sessions_of_every_kind(hooked: Maker, database: Database) -> None:
    """``with`` does for a Session what ``async with`` does for an AsyncSession, scoped or not; others are refused."""
    scoped = async_scoped_session(hooked, lambda: None)
    async with recorded_changes(scoped) as changes:
        scoped.add(Customer(id=1, name="a"))
        await scoped.commit()
    await scoped.remove()
    assert what(changes) == [("insert", "Customer", 1)]
    engine = database.make_engine()
    maker = sessionmaker(engine)
    with register_hooks(maker.class_), maker() as session:
        with recorded_changes(session) as plain:
            session.add(Customer(id=2, name="a"))
            session.commit()
        recording = Recording(session)
        session.add(Customer(id=3, name="a"))
        assert what(recording.changes_sync()) == what(await recording.changes()) == [("insert", "Customer", 3)]
        session.commit()
        recording.close()
        session.add(Customer(id=4, name="a"))
        session.commit()
        assert len(recording.changes_sync()) == 1
    engine.dispose()
    assert what(plain) == [("insert", "Customer", 2)]
    with pytest.raises(RetrievalError, match="expected an AsyncSession or a Session"):
        recorded_changes(engine)  # type: ignore[call-overload]
    async with hooked() as asynchronous:
        recording = Recording(asynchronous)
        with pytest.raises(RetrievalError, match="without _sync"):
            recording.changes_sync()
        assert await recording.changes() == []


async def test_a_database_in_memory() -> None:
    """Where all sessions share one connection, a block is as good as elsewhere."""
    engine = create_async_engine("sqlite+aiosqlite://")
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig())
    register_hooks(maker)
    await create(engine)
    async with maker() as session, recorded_changes(session) as changes:
        session.add(Customer(id=1, name="a"))
        await session.commit()
        session.add(Customer(id=2, name="a"))
    await engine.dispose()

    assert what(changes) == [("insert", "Customer", 1), ("insert", "Customer", 2)]


async def test_several_databases(hooked: Maker, engine: AsyncEngine, tmp_path: Any) -> None:
    """A session that writes to two databases records in both, and both are read."""
    with sqlite_database(tmp_path) as other:
        second = other.make_async_engine()
        await create(second)
        maker = async_sessionmaker(binds={Customer: engine, Product: second})
        register_hooks(maker)
        async with maker() as session, recorded_changes(session) as changes:
            session.add_all([Customer(id=1, name="a"), Product(id=1, code="x")])
            await session.commit()
            session.add_all([Customer(id=2, name="a"), Product(id=2, code="y")])
        await second.dispose()

    assert sorted(what(changes)) == [
        ("insert", "Customer", 1),
        ("insert", "Customer", 2),
        ("insert", "Product", "x"),
        ("insert", "Product", "y"),
    ]


async def test_objects_stand_for_their_rows(hooked: Maker) -> None:
    """An object is as good as its key: expired, deleted or detached; one without a known key is refused."""
    async with hooked() as session:
        customer, product = Customer(id=1, name="a"), Product(id=7, code="x")
        async with recorded_changes(session) as changes:
            session.add_all([customer, product])
            await session.commit()
            await session.refresh(product)
            assert_unchanged([], customer)
            await session.delete(customer)
            await session.commit()
        await session.refresh(product)

    assert assert_changed(changes, customer, name=(None, "a")).operation == "insert"
    assert assert_changed(changes, customer, operation="delete").fields["name"] == ("a", None)
    assert_changed(changes, product, code=(None, "x"))
    assert_changed(changes, Product)
    with pytest.raises(RetrievalError, match=r"\(Customer, key\)"):
        assert_unchanged(changes, Customer())
    with pytest.raises(RetrievalError, match="code isn't loaded"):
        assert_unchanged(changes, Product(id=1))
    assert uuid.UUID(str(changes[0].transaction_id)).version == 7
