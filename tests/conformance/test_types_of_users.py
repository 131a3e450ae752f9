"""Law 3 for the types that applications make: ciphers, decorators and types of their own; and what is refused."""

import base64
import datetime as dt
import hashlib
import itertools
import os
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column

from conformance_setup import Maker, changes_of, read_rows, save, start_audit, stored_changes, story_of, trail_of
from sqlaudit import track_table
from sqlaudit.exceptions import UnsupportedTypeError


def _xor(nonce: bytes, text: bytes) -> bytes:
    blocks = (hashlib.sha256(nonce + bytes([number])).digest() for number in itertools.count())
    return bytes(a ^ b for a, b in zip(text, itertools.chain.from_iterable(blocks), strict=False))


def _encrypted(clear: str) -> bytes:
    nonce = os.urandom(8)
    return nonce + _xor(nonce, clear.encode())


def _decrypted(sent: bytes) -> str:
    return _xor(sent[:8], sent[8:]).decode()


class Sealed(sa.TypeDecorator[str]):
    """Text that is another ciphertext each time it is sent."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else base64.b64encode(_encrypted(value)).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else _decrypted(base64.b64decode(value))


class SealedBytes(sa.TypeDecorator[str]):
    """The same in a binary column."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes | None:
        return None if value is None else _encrypted(value)

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else _decrypted(value)


SEALED = [
    pytest.param(Sealed(200), id="text"),
    pytest.param(SealedBytes(), id="binary"),
]


def _as_stored(ciphertext: Any) -> Any:
    return base64.b64encode(ciphertext).decode() if isinstance(ciphertext, bytes) else ciphertext


async def _ciphertexts(maker: Maker) -> dict[str, Any]:
    """Return what the rows hold, by resource id."""
    return {str(key): _as_stored(held) for key, held in await read_rows(maker, "SELECT id, secret FROM letter")}


async def _assert_nowhere(maker: Maker, plaintext: str) -> None:
    """Fail if a plaintext, or its base64, is anywhere in the trail."""
    everything = repr(await read_rows(maker, "SELECT * FROM sqlaudit_change"))
    assert plaintext not in everything
    assert base64.b64encode(plaintext.encode()).decode().rstrip("=") not in everything


@pytest.mark.parametrize("type_", SEALED)
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "expired"])
async def test_ciphertexts_of_objects_are_those_of_their_rows(maker: Maker, type_: Any, in_memory: bool) -> None:
    """What is stored of an encrypted column, old and new, is the row's own ciphertext; the plaintext is nowhere."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Letter(Base):
        __tablename__ = "letter"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None] = mapped_column(type_)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker(expire_on_commit=not in_memory) as session:
        letters = [Letter(id=number, secret=f"hush-hush-{number}", name="a") for number in (1, 2)]
        await save(session, *letters, Letter(id=3, secret=None, name="a"))
        inserted = await _ciphertexts(maker)
        letters[0].secret = "hush-hush-new"
        letters[1].name = "b"
        await session.commit()
        updated = await _ciphertexts(maker)
        await session.delete(letters[0])
        await session.delete(letters[1])
        await session.commit()

    stored = await stored_changes(maker, "Letter")
    assert {key: new["secret"] for operation, key, _, new in stored if operation == "insert"} == inserted
    assert [(key, old, new) for operation, key, old, new in stored if operation == "update"] == [
        ("1", {"secret": inserted["1"]}, {"secret": updated["1"]}),
        ("2", {"name": "a"}, {"name": "b"}),
    ]
    assert {key: old["secret"] for operation, key, old, _ in stored if operation == "delete"} == {
        key: updated[key] for key in "12"
    }
    assert inserted["1"] != updated["1"]
    assert inserted["2"] == updated["2"]
    await _assert_nowhere(maker, "hush-hush")
    read = [
        (each.old_value, each.new_value) for each in await changes_of(maker, Letter, 1) if each.field_name == "secret"
    ]
    assert read == [(None, "hush-hush-1"), ("hush-hush-1", "hush-hush-new"), ("hush-hush-new", None)]


@pytest.mark.parametrize("type_", SEALED)
async def test_ciphertexts_of_statements_are_those_of_their_rows(maker: Maker, type_: Any) -> None:
    """What is stored of an encrypted column that statements write is the row's own ciphertext."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Letter(Base):
        __tablename__ = "letter"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None] = mapped_column(type_)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        rows = [{"id": number, "secret": f"hush-hush-{number}", "name": "a"} for number in (1, 2, 3)]
        await session.execute(sa.insert(Letter), rows[:2])
        await session.execute(sa.insert(Letter).values(rows[2]))
        await session.commit()
        inserted = await _ciphertexts(maker)
        await session.execute(sa.update(Letter).where(Letter.id == 1).values(secret="hush-hush-new"))
        await session.execute(sa.update(Letter), [{"id": 2, "secret": "hush-hush-newer"}])
        await session.execute(sa.update(Letter).where(Letter.id == 3).values(name="b"))
        await session.commit()
        updated = await _ciphertexts(maker)
        await session.execute(sa.delete(Letter))
        await session.commit()

    stored = await stored_changes(maker, "Letter")
    assert {key: new["secret"] for operation, key, _, new in stored if operation == "insert"} == inserted
    assert [(key, old, new) for operation, key, old, new in stored if operation == "update"] == [
        ("1", {"secret": inserted["1"]}, {"secret": updated["1"]}),
        ("2", {"secret": inserted["2"]}, {"secret": updated["2"]}),
        ("3", {"name": "a"}, {"name": "b"}),
    ]
    assert {key: old["secret"] for operation, key, old, _ in stored if operation == "delete"} == updated
    await _assert_nowhere(maker, "hush-hush")


@pytest.mark.session_capture
@pytest.mark.parametrize("type_", SEALED)
async def test_the_same_plaintext_encrypted_anew_is_no_change(maker: Maker, type_: Any) -> None:
    """A column that is written with the plaintext that it has tells nothing, though its ciphertext is another."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Letter(Base):
        __tablename__ = "letter"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None] = mapped_column(type_)

    await start_audit(maker, Base)

    async with maker() as session:
        letter = Letter(id=1, secret="hush-hush")
        await save(session, letter)
        before = await _ciphertexts(maker)
        letter.secret = "hush-hush"
        await session.commit()
        await session.execute(sa.update(Letter).values(secret="hush-hush"))
        await session.execute(sa.update(Letter), [{"id": 1, "secret": "hush-hush"}])
        await session.commit()

    assert await _ciphertexts(maker) != before
    assert [operation for operation, *_ in await stored_changes(maker, "Letter")] == ["insert"]
    await _assert_nowhere(maker, "hush-hush")


class UTC(sa.TypeDecorator[dt.datetime]):
    """Moments that are naive in the database, and aware in Python."""

    impl = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        return None if value is None else value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        return None if value is None else value.replace(tzinfo=dt.UTC)


class NoneIsEmpty(sa.TypeDecorator[str]):
    """Text of which the database holds an empty one for None."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str:
        return value or ""

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value or None


class Lowered(sa.TypeDecorator[str]):
    """Text that is lowered when it is sent."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value.lower()


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "expired"])
async def test_decorated_values_are_told_as_they_read(maker: Maker, in_memory: bool) -> None:
    """Moments in UTC, a None that is stored as text, and text that is lowered are told as their columns read."""
    east = dt.timezone(dt.timedelta(hours=14))

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Visit(Base):
        __tablename__ = "visit"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[dt.datetime | None] = mapped_column(UTC)
        remark: Mapped[str | None] = mapped_column(NoneIsEmpty)
        mail: Mapped[str | None] = mapped_column(Lowered)

    await start_audit(maker, Base)

    async with maker(expire_on_commit=not in_memory) as session:
        visit = Visit(id=1, at=dt.datetime(2024, 1, 1, 1, 2, 3, 4, east), remark=None, mail="A@Example.ORG")
        await save(session, visit)
        # The same values, in other words.
        visit.at = dt.datetime(2023, 12, 31, 11, 2, 3, 4, dt.UTC)
        visit.remark = ""
        visit.mail = "a@example.org"
        await session.commit()
        visit.at = None
        visit.remark = "x"
        visit.mail = "B@example.org"
        await session.commit()
        await session.execute(sa.update(Visit).values(remark=None, mail="C", at=dt.datetime(2024, 1, 1, tzinfo=east)))
        await session.commit()
        await session.execute(sa.delete(Visit))
        await session.commit()

    first, last = dt.datetime(2023, 12, 31, 11, 2, 3, 4, dt.UTC), dt.datetime(2023, 12, 31, 10, tzinfo=dt.UTC)
    assert await trail_of(maker, Visit) == [
        ("insert", {"id": (None, 1), "at": (None, first), "remark": (None, None), "mail": (None, "a@example.org")}),
        ("update", {"at": (first, None), "remark": (None, "x"), "mail": ("a@example.org", "b@example.org")}),
        ("update", {"at": (None, last), "remark": ("x", None), "mail": ("b@example.org", "c")}),
        ("delete", {"id": (1, None), "at": (last, None), "remark": (None, None), "mail": ("c", None)}),
    ]
    stored = await stored_changes(maker, "Visit")
    assert stored[0][3]["remark"] == ""
    assert stored[2][3]["remark"] == ""


class Parcel(sa.PickleType):
    """Pickled lists, which are stored as JSON."""

    cache_ok = True

    def to_trail(self, value: list[int]) -> Any:
        return value

    def from_trail(self, stored: Any) -> list[int]:
        return [int(each) for each in stored]


class Place:
    """A point, as a library of geometry has it."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


class Geometry(sa.types.UserDefinedType[Place]):
    """As PostGIS's: the database computes what is stored of what is sent, and what is read of what is stored."""

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        return "VARCHAR(50)"

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        return lambda value: None if value is None else f"{value.x} {value.y}"

    def bind_expression(self, bindvalue: Any) -> Any:
        return sa.func.replace(bindvalue, " ", ";", type_=self)

    def column_expression(self, column: Any) -> Any:
        return sa.func.replace(column, ";", " ", type_=self)

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        return lambda text: None if text is None else Place(*map(int, text.split(" ")))

    def to_trail(self, value: Place) -> Any:
        return [value.x, value.y]

    def from_trail(self, stored: Any) -> Place:
        return Place(*stored)


@pytest.mark.session_capture
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "expired"])
async def test_types_with_hooks_of_their_own_are_told(maker: Maker, in_memory: bool) -> None:
    """A pickled column and one whose values the database converts are stored as their types' hooks say."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Shop(Base):
        __tablename__ = "shop"
        id: Mapped[int] = mapped_column(primary_key=True)
        place: Mapped[Place | None] = mapped_column(Geometry)
        parcel: Mapped[Any] = mapped_column(Parcel, nullable=True)

    await start_audit(maker, Base)

    async with maker(expire_on_commit=not in_memory) as session:
        shop = Shop(id=1, place=Place(1, 2), parcel=[1])
        await save(session, shop, Shop(id=2))
        assert await read_rows(maker, "SELECT place FROM shop WHERE id = 1") == [("1;2",)]
        shop.place, shop.parcel = Place(1, 2), [1]
        await session.commit()
        shop.place, shop.parcel = Place(3, 4), [1, 2]
        await session.commit()
        shop.place, shop.parcel = None, None
        await session.commit()
        await session.execute(sa.update(Shop).where(Shop.id == 1).values(place=Place(5, 6), parcel=[3]))
        await session.commit()
        await session.delete(shop)
        await session.execute(sa.delete(Shop).where(Shop.id == 2))
        await session.commit()

    stored = [(operation, old, new) for operation, key, old, new in await stored_changes(maker, "Shop") if key == "1"]
    assert stored == [
        ("insert", None, {"id": 1, "place": [1, 2], "parcel": [1]}),
        ("update", {"place": [1, 2], "parcel": [1]}, {"place": [3, 4], "parcel": [1, 2]}),
        ("update", {"place": [3, 4], "parcel": [1, 2]}, {"place": None, "parcel": None}),
        ("update", {"place": None, "parcel": None}, {"place": [5, 6], "parcel": [3]}),
        ("delete", {"id": 1, "place": [5, 6], "parcel": [3]}, None),
    ]
    assert len(await story_of(maker, Shop)) == 7


class Hashed(sa.TypeDecorator[str]):
    """Text that the database hashes."""

    impl = sa.String
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        return sa.func.md5(bindvalue)


class Shown(sa.types.UserDefinedType[str]):
    """A type that says nothing of its values."""

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        return "TEXT"


class Doubling(sa.Integer):
    """A type that sends something else than its base does."""

    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        return lambda value: value * 2


@pytest.mark.parametrize(
    "type_",
    [
        sa.PickleType(),
        Hashed(),
        Shown(),
        Doubling(),
        sa.types.NullType(),
        sa.String().with_variant(sa.PickleType(), "postgresql"),
        sa.ARRAY(Shown()),
        sa.ARRAY(sa.PickleType()),
        postgresql.DOMAIN("hidden", postgresql.HSTORE()),
    ],
    ids=repr,
)
def test_types_that_cannot_be_stored_exactly_are_refused(type_: Any) -> None:
    """A type of which nobody knows what the database holds is refused when mappers are configured, with the remedy."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Thing(Base):
        __table__ = sa.Table(
            "thing", Base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("value", type_)
        )

    with pytest.raises(UnsupportedTypeError) as caught:
        configure_mappers()
    Base.registry.dispose()

    assert caught.value.column == "thing.value"
    message = str(caught.value)
    assert type(type_).__name__ in message
    for remedy in ("exclude_fields", "masked_fields", "to_trail"):
        assert remedy in message


@pytest.mark.parametrize("remedy", [{"exclude_fields": ["value"]}, {"masked_fields": ["value"]}], ids=str)
async def test_types_that_cannot_be_stored_can_be_left_out_or_masked(maker: Maker, remedy: dict[str, Any]) -> None:
    """A model with a pickled column that isn't told, or not shown, is audited."""

    class Base(DeclarativeBase):
        pass

    @track_table(**remedy)
    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        value: Mapped[Any] = mapped_column(sa.PickleType, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        thing = Thing(id=1, name="a", value={"hush": 1})
        await save(session, thing)
        thing.value = {"hush": 2}
        thing.name = "b"
        await session.commit()
        await session.delete(thing)
        await session.commit()

    mask = {"value": {"$masked": True}} if "masked_fields" in remedy else {}
    assert await stored_changes(maker, "Thing") == [
        ("insert", "1", None, {"id": 1, "name": "a", **mask}),
        ("update", "1", {"name": "a", **mask}, {"name": "b", **mask}),
        ("delete", "1", {"id": 1, "name": "b", **mask}, None),
    ]
