# ruff: noqa: DTZ001, DTZ901 (naive datetimes are what such a column holds)
"""Law 7: replaying the trail of a row gives exactly its tracked columns, typed as Python values."""

import base64
import datetime as dt
import decimal
import enum
import os
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.attributes import flag_modified

from conformance_setup import Maker, changes_of, save, start_audit, stored_changes, story_of, trail_of
from databases import Database
from sqlaudit import FieldChange, track_table


class Colour(enum.Enum):
    RED = "r"
    GREEN = "vert"


class Size(enum.StrEnum):
    SMALL = "s"
    LARGE = "l"


class Base(DeclarativeBase):
    pass


@track_table()
class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    short: Mapped[str | None] = mapped_column(sa.String(200))
    long: Mapped[str | None] = mapped_column(sa.Text().with_variant(mysql.MEDIUMTEXT(), "mariadb"))
    small: Mapped[int | None] = mapped_column(sa.SmallInteger)
    whole: Mapped[int | None] = mapped_column(sa.Integer)
    big: Mapped[int | None] = mapped_column(sa.BigInteger)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(12, 4))
    ratio: Mapped[float | None] = mapped_column(sa.Numeric(12, 4, asdecimal=False))
    real: Mapped[float | None] = mapped_column(sa.Float)
    double: Mapped[float | None] = mapped_column(sa.Double)
    done: Mapped[bool | None]
    day: Mapped[dt.date | None]
    hour: Mapped[dt.time | None]
    naive: Mapped[dt.datetime | None] = mapped_column(sa.DateTime)
    aware: Mapped[dt.datetime | None] = mapped_column(sa.DateTime(timezone=True))
    lasting: Mapped[dt.timedelta | None] = mapped_column(sa.Interval)
    colour: Mapped[Colour | None] = mapped_column(sa.Enum(Colour))
    size: Mapped[Size | None] = mapped_column(
        sa.Enum(Size, values_callable=lambda members: [each.value for each in members], native_enum=False)
    )
    choice: Mapped[str | None] = mapped_column(sa.Enum("on", "off", name="choice"))
    token: Mapped[uuid.UUID | None]
    token_text: Mapped[str | None] = mapped_column(sa.Uuid(as_uuid=False))
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    picture: Mapped[bytes | None] = mapped_column(sa.LargeBinary)


EAST = dt.timezone(dt.timedelta(hours=5, minutes=45))

VALUES: dict[str, list[Any]] = {
    "short": ["", "a", "Ünï çødé ✓ 🐘", "'; --\"\\%s :x ${}", "null", " \t\n", "é"],
    "long": ["x" * 100_000, "", '{"$json": null}'],
    "small": [0, -32768, 32767],
    "whole": [0, -2147483648, 2147483647],
    "big": [0, 2**53 + 1, -(2**63), 2**63 - 1],
    "price": [Decimal(0), Decimal("0.0001"), Decimal("-12345678.9012"), Decimal("1.10"), Decimal("1E+3")],
    "ratio": [0.0, 0.5, -12345.6789],
    "real": [0.0, 0.1, -1e300, 5e-324, 1e16, 3.0, float("inf"), float("-inf")],
    "double": [1 / 3, -0.0, 1.7976931348623157e308],
    "done": [False, True],
    "day": [dt.date.min, dt.date.max, dt.date(2024, 2, 29)],
    "hour": [dt.time.min, dt.time.max, dt.time(12, 0, 0, 1)],
    "naive": [dt.datetime(1, 1, 1), dt.datetime.max, dt.datetime(2024, 2, 29, 1, 2, 3, 4), dt.datetime(2024, 3, 1)],
    "aware": [
        dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC),
        dt.datetime(2024, 2, 29, 7, 2, 3, 4, EAST),
        dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
    ],
    "lasting": [
        dt.timedelta(0),
        dt.timedelta(days=400, seconds=1, microseconds=1),
        dt.timedelta(microseconds=-1),
        dt.timedelta(days=-3, hours=2),
    ],
    "colour": [Colour.RED, Colour.GREEN],
    "size": [Size.SMALL, Size.LARGE],
    "choice": ["on", "off"],
    "token": [uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-1234-567812345678"), uuid.UUID(int=2**128 - 1)],
    "token_text": ["12345678-1234-5678-1234-567812345678"],
    "document": [
        {}, [], "", 0, 1.5, False, True, "text", {"a": {"b": [1, None, "✓", {"$json": 1}]}}, [[[]]], {"": ""},
        {"n": 2**60, "t": "\u2028"},
    ],
    "picture": [b"", bytes(range(256)), b"\x00" * 1000],
}  # fmt: skip


def values_of(maker: Maker) -> dict[str, list[Any]]:
    """Return what the database of *maker* can hold: MariaDB's FLOAT has four bytes, and no infinity."""
    if maker.kw["bind"].dialect.name != "mariadb":
        return VALUES
    return {**VALUES, "real": [0.0, 0.1, -1e30, 16777217.0, 3.0]}


def replay(changes: Sequence[FieldChange]) -> dict[str, Any]:
    """Return the row that *changes*, oldest first, lead to; fail unless each starts where the last one ended."""
    row: dict[str, Any] = {}
    for change in changes:
        assert _typed(change.old_value) == _typed(row.get(change.field_name))
        row[change.field_name] = change.new_value
    return row


def _typed(value: Any) -> tuple[Any, ...]:
    # 1, 1.0 and True are equal, and so are the same instant here and there: the types and the texts aren't.
    if isinstance(value, uuid.UUID):
        return uuid.UUID, str(value)
    if value == 0 and isinstance(value, float):
        # Neither SQLite nor jsonb know a negative zero.
        return float, "0"
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return dt.datetime, value.astimezone(dt.UTC).isoformat()
    return type(value), repr(value)


async def _row(maker: Maker, identity: int) -> dict[str, Any]:
    # A Core SELECT: what is read is the column's, not what an object remembers.
    async with maker() as session:
        table = Thing.__table__
        result = await session.execute(sa.select(table).where(table.c.id == identity))
        row = dict(result.mappings().one())
    # SQLite gives a float that is whole as an int, which SQLAlchemy lets pass.
    return {**row, "ratio": row["ratio"] if row["ratio"] is None else float(row["ratio"])}


def _assert_same(replayed: dict[str, Any], row: dict[str, Any]) -> None:
    assert {name: _typed(value) for name, value in replayed.items()} == {
        name: _typed(value) for name, value in row.items()
    }


async def test_inserted_values_of_every_type_replay(maker: Maker) -> None:
    """A row with a value of every type is told as it reads back from the table."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Thing(**{name: values[-1] for name, values in values_of(maker).items()}))

    _assert_same(replay(await changes_of(maker, Thing, 1)), await _row(maker, 1))


async def test_rows_of_nulls_replay(maker: Maker) -> None:
    """A row of NULLs is told as NULLs of every type, also when they come and go."""
    await start_audit(maker, Base)

    async with maker() as session:
        thing = Thing()
        await save(session, thing)
        for name, values in values_of(maker).items():
            setattr(thing, name, values[0])
        await session.commit()
        for name in VALUES:
            setattr(thing, name, sa.null() if name == "document" else None)
        await session.commit()

    _assert_same(replay(await changes_of(maker, Thing, 1)), await _row(maker, 1))
    assert set((await _row(maker, 1)).values()) == {1, None}


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("name", VALUES)
async def test_values_of_a_type_replay_one_by_one(maker: Maker, name: str, expired: bool) -> None:
    """Each value of a type, extreme, empty and non-ASCII ones too, is told as the row reads back after it."""
    await start_audit(maker, Base)

    async with maker() as session:
        thing = Thing()
        await save(session, thing)
        for value in values_of(maker)[name]:
            if not expired:
                await session.refresh(thing)
            setattr(thing, name, value)
            await session.commit()
            _assert_same(replay(await changes_of(maker, Thing, 1)), await _row(maker, 1))

    story = await story_of(maker, Thing)
    assert 1 < len(story) <= 1 + len(VALUES[name])


async def test_deleted_values_of_every_type_are_told(maker: Maker) -> None:
    """The delete of a row that nobody loaded tells the values of every type as they read before."""
    await start_audit(maker, Base)

    async with maker() as session:
        thing = Thing(**{name: values[-1] for name, values in values_of(maker).items()})
        await save(session, thing)
        row = await _row(maker, 1)
        await session.delete(thing)
        await session.commit()

    deleted = [change for change in await changes_of(maker, Thing, 1) if change.operation == "delete"]
    _assert_same({change.field_name: change.old_value for change in deleted}, row)
    assert {change.new_value for change in deleted} == {None}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # SQLite stores NULL instead
async def test_not_a_number_replays(maker: Maker, database: Database) -> None:
    """A float that is not a number is told as one, and isn't a change of itself."""
    await start_audit(maker, Base)

    async with maker() as session:
        thing = Thing(real=float("nan"))
        await save(session, thing)
        thing.real = float("nan")
        thing.whole = 1
        await session.commit()

    changes = await changes_of(maker, Thing, 1)
    assert [repr(change.new_value) for change in changes if change.field_name == "real"] == ["nan"]
    assert repr((await _row(maker, 1))["real"]) == "nan"


async def test_equal_values_in_another_form_tell_nothing(maker: Maker) -> None:
    """A decimal with another scale, the same instant in another zone, and the like are no changes."""
    await start_audit(maker, Base)

    async with maker() as session:
        thing = Thing(
            price=Decimal("1.5"),
            aware=dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC),
            lasting=dt.timedelta(hours=24),
            token=uuid.UUID(int=5),
            real=2.0,
        )
        await save(session, thing)
        thing.price = Decimal("1.50000")
        thing.aware = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
        thing.lasting = dt.timedelta(days=1)
        thing.token = uuid.UUID(int=5)
        thing.real = 2
        await session.commit()

    assert len(await story_of(maker, Thing)) == 1


@pytest.mark.parametrize(
    "database", ["postgresql"], indirect=True
)  # SQLite loses the offset, so that it isn't the same
async def test_the_same_instant_in_another_zone_tells_nothing(maker: Maker, database: Database) -> None:
    """Where the database keeps instants, the same one in another zone is no change."""
    await start_audit(maker, Base)

    async with maker() as session:
        noon = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
        thing = Thing(aware=noon)
        await save(session, thing)
        thing.aware = noon.astimezone(EAST)
        await session.commit()

    assert len(await story_of(maker, Thing)) == 1


async def test_the_state_at_any_change_replays(maker: Maker) -> None:
    """The trail up to any of its changes gives the row as it was then."""
    await start_audit(maker, Base)
    rows = []

    async with maker() as session:
        thing = Thing()
        await save(session, thing)
        rows.append(await _row(maker, 1))
        for round_ in range(3):
            for name, values in values_of(maker).items():
                setattr(thing, name, values[round_ % len(values)])
            await session.commit()
            rows.append(await _row(maker, 1))

    changes = await changes_of(maker, Thing, 1)
    for number, change_id in enumerate(sorted({change.change_id for change in changes})):
        _assert_same(replay([change for change in changes if change.change_id <= change_id]), rows[number])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # SQLite stores what it is given
async def test_values_that_the_column_rounds_or_pads_replay(maker: Maker, database: Database) -> None:
    """A value that the database stores with less precision, or padded, is told as it is stored."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Rounded(Base):
        __tablename__ = "rounded"
        id: Mapped[int] = mapped_column(primary_key=True)
        padded: Mapped[str] = mapped_column(sa.CHAR(5))
        single: Mapped[float] = mapped_column(sa.REAL)
        seconds: Mapped[dt.datetime] = mapped_column(postgresql.TIMESTAMP(precision=0))
        clock: Mapped[dt.time] = mapped_column(postgresql.TIME(precision=0))

    await start_audit(maker, Base)

    async with maker() as session:
        rounded = Rounded(
            padded="ab",
            single=0.1,
            seconds=dt.datetime(2024, 1, 1, 1, 1, 1, 600_000),
            clock=dt.time(1, 1, 1, 600_000),
        )
        await save(session, rounded)
        rounded.padded = "cd"
        rounded.single = 0.2
        await session.commit()

    await story_of(maker, Rounded)


@pytest.mark.parametrize("type_", [sa.Numeric(38, 10), sa.Numeric()], ids=["scale", "no scale"])
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # SQLite keeps decimals as floats
async def test_decimals_beyond_a_float_replay(
    maker: Maker, database: Database, type_: sa.types.TypeEngine[Decimal]
) -> None:
    """A decimal with more digits than a float holds is told with all of them."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Account(Base):
        __tablename__ = "account"
        id: Mapped[int] = mapped_column(primary_key=True)
        balance: Mapped[Decimal] = mapped_column(type_)

    await start_audit(maker, Base)

    async with maker() as session:
        account = Account(balance=Decimal("1234567890123456789012345678.0123456789"))
        await save(session, account)
        account.balance = Decimal("1234567890123456789012345678.0123456780")
        await session.commit()
        await session.delete(account)
        await session.commit()

    assert len(await story_of(maker, Account)) == 3


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # PostgreSQL's types
async def test_arrays_and_other_postgresql_types_replay(maker: Maker, database: Database) -> None:
    """Arrays of several dimensions and types are told as they read back."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Listed(Base):
        __tablename__ = "listed"
        id: Mapped[int] = mapped_column(primary_key=True)
        numbers: Mapped[Any] = mapped_column(sa.ARRAY(sa.Integer), nullable=True)
        matrix: Mapped[Any] = mapped_column(sa.ARRAY(sa.Integer, dimensions=2), nullable=True)
        prices: Mapped[Any] = mapped_column(sa.ARRAY(sa.Numeric(10, 2)), nullable=True)
        colours: Mapped[Any] = mapped_column(sa.ARRAY(sa.Enum(Colour)), nullable=True)
        tokens: Mapped[Any] = mapped_column(postgresql.ARRAY(sa.Uuid), nullable=True)
        binary: Mapped[Any] = mapped_column(postgresql.JSONB, nullable=True)
        span: Mapped[Any] = mapped_column(postgresql.INTERVAL, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        listed = Listed(
            numbers=[1, None, 3],
            matrix=[[1, 2], [3, 4]],
            prices=[decimal.Decimal("1.5"), decimal.Decimal("2.25")],
            colours=[Colour.RED, None],
            tokens=[uuid.UUID(int=1)],
            binary={"a": [1]},
            span=dt.timedelta(days=40, hours=3),
        )
        await save(session, listed)
        listed.numbers = [3, 1]
        listed.matrix = []
        listed.prices = [decimal.Decimal("1.50"), decimal.Decimal("2.25")]
        listed.colours = [Colour.GREEN]
        await session.commit()
        await session.refresh(listed)
        listed.numbers.append(2)
        flag_modified(listed, "numbers")
        await session.commit()
        await session.delete(listed)
        await session.commit()

    story = await story_of(maker, Listed)
    assert story[1][1].keys() == {"numbers", "matrix", "colours"}
    assert story[2] == ("update", {"numbers": ([3, 1], [3, 1, 2])})


class Sealed(sa.TypeDecorator[str]):
    """Text that is encrypted with a nonce: equal texts are stored as different ones."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else base64.b64encode(os.urandom(4) + value.encode()).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else base64.b64decode(value)[4:].decode()


class Tags(sa.TypeDecorator[list[str]]):
    """A list that is stored as text; no tags are an empty text, not NULL."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: sa.Dialect) -> str:
        return ",".join(value or [])

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> list[str]:
        return value.split(",") if value else []


@pytest.mark.parametrize("expired", [False, True])
async def test_types_of_the_users_own_replay(maker: Maker, expired: bool) -> None:
    """A TypeDecorator's values are told as its column reads back, and stored as it sends them."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Letter(Base):
        __tablename__ = "letter"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None] = mapped_column(Sealed)
        tags: Mapped[Any] = mapped_column(Tags)

    await start_audit(maker, Base)

    async with maker() as session:
        letter = Letter(secret="hush", tags=None)
        await save(session, letter)
        for secret, tags in (("hush", []), ("psst", ["a"]), ("psst", ["a", "b"]), (None, ["a", "b"])):
            if not expired:
                await session.refresh(letter)
            letter.secret, letter.tags = secret, tags
            await session.commit()
        await session.refresh(letter)
        letter.tags.append("c")
        flag_modified(letter, "tags")
        await session.commit()
        await session.delete(letter)
        await session.commit()

    assert [fields for _, fields in await trail_of(maker, Letter)] == [
        {"id": (None, 1), "secret": (None, "hush"), "tags": (None, [])},
        {"secret": ("hush", "psst"), "tags": ([], ["a"])},
        {"tags": (["a"], ["a", "b"])},
        {"secret": ("psst", None)},
        {"tags": (["a", "b"], ["a", "b", "c"])},
        {"id": (1, None), "secret": (None, None), "tags": (["a", "b", "c"], None)},
    ]
    everything = repr(await stored_changes(maker, "Letter"))
    assert "hush" not in everything
    assert "psst" not in everything
