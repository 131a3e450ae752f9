"""Laws 2 and 3: what the trail tells of inserted rows is what the witness saw."""

import datetime as dt
import decimal
import enum
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker, changes_of, save, start_audit, story_of
from databases import Database
from sqlaudit import track_table


async def test_insert_is_told_under_its_generated_key(maker: Maker) -> None:
    """The resource id of an inserted row is the key that the database gave it."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a"))

    assert await story_of(maker, Item) == [("insert", {"id": (None, 1), "name": (None, "a")})]
    assert {change.resource_id for change in await changes_of(maker, Item)} == {1}


async def test_every_row_of_a_flush_is_told(maker: Maker) -> None:
    """Many objects that are added in one flush are one change each, in the order of the SQL."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, *(Item(name=f"item {number}") for number in range(50)))

    story = await story_of(maker, Item)
    assert [fields["name"][1] for _, fields in story] == [f"item {number}" for number in range(50)]


async def test_columns_that_nobody_set_are_told_as_null(maker: Maker) -> None:
    """An insert tells every column, those that stayed NULL too."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        unset: Mapped[str | None]
        given_none: Mapped[int | None]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(given_none=None))

    assert await story_of(maker, Item) == [
        ("insert", {"id": (None, 1), "unset": (None, None), "given_none": (None, None)})
    ]


async def test_empty_values_are_told_as_they_are(maker: Maker) -> None:
    """An empty string, zero, False and empty documents aren't NULL."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        quantity: Mapped[int]
        sold: Mapped[bool]
        document: Mapped[Any] = mapped_column(sa.JSON)
        parts: Mapped[Any] = mapped_column(sa.JSON)
        picture: Mapped[bytes]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="", quantity=0, sold=False, document={}, parts=[], picture=b""))

    [(_, fields)] = await story_of(maker, Item)
    assert fields == {
        "id": (None, 1),
        "name": (None, ""),
        "quantity": (None, 0),
        "sold": (None, False),
        "document": (None, {}),
        "parts": (None, []),
        "picture": (None, b""),
    }


def _double_of_quantity(context: Any) -> int:
    return int(context.get_current_parameters()["quantity"]) * 2


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
async def test_python_defaults_are_told(maker: Maker, eager_defaults: object) -> None:
    """A default that Python computes, also from the other parameters, is told as it was stored."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(primary_key=True)
        quantity: Mapped[int]
        scalar: Mapped[str] = mapped_column(default="x")
        called: Mapped[Any] = mapped_column(sa.JSON, default=list)
        derived: Mapped[int] = mapped_column(default=_double_of_quantity)
        inserted: Mapped[str] = mapped_column(insert_default="y")

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(quantity=4), Item(quantity=5, scalar="own"))

    story = await story_of(maker, Item)
    assert [fields["derived"] for _, fields in story] == [(None, 8), (None, 10)]


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
async def test_defaults_of_the_server_are_told(maker: Maker, eager_defaults: object) -> None:
    """What the server fills in is told as the row holds it, whether SQLAlchemy fetches it or not."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        constant: Mapped[str] = mapped_column(server_default="given")
        expression: Mapped[str] = mapped_column(server_default=sa.text("(upper('given'))"))
        number: Mapped[int | None] = mapped_column(server_default="7")

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a"), Item(name="b", constant="own", number=None))

    story = await story_of(maker, Item)
    assert [(fields["constant"][1], fields["expression"][1]) for _, fields in story] == [
        ("given", "GIVEN"),
        ("own", "GIVEN"),
    ]


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
async def test_sql_expressions_as_python_side_defaults_are_told(maker: Maker, eager_defaults: object) -> None:
    """A default that is an SQL expression within the INSERT is told as the row holds it."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        code: Mapped[str] = mapped_column(default=sa.func.upper("given"))

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a"), Item(name="b"))

    assert [fields["code"] for _, fields in await story_of(maker, Item)] == [(None, "GIVEN"), (None, "GIVEN")]


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
async def test_sql_expressions_as_values_are_told(maker: Maker, eager_defaults: object) -> None:
    """An attribute of a new object that is an SQL expression is told as what it came to."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name=sa.func.upper("computed")), Item(name=sa.null()))

    assert [fields["name"] for _, fields in await story_of(maker, Item)] == [(None, "COMPUTED"), (None, None)]


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
async def test_computed_columns_are_told(maker: Maker, eager_defaults: object) -> None:
    """A generated column is told with the value that the database computed, on insert, update and delete."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(primary_key=True)
        quantity: Mapped[int]
        double: Mapped[int] = mapped_column(sa.Computed("quantity * 2", persisted=True))

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(quantity=4)
        await save(session, item)
        item.quantity = 5
        await session.commit()
        await session.delete(item)
        await session.commit()

    assert await story_of(maker, Item) == [
        ("insert", {"id": (None, 1), "quantity": (None, 4), "double": (None, 8)}),
        ("update", {"quantity": (4, 5), "double": (8, 10)}),
        ("delete", {"id": (1, None), "quantity": (5, None), "double": (10, None)}),
    ]


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
async def test_identity_columns_are_told(maker: Maker, database: Database, eager_defaults: object) -> None:
    """A key from an identity column, and another identity column beside it, are told as generated."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(sa.Identity(start=1), primary_key=True)
        name: Mapped[str]

    if database.kind == "postgresql":
        Item.number = mapped_column(sa.Integer, sa.Identity(start=100), nullable=False)

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a"), Item(name="b"))

    story = await story_of(maker, Item)
    assert [fields["id"] for _, fields in story] == [(None, 1), (None, 2)]
    if database.kind == "postgresql":
        assert [fields["number"] for _, fields in story] == [(None, 100), (None, 101)]


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # SQLite has no sequences
async def test_sequences_are_told(maker: Maker, eager_defaults: object) -> None:
    """What a sequence gives, as a key and beside it, is told as generated."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(sa.Sequence("item_ids", start=10), primary_key=True)
        name: Mapped[str]
        number: Mapped[int] = mapped_column(sa.Sequence("item_numbers", start=100))

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a"), Item(name="b"))

    story = await story_of(maker, Item)
    assert [fields["id"] for _, fields in story] == [(None, 10), (None, 11)]
    assert [fields["number"] for _, fields in story] == [(None, 100), (None, 101)]


async def test_values_are_told_as_the_database_keeps_them(maker: Maker) -> None:
    """A value that the column's type rounds, or gives another Python type, is told as it reads back."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        price: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(10, 2))
        weight: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(10, 2))
        sold: Mapped[bool]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(price=decimal.Decimal("1.006"), weight=decimal.Decimal(3), sold=1))

    [(_, fields)] = await story_of(maker, Item)
    assert str(fields["price"][1]) == "1.01"
    assert str(fields["weight"][1]) == "3.00"
    assert fields["sold"][1] is True


async def test_composite_keys_are_told_as_tuples(maker: Maker) -> None:
    """A row with a key of several columns is told under a tuple, also where text holds separators."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Line(Base):
        __tablename__ = "line"
        order: Mapped[str] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        lines = [Line(order='a",1', number=1, text="x"), Line(order="a", number=1, text="y")]
        await save(session, *lines)
        lines[0].text = "z"
        await session.commit()
        await session.delete(lines[1])
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Line)] == ["insert", "insert", "update", "delete"]
    changes = await changes_of(maker, Line, [('a",1', 1)])
    assert [(change.operation, change.resource_id) for change in changes if change.field_name == "text"] == [
        ("insert", ('a",1', 1)),
        ("update", ('a",1', 1)),
    ]


class Colour(enum.Enum):
    RED = "r"


@pytest.mark.parametrize(
    ("type_", "key"),
    [
        (sa.Uuid(), uuid.UUID(int=5)),
        (sa.String(50), "ключ \"1\", 'x' %s"),
        (sa.String(50), ""),
        (sa.String(50), "null"),
        (sa.BigInteger(), 2**60 + 1),
        # A whole number: SQLAlchemy 2.0 does not find its own rows on asyncpg by others.
        (sa.Numeric(10, 2), decimal.Decimal(2)),
        (sa.Date(), dt.date(2024, 2, 29)),
        (sa.DateTime(timezone=True), dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.UTC)),
        (sa.Time(), dt.time(1, 2)),
        (sa.Enum(Colour), Colour.RED),
        (sa.LargeBinary().with_variant(sa.VARBINARY(16), "mariadb"), b"\x00\xff"),
        (sa.Boolean(), False),
        (sa.Interval(), dt.timedelta(hours=1)),
    ],
    ids=repr,
)
async def test_keys_of_every_type_are_told(maker: Maker, type_: sa.types.TypeEngine[Any], key: Any) -> None:
    """A row is told under its key's Python value, and found by it, whatever the type of the key."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        key: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(key=key, name="a")
        await save(session, item)
        item.name = "b"
        await session.commit()
        await session.delete(item)
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert", "update", "delete"]
    [found] = {change.resource_id for change in await changes_of(maker, Item, [key])}
    [stored] = {change.new_value for change in await changes_of(maker, Item, [key]) if change.field_name == "key"} - {
        None
    }
    assert found == stored


async def test_keys_that_python_or_the_server_makes_are_told(maker: Maker, database: Database) -> None:
    """A key that a default of Python or of the server made is the resource id."""

    class Base(DeclarativeBase):
        pass

    expression = {
        "postgresql": "gen_random_uuid()",
        "sqlite": "(lower(hex(randomblob(16))))",
        "mariadb": "(replace(uuid(), '-', ''))",
    }[database.kind]

    @track_table()
    class ByPython(Base):
        __tablename__ = "by_python"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)

    @track_table()
    class ByServer(Base):
        __tablename__ = "by_server"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=sa.text(expression))
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, ByPython(), ByPython(), ByServer(name="a"), ByServer(name="b"))

    for model in (ByPython, ByServer):
        story = await story_of(maker, model)
        assert {each.resource_id for each in await changes_of(maker, model)} == {fields["id"][1] for _, fields in story}
        assert len(story) == 2
