"""Laws 2, 3 and 6 for uses of SQLAlchemy that its own test-suite knows, found by running it with the hooks on."""

import uuid
from typing import Any

import pytest
from sqlalchemy import (
    ForeignKey,
    Integer,
    String,
    TypeDecorator,
    delete,
    insert,
    lambda_stmt,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from conformance_setup import Maker, save, start_audit, story_of
from sqlaudit import audit_metadata, get_resource_changes, track_table
from sqlaudit.exceptions import TrackingError, UncapturedStatementError


class Base(DeclarativeBase):
    pass


@track_table()
class Person(Base):
    __tablename__ = "person"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]


class Boss(Person):
    __tablename__ = "boss"
    __mapper_args__ = {"polymorphic_identity": "boss"}
    boss_id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    rank: Mapped[int]


async def test_bulk_statements_of_joined_classes_are_told_in_each_table(maker: Maker) -> None:
    """An ORM bulk INSERT and UPDATE by primary key of a joined subclass change, and tell, each of its tables."""
    await start_audit(maker, Base)

    async with maker() as session:
        await session.execute(insert(Boss), [{"name": "a", "rank": 1}, {"name": "b", "rank": 2}])
        await session.execute(update(Boss), [{"id": 1, "boss_id": 1, "name": "c"}, {"id": 2, "boss_id": 2, "rank": 3}])
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Person)] == ["insert", "insert", "update"]
    assert [operation for operation, _ in await story_of(maker, Boss)] == ["insert", "insert", "update"]


async def test_statements_in_lambdas_are_told(maker: Maker) -> None:
    """What lambda_stmt() wraps is recorded with the values that its closure has at the time."""
    await start_audit(maker, Base)
    out = {"synchronize_session": False}

    async with maker() as session:
        await session.execute(insert(Person), [{"name": "a"}, {"name": "b"}])
        for name in ("x", "y"):
            statement: Any = lambda_stmt(lambda: update(Person).where(Person.id == 1).values(name=name))  # noqa: B023
            await session.execute(statement, execution_options=out)
        gone: Any = lambda_stmt(lambda: delete(Person).where(Person.id == 2))
        await session.execute(gone, execution_options=out)
        await session.commit()

    assert (await story_of(maker, Person))[2:] == [
        ("update", {"name": ("a", "x")}),
        ("update", {"name": ("x", "y")}),
        ("delete", {"id": (2, None), "kind": ("person", None), "name": ("b", None)}),
    ]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_statements_in_another_schema_are_told_there(maker: async_sessionmaker[AsyncSession]) -> None:
    """A statement with its own schema_translate_map is recorded in the trail of the schema that it goes to."""
    await start_audit(maker, Base)
    other = f"other_{uuid.uuid4().hex}"
    there = {"schema_translate_map": {None: other}}

    async with maker() as session:
        await session.execute(text(f"CREATE SCHEMA {other}"))
        await session.execute(text(f"CREATE TABLE {other}.person (id serial PRIMARY KEY, kind text, name text)"))
        await session.execute(text(f"CREATE TABLE {other}.boss (boss_id int PRIMARY KEY, rank int)"))
        await session.execute(text(f"CREATE TABLE {other}.sqlaudit_change (LIKE sqlaudit_change INCLUDING ALL)"))
        await session.execute(insert(Person), [{"id": 1, "name": "here"}])
        await session.execute(
            insert(Person), [{"id": 1, "name": "there"}, {"id": 2, "name": "t"}], execution_options=there
        )
        await session.execute(update(Person).where(Person.id == 1).values(name="elsewhere"), execution_options=there)
        await session.execute(delete(Person).where(Person.id == 2).execution_options(**there))
        told = "SELECT operation, resource_id, old_values ->> 'name', new_values ->> 'name' FROM {}sqlaudit_change"
        here = (await session.execute(text(told.format("") + " ORDER BY id"))).all()
        elsewhere = (await session.execute(text(told.format(f"{other}.") + " ORDER BY id"))).all()
        rows = (await session.execute(text(f"SELECT id, name FROM {other}.person"))).all()
        await session.rollback()

    assert [tuple(row) for row in rows] == [(1, "elsewhere")]
    assert [tuple(row) for row in here] == [("insert", "1", None, "here")]
    assert [tuple(row) for row in elsewhere] == [
        ("insert", "1", None, "there"),
        ("insert", "2", None, "t"),
        ("update", "1", "there", "elsewhere"),
        ("delete", "2", "t", None),
    ]


class Vector:
    """Like an array: comparing two gives no truth."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise ValueError("the truth of a vector is ambiguous")

    __hash__ = None  # type: ignore[assignment]


class VectorType(TypeDecorator[Vector]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Vector | None, dialect: Any) -> str | None:
        return None if value is None else ",".join(map(str, value.numbers))

    def process_result_value(self, value: str | None, dialect: Any) -> Vector | None:
        return None if value is None else Vector(*map(int, value.split(",")))

    def compare_values(self, x: Any, y: Any) -> bool:
        return x is y or (isinstance(x, Vector) and isinstance(y, Vector) and x.numbers == y.numbers)


async def test_values_that_cannot_be_compared_are_told(maker: Maker) -> None:
    """A type whose values say neither True nor False to == is recorded by what it stores."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Point(Own):
        __tablename__ = "point"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[Any] = mapped_column(VectorType(20))

    await start_audit(maker, Own)

    async with maker() as session:
        point = Point(at=Vector(1, 2))
        await save(session, point)
        point.at = Vector(3, 4)
        await session.commit()

    async with maker() as session:
        changes = await get_resource_changes(Point, session=session, filter_fields="at")
        stored = (await session.execute(select(audit_metadata.tables["sqlaudit_change"].c.new_values))).scalars().all()
    assert (changes[0].old_value.numbers, changes[0].new_value.numbers) == ((1, 2), (3, 4))
    assert [values["at"] for values in stored] == ["1,2", "3,4"]


async def test_literals_as_values_are_told(maker: Maker) -> None:
    """A literal() that is assigned stays in the object: what it became is read."""
    await start_audit(maker, Base)

    async with maker() as session:
        person = Person(name=literal("a"))
        await save(session, person)
        person.name = literal("b")
        await session.commit()

    assert [fields["name"] for _, fields in await story_of(maker, Person)] == [(None, "a"), ("a", "b")]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # asyncpg doesn't say how many rows an executemany met
async def test_stale_rows_are_sqlalchemys_to_report(maker: Maker) -> None:
    """When a versioned row is gone, the application gets SQLAlchemy's own error, and nothing is told."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Versioned(Own):
        __tablename__ = "versioned"
        id: Mapped[int] = mapped_column(primary_key=True)
        version: Mapped[int] = mapped_column()
        __mapper_args__ = {"version_id_col": version}

    await start_audit(maker, Own)
    maker.configure(expire_on_commit=False)

    async with maker() as session, maker() as other:
        one, two = Versioned(), Versioned()
        await save(session, one, two)
        await other.delete(await other.get_one(Versioned, one.id))
        await other.commit()
        await session.delete(one)
        await session.delete(two)
        with pytest.raises(StaleDataError):
            await session.commit()

    assert [operation for operation, _ in await story_of(maker, Versioned)] == ["insert", "insert", "delete"]


async def test_a_class_that_is_mapped_to_a_join_is_told_in_both_tables(maker: Maker) -> None:
    """The rows of each joined table are changes under that table's name."""

    class Own(DeclarativeBase):
        pass

    class Left(Own):
        __tablename__ = "left_side"
        id: Mapped[int] = mapped_column(primary_key=True)
        x: Mapped[int]

    class Right(Own):
        __tablename__ = "right_side"
        id: Mapped[int] = mapped_column(ForeignKey("left_side.id"), primary_key=True)
        y: Mapped[int]

    left, right = Own.metadata.tables["left_side"], Own.metadata.tables["right_side"]

    @track_table()
    class Both(Own):
        __table__ = left.join(right)
        id = column_property(left.c.id, right.c.id)

    await start_audit(maker, Own)

    async with maker() as session:
        both: Any = Both(x=1, y=2)
        await save(session, both)
        both.y = 3
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, left)] == ["insert"]
    assert [operation for operation, _ in await story_of(maker, right)] == ["insert", "update"]


def test_a_class_that_is_mapped_to_a_select_is_refused() -> None:
    """Its columns are no table's: the error says to track the table."""

    class Own(DeclarativeBase):
        pass

    class Plain(Own):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    current = Own.metadata.tables["plain"].select().alias("current")

    @track_table()
    class Current(Own):
        __table__ = current
        __mapper_args__ = {"primary_key": [current.c.id]}

    with pytest.raises(TrackingError, match=r"track\(\)"):
        Own.registry.configure()


class Sealed(TypeDecorator[str]):
    """Encrypts, with another result every time; and fails on what it didn't write."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else f"sealed:{uuid.uuid4().hex}:{value[::-1]}"

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        if value is None:
            return None
        marker, _, sealed = value.split(":")
        if marker != "sealed":
            raise ValueError("not sealed")
        return sealed[::-1]


async def test_encrypted_rows_are_told_as_they_are_stored(maker: Maker) -> None:
    """What a statement finds in an encrypted column is stored in the trail as it is, not decrypted, and not anew."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Secret(Own):
        __tablename__ = "secret"
        id: Mapped[int] = mapped_column(Integer, primary_key=True)
        words: Mapped[str] = mapped_column(Sealed(100))

    await start_audit(maker, Own)

    async with maker() as session:
        await save(session, Secret(id=1, words="open sesame"))
        sealed = (await session.execute(text("SELECT words FROM secret"))).scalar_one()
        await session.execute(delete(Secret))
        await session.commit()
        trail = (await session.execute(text("SELECT old_values, new_values FROM sqlaudit_change ORDER BY id"))).all()
        changes = await get_resource_changes(Secret, session=session, filter_fields="words")

    assert sealed in str(trail[-1][0])
    assert "open sesame" not in str(trail)
    assert [(change.old_value, change.new_value) for change in changes] == [
        ("open sesame", None),
        (None, "open sesame"),
    ]


async def test_a_key_that_the_database_hands_on_to_other_keys_is_refused(maker: Maker) -> None:
    """ON UPDATE CASCADE into the primary key of a tracked row would end a resource that nobody tells the new one of."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Whole(Own):
        __tablename__ = "whole"
        id: Mapped[int] = mapped_column(primary_key=True)

    @track_table()
    class Part(Own):
        __tablename__ = "part"
        whole_id: Mapped[int] = mapped_column(ForeignKey("whole.id", onupdate="CASCADE"), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)

    await start_audit(maker, Own)

    async with maker() as session:
        whole = Whole(id=1)
        await save(session, whole)
        await save(session, Part(whole_id=1, number=1))
        await session.refresh(whole)
        whole.id = 5
        with pytest.raises(UncapturedStatementError, match="passive_updates"):
            await session.commit()

    assert [operation for operation, _ in await story_of(maker, Whole)] == ["insert"]
    assert [operation for operation, _ in await story_of(maker, Part)] == ["insert"]
