"""What was once told otherwise than it reads, by type: ways that tests had found, and that stay closed."""

import contextlib
import enum
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker, read_rows, save, start_audit, stored_changes, trail_of
from databases import Database
from sqlaudit import track_table
from sqlaudit.exceptions import CaptureError
from type_cases import GENERIC, ONCE_WRONG, PG, TypeCase
from type_lives import audited, check, lives_of_edges


@pytest.mark.parametrize(
    ("database", "case"),
    [
        pytest.param(database, case, id=f"{database}-{case}")
        for cases in ONCE_WRONG.values()
        for case in cases
        for database in case.databases
    ],
    indirect=["database"],
)
async def test_the_edges_of_a_type_are_told_as_they_read(maker: Maker, case: TypeCase) -> None:
    """NULL, empty, extreme and non-ASCII values of a type are told as they read back, however they are written."""
    await check(await audited([case], maker), lives_of_edges([case]))


class Folded(sa.TypeDecorator[str]):
    """Text of which the application says that upper and lower case are one value."""

    impl = sa.String(50)
    cache_ok = True

    def compare_values(self, x: Any, y: Any) -> bool:
        return x.lower() == y.lower() if isinstance(x, str) and isinstance(y, str) else bool(x == y)


@pytest.mark.parametrize(
    ("type_", "before", "after"),
    [
        pytest.param(sa.JSON(), 0, False, id="0 and false"),
        pytest.param(sa.JSON(), {"a": 1}, {"a": True}, id="1 and true, inside"),
        pytest.param(sa.JSON(), [1], [1.0], id="1 and 1.0"),
        pytest.param(sa.JSON(), sa.null(), None, id="SQL NULL and JSON null"),
        pytest.param(sa.JSON(), None, sa.JSON.NULL, id="JSON null and JSON null"),
        pytest.param(Folded(), "a", "A", id="compare_values"),
    ],
)
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "expired"])
async def test_values_that_sqlalchemy_takes_for_equal_are_told_only_if_they_are_sent(
    maker: Maker, type_: Any, before: Any, after: Any, loaded: bool
) -> None:
    """What SQLAlchemy doesn't send, because it compares equal to what was loaded, is no change."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        value: Mapped[Any] = mapped_column(type_, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        thing = Thing(id=1, name="a", value=before)
        await save(session, thing)
        if loaded:
            await session.refresh(thing)
        rows = await read_rows(maker, "SELECT CAST(value AS CHAR(50)) FROM thing")
        thing.value, thing.name = after, "b"
        await session.commit()
        is_sent = await read_rows(maker, "SELECT CAST(value AS CHAR(50)) FROM thing") != rows

    [_, (operation, _, old, new)] = await stored_changes(maker, "Thing")
    assert operation == "update"
    assert ("value" in old, "value" in new) == (is_sent, is_sent)


@pytest.mark.session_capture
@pytest.mark.parametrize("database", ["mariadb"], indirect=True)  # the one that alters silently, if it is told to
@pytest.mark.parametrize(
    ("type_", "given"),
    [
        pytest.param(sa.String(3), "abcdef", id="text"),
        pytest.param(sa.SmallInteger(), 70_000, id="number"),
        pytest.param(sa.Numeric(4, 2), Decimal("1234.5"), id="decimal"),
    ],
)
async def test_values_that_a_lax_sql_mode_would_cut_off_are_refused(
    maker: Maker, database: Database, type_: Any, given: Any
) -> None:
    """Where MariaDB may cut off what doesn't fit and say nothing, nothing is written."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(type_, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        await session.execute(sa.text("SET SESSION sql_mode = ''"))
        session.add(Thing(id=1, value=given))
        with pytest.raises(CaptureError, match="sql_mode"):
            await session.commit()
        await session.rollback()

    assert await read_rows(maker, "SELECT value FROM thing") == []
    assert await stored_changes(maker, "Thing") == []


class Upper(sa.TypeDecorator[str]):
    """Text that is sent in upper case."""

    impl = sa.String(3)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


class Letter(str, enum.Enum):  # noqa: UP042
    """As many write it: its str() isn't what it is."""

    A = "a"


@pytest.mark.parametrize(
    ("database", "type_", "given"),
    [
        pytest.param(database, type_, given, id=f"{database} {name} {given!r}")
        for databases, name, type_, given in [
            (PG, "DOMAIN", postgresql.DOMAIN("short", sa.String(3)), "ab   "),
            (GENERIC, "String(3)", sa.String(3), "ab   "),
            (GENERIC, "Upper", Upper(), "ab   "),
            (GENERIC, "String", sa.String(50), True),
            (GENERIC, "String", sa.String(50), 7),
            (GENERIC, "String", sa.String(50), 1.0),
            (GENERIC, "String", sa.String(50), 1e20),
            (GENERIC, "String", sa.String(50), Decimal("1.50")),
            (GENERIC, "String", sa.String(50), Letter.A),
            (GENERIC, "Upper", Upper(), 1.0),
            (GENERIC, "Integer", sa.Integer(), 1.5),
            (GENERIC, "Integer", sa.Integer(), "7"),
            (GENERIC, "Integer", sa.Integer(), True),
        ]
        for database in databases
    ],
    indirect=["database"],
)
async def test_what_the_database_makes_of_a_value_is_told(
    maker: Maker, database: Database, type_: Any, given: Any
) -> None:
    """A value that doesn't fit, or is of another kind, is told as the row holds it, when it comes and when it goes."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(type_, nullable=True)

    await start_audit(maker, Base)

    held: list[Any] = []
    async with maker(expire_on_commit=False) as session:
        thing = Thing(id=1)
        await save(session, thing)
        thing.value = given
        # Not every driver sends it.
        with contextlib.suppress(sa.exc.DBAPIError):
            await session.commit()
            held = [row[0] for row in await read_rows(maker, "SELECT value FROM thing")]
            thing.value = None
            await session.commit()

    _, *changes = await stored_changes(maker, "Thing")
    assert [(old["value"], new["value"]) for _, _, old, new in changes] == [
        pair for value in held for pair in ((None, value), (value, None))
    ]
    assert [type(new["value"]) for _, _, _, new in changes[:1]] == [*map(type, held)]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize(("type_", "given"), [(mysql.INET4(), "10.0.0.1"), (mysql.INET6(), "::1")])
async def test_addresses_of_mariadb_are_told(maker: Maker, database: Database, type_: Any, given: str) -> None:
    """The addresses of MariaDB, which Python knows as text, are told as they read."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(type_, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Thing(id=1, value=given))

    assert await trail_of(maker, Thing) == [("insert", {"id": (None, 1), "value": (None, given)})]
