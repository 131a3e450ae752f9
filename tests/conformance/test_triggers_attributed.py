"""Law 5 for rows that triggers capture: who writes is told to the transaction, and believed in no other."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, ForeignKey, String, delete, event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from conformance_setup import Maker, changes_of, start_audit, story_of
from databases import Database
from observing import StoredChange, sent_statements, stored_trail
from sqlaudit import (
    Capture,
    SQLAuditConfig,
    audit_context,
    audited_connection,
    create_audit_tables_sync,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.exceptions import ActorRequiredError, CaptureError, TriggersMissingError, UncapturedStatementError


class Base(DeclarativeBase):
    pass


@track_table(capture=Capture.TRIGGERS)
class Account(Base):
    __tablename__ = "told_account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(40))


class Note(Base):
    """Nobody tracks it."""

    __tablename__ = "told_note"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(String(40))


class Holder(Base):
    """Not tracked; its rows take tracked ones with them."""

    __tablename__ = "told_holder"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@track_table(capture=Capture.TRIGGERS)
class Held(Base):
    __tablename__ = "told_held"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder_id: Mapped[int] = mapped_column(ForeignKey("told_holder.id", ondelete="CASCADE"))


@track_table(capture=Capture.BOTH)
class Moving(Base):
    __tablename__ = "told_moving"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(40))


@track_table(capture=Capture.TRIGGERS, user_id_field="signed_by")
class Signed(Base):
    __tablename__ = "told_signed"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    signed_by: Mapped[str | None] = mapped_column(String(40))


@track_table(capture=Capture.SESSION, user_id_field="signed_by")
class SignedInSession(Base):
    __tablename__ = "told_signed_in_session"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    signed_by: Mapped[str | None] = mapped_column(String(40))


@track_table(capture=Capture.BOTH, user_id_field="signed_by")
class SignedInBoth(Base):
    __tablename__ = "told_signed_in_both"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    signed_by: Mapped[str | None] = mapped_column(String(40))


def seven(context: Any) -> int:
    """Ask the database for a default."""
    return int(context.connection.execute(text("SELECT 7")).scalar_one())


@track_table(capture=Capture.BOTH)
class MovingPart(Base):
    __tablename__ = "told_moving_part"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder_id: Mapped[int] = mapped_column(ForeignKey("told_holder.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(default=seven)


@track_table(capture=Capture.SESSION)
class Kept(Base):
    __tablename__ = "told_kept"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(40))


@pytest.fixture(name="started", autouse=True)
async def _started(maker: Maker) -> None:
    await start_audit(maker, Base)


async def write_raw(engine: AsyncEngine, sql: str) -> None:
    """Write as a client that has never heard of sqlaudit."""
    async with engine.begin() as connection:
        await connection.execute(text(sql))


async def actors(engine: AsyncEngine) -> list[tuple[str, str | None]]:
    """Return which resource was changed by whom, in the order of the trail."""
    return [(change.resource_id, change.changed_by) for change in await stored_trail(engine)]


async def last(engine: AsyncEngine) -> StoredChange:
    """Return the newest change."""
    return (await stored_trail(engine))[-1]


async def test_a_session_says_who_writes(maker: Maker, engine: AsyncEngine) -> None:
    """Actor, impersonator, reason and facts of the flush stand with what the trigger records."""
    async with maker() as session:
        with audit_context(user_id=42, impersonated_by="boß", reason="a 'reason' ✓", request={"id": [1, None]}):
            session.add(Account(id=1, name="a"))
            await session.commit()

    change = await last(engine)
    assert (change.changed_by, change.impersonated_by, change.reason, change.context) == (
        "42",
        "boß",
        "a 'reason' ✓",
        {"request": {"id": [1, None]}},
    )
    assert await story_of(maker, Account) == [("insert", {"id": (None, 1), "name": (None, "a")})]


async def test_both_captures_share_a_transaction(maker: Maker, engine: AsyncEngine) -> None:
    """Changes of both captures in one transaction, across flushes and savepoints, have one transaction id."""
    async with maker() as session:
        session.add(Account(id=1, name="a"))
        await session.flush()
        async with session.begin_nested():
            session.add(Kept(id=1, name="a"))
        await session.execute(update(Account).values(name="b"))
        await session.commit()
        session.add(Account(id=2, name="c"))
        await session.commit()

    first, second, third, fourth = await stored_trail(engine)
    assert first.transaction_id == second.transaction_id == third.transaction_id != fourth.transaction_id
    assert {first.resource_type, second.resource_type} == {"Account", "Kept"}


async def test_who_says_nothing_is_nobody(maker: Maker, engine: AsyncEngine, database: Database) -> None:
    """A client that says nothing is recorded with what the database knows of it."""
    await write_raw(engine, "INSERT INTO told_account (id, name) VALUES (1, 'a')")

    change = await last(engine)
    assert (change.operation, change.changed_by, change.reason) == ("insert", None, None)
    if database.kind == "sqlite":
        assert change.context is None
    else:
        assert change.context is not None
        assert change.context["database_user"] in {"postgres", "root"}
    assert change.transaction_id[12] == "7"


async def test_a_later_writer_is_not_taken_for_the_last(maker: Maker, engine: AsyncEngine, database: Database) -> None:
    """On the connection that a session gave back, a raw writer is nobody; so is one after a rollback."""
    one = database.make_async_engine(pool_size=1, max_overflow=0)
    sessions = maker.class_
    async with sessions(one) as session:
        register_hooks(session)
        with audit_context(user_id=1):
            session.add(Account(id=1, name="a"))
            await session.commit()
    await write_raw(one, "UPDATE told_account SET name = 'b' WHERE id = 1")
    async with sessions(one) as session:
        register_hooks(session)
        with audit_context(user_id=2):
            session.add(Account(id=2, name="a"))
            await session.flush()
            await session.rollback()
    await write_raw(one, "UPDATE told_account SET name = 'c' WHERE id = 1")
    await one.dispose()

    assert await actors(engine) == [("1", "1"), ("1", None), ("1", None)]


async def test_a_lent_connection_does_not_keep_the_actor(engine: AsyncEngine) -> None:
    """After the session's transaction, what its owner writes on a connection that was lent to it is nobody's."""
    async with engine.connect() as connection, AsyncSession(connection) as session:
        register_hooks(session)
        with audit_context(user_id=1):
            session.add(Account(id=1, name="a"))
            await session.commit()
        await connection.execute(text("UPDATE told_account SET name = 'b'"))
        await connection.commit()
        with audit_context(user_id=2):
            session.add(Account(id=2, name="a"))
            await session.flush()
            await session.rollback()
        await connection.execute(text("UPDATE told_account SET name = 'c'"))
        await connection.commit()

    assert await actors(engine) == [("1", "1"), ("1", None), ("1", None)]


async def test_a_savepoint_that_is_rolled_back_takes_nobody_along(maker: Maker, engine: AsyncEngine) -> None:
    """What was told in a savepoint is told again after its rollback."""
    async with maker() as session:
        with audit_context(user_id=7):
            savepoint = await session.begin_nested()
            session.add(Account(id=1, name="a"))
            await session.flush()
            await savepoint.rollback()
            session.add(Account(id=2, name="b"))
            await session.flush()
            connection = await session.connection()
            inner = await connection.begin_nested()
            await session.execute(update(Account).values(name="c"))
            await inner.rollback()
            await session.execute(update(Account).values(name="d"))
            await session.commit()

    assert await actors(engine) == [("2", "7"), ("2", "7")]
    assert len({change.transaction_id for change in await stored_trail(engine)}) == 1


async def test_what_was_withdrawn_in_a_savepoint_is_gone(engine: AsyncEngine, database: Database) -> None:
    """Rolled back, the savepoint would bring back who was told before it: later writers are nobody all the same."""
    async with engine.connect() as connection:
        for number in (1, 3):
            await connection.begin()
            block = audited_connection(connection, user_id=number)
            await block.__aenter__()
            await connection.execute(text(f"INSERT INTO told_account (id, name) VALUES ({number}, 'a')"))
            savepoint = await connection.begin_nested()
            await block.__aexit__(None, None, None)
            await savepoint.rollback()
            if number == 3:
                await connection.execute(text("INSERT INTO told_account (id, name) VALUES (4, 'a')"))
            await connection.commit()
            await write_raw(engine, f"INSERT INTO told_account (id, name) VALUES ({number + 1}0, 'a')")

    assert await actors(engine) == [("1", "1"), ("20", None), ("3", "3"), ("4", None), ("40", None)]


async def test_what_a_session_told_in_a_savepoint_is_gone(maker: Maker, engine: AsyncEngine) -> None:
    """The same for sessions, whose savepoints are released within one that is rolled back."""
    async with maker() as session:
        with audit_context(user_id=1):
            session.add(Account(id=1, name="a"))
            await session.flush()
        outer = await session.begin_nested()
        async with session.begin_nested():
            with audit_context(user_id=2):
                session.add(Account(id=2, name="a"))
        await outer.rollback()
        await session.commit()
    await write_raw(engine, "INSERT INTO told_account (id, name) VALUES (3, 'a')")

    assert await actors(engine) == [("1", "1"), ("3", None)]


@pytest.mark.parametrize("is_text", [True, False])
async def test_a_lent_connection_forgets_a_session_within_its_transaction(engine: AsyncEngine, is_text: bool) -> None:
    """What is written in the same transaction, after that of the session, is nobody's; also by the driver's SQL."""

    async def write(sql: str) -> None:
        await (connection.execute(text(sql)) if is_text else connection.exec_driver_sql(sql))

    async with engine.begin() as connection:
        async with AsyncSession(connection) as session:
            register_hooks(session)
            with audit_context(user_id=1):
                session.add(Account(id=1, name="a"))
                await session.commit()
        await write("UPDATE told_account SET name = 'b'")
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            register_hooks(session)
            with audit_context(user_id=2):
                session.add(Account(id=2, name="a"))
                await session.flush()
                await session.rollback()
        await write("UPDATE told_account SET name = 'c'")
    await write_raw(engine, "UPDATE told_account SET name = 'd'")

    assert await actors(engine) == [("1", "1"), ("1", None), ("1", None), ("1", None)]


async def let_notes_write(engine: AsyncEngine, table: str = "told_account") -> None:
    """Let the application's own trigger write a row of another table for each note."""
    does = f"INSERT INTO {table} (id, name) VALUES (NEW.id, NEW.text)"
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(
                text(f"CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {does}; RETURN NULL; END'")
            )
            await connection.execute(
                text("CREATE TRIGGER told AFTER INSERT ON told_note FOR EACH ROW EXECUTE FUNCTION told()")
            )
        elif engine.dialect.name == "sqlite":
            await connection.execute(text(f"CREATE TRIGGER told AFTER INSERT ON told_note BEGIN {does}; END"))
        else:
            await connection.execute(text(f"CREATE TRIGGER told AFTER INSERT ON told_note FOR EACH ROW {does}"))


@pytest.mark.parametrize("has_callback", [True, False])
async def test_the_actor_of_before_is_not_believed(maker: Maker, engine: AsyncEngine, has_callback: bool) -> None:
    """What the application's own triggers write is by who acts then, not by whom the session told last."""
    await let_notes_write(engine)
    acting: list[int | None] = [None]
    if has_callback:
        set_config(SQLAuditConfig(get_user_id_callback=lambda: acting[0]))
    async with maker() as session:
        session.add(Account(id=1, name="a"))
        await session.flush()
        for user_id, write in (
            (2, insert(Note).values(id=2, text="a")),
            (3, text("INSERT INTO told_note (id, text) VALUES (3, 'a')")),
            (None, insert(Note).values(id=4, text="a")),
            (5, Note(id=5, text="a")),
        ):
            acting[0] = user_id
            with audit_context(user_id=None if has_callback else user_id):
                if isinstance(write, Note):
                    session.add(write)
                    await session.flush()
                else:
                    await session.execute(write)
        await session.commit()

    assert await actors(engine) == [("1", None), ("2", "2"), ("3", "3"), ("4", None), ("5", "5")]


# The others have no functions that write, or none without the leave of the binary log.
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_functions_write_as_who_acts(maker: Maker, engine: AsyncEngine) -> None:
    """A SELECT may call a function that writes: as who acts then."""
    does = "INSERT INTO told_account (id, name) VALUES (number, ''a'')"
    async with engine.begin() as connection:
        await connection.execute(
            text(f"CREATE FUNCTION tell(number int) RETURNS void LANGUAGE plpgsql AS 'BEGIN {does}; END'")
        )
    async with maker() as session:
        with audit_context(user_id=1):
            session.add(Account(id=1, name="a"))
            await session.flush()
        with audit_context(user_id=2):
            await session.execute(select(func.tell(2)))
        with audit_context(user_id=3):
            await session.execute(text("SELECT tell(3)"))
        with audit_context(user_id=4):
            await (await session.connection()).exec_driver_sql("SELECT tell(4)")
        await session.commit()

    assert await actors(engine) == [("1", "1"), ("2", "2"), ("3", "3"), ("4", "4")]


async def test_reads_as_somebody_else_tell_nothing(maker: Maker, engine: AsyncEngine) -> None:
    """Who reads needs no round trip, whoever wrote before; nor who writes as the one that was told."""
    async with maker() as session:
        with audit_context(user_id=1):
            session.add(Account(id=1, name="a"))
            await session.flush()
            with sent_statements(engine) as sent:
                session.add(Note(id=1, text="a"))
                await session.flush()
                await session.execute(text("SELECT upper('a')"))
                await session.execute(update(Note).values(text="b"))
        with sent_statements(engine) as read, audit_context(user_id=2):
            await session.scalars(select(Account).where(Account.id.in_([1, 2])))
            await session.scalar(select(func.count()).select_from(Account))

    assert [each for each in (*sent, *read) if "published" in each.sql] == []
    assert [each.verb for each in sent] == ["INSERT", "SELECT", "UPDATE"]
    assert len(read) == 2


async def test_a_callback_that_fails_leaves_nobody(maker: Maker, engine: AsyncEngine) -> None:
    """What isn't known to need an actor is sent, and is by nobody, when nobody can be asked."""
    await let_notes_write(engine)
    acting: list[Any] = [1]

    def who() -> int:
        return int(acting[0])

    set_config(SQLAuditConfig(get_user_id_callback=who))
    async with maker() as session:
        session.add(Account(id=1, name="a"))
        await session.flush()
        acting[0] = "nobody"
        await session.execute(insert(Note).values(id=2, text="a"))
        await session.commit()

    assert await actors(engine) == [("1", "1"), ("2", None)]


async def test_the_actor_may_change_within_a_transaction(maker: Maker, engine: AsyncEngine) -> None:
    """Each flush is by whom its context names."""
    async with maker() as session:
        for number in (1, 2, 3):
            with audit_context(user_id=number):
                session.add(Account(id=number, name="a"))
                await session.flush()
        await session.commit()

    assert await actors(engine) == [("1", "1"), ("2", "2"), ("3", "3")]


async def test_text_of_a_session_is_its_own(maker: Maker, engine: AsyncEngine) -> None:
    """DML in text, which session capture refuses, is recorded with the session's actor; so is DML in a CTE."""
    async with maker() as session:
        with audit_context(user_id=5):
            await session.execute(text("INSERT INTO told_account (id, name) VALUES (1, 'a')"))
            await (await session.connection()).exec_driver_sql("UPDATE told_account SET name = 'b'")
            if engine.dialect.name == "postgresql":
                changed = update(Account).values(name="c").returning(Account.id).cte()
                await session.execute(select(changed.c.id))
            await session.execute(text("DELETE FROM told_account"))
            await session.commit()

    assert {actor for _, actor in await actors(engine)} == {"5"}
    assert [operation for operation, _ in await story_of(maker, Account)][-1] == "delete"


async def test_cascades_of_untracked_rows_are_attributed(maker: Maker, engine: AsyncEngine, database: Database) -> None:
    """A delete of an untracked row that takes tracked ones with it is by whom the session says."""
    strict = database.make_async_engine()
    if database.kind == "sqlite":

        @event.listens_for(strict.sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    async with maker.class_(strict) as session:
        register_hooks(session)
        session.add(Holder(id=1))
        await session.flush()
        session.add_all([Held(id=1, holder_id=1), Held(id=2, holder_id=1)])
        await session.commit()
        with audit_context(user_id=9):
            await session.execute(delete(Holder))
            await session.commit()
    await strict.dispose()

    gone = [change for change in await stored_trail(engine) if change.operation == "delete"]
    assert sorted((change.resource_id, change.changed_by) for change in gone) == [("1", "9"), ("2", "9")]


async def test_nothing_is_told_for_nothing(maker: Maker, engine: AsyncEngine) -> None:
    """Reads, and writes of untracked tables, tell the database nothing; a transaction is told once."""
    async with maker() as session:
        session.add(Account(id=1, name="a"))
        await session.commit()
    with audit_context(user_id=1), sent_statements(engine) as sent:
        async with maker() as session:
            await session.scalars(select(Account))
            session.add(Note(id=1, text="a"))
            await session.commit()
            assert [each for each in sent if "published" in each.sql] == []
            session.add(Account(id=2, name="a"))
            await session.flush()
            session.add(Account(id=3, name="a"))
            await session.execute(update(Account).values(name="b"))
            await session.commit()

    told = [each.verb for each in sent if "published" in each.sql]
    assert told == (["INSERT", "DELETE"] if engine.dialect.name == "sqlite" else told[:1])
    assert len(told) in {1, 2}


async def test_many_tasks_keep_their_actors(maker: Maker, engine: AsyncEngine, database: Database) -> None:
    """Tasks with sessions of their own, and raw writers between them, share a small pool and no actor."""
    shared = database.make_async_engine(
        pool_size=2, max_overflow=0, connect_args={"timeout": 30} if database.kind == "sqlite" else {}
    )

    async def write(number: int) -> None:
        if number % 3 == 0:
            await write_raw(shared, f"INSERT INTO told_account (id, name) VALUES ({number}, 'raw')")
            return
        async with maker.class_(shared) as session:
            register_hooks(session)
            with audit_context(user_id=number):
                session.add(Account(id=number, name="a"))
                await session.flush()
                await asyncio.sleep(0)
                await (session.rollback() if number % 5 == 0 else session.commit())

    numbers = range(1, 31)
    await asyncio.gather(*map(write, numbers))
    await shared.dispose()

    expected = {
        (str(number), None if number % 3 == 0 else str(number))
        for number in numbers
        if number % 3 == 0 or number % 5 != 0
    }
    assert {*await actors(engine)} == expected


async def test_a_callback_is_asked(maker: Maker, engine: AsyncEngine) -> None:
    """Where no context names a user, the configured callback is asked; it may be a coroutine function."""

    async def who() -> int:
        await asyncio.sleep(0)
        return 77

    set_config(SQLAuditConfig(get_user_id_callback=who))
    async with maker() as session:
        session.add(Account(id=1, name="a"))
        await session.commit()
        await session.execute(update(Account).values(name="b"))
        await session.commit()

    assert await actors(engine) == [("1", "77"), ("1", "77")]


async def test_nobody_is_refused_where_somebody_is_required(maker: Maker, engine: AsyncEngine) -> None:
    """With require_user nothing is sent for nobody, and the session stays usable."""
    set_config(SQLAuditConfig(require_user=True))
    async with maker() as session:
        with sent_statements(engine) as sent:
            with pytest.raises(ActorRequiredError, match="Account"):
                await session.execute(insert(Account).values(id=1, name="a"))
            assert [each for each in sent if each.verb == "INSERT"] == []
        with audit_context(user_id=1):
            await session.execute(insert(Account).values(id=1, name="a"))
            await session.commit()

    assert await actors(engine) == [("1", "1")]


async def test_a_flush_of_nobody_is_refused_where_somebody_is_required(maker: Maker, engine: AsyncEngine) -> None:
    """With require_user a flush of nobody writes nothing."""
    set_config(SQLAuditConfig(require_user=True))
    async with maker() as session:
        session.add(Account(id=1, name="a"))
        with pytest.raises(ActorRequiredError, match="Account"):
            await session.flush()

    assert await stored_trail(engine) == []


@pytest.mark.parametrize("model", [Signed, SignedInSession, SignedInBoth])
async def test_rows_may_name_the_actor_that_is_required(maker: Maker, engine: AsyncEngine, model: type[Any]) -> None:
    """With require_user, rows that name who made them need nobody else, whatever captures them; others are refused."""
    set_config(SQLAuditConfig(require_user=True))
    async with maker() as session:
        session.add(model(id=1, signed_by="7"))
        await session.flush()
        await session.execute(insert(model).values(id=2, signed_by="8"))
        await session.execute(update(model).where(model.id == 2).values(signed_by="9"))
        await session.execute(update(model).where(model.id == 3).values(signed_by=None))
        await session.commit()
        session.add(model(id=3))
        with pytest.raises(ActorRequiredError, match=model.__name__):
            await session.flush()
        await session.rollback()
        for statement in (insert(model).values(id=4), update(model).values(signed_by=None)):
            with pytest.raises(ActorRequiredError, match=model.__name__):
                await session.execute(statement)
            with pytest.raises(CaptureError):
                await session.commit()
            await session.rollback()
        if model is Signed:
            with pytest.raises(ActorRequiredError, match="Signed"):
                await session.execute(text("UPDATE told_signed SET id = 5 WHERE id = 1"))
            await session.rollback()
        await session.execute(delete(model).where(model.id == 1))
        await session.commit()

    assert await actors(engine) == [("1", "7"), ("2", "8"), ("2", "9"), ("1", "7")]


# SQLite's foreign keys do nothing unless they are switched on.
@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
async def test_rows_that_cascades_reach_need_the_actor_that_is_required(maker: Maker, engine: AsyncEngine) -> None:
    """Where nobody is known, an untracked row may go, unless tracked ones go with it."""
    async with maker() as session:
        session.add_all([Holder(id=1), Holder(id=2)])
        await session.flush()
        session.add(Held(id=1, holder_id=1))
        await session.commit()
    set_config(SQLAuditConfig(require_user=True))
    async with maker() as session:
        await session.execute(delete(Holder).where(Holder.id == 2))
        await session.commit()
        with pytest.raises(ActorRequiredError, match="Held"):
            await session.execute(delete(Holder))
        with pytest.raises(CaptureError):
            await session.commit()

    assert [change.operation for change in await stored_trail(engine)] == ["insert"]


async def test_a_raw_connection_can_say_who_writes(engine: AsyncEngine) -> None:
    """Within the block every transaction of the connection is told; afterwards it is nobody's again."""
    async with engine.connect() as connection:
        with audit_context(reason="import", batch=7):
            async with audited_connection(connection, user_id=42) as same:
                assert same is connection
                await connection.execute(text("INSERT INTO told_account (id, name) VALUES (1, 'a')"))
                await connection.exec_driver_sql("UPDATE told_account SET name = 'b'")
                await connection.commit()
                await connection.execute(text("UPDATE told_account SET name = 'c'"))
                await connection.rollback()
                await connection.execute(text("UPDATE told_account SET name = 'd'"))
                await connection.commit()
                await connection.execute(text("UPDATE told_account SET name = 'e'"))
            await connection.execute(text("UPDATE told_account SET name = 'f'"))
            await connection.commit()

    trail = await stored_trail(engine)
    assert [(change.changed_by, change.reason) for change in trail] == [("42", "import")] * 4 + [(None, None)]
    assert trail[0].context == {"batch": 7}
    first, second, third, fourth, _ = (change.transaction_id for change in trail)
    assert first == second
    assert len({first, third, fourth}) == 3


async def test_a_raw_connection_without_asyncio_can_say_who_writes(database: Database, engine: AsyncEngine) -> None:
    """The same for a plain Connection; a block that fails leaves nothing behind."""
    plain = database.make_engine()
    with plain.connect() as connection:
        with audited_connection(connection, user_id="x"):
            connection.execute(text("INSERT INTO told_account (id, name) VALUES (1, 'a')"))
            connection.commit()
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"), audited_connection(connection, user_id="y"):
            connection.execute(text("INSERT INTO told_account (id, name) VALUES (1, 'a')"))
        connection.rollback()
        connection.execute(text("UPDATE told_account SET name = 'b'"))
        connection.commit()
    plain.dispose()

    assert await actors(engine) == [("1", "x"), ("1", None)]


async def test_a_block_tells_every_transaction(engine: AsyncEngine) -> None:
    """One that the driver's SQL begins, and one whose savepoint took along what was told."""
    async with engine.connect() as connection:
        async with audited_connection(connection, user_id=1):
            await connection.commit()
            await connection.exec_driver_sql("INSERT INTO told_account (id, name) VALUES (1, 'a')")
            await connection.commit()
            await connection.execute(text("UPDATE told_account SET name = 'b'"))
            await connection.rollback()
        for end in ("rollback", "commit"):
            await connection.begin()
            savepoint = await connection.begin_nested()
            async with audited_connection(connection, user_id=end):
                await connection.execute(text(f"UPDATE told_account SET name = 'in {end}'"))
                await getattr(savepoint, end)()
                await connection.exec_driver_sql(f"UPDATE told_account SET name = 'after {end}'")
            await connection.execute(text(f"UPDATE told_account SET name = 'without {end}'"))
            await connection.commit()

    trail = await stored_trail(engine)
    assert [change.changed_by for change in trail] == ["1", "rollback", None, "commit", "commit", None]
    assert trail[3].transaction_id == trail[4].transaction_id


async def test_blocks_within_blocks(engine: AsyncEngine) -> None:
    """The innermost says who writes; after it, the one around it does again. Nothing is said twice."""
    async with engine.connect() as connection:
        async with audited_connection(connection, user_id="outer"):
            await connection.execute(text("INSERT INTO told_account (id, name) VALUES (1, 'a')"))
            async with audited_connection(connection, user_id="inner"):
                with sent_statements(engine) as sent:
                    await connection.execute(text("UPDATE told_account SET name = 'b'"))
                    await connection.exec_driver_sql("UPDATE told_account SET name = 'c'")
                assert [each.verb for each in sent] == ["UPDATE", "UPDATE"]
            await connection.exec_driver_sql("UPDATE told_account SET name = 'd'")
            async with audited_connection(connection, user_id="another"):
                await connection.commit()
            await connection.execute(text("UPDATE told_account SET name = 'e'"))
            await connection.commit()
        await connection.execute(text("UPDATE told_account SET name = 'f'"))
        await connection.commit()

    assert [actor for _, actor in await actors(engine)] == ["outer", "inner", "inner", "outer", "outer", None]


async def test_a_session_on_a_connection_with_a_block_says_itself(engine: AsyncEngine) -> None:
    """Its writes are by who acts in it; what is written beside it, by whom the block names."""
    async with engine.connect() as connection, audited_connection(connection, user_id="block"):
        await connection.execute(text("INSERT INTO told_account (id, name) VALUES (1, 'a')"))
        async with AsyncSession(connection) as session:
            register_hooks(session)
            with audit_context(user_id="session"):
                session.add(Account(id=2, name="a"))
                await session.commit()
        await connection.execute(text("UPDATE told_account SET name = 'b' WHERE id = 1"))
        await connection.commit()

    assert await actors(engine) == [("1", "block"), ("2", "session"), ("1", "block")]


async def test_a_block_may_end_as_it_likes(engine: AsyncEngine) -> None:
    """With a commit, a closed connection, a failure that was caught: nothing is raised, and nobody is left behind."""
    insert_it = text("INSERT INTO told_account (id, name) VALUES (1, 'a')")
    async with engine.connect() as connection:
        async with audited_connection(connection, user_id=1):
            await connection.execute(insert_it)
            await connection.commit()
        async with connection.begin():
            await connection.execute(text("UPDATE told_account SET name = 'b'"))
        async with connection.begin(), audited_connection(connection, user_id=2):
            await connection.execute(text("UPDATE told_account SET name = 'c'"))
            await connection.commit()
        async with audited_connection(connection, user_id=3):
            await connection.execute(text("UPDATE told_account SET name = 'd'"))
            savepoint = await connection.begin_nested()
            with pytest.raises(DBAPIError):
                await connection.execute(insert_it)
        await savepoint.rollback()
        await connection.execute(text("UPDATE told_account SET name = 'e'"))
        await connection.commit()
        async with audited_connection(connection, user_id=4):
            await connection.execute(text("UPDATE told_account SET name = 'f'"))
            await connection.close()
    await write_raw(engine, "UPDATE told_account SET name = 'g'")

    assert [actor for _, actor in await actors(engine)] == ["1", None, "2", "3", None, None]


async def test_a_session_needs_no_audited_connection(maker: Maker, engine: AsyncEngine) -> None:
    """Giving something else than a connection is an error that says what to do."""
    refused: Any = audited_connection
    async with maker() as session:
        with pytest.raises(TypeError, match="audit_context"):
            refused(session, user_id=1)
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(CaptureError, match="AUTOCOMMIT"):
            await audited_connection(autocommit, user_id=1).__aenter__()


async def test_missing_triggers_are_noticed(database: Database, maker: Maker, engine: AsyncEngine) -> None:
    """What nobody would record isn't written."""
    plain = database.make_engine()
    with plain.begin() as connection:
        for name in ("told_account", "sqlaudit_change"):
            connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text("CREATE TABLE told_account (id INTEGER PRIMARY KEY, name VARCHAR(40))"))
    fresh = database.make_async_engine()
    async with maker.class_(fresh) as session:
        register_hooks(session)
        session.add(Account(id=1, name="a"))
        with pytest.raises(TriggersMissingError, match="create_audit_tables"):
            await session.flush()
        await session.rollback()
        create_audit_tables_sync(plain, metadata=Base.metadata)
        session.add(Account(id=1, name="a"))
        await session.commit()
    plain.dispose()
    await fresh.dispose()

    assert await actors(engine) == [("1", None)]


async def test_each_change_is_recorded_once_while_a_table_moves(maker: Maker, engine: AsyncEngine) -> None:
    """With both captures, the session records what passes through it, and triggers the rest."""
    async with maker() as session:
        with audit_context(user_id=1):
            session.add(Moving(id=1, name="a"))
            await session.commit()
            await session.execute(update(Moving).values(name="b"))
            with pytest.raises(UncapturedStatementError):
                await session.execute(text("DELETE FROM told_moving"))
            await session.commit()
    await write_raw(engine, "UPDATE told_moving SET name = 'c'")
    async with maker() as session:
        with audit_context(user_id=2):
            await session.delete(await session.get_one(Moving, 1))
            await session.commit()

    changes = await changes_of(maker, Moving)
    assert [(change.operation, change.changed_by) for change in changes if change.field_name == "name"] == [
        ("insert", "1"),
        ("update", "1"),
        ("update", None),
        ("delete", "2"),
    ]
    await story_of(maker, Moving)


async def test_nothing_is_lost_while_a_table_moves(maker: Maker, engine: AsyncEngine) -> None:
    """What the application's own triggers write is recorded, in whatever flush or statement of a session, and once."""
    await let_notes_write(engine, "told_moving")
    async with maker() as session:
        with audit_context(user_id=1):
            session.add_all([Moving(id=1, name="a"), Note(id=2, text="a")])
            await session.flush()
            session.add(Note(id=3, text="a"))
            await session.flush()
            await session.execute(update(Moving).where(Moving.id == 1).values(name="b"))
            await session.execute(insert(Note), [{"id": 4, "text": "a"}, {"id": 5, "text": "a"}])
            await session.execute(update(Moving).where(Moving.id == 2).values(name="b"))
            await session.execute(text("INSERT INTO told_note (id, text) VALUES (6, 'a')"))
            session.add(Moving(id=7, name="a"))
            await session.flush()
            await (await session.connection()).run_sync(write_by_driver, "INSERT INTO told_note VALUES (8, 'a')")
            await session.execute(delete(Moving).where(Moving.id < 3))
            await (await session.connection()).run_sync(write_by_driver, "INSERT INTO told_note VALUES (9, 'a')")
            await session.commit()

    assert await story_of(maker, Moving)
    trail = await stored_trail(engine)
    assert {change.changed_by for change in trail} == {"1"}
    assert len({change.transaction_id for change in trail}) == 1
    assert len(trail) == 13


def write_by_driver(connection: Connection, sql: str) -> None:
    """Execute SQL of which SQLAlchemy hears nothing."""
    cursor = connection.connection.cursor()
    cursor.execute(sql)
    cursor.close()


async def test_nothing_is_told_twice_while_a_table_moves(maker: Maker, engine: AsyncEngine, database: Database) -> None:
    """Cascades, defaults for which SQL is sent, many rows, what follows a savepoint or a failure: recorded once."""
    strict = database.make_async_engine()
    if database.kind == "sqlite":

        @event.listens_for(strict.sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    async with maker.class_(strict) as session:
        register_hooks(session)
        session.add_all([Holder(id=1), Holder(id=2)])
        await session.flush()
        session.add_all([MovingPart(id=1, holder_id=1), MovingPart(id=2, holder_id=2, number=3)])
        await session.flush()
        await session.execute(insert(MovingPart), [{"id": id_, "holder_id": 1} for id_ in (3, 4)])
        async with session.begin_nested() as savepoint:
            await session.execute(update(MovingPart).values(number=MovingPart.number + 1))
            await savepoint.rollback()
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await session.execute(insert(MovingPart).values(id=3, holder_id=1))
        await session.execute(update(MovingPart).values(number=MovingPart.number + 1))
        await session.execute(delete(Holder).where(Holder.id == 1))
        await session.delete(await session.get_one(Holder, 2))
        await session.commit()
    await strict.dispose()

    if database.kind != "mariadb":
        # There no trigger fires for what foreign keys do, the witness' neither.
        await story_of(maker, MovingPart)
    trail = await stored_trail(engine)
    assert [change.operation for change in trail] == ["insert"] * 4 + ["update"] * 4 + ["delete"] * 4


async def test_a_moving_table_costs_two_statements_a_flush(maker: Maker, engine: AsyncEngine) -> None:
    """The triggers are told to be silent, and not to be any more; in a flush of one table once each."""
    async with maker() as session:
        session.add(Moving(id=1, name="a"))
        await session.commit()
        with sent_statements(engine) as sent:
            session.add_all([Moving(id=number, name="a") for number in range(2, 9)])
            await session.flush()
            await session.rollback()

    assert len([each for each in sent if "published" in each.sql]) == 2


async def test_plain_sessions_say_who_writes(database: Database, engine: AsyncEngine) -> None:
    """A Session without asyncio tells the same."""
    plain = database.make_engine()
    with Session(plain) as session:
        register_hooks(session)
        with audit_context(user_id=3):
            session.add(Account(id=1, name="a"))
            session.commit()
    plain.dispose()

    assert await actors(engine) == [("1", "3")]
