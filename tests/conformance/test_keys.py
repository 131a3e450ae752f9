# ruff: noqa: E501 (keys stand side by side)
"""Keys of every type: one text for one key, another for another, found by the Python key and by the text."""

import datetime as dt
import itertools
import json
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker, changes_of, read_rows, save, start_audit, story_of
from databases import Database
from sqlaudit import get_resource_changes, track_table
from sqlaudit.exceptions import RetrievalError

# Of the texts that differ by case or by trailing blanks, MariaDB's plain collations make one key.
EXACT_TEXT = sa.String(60).with_variant(mysql.VARCHAR(60, collation="utf8mb4_nopad_bin"), "mysql", "mariadb")

TEXTS = [
    "", " ", "a", "a ", "A", "á", "a\u0301", "1", "01", "1.0", "-1", "[1]", "[1, 2]", '["1"]', '"1"', '"', "'", "''",
    "a/b", "a\\b", "\\", "a,b", "null", "true", "NaN", "{}", '{"$masked":true}', "%s", ":x", "ключ ✓ 🐘", "\n", "\t",
    "x" * 60,
]  # fmt: skip

_text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
_int64 = st.integers(-(2**63), 2**63 - 1)
_moments = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
_dates = st.dates(dt.date(1, 1, 1))

KEYS: dict[str, tuple[list[Any], list[Any], st.SearchStrategy[Any] | None]] = {
    "text": ([EXACT_TEXT], TEXTS, _text),
    "number": ([sa.BigInteger()], [0, 1, -1, 10, 2**53 + 1, 2**53, -(2**63), 2**63 - 1], _int64),
    "token": ([sa.Uuid()], [uuid.UUID(int=0), uuid.UUID(int=1), uuid.UUID(int=2**128 - 1)], st.uuids(version=4)),
    "date": ([sa.Date()], [dt.date.min, dt.date.max, dt.date(2024, 2, 29)], _dates),
    # Whole numbers: SQLAlchemy 2.0 does not find its own rows on asyncpg by others.
    "decimal": ([sa.Numeric(20, 0)], [Decimal(0), Decimal(1), Decimal(-1), Decimal(10), Decimal(10**14)], None),
    "text and number": (
        [EXACT_TEXT, sa.BigInteger()],
        [("a", 1), ("a", 11), ("a,1", 1), ("a", -1), ("", 0), ('a",1', 1), ("[", 1), ("1", 1), ("é", 2**63 - 1)],
        st.tuples(_text, _int64),
    ),
    "texts": (
        [EXACT_TEXT, EXACT_TEXT],
        [("a", "b"), ("a,b", ""), ("", "a,b"), ("", ""), ('","', ""), ("", '","'), ("a", '"b'), ('a"', "b"), ("1", "2")],
        st.tuples(_text, _text),
    ),
    "token and date": (
        [sa.Uuid(), sa.Date()],
        [(uuid.UUID(int=1), dt.date(2024, 1, 1)), (uuid.UUID(int=1), dt.date(2024, 1, 2)), (uuid.UUID(int=2), dt.date(2024, 1, 1))],
        st.tuples(st.uuids(version=4), _dates),
    ),
}  # fmt: skip


def _model(types: Sequence[Any]) -> Any:
    """Return a tracked model with a key of *types*."""

    class Base(DeclarativeBase):
        pass

    columns = {
        f"key_{number}": mapped_column(type_, primary_key=True, autoincrement=False)
        for number, type_ in enumerate(types)
    }
    thing = type("Thing", (Base,), {"__tablename__": "thing", "name": mapped_column(sa.String(20)), **columns})
    return track_table()(thing)


def _thing(model: Any, key: Any, name: str) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    return model(name=name, **{f"key_{number}": part for number, part in enumerate(parts)})


async def _texts(maker: Maker) -> list[str]:
    """Return the resource ids that are stored, one for each row, in the order of their inserts."""
    query = "SELECT resource_id FROM sqlaudit_change WHERE operation = 'insert' ORDER BY id"
    return [text for (text,) in await read_rows(maker, query)]


@pytest.mark.parametrize("kind", KEYS)
async def test_every_key_has_a_text_of_its_own_and_is_found_by_it(maker: Maker, kind: str) -> None:
    """The rows of a table have different resource ids, and each is found by its key and by its text alone."""
    types, keys, _ = KEYS[kind]
    model = _model(types)
    await start_audit(maker, model.metadata)

    async with maker(expire_on_commit=False) as session:
        things = [_thing(model, key, f"name {number}") for number, key in enumerate(keys)]
        await save(session, *things)
        for thing in things:
            thing.name += "!"
        await session.commit()
        await session.delete(things[0])
        await session.execute(sa.delete(model).where(model.name == "name 1!"))
        await session.commit()

    await story_of(maker, model)
    texts = await _texts(maker)
    inserted = [
        each.resource_id
        for each in await changes_of(maker, model)
        if each.new_value and each.field_name == "name" and each.operation == "insert"
    ]
    assert len(set(texts)) == len(keys)
    assert sorted(map(repr, inserted)) == sorted(map(repr, keys))
    async with maker() as session:
        for key, text in zip(inserted, texts, strict=True):
            assert await _names(session, model, [key]) == await _names(session, model, key)
            [name] = {each.rstrip("!") for each in await _names(session, model, key)}
            assert keys[int(name.removeprefix("name "))] == key
            if isinstance(key, tuple):
                first = next(iter(json.loads(text)))
                assert first == (key[0] if isinstance(key[0], (str, int)) else str(key[0]))
            else:
                assert await _names(session, model, text) == await _names(session, model, key)


async def _names(session: AsyncSession, model: Any, ids: Any) -> list[str]:
    changes = await get_resource_changes(model, ids, session=session, filter_fields=["name"], sort_direction="asc")
    return [each.new_value for each in changes if each.new_value is not None]


@pytest.mark.parametrize("kind", [kind for kind, (_, _, more) in KEYS.items() if more is not None])
async def test_keys_never_collide(maker: Maker, kind: str) -> None:
    """Any keys of a table have resource ids that are different where the keys are, and only there."""
    types, _, more = KEYS[kind]
    assert more is not None
    model = _model(types)
    await start_audit(maker, model.metadata)
    drawn: list[Any] = []

    @settings(
        max_examples=25,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(more)
    def draw(key: Any) -> None:
        drawn.append(key)

    draw()
    keys = list(dict.fromkeys(drawn))
    async with maker() as session:
        # In two flushes, so that a key is met in the second as it was in the first.
        things = [_thing(model, key, "a") for key in keys]
        await save(session, *things)
        for thing in things:
            thing.name = "b"
        await session.commit()

    rows = await read_rows(maker, "SELECT resource_id, operation FROM sqlaudit_change")
    by_operation = {
        operation: sorted(text for text, its in rows if its == operation) for operation in ("insert", "update")
    }
    assert by_operation["insert"] == by_operation["update"]
    assert len(set(by_operation["insert"])) == len(keys)
    told = {each.resource_id for each in await changes_of(maker, model)}
    assert told == set(keys)


@pytest.mark.parametrize(
    ("type_", "forms"),
    [
        pytest.param(sa.Uuid(), [uuid.UUID(int=17), str(uuid.UUID(int=17)), uuid.UUID(int=17).hex], id="token"),
        pytest.param(sa.Date(), [dt.date(2024, 2, 29), "2024-02-29"], id="date"),
        pytest.param(sa.Integer(), [-5, "-5"], id="number"),
        pytest.param(
            sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"),
            [dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC)],
            id="moment",
        ),
    ],
)
async def test_the_forms_of_one_key_have_one_text(maker: Maker, type_: Any, forms: list[Any]) -> None:
    """A key is found in whichever form it is given."""
    model = _model([type_])
    await start_audit(maker, model.metadata)

    async with maker() as session:
        await save(session, _thing(model, forms[0], "a"))

        for form in forms:
            assert await _names(session, model, form) == ["a"]
        [text] = await _texts(maker)
        assert await _names(session, model, text) == ["a"]


async def test_a_moment_in_another_zone_is_the_same_key(database: Database, maker: Maker) -> None:
    """A row whose key is an instant is found by that instant in any zone, where the database knows of zones."""
    model = _model([sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")])
    await start_audit(maker, model.metadata)
    east = dt.timezone(dt.timedelta(hours=5, minutes=45))
    key = dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC)

    async with maker() as session:
        await save(session, _thing(model, key, "a"))

        found = await _names(session, model, key.astimezone(east))

    assert found == (["a"] if database.kind == "postgresql" else [])


@pytest.mark.parametrize("key", [("a", 1, 2), (), ("a",), "a", None])
async def test_a_key_of_another_width_is_refused(maker: Maker, key: Any) -> None:
    """A key that has too few or too many parts is an error, not an empty answer."""
    model = _model([sa.String(20), sa.Integer()])
    await start_audit(maker, model.metadata)

    async with maker() as session:
        with pytest.raises(RetrievalError):
            await get_resource_changes(model, [key], session=session)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)  # with a collation for which they are one
async def test_keys_that_are_one_for_the_database_are_one_row(maker: Maker, database: Database) -> None:
    """Where the collation makes one key of two texts, a statement that names the other is told of the row."""
    model = _model([sa.String(20)])
    await start_audit(maker, model.metadata)

    async with maker() as session:
        await save(session, _thing(model, "Key", "a"))
        await session.execute(sa.update(model).where(model.key_0 == "key ").values(name="b"))
        await session.commit()
        await session.execute(sa.delete(model).where(model.key_0 == "KEY"))
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, model)] == ["insert", "update", "delete"]
    assert {each.resource_id for each in await changes_of(maker, model)} == {"Key"}


@pytest.mark.parametrize(
    ("type_", "numbers"),
    [
        pytest.param(sa.String(40), ["INV/1", 'INV "2"', "3", "[4]", "é "], id="text"),
        pytest.param(sa.Integer(), [-1, 0, 7, 70, 700], id="number"),
        pytest.param(sa.Uuid(), [uuid.UUID(int=each) for each in range(5)], id="token"),
    ],
)
async def test_another_field_can_be_the_resource_id(maker: Maker, type_: Any, numbers: list[Any]) -> None:
    """With a resource_id_field, rows are told under it, and found by its values, whoever writes them."""

    class Base(DeclarativeBase):
        pass

    @track_table(resource_id_field="number")
    class Invoice(Base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[Any] = mapped_column(type_, unique=True)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        invoices = [Invoice(id=id_, number=number, name="a") for id_, number in enumerate(numbers, 1)]
        await save(session, *invoices)
        invoices[0].name = "b"
        await session.commit()
        await session.execute(sa.update(Invoice).where(Invoice.id == 2).values(name="b"))
        await session.execute(sa.update(Invoice), [{"id": 3, "name": "b"}])
        await session.execute(sa.delete(Invoice).where(Invoice.id == 4))
        await session.delete(invoices[4])
        await session.commit()

        for number, operations in zip(numbers, [["insert", "update"]] * 3 + [["insert", "delete"]] * 2, strict=True):
            changes = await get_resource_changes(
                Invoice, number, session=session, filter_fields=["name"], sort_direction="asc"
            )
            assert [each.operation for each in changes] == operations
            assert {each.resource_id for each in changes} == {number}


async def test_a_resource_id_that_changes_ends_one_resource_and_begins_another(maker: Maker) -> None:
    """When a resource_id_field or a primary key changes, it is told as a delete and an insert, in one transaction."""

    class Base(DeclarativeBase):
        pass

    @track_table(resource_id_field="number")
    class Invoice(Base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[str] = mapped_column(sa.String(20))

    @track_table()
    class Line(Base):
        __tablename__ = "line"
        order: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
        place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    await start_audit(maker, Base)

    async with maker(expire_on_commit=False) as session:
        invoice, line = Invoice(id=1, number="one"), Line(order="a", place=1)
        await save(session, invoice, line)
        invoice.number = "two"
        line.place = -1
        await session.commit()
        await session.execute(sa.update(Invoice).values(number="three"))
        line.order = "b"
        await session.commit()

    for model, ids in ((Invoice, ["one", "two", "three"]), (Line, [("a", 1), ("a", -1), ("b", -1)])):
        changes = await changes_of(maker, model)
        told = [(each.operation.value, each.resource_id) for each in changes]
        assert list(dict.fromkeys(told)) == [
            ("insert", ids[0]),
            ("delete", ids[0]),
            ("insert", ids[1]),
            ("delete", ids[1]),
            ("insert", ids[2]),
        ]
        ended = {each.resource_id: each.transaction_id for each in changes if each.operation == "delete"}
        begun = {each.resource_id: each.transaction_id for each in changes if each.operation == "insert"}
        for old, new in itertools.pairwise(ids):
            assert ended[old] == begun[new]
