"""Laws 2, 3 and 7 where MariaDB has ways of its own: upserts, collations, cascades, limits, locks."""

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    FetchedValue,
    ForeignKey,
    Index,
    Insert,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker, read_rows, save, start_audit, stored_changes, story_of
from observing import stored_trail
from sqlaudit import track, track_table
from sqlaudit.exceptions import UncapturedStatementError

pytestmark = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


class Items(DeclarativeBase):
    pass


class Places(DeclarativeBase):
    pass


class Tickets(DeclarativeBase):
    pass


class Sources(DeclarativeBase):
    pass


class Words(DeclarativeBase):
    pass


@track_table()
class Item(Items):
    """Two keys by which a new row may be a duplicate; the second may be NULL."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str | None] = mapped_column(String(50), unique=True)
    amount: Mapped[int] = mapped_column(default=0)


@track_table()
class Place(Places):
    """A duplicate by two columns together, one of which Python fills in."""

    __tablename__ = "place"
    __table_args__ = (Index("place_where", "shelf", "box", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf: Mapped[str] = mapped_column(String(20), default="north")
    box: Mapped[int]
    amount: Mapped[int] = mapped_column(default=0)


@track_table()
class Ticket(Tickets):
    """A duplicate by a column that the server fills in."""

    __tablename__ = "ticket"
    __table_args__ = (UniqueConstraint("serial"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    serial: Mapped[int] = mapped_column(server_default="7")
    amount: Mapped[int] = mapped_column(default=0)


class Source(Sources):
    """Not tracked: where rows are taken from."""

    __tablename__ = "source"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str | None] = mapped_column(String(50))
    amount: Mapped[int]


def on_duplicate(statement: mysql.Insert) -> mysql.Insert:
    """Return *statement* as an upsert that takes the new amount."""
    return statement.on_duplicate_key_update(amount=statement.inserted.amount)


async def run(maker: Maker, statement: Any, parameters: Any = None) -> Any:
    """Execute and commit one statement in a session of its own; return its rowcount."""
    async with maker() as session:
        result = await session.execute(statement, parameters)
        await session.commit()
        return getattr(result, "rowcount", None)


def inserted(id_: int, code: str | None, amount: int) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """Return what the story tells of a new item."""
    return "insert", {"id": (None, id_), "code": (None, code), "amount": (None, amount)}


async def create(maker: Maker, models: type[DeclarativeBase]) -> None:
    """Create the tables of further models, without a witness."""
    async with maker.kw["bind"].begin() as connection:
        await connection.run_sync(models.metadata.create_all)


# --- INSERT … ON DUPLICATE KEY UPDATE --------------------------------------------------------------------------------


async def test_upsert_of_one_row_is_an_insert_and_then_an_update(maker: Maker) -> None:
    """The first upsert of a key is told as an insert, the next as an update of what it changed."""
    await start_audit(maker, Items)

    await run(maker, on_duplicate(insert(Item).values(id=1, code="a", amount=1)))
    await run(maker, on_duplicate(insert(Item).values(id=1, code="a", amount=2)))

    assert await story_of(maker, Item) == [inserted(1, "a", 1), ("update", {"amount": (1, 2)})]


async def test_upsert_keeps_the_rowcount(maker: Maker) -> None:
    """An upsert's rowcount is MariaDB's own: one for a new row, two for a changed one, none (or one found) else."""
    await start_audit(maker, Items)
    unaudited = Table("unaudited", MetaData(), Column("id", Integer, primary_key=True), Column("amount", Integer))
    async with maker() as session:
        await (await session.connection()).run_sync(unaudited.create)

    for amount in (1, 2, 2):
        expected = await run(maker, on_duplicate(insert(unaudited).values(id=1, amount=amount)))
        assert await run(maker, on_duplicate(insert(Item).values(id=1, amount=amount))) == expected


async def test_upsert_of_many_values_tells_each_row(maker: Maker) -> None:
    """One INSERT of several rows is told row by row: those that are new, those that were met, not those left alone."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1), Item(id=2, code="b", amount=2))

    rows = [{"id": 1, "code": "a", "amount": 9}, {"id": 2, "code": "b", "amount": 2}, {"id": 3, "code": "c"}]
    await run(maker, on_duplicate(insert(Item).values([{"amount": 5, **row} for row in rows])))

    assert (await story_of(maker, Item))[2:] == [("update", {"amount": (1, 9)}), inserted(3, "c", 5)]


async def test_upsert_with_many_parameter_sets_tells_each_row(maker: Maker) -> None:
    """An executemany of an upsert is told row by row."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1), Item(id=2, code="b", amount=2))

    await run(
        maker,
        on_duplicate(insert(Item)),
        [{"id": 1, "code": "a", "amount": 9}, {"id": 2, "code": "b", "amount": 2}, {"id": 3, "code": "c", "amount": 5}],
    )

    assert (await story_of(maker, Item))[2:] == [("update", {"amount": (1, 9)}), inserted(3, "c", 5)]


async def test_upsert_of_the_same_key_twice_is_the_net_change(maker: Maker) -> None:
    """Rows of one upsert that meet each other are told as what became of them together."""
    await start_audit(maker, Items)

    await run(maker, on_duplicate(insert(Item).values([{"id": 1, "amount": 1}, {"id": 1, "amount": 2}])))

    assert await stored_changes(maker, "Item") == [("insert", "1", None, {"id": 1, "code": None, "amount": 2})]
    assert await read_rows(maker, "SELECT id, amount FROM item") == [(1, 2)]


async def test_upsert_from_a_select_tells_each_row(maker: Maker) -> None:
    """An upsert of what a SELECT finds is told row by row."""
    await start_audit(maker, Items)
    await create(maker, Sources)
    await save(maker(), Item(id=1, code="a", amount=1), Item(id=2, code="b", amount=2))
    await save(maker(), *(Source(id=id_, code=code, amount=7) for id_, code in ((2, "b"), (3, "c"), (4, None))))

    chosen = select(Source.id, Source.code, Source.amount).where(Source.id > 1)
    statement = insert(Item).from_select(["id", "code", "amount"], chosen)
    await run(maker, statement.on_duplicate_key_update(amount=statement.inserted.amount + 1))

    assert sorted((await story_of(maker, Item))[2:], key=repr) == sorted(
        [("update", {"amount": (2, 8)}), inserted(3, "c", 7), inserted(4, None, 7)], key=repr
    )


async def test_upsert_that_meets_another_unique_key_is_an_update_of_that_row(maker: Maker) -> None:
    """A duplicate by a unique key updates the row that has it, under that row's own primary key."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1))

    await run(maker, on_duplicate(insert(Item).values(id=50, code="a", amount=2)))

    assert await story_of(maker, Item) == [inserted(1, "a", 1), ("update", {"amount": (1, 2)})]
    assert [key for _, key, *_ in await stored_changes(maker, "Item")] == ["1", "1"]


async def test_upsert_that_meets_two_rows_tells_the_one_that_is_updated(maker: Maker) -> None:
    """When the primary key is one row's and the unique key another's, MariaDB updates one: that one is told."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1), Item(id=2, code="b", amount=2))

    await run(maker, on_duplicate(insert(Item).values(id=1, code="b", amount=9)))

    assert len((await story_of(maker, Item))[2:]) == 1
    assert await stored_changes(maker, "Item") == [
        ("insert", "1", None, {"id": 1, "code": "a", "amount": 1}),
        ("insert", "2", None, {"id": 2, "code": "b", "amount": 2}),
        ("update", "1", {"amount": 1}, {"amount": 9}),
    ]


async def test_null_in_a_unique_key_meets_nothing(maker: Maker) -> None:
    """Rows whose unique key is NULL are no duplicates of each other: each is told as an insert."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code=None, amount=1))

    await run(maker, on_duplicate(insert(Item).values([{"id": 2, "code": None}, {"id": 3, "code": None}])))

    assert await story_of(maker, Item) == [inserted(1, None, 1), inserted(2, None, 0), inserted(3, None, 0)]


async def test_upsert_without_the_generated_key_is_found_by_the_other(maker: Maker) -> None:
    """Without its autoincrement key, a row is found by its unique key: new ones with the key that they got."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=7, code="a", amount=1))

    await run(maker, on_duplicate(insert(Item).values([{"code": "a", "amount": 2}, {"code": "b", "amount": 3}])))
    await run(maker, on_duplicate(insert(Item)), [{"code": "b", "amount": 4}, {"code": "c", "amount": 5}])

    story = await story_of(maker, Item)
    assert [operation for operation, _ in story] == ["insert", "update", "insert", "update", "insert"]
    keys = dict(await read_rows(maker, "SELECT code, id FROM item"))
    assert [key for _, key, *_ in await stored_changes(maker, "Item")] == [
        str(keys[code]) for code in ("a", "a", "b", "b", "c")
    ]


async def test_upsert_that_no_key_finds_is_refused(maker: Maker) -> None:
    """With neither the generated key nor a value for the unique one, nobody knows which row: refused, not sent."""
    await start_audit(maker, Items)

    async with maker() as session:
        with pytest.raises(UncapturedStatementError, match="upsert"):
            await session.execute(on_duplicate(insert(Item).values(amount=2)))
        session.add(Item(id=1))
        await session.commit()

    assert await story_of(maker, Item) == [inserted(1, None, 0)]


async def test_upsert_by_a_unique_key_of_the_servers_default_is_refused(maker: Maker) -> None:
    """Whether a default that the server fills in is a duplicate can't be known before: refused; given, it is told."""
    await start_audit(maker, Tickets)
    await save(maker(), Ticket(id=1, serial=7, amount=1))

    with pytest.raises(UncapturedStatementError, match="upsert"):
        await run(maker, on_duplicate(insert(Ticket).values(id=2, amount=2)))
    await run(maker, on_duplicate(insert(Ticket).values(id=2, serial=7, amount=2)))

    assert (await story_of(maker, Ticket))[1:] == [("update", {"amount": (1, 2)})]
    assert await read_rows(maker, "SELECT id, serial, amount FROM ticket") == [(1, 7, 2)]


async def test_upsert_of_an_expression_in_a_key_is_refused(maker: Maker) -> None:
    """A key that SQL will compute can't be looked up before: refused."""
    await start_audit(maker, Items)

    with pytest.raises(UncapturedStatementError, match="plain values"):
        await run(maker, on_duplicate(insert(Item).values(id=1, code=func.lower("A"), amount=2)))

    assert await read_rows(maker, "SELECT id FROM item") == []


async def test_upsert_by_a_key_with_a_default_of_python(maker: Maker) -> None:
    """A part of a unique key that a scalar default of Python fills in is known: the row is met by it."""
    await start_audit(maker, Places)
    await save(maker(), Place(id=1, shelf="north", box=1, amount=1))

    await run(maker, on_duplicate(insert(Place).values(box=1, amount=2)))
    await run(maker, on_duplicate(insert(Place)), [{"box": 1, "amount": 3}, {"box": 2, "amount": 4}])

    story = await story_of(maker, Place)
    assert [operation for operation, _ in story] == ["insert", "update", "update", "insert"]
    assert await read_rows(maker, "SELECT shelf, box, amount FROM place ORDER BY box") == [
        ("north", 1, 3),
        ("north", 2, 4),
    ]


async def test_upsert_meets_what_the_collation_calls_the_same(maker: Maker) -> None:
    """Duplicates by a collation that ignores case and accents are met and told, with the letters before and after."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="caffè", amount=1))

    statement = insert(Item).values([{"code": "CAFFE", "amount": 2}, {"code": "tea", "amount": 3}])
    await run(maker, statement.on_duplicate_key_update(code=statement.inserted.code, amount=statement.inserted.amount))

    assert (await story_of(maker, Item))[1:2] == [("update", {"code": ("caffè", "CAFFE"), "amount": (1, 2)})]
    assert [code for (code,) in await read_rows(maker, "SELECT code FROM item ORDER BY amount")] == ["CAFFE", "tea"]


async def test_duplicates_within_one_upsert_by_the_collation_are_one_row(maker: Maker) -> None:
    """Two new rows that the collation calls the same become one row, and one insert."""
    await start_audit(maker, Items)

    await run(maker, on_duplicate(insert(Item).values([{"code": "a", "amount": 1}, {"code": "A", "amount": 2}])))
    await run(maker, on_duplicate(insert(Item)), [{"code": "b", "amount": 1}, {"code": "B ", "amount": 2}])

    rows = await read_rows(maker, "SELECT id, code, amount FROM item ORDER BY id")
    assert [tuple(row[1:]) for row in rows] == [("a", 2), ("b", 2)]
    assert await stored_changes(maker, "Item") == [
        ("insert", str(id_), None, {"id": id_, "code": code, "amount": amount}) for id_, code, amount in rows
    ]


async def test_upsert_to_the_same_is_no_change(maker: Maker) -> None:
    """An upsert that leaves a row as it was leaves no trail."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1))

    await run(maker, on_duplicate(insert(Item).values(id=1, code="a", amount=1)))
    await run(maker, insert(Item).values(id=1, code="z", amount=5).on_duplicate_key_update(id=Item.id))

    assert await story_of(maker, Item) == [inserted(1, "a", 1)]


async def test_upsert_that_computes_from_the_old_value(maker: Maker) -> None:
    """What ON DUPLICATE KEY UPDATE computes from the row it meets is told as it came out."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=10))

    for _ in range(2):
        await run(maker, insert(Item).values(id=1, amount=5).on_duplicate_key_update(amount=Item.amount + 5))

    assert (await story_of(maker, Item))[1:] == [("update", {"amount": (10, 15)}), ("update", {"amount": (15, 20)})]


async def test_upsert_that_fails_leaves_no_trail(maker: Maker, engine: AsyncEngine) -> None:
    """An upsert whose update would itself be a duplicate fails as MariaDB says, and leaves nothing."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a"), Item(id=2, code="b"))

    with pytest.raises(IntegrityError):
        await run(maker, insert(Item).values(id=1, amount=5).on_duplicate_key_update(code="b"))

    assert len(await stored_trail(engine)) == 2
    assert await story_of(maker, Item) == [inserted(1, "a", 0), inserted(2, "b", 0)]


# --- INSERT IGNORE ---------------------------------------------------------------------------------------------------


def ignoring(statement: Insert) -> Insert:
    """Return *statement* as an INSERT IGNORE."""
    return statement.prefix_with("IGNORE")


async def test_insert_ignore_tells_the_rows_that_were_inserted(maker: Maker) -> None:
    """Of an INSERT IGNORE, what was inserted is told; duplicates were left as they are, and leave no trail."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1))

    await run(maker, ignoring(insert(Item).values(id=1, code="x", amount=2)))
    await run(
        maker, ignoring(insert(Item).values([{"id": 1, "code": "y"}, {"id": 2, "code": "A"}, {"id": 3, "code": "c"}]))
    )
    await run(maker, ignoring(insert(Item).values(code="d")))

    story = await story_of(maker, Item)
    assert story[:2] == [inserted(1, "a", 1), inserted(3, "c", 0)]
    assert [(fields["code"], fields["amount"]) for _, fields in story[2:]] == [((None, "d"), (None, 0))]


async def test_insert_ignore_from_a_select_tells_the_rows_that_were_inserted(maker: Maker) -> None:
    """An INSERT IGNORE of what a SELECT finds is told row by row."""
    await start_audit(maker, Items)
    await create(maker, Sources)
    await save(maker(), Item(id=1, code="a", amount=1))
    await save(maker(), *(Source(id=id_, code=code, amount=7) for id_, code in ((1, "b"), (3, "c"), (4, None))))

    chosen = select(Source.id, Source.code, Source.amount)
    await run(maker, ignoring(insert(Item).from_select(["id", "code", "amount"], chosen)))

    assert await story_of(maker, Item) == [inserted(1, "a", 1), inserted(3, "c", 7), inserted(4, None, 7)]


async def test_insert_ignore_of_many_parameter_sets_is_told_or_refused(maker: Maker) -> None:
    """An executemany of INSERT IGNORE is refused before it is sent, or told exactly."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1))

    sets = [{"id": 1, "code": "z"}, {"id": 2, "code": "b"}]
    try:
        await run(maker, ignoring(insert(Item)), sets)
    except UncapturedStatementError:
        assert await read_rows(maker, "SELECT id FROM item") == [(1,)]

    await story_of(maker, Item)


async def test_replace_is_refused(maker: Maker) -> None:
    """REPLACE, which deletes rows unseen, is refused."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1))

    with pytest.raises(UncapturedStatementError, match="REPLACE"):
        await run(maker, text("REPLACE INTO item (id, amount) VALUES (1, 2)"))

    assert await story_of(maker, Item) == [inserted(1, "a", 1)]


# --- UPDATE and DELETE of several tables, and with a limit -----------------------------------------------------------


async def test_update_that_joins_another_table_is_told(maker: Maker) -> None:
    """An UPDATE of several tables that sets columns of one tells what it did to that one."""
    await start_audit(maker, Items)
    await create(maker, Sources)
    await save(maker(), Item(id=1, code="a", amount=1), Item(id=2, code="b", amount=2), Item(id=3, code="c"))
    await save(maker(), Source(id=1, code="a", amount=7), Source(id=2, code="b", amount=2))

    matched = update(Item).where(Item.code == Source.code).values(amount=Source.amount)
    await run(maker, matched.execution_options(synchronize_session=False))

    assert (await story_of(maker, Item))[3:] == [("update", {"amount": (1, 7)})]


async def test_update_that_sets_columns_of_another_tracked_table_is_refused(maker: Maker) -> None:
    """An UPDATE that sets columns of two tracked tables is refused before it is sent; the session goes on."""
    await start_audit(maker, Items)
    await create(maker, Places)
    await save(maker(), Item(id=1, code="a", amount=1), Place(id=1, box=1, amount=1))

    items, places = Items.metadata.tables["item"], Places.metadata.tables["place"]
    both = update(items).where(items.c.id == places.c.id).values({items.c.amount: 5, places.c.amount: 6})
    async with maker() as session:
        with pytest.raises(UncapturedStatementError, match="one table at a time"):
            await session.execute(both)
        (await session.get_one(Item, 1)).amount = 3
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"amount": (1, 3)})]
    assert await read_rows(maker, "SELECT amount FROM place") == [(1,)]


async def test_update_that_sets_columns_of_a_tracked_table_beside_an_untracked_one_is_refused(maker: Maker) -> None:
    """An UPDATE of an untracked table that also sets columns of a tracked one is refused: it isn't missed."""
    await start_audit(maker, Items)
    await create(maker, Sources)
    await save(maker(), Item(id=1, code="a", amount=1), Source(id=1, code="a", amount=1))

    items, sources = Items.metadata.tables["item"], Sources.metadata.tables["source"]
    both = update(sources).where(items.c.id == sources.c.id).values({sources.c.amount: 5, items.c.amount: 6})
    with pytest.raises(UncapturedStatementError, match="item"):
        await run(maker, both)

    assert await read_rows(maker, "SELECT amount FROM item") == [(1,)]
    assert len(await story_of(maker, Item)) == 1


async def test_delete_that_joins_another_table_is_told(maker: Maker) -> None:
    """A DELETE … USING tells of the rows of its one target."""
    await start_audit(maker, Items)
    await create(maker, Sources)
    await save(maker(), Item(id=1, code="a", amount=1), Item(id=2, code="b", amount=2))
    await save(maker(), Source(id=1, code="a", amount=7))

    matched = delete(Item).where(Item.code == Source.code)
    await run(maker, matched.execution_options(synchronize_session=False))

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert", "insert", "delete"]
    assert await read_rows(maker, "SELECT id FROM item") == [(2,)]


def limited(verb: str) -> Any:
    """Return an UPDATE or DELETE with MariaDB's LIMIT, said in each way that there is."""
    statement: Any = update(Item).values(amount=5) if verb.startswith("update") else delete(Item)
    if verb.endswith("ext"):
        return statement.ext(mysql.limit(1))
    return statement.with_dialect_options(**{f"{verb.split('-')[1]}_limit": 1})


@pytest.mark.parametrize("said", ["mysql", "mariadb", *(["ext"] if hasattr(mysql, "limit") else [])])
@pytest.mark.parametrize("verb", ["update", "delete"])
async def test_statement_with_a_limit_is_refused(maker: Maker, verb: str, said: str) -> None:
    """Which rows a LIMIT leaves is the database's choice: refused before it is sent, with the remedy."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a", amount=1), Item(id=2, code="b", amount=2))

    async with maker() as session:
        with pytest.raises(UncapturedStatementError, match=r"LIMIT.*keys"):
            await session.execute(limited(f"{verb}-{said}"), execution_options={"synchronize_session": False})
        await session.commit()

    assert await read_rows(maker, "SELECT id, amount FROM item ORDER BY id") == [(1, 1), (2, 2)]
    assert len(await story_of(maker, Item)) == 2


# --- cascades, which MariaDB's triggers don't see --------------------------------------------------------------------


class Family(DeclarativeBase):
    pass


@track_table()
class Parent(Family):
    __tablename__ = "parent"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


@track_table()
class Child(Family):
    """Goes with its parent."""

    __tablename__ = "child"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id", ondelete="CASCADE"))


@track_table()
class Toy(Family):
    """Goes with the child that has it."""

    __tablename__ = "toy"

    id: Mapped[int] = mapped_column(primary_key=True)
    child_id: Mapped[int | None] = mapped_column(ForeignKey("child.id", ondelete="CASCADE"))


@track_table()
class Friend(Family):
    """Stays when the parent goes."""

    __tablename__ = "friend"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("parent.id", ondelete="SET NULL"))


async def replayed(engine: AsyncEngine, label: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a table that its trail adds up to, by resource id; each old value must be what was there."""
    rows: dict[str, dict[str, Any]] = {}
    for change in await stored_trail(engine):
        if change.resource_type != label:
            continue
        before = rows.get(change.resource_id, {})
        for key, value in (change.old_values or {}).items():
            assert before[key] == value
        if change.operation == "delete":
            del rows[change.resource_id]
        else:
            assert (change.operation == "insert") is not bool(before)
            rows[change.resource_id] = before | (change.new_values or {})
    return rows


async def assert_replays(engine: AsyncEngine, *models: type[Any]) -> None:
    """Fail unless the trail of each model adds up to its table, read by plain SQL."""
    for model in models:
        table = inspect(model).local_table
        async with engine.connect() as connection:
            stored = (await connection.execute(text(f"SELECT * FROM {table.name}"))).mappings().all()
        assert await replayed(engine, model.__name__) == {str(row["id"]): dict(row) for row in stored}


@pytest.mark.parametrize("how", ["object", "statement", "bulk"])
async def test_cascades_of_a_delete_are_told(maker: Maker, engine: AsyncEngine, how: str) -> None:
    """What ON DELETE CASCADE and SET NULL do to rows below is told with the delete, two levels down."""
    await start_audit(maker, Family)
    await save(maker(), Parent(id=1, name="a"), Parent(id=2, name="b"))
    await save(maker(), *(Child(id=10 * parent + n, parent_id=parent) for parent in (1, 2) for n in (1, 2)))
    await save(maker(), *(Toy(id=n, child_id=child) for n, child in enumerate((11, 12, 21, None), 1)))
    await save(maker(), Friend(id=1, parent_id=1), Friend(id=2, parent_id=2), Friend(id=3))

    async with maker() as session:
        if how == "object":
            await session.delete(await session.get_one(Parent, 1))
        elif how == "statement":
            await session.execute(delete(Parent).where(Parent.name == "a"))
        else:
            await session.execute(delete(Parent).where(Parent.id.in_(select(Child.parent_id).where(Child.id == 11))))
        await session.commit()

    await assert_replays(engine, Parent, Child, Toy, Friend)
    assert {each.what for each in (await stored_trail(engine))[13:]} == {
        ("delete", "Parent", "1"),
        ("delete", "Child", "11"),
        ("delete", "Child", "12"),
        ("delete", "Toy", "1"),
        ("delete", "Toy", "2"),
        ("update", "Friend", "1"),
    }


async def test_cascades_of_a_rolled_back_savepoint_leave_no_trail(maker: Maker, engine: AsyncEngine) -> None:
    """A delete with cascades that is rolled back to a savepoint took nothing, and is told as nothing."""
    await start_audit(maker, Family)
    await save(maker(), Parent(id=1, name="a"))
    await save(maker(), Child(id=1, parent_id=1), Friend(id=1, parent_id=1))

    async with maker() as session:
        savepoint = await session.begin_nested()
        await session.execute(delete(Parent))
        await savepoint.rollback()
        await session.commit()

    assert len(await stored_trail(engine)) == 3
    await assert_replays(engine, Parent, Child, Friend)


# --- columns that the server writes, collations, keys ----------------------------------------------------------------


async def test_time_stamps_that_the_server_updates_are_told(maker: Maker) -> None:
    """ON UPDATE CURRENT_TIMESTAMP, declared with server_onupdate, is told by flushes, statements and upserts alike."""

    class Models(DeclarativeBase):
        pass

    @track_table()
    class Note(Models):
        __tablename__ = "note"

        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str] = mapped_column(String(50))
        stamp: Mapped[Any] = mapped_column(
            mysql.TIMESTAMP(fsp=6),
            server_default=text("CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6)"),
            server_onupdate=FetchedValue(),
        )

    await start_audit(maker, Models)
    async with maker() as session:
        note = Note(id=1, body="a")
        session.add(note)
        await session.commit()
        (await session.get_one(Note, 1)).body = "b"
        await session.commit()
        await session.execute(update(Note).values(body="c"))
        statement = insert(Note).values(id=1, body="d")
        await session.execute(statement.on_duplicate_key_update(body=statement.inserted.body))
        await session.commit()

    story = await story_of(maker, Note)
    assert [(operation, sorted(fields)) for operation, fields in story] == [
        ("insert", ["body", "id", "stamp"]),
        *[("update", ["body", "stamp"])] * 3,
    ]
    stamps = [story[0][1]["stamp"][1], *(fields["stamp"][1] for _, fields in story[1:])]
    assert stamps == sorted(set(stamps))

    # A trigger sees a new time here, but none is stored.
    before = await read_rows(maker, "SELECT * FROM note")
    await run(maker, update(Note).values(body="d"))
    assert await read_rows(maker, "SELECT * FROM note") == before
    assert len(await stored_changes(maker, "Note")) == 4


@track_table()
class Word(Words):
    """A key of text, in the server's own collation, that ignores case and trailing blanks."""

    __tablename__ = "word"

    word: Mapped[str] = mapped_column(String(60), primary_key=True)
    meaning: Mapped[str | None] = mapped_column(String(60))


@track_table()
class Exact(Words):
    """A key of text that is compared to the letter."""

    __tablename__ = "exact"

    word: Mapped[str] = mapped_column(String(700, "utf8mb4_nopad_bin"), primary_key=True)
    meaning: Mapped[str | None] = mapped_column(String(60))


async def test_change_of_letters_that_the_collation_calls_the_same_is_told(maker: Maker) -> None:
    """An update of 'a' to 'A', to 'á' or to 'A ' is a change, though the database calls them equal."""
    await start_audit(maker, Words)
    await save(maker(), Word(word="x", meaning="a"))

    async with maker() as session:
        word = await session.get_one(Word, "x")
        for meaning in ("A", "á", "a "):
            word.meaning = meaning
            await session.commit()
            await session.refresh(word)
        await session.execute(update(Word).values(meaning="a"))
        await session.commit()

    assert [fields["meaning"] for _, fields in (await story_of(maker, Word))[1:]] == [
        ("a", "A"),
        ("A", "á"),
        ("á", "a "),
        ("a ", "a"),
    ]


async def test_rows_named_by_other_letters_are_told_by_their_own(maker: Maker) -> None:
    """A statement that names a row by letters that the collation calls the same is told under the row's own key."""
    await start_audit(maker, Words)
    await save(maker(), Word(word="Apple", meaning="a"))

    async with maker() as session:
        await session.execute(update(Word).where(Word.word == "APPLE ").values(meaning="b"))
        await session.execute(
            update(Word).execution_options(synchronize_session=None), [{"word": "aPPLE", "meaning": "c"}]
        )
        await session.execute(delete(Word).where(Word.word == "apple"))
        await session.commit()

    changes = await stored_changes(maker, "Word")
    assert [each[:2] for each in changes] == [
        ("insert", "Apple"),
        ("update", "Apple"),
        ("update", "Apple"),
        ("delete", "Apple"),
    ]
    await story_of(maker, Word)


async def test_keys_with_trailing_blanks_and_other_cases_are_resources_of_their_own(maker: Maker) -> None:
    """Keys that differ in blanks, case or accents only are different resources, each with its own trail."""
    await start_audit(maker, Words)
    keys = ["a", "a ", "a  ", "A", "á", "'", '"', "a/b", "😀"]
    await save(maker(), *(Exact(word=key) for key in keys))

    async with maker() as session:
        for number, key in enumerate(keys):
            (await session.get_one(Exact, key)).meaning = str(number)
        await session.commit()

    for number, key in enumerate(keys):
        told = await read_rows(
            maker,
            "SELECT operation, new_values FROM sqlaudit_change "
            "WHERE resource_type = 'Exact' AND resource_id = :key ORDER BY id",
            key=key,
        )
        assert [(operation, json.loads(new)["meaning"]) for operation, new in told] == [
            ("insert", None),
            ("update", str(number)),
        ]
    await story_of(maker, Exact)


async def test_labels_that_differ_in_case_are_told_apart(maker: Maker) -> None:
    """Two tables whose labels differ in case only have trails of their own."""
    metadata = MetaData()
    tables = [
        Table(name, metadata, Column("id", Integer, primary_key=True), Column("amount", Integer))
        for name in ("lower_case", "upper_case")
    ]
    track(tables[0], table_label="thing")
    track(tables[1], table_label="THING")
    await start_audit(maker, metadata)

    async with maker() as session:
        await session.execute(insert(tables[0]).values(id=1, amount=1))
        await session.execute(insert(tables[1]).values(id=1, amount=2))
        await session.execute(update(tables[0]).values(amount=3))
        await session.commit()

    assert await story_of(maker, tables[0]) == [
        ("insert", {"id": (None, 1), "amount": (None, 1)}),
        ("update", {"amount": (1, 3)}),
    ]
    assert await story_of(maker, tables[1]) == [("insert", {"id": (None, 1), "amount": (None, 2)})]


async def test_key_that_is_longer_than_the_trail_holds_fails(maker: Maker, engine: AsyncEngine) -> None:
    """A resource id of 660 characters is kept; a longer one fails the change loudly."""
    await start_audit(maker, Words)
    await save(maker(), Exact(word="é" * 660))

    async with maker() as session:
        session.add(Exact(word="é" * 661))
        with pytest.raises(Exception, match=r"resource_id|too long|660") as raised:
            await session.commit()
        assert isinstance(raised.value, (DBAPIError, UncapturedStatementError, RuntimeError))

    assert await read_rows(maker, "SELECT char_length(word) FROM exact") == [(660,)]
    assert [len(each.resource_id) for each in await stored_trail(engine)] == [660]


# --- locks -----------------------------------------------------------------------------------------------------------


async def test_concurrent_inserts_do_not_wait_for_each_other(maker: Maker, engine: AsyncEngine) -> None:
    """Two transactions that insert new rows beside each other both get on: our reads lock no gaps."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a"), Item(id=1000, code="z"))

    async with asyncio.timeout(15), maker() as first, maker() as second:
        for session in (first, second):
            await session.execute(text("SET SESSION innodb_lock_wait_timeout = 2"))
        first.add(Item(id=10, code="k"))
        second.add(Item(id=11, code="l"))
        await first.flush()
        await second.flush()
        first.add(Item(id=12, code="m"))
        second.add(Item(id=13, code="n"))
        await first.flush()
        await second.flush()
        await first.commit()
        await second.commit()

    assert len(await story_of(maker, Item)) == 6


async def test_concurrent_statements_that_insert_do_not_wait_for_each_other(maker: Maker) -> None:
    """Two transactions that send INSERT statements for new keys both get on, in turns."""
    await start_audit(maker, Items)
    await save(maker(), Item(id=1, code="a"), Item(id=1000, code="z"))

    async with asyncio.timeout(15), maker() as first, maker() as second:
        for session in (first, second):
            await session.execute(text("SET SESSION innodb_lock_wait_timeout = 2"))
        for step in range(3):
            for offset, session in enumerate((first, second)):
                number = 10 + 2 * step + offset
                await session.execute(insert(Item).values(id=number, code=f"code {number}"))
        await first.commit()
        await second.commit()

    assert len(await story_of(maker, Item)) == 8


async def test_generated_keys_of_concurrent_flushes_are_told(maker: Maker) -> None:
    """Many transactions at once, each inserting rows whose keys the server makes, leave one insert for each row."""
    await start_audit(maker, Items)

    async def work(number: int) -> None:
        for turn in range(5):
            async with maker() as session:
                session.add_all([Item(code=f"{number} {turn} {each}") for each in range(3)])
                await session.commit()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(work(number))

    assert len(await story_of(maker, Item)) == 60
