"""What faults, places, pools and MariaDB once got past the trail: ways that tests had found, and that stay closed."""

import asyncio
import contextlib
import datetime as dt
import uuid
from typing import Any

import pytest
from sqlalchemy import Index, String, Text, delete, text, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker, read_rows, save, start_audit, stored_changes, story_of
from databases import Database
from observing import stored_trail
from sqlaudit import (
    SQLAuditConfig,
    check_audit_tables,
    create_audit_tables,
    get_resource_changes,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.exceptions import CaptureError, RetrievalError, TrailMissingError, UncapturedStatementError


class Items(DeclarativeBase):
    pass


@track_table()
class Item(Items):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str | None] = mapped_column(String(50), unique=True)
    amount: Mapped[int] = mapped_column(default=0)


class Words(DeclarativeBase):
    pass


@track_table()
class Exact(Words):
    __tablename__ = "exact"

    word: Mapped[str] = mapped_column(String(700), primary_key=True)
    meaning: Mapped[str | None] = mapped_column(String(60))


async def test_upsert_that_changes_the_primary_key_ends_one_resource_and_begins_another(
    maker: Maker, database: Database
) -> None:
    """A row that an upsert gives another primary key is told as a delete and an insert, or it is refused."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=10))
    values: dict[str, Any] = {"id": 5, "code": "a", "amount": 5}
    statement: Any
    if database.kind == "mariadb":
        statement = mysql.insert(Item).values(**values).on_duplicate_key_update(id=9)
    else:
        dialect = postgresql if database.kind == "postgresql" else sqlite
        statement = dialect.insert(Item).values(**values)
        statement = statement.on_conflict_do_update(index_elements=["code"], set_={"id": 9})

    async with maker() as session:
        try:
            await session.execute(statement)
            await session.commit()
        except Exception as refusal:  # noqa: BLE001 (any will do, if nothing was changed)
            told = str(refusal)
            await session.rollback()
            assert "item" in told
            assert await read_rows(maker, "SELECT id FROM item") == [(1,)]
            return

    assert [each[:2] for each in await stored_changes(maker, "Item")] == [
        ("insert", "1"),
        ("delete", "1"),
        ("insert", "9"),
    ]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
async def test_key_that_is_too_long_fails_without_strict_mode_too(maker: Maker, engine: AsyncEngine) -> None:
    """A resource id that the trail's column can't hold is never cut off, whatever the server's sql_mode says."""
    await start_audit(maker, Words)

    async with maker() as session:
        await session.execute(text("SET SESSION sql_mode = ''"))
        session.add(Exact(word="é" * 661))
        with pytest.raises(Exception, match=r"resource_id|too long|660"):
            await session.commit()
        await session.rollback()
        await session.execute(text("SET SESSION sql_mode = DEFAULT"))

    assert await read_rows(maker, "SELECT char_length(word) FROM exact") == []
    assert await stored_trail(engine) == []


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
async def test_trail_is_checked_where_the_schema_translate_map_leads(engine: AsyncEngine, database: Database) -> None:
    """Checking looks for the trail where writing and creating go: in the schema that the engine's map names."""
    name = f"place_{uuid.uuid4().hex}"
    what, cascade = ("DATABASE", "") if database.kind == "mariadb" else ("SCHEMA", "CASCADE")
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE {what} {name}"))
    there = engine.execution_options(schema_translate_map={None: name})
    try:
        await create_audit_tables(engine)
        with pytest.raises(TrailMissingError):
            await check_audit_tables(there)
        await create_audit_tables(there)
        async with engine.begin() as connection:
            await connection.execute(text("DROP TABLE sqlaudit_change"))
        await check_audit_tables(there)
    finally:
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP {what} {name} {cascade}"))


async def test_range_within_the_hour_that_comes_twice(engine: AsyncEngine, maker: Maker) -> None:
    """A range from 3:45 in summer to 3:15 in winter is half an hour, not one that ends before it starts."""
    set_config(SQLAuditConfig(time_zone="Europe/Kyiv"))
    register_hooks(maker)
    async with engine.begin() as connection:
        await connection.run_sync(Items.metadata.create_all)
    await save(maker(), Item(id=1))
    offset = "+00" if engine.dialect.name == "postgresql" else ""
    async with engine.begin() as connection:
        await connection.execute(text(f"UPDATE sqlaudit_change SET recorded_at = '2026-10-25 01:00:00.000000{offset}'"))
    start = dt.datetime(2026, 10, 25, 3, 45)  # noqa: DTZ001
    end = dt.datetime(2026, 10, 25, 3, 15, fold=1)  # noqa: DTZ001

    async with maker() as session:
        changes = await get_resource_changes(Item, session=session, filter_fields="id", filter_date_range=(start, end))
        with pytest.raises(RetrievalError):
            await get_resource_changes(Item, session=session, filter_date_range=(end, start))

    assert [each.resource_id for each in changes] == [1]


@pytest.mark.parametrize("how", ["session's", "lent"])
async def test_change_without_its_trail_is_not_committed_through_the_connection(
    engine: AsyncEngine, maker: Maker, how: str
) -> None:
    """When a statement was sent and its trail failed, committing the connection itself doesn't keep the statement."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, amount=1))
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE sqlaudit_change"))

    async with engine.connect() as lent:
        await lent.begin()
        options: dict[str, Any] = {} if how == "session's" else {"bind": lent, "join_transaction_mode": "control_fully"}
        async with maker(**options) as session:
            own = await session.connection()
            with pytest.raises(TrailMissingError):
                await own.execute(update(Item).values(amount=2))
            with contextlib.suppress(Exception):
                await (own if how == "session's" else lent).commit()

    assert await read_rows(maker, "SELECT amount FROM item") == [(1,)]


class Documents(DeclarativeBase):
    pass


@track_table()
class Letter(Documents):
    __tablename__ = "letter"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(Text().with_variant(mysql.LONGTEXT, "mysql", "mariadb"))


async def test_long_text_that_the_database_takes_is_recorded(maker: Maker, engine: AsyncEngine) -> None:
    """Six megabytes of letters beyond ASCII, which MariaDB takes in a packet of 16, can be written and are recorded."""
    await start_audit(maker, Documents)
    body = "é" * 3_000_000

    await save(maker(), Letter(id=1, body=body))

    (change,) = await stored_trail(engine)
    assert change.new_values == {"id": 1, "body": body}


class Prefixes(DeclarativeBase):
    pass


@track_table()
class Prefixed(Prefixes):
    """Two codes with the same first three letters are duplicates."""

    __tablename__ = "prefixed"
    __table_args__ = (Index("prefixed_code", "code", unique=True, mysql_length=3, mariadb_length=3),)

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(50))
    amount: Mapped[int] = mapped_column(default=0)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("how", ["values", "executemany"])
async def test_upsert_that_meets_a_row_by_the_prefix_of_its_key(maker: Maker, how: str) -> None:
    """A duplicate by a unique index on a part of a column is told, or the upsert is refused; it isn't missed."""
    await start_audit(maker, Prefixes)
    await save(maker(), Prefixed(id=1, code="abcX", amount=1))
    rows = [{"id": 5, "code": "new", "amount": 5}, {"id": 6, "code": "abcY", "amount": 6}]
    statement = mysql.insert(Prefixed)
    if how == "values":
        statement = statement.values(rows)
    statement = statement.on_duplicate_key_update(amount=statement.inserted.amount)

    async with maker() as session:
        with contextlib.suppress(CaptureError):
            await session.execute(statement, None if how == "values" else rows)
            await session.commit()

    await story_of(maker, Prefixed)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize(
    "sql",
    [
        "INSERT item SET id = 9",
        "INSERT LOW_PRIORITY INTO item (id, amount) VALUES (9, 0)",
        "INSERT HIGH_PRIORITY IGNORE INTO item (id, amount) VALUES (9, 0)",
        "REPLACE item (id, amount) VALUES (1, 9)",
        "REPLACE LOW_PRIORITY INTO item (id, amount) VALUES (1, 9)",
        "UPDATE IGNORE item SET amount = 9",
        "UPDATE LOW_PRIORITY item SET amount = 9",
        "UPDATE word JOIN item ON item.id = 1 SET item.amount = 9",
        "UPDATE word, item SET item.amount = 9",
        "DELETE QUICK FROM item",
        "DELETE LOW_PRIORITY FROM item",
        "DELETE item FROM item JOIN word",
        "DELETE FROM word, item USING word JOIN item",
        "/*!50000 UPDATE item SET amount = 9 */",
        "/*M!100000 DELETE FROM item */",
    ],
)
async def test_text_that_only_mariadb_knows_is_refused(maker: Maker, sql: str) -> None:
    """DML in text is refused in the forms of MariaDB, too: without INTO or FROM, with modifiers, of several tables."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, amount=1))
    async with maker.kw["bind"].begin() as connection:
        await connection.execute(text("CREATE TABLE word (word int)"))
        await connection.execute(text("INSERT INTO word VALUES (1)"))

    async with maker() as session:
        with pytest.raises(UncapturedStatementError):
            await session.execute(text(sql))
        await session.commit()

    assert await read_rows(maker, "SELECT id, amount FROM item") == [(1, 1)]


class Timeouts:
    """What PostgreSQL says of a row that another transaction holds, or has changed."""

    statement = "SET LOCAL statement_timeout = '150ms'"
    lock = "SET LOCAL lock_timeout = '150ms'"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("limit", [Timeouts.statement, Timeouts.lock], ids=["statement", "lock"])
@pytest.mark.parametrize("verb", ["update", "delete"])
async def test_timeout_of_a_statement_surfaces_as_sqlalchemy_raises_it(
    engine: AsyncEngine, maker: Maker, limit: str, verb: str
) -> None:
    """A statement that waits for a row too long fails with SQLAlchemy's error, audited or not."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1))
    statement = update(Item).values(amount=1) if verb == "update" else delete(Item)
    errors = []

    async with async_sessionmaker(engine)() as holder:
        await holder.execute(text("UPDATE item SET amount = 5 WHERE id = 1"))
        for each in (async_sessionmaker(engine), maker):
            async with each() as session:
                await session.execute(text(limit))
                with pytest.raises(Exception, match="timeout") as raised:
                    await session.execute(statement)
                errors.append(raised.value)

    assert [type(each) for each in errors] == [DBAPIError, DBAPIError]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_serialization_failure_of_a_statement_surfaces_as_sqlalchemy_raises_it(
    database: Database, level: str
) -> None:
    """A statement on a row that has changed meanwhile fails with SQLAlchemy's error, which loops that retry catch."""
    engine = database.make_async_engine(isolation_level=level)
    maker = async_sessionmaker(engine)
    await start_audit(maker, Items)
    await save(maker(), Item(id=1))
    errors = []

    for number, each in enumerate((async_sessionmaker(engine), maker), 1):
        async with each() as late:
            await late.execute(text("SELECT count(*) FROM item"))
            async with maker() as early:
                (await early.get_one(Item, 1)).amount = number
                await early.commit()
            with pytest.raises(Exception, match="could not serialize") as raised:
                await late.execute(update(Item).values(amount=9))
            errors.append(raised.value)
    await engine.dispose()

    assert [type(each) for each in errors] == [DBAPIError, DBAPIError]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_deadlock_of_statements_surfaces_as_sqlalchemy_raises_it(engine: AsyncEngine, maker: Maker) -> None:
    """Two audited statements that lock each other out: one fails with SQLAlchemy's error."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1), Item(id=2))
    both = asyncio.Barrier(2)

    async def work(first: int, second: int) -> None:
        async with maker() as session:
            await session.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
            await session.execute(update(Item).where(Item.id == first).values(amount=first))
            await both.wait()
            await session.execute(update(Item).where(Item.id == second).values(amount=first))
            await session.commit()

    ends = await asyncio.gather(work(1, 2), work(2, 1), return_exceptions=True)

    assert [type(each) for each in ends if each is not None] == [DBAPIError]
