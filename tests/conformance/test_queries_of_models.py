"""Whole changes of models of every kind: inheritance, keys, types, labels that two tables have, several databases."""

from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, MetaData, Table
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from databases import Database
from observing import stored_trail
from sqlaudit import (
    Change,
    SQLAuditConfig,
    count_changes,
    get_changes,
    register_hooks,
    select_changes,
    set_config,
    stream_changes,
    track,
    track_table,
)
from sqlaudit.exceptions import RetrievalError, UntrackedError


class Base(DeclarativeBase):
    pass


@track_table(table_label="QPerson")
class Person(Base):
    __tablename__ = "q_person"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    chief_id: Mapped[int | None] = mapped_column(ForeignKey("q_person.id"))
    chief: Mapped["Person | None"] = relationship(remote_side="Person.id", back_populates="team")
    team: Mapped[list["Person"]] = relationship(back_populates="chief")


@track_table(table_label="QEngineer")
class Engineer(Person):
    __tablename__ = "q_engineer"
    __mapper_args__ = {"polymorphic_identity": "engineer"}

    id: Mapped[int] = mapped_column(ForeignKey("q_person.id"), primary_key=True)
    language: Mapped[str]


class Clerk(Person):
    __mapper_args__ = {"polymorphic_identity": "clerk"}


@track_table(table_label="QBook", resource_id_field="isbn")
class Book(Base):
    """Its rows are known by another key than others refer to."""

    __tablename__ = "q_book"

    id: Mapped[int] = mapped_column(primary_key=True)
    isbn: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]
    chapters: Mapped[list["Chapter"]] = relationship(back_populates="book")


@track_table(table_label="QChapter")
class Chapter(Base):
    """Has a key of two columns, and footnotes that refer to both."""

    __tablename__ = "q_chapter"
    # What a foreign key of MariaDB's refers to has an index in that order.
    __table_args__ = (sa.UniqueConstraint("number", "book_id"),)

    book_id: Mapped[int] = mapped_column(ForeignKey("q_book.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    book: Mapped[Book] = relationship(back_populates="chapters")
    footnotes: Mapped[list["Footnote"]] = relationship(back_populates="chapter")


@track_table(table_label="QFootnote", exclude_fields=["hidden_id"])
class Footnote(Base):
    __tablename__ = "q_footnote"
    __table_args__ = (ForeignKeyConstraint(["chapter_number", "book_id"], ["q_chapter.number", "q_chapter.book_id"]),)

    id: Mapped[int] = mapped_column(primary_key=True)
    chapter_number: Mapped[int | None]
    book_id: Mapped[int | None]
    text: Mapped[str]
    hidden_id: Mapped[int | None] = mapped_column(ForeignKey("q_person.id"))
    chapter: Mapped[Chapter | None] = relationship(back_populates="footnotes")
    hidden: Mapped[Person | None] = relationship()


class Shout(sa.TypeDecorator[str]):
    """Is loud in the database."""

    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value and value.upper()

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return value and value.lower()


@track_table(table_label="QValue")
class Value(Base):
    __tablename__ = "q_value"

    id: Mapped[int] = mapped_column(primary_key=True)
    shout: Mapped[str | None] = mapped_column(Shout)
    padded: Mapped[str | None] = mapped_column(sa.CHAR(6))
    ratio: Mapped[float | None]
    large: Mapped[int | None] = mapped_column(sa.BigInteger)
    data: Mapped[bytes | None]


def tables_of_one_label() -> tuple[Table, Table]:
    """Return two tables of two `MetaData`, both with the label QTwin."""
    ours = Table(
        "q_twin", MetaData(), Column("id", sa.Integer, primary_key=True), Column("a", sa.Integer), Column("b", sa.Text)
    )
    theirs = Table(
        "q_twin",
        MetaData(),
        Column("id", sa.Integer, primary_key=True),
        Column("a", sa.Integer),
        Column("b", sa.Numeric(10, 2)),
    )
    return track(ours, table_label="QTwin"), track(theirs, table_label="QTwin")


@pytest.fixture(name="session")
async def _session(engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]) -> Any:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with maker(expire_on_commit=False) as session:
        yield session


def shown(changes: list[Change]) -> set[tuple[str, Any, str]]:
    """What changes are of."""
    return {(each.resource_type, each.resource_id, each.operation.value) for each in changes}


async def test_changes_of_subclasses_are_those_of_their_rows(session: AsyncSession) -> None:
    """A class has the changes of its rows in all its tables, with those of subclasses, and of nobody else."""
    ada, bob, cleo = Engineer(name="Ada", language="Ada"), Person(name="Bob"), Clerk(name="Cleo")
    session.add_all([ada, bob, cleo])
    await session.flush()
    ada.name, ada.language, cleo.name = "Ada L.", "C", "Cleopatra"
    await session.flush()

    people, engineers, clerks = [await get_changes(each, session=session) for each in (Person, Engineer, Clerk)]

    def rows(label: str, person: Person, *operations: str) -> set[tuple[str, Any, str]]:
        return {(label, person.id, operation) for operation in operations}

    of_engineers = rows("QPerson", ada, "insert", "update") | rows("QEngineer", ada, "insert", "update")
    of_clerks = rows("QPerson", cleo, "insert", "update")
    assert shown(engineers) == of_engineers
    assert shown(clerks) == of_clerks
    assert shown(people) == of_engineers | of_clerks | rows("QPerson", bob, "insert")
    assert len(people) == 7
    models = {each.resource_type: each.model for each in engineers}
    assert models == {"QPerson": Person, "QEngineer": Engineer}
    inserted = {each.resource_type: each.fields for each in engineers if each.operation == "insert"}
    assert inserted["QEngineer"] == {"id": (None, ada.id), "language": (None, "Ada")}
    assert inserted["QPerson"]["name"] == (None, "Ada")


async def test_related_rows_of_one_table_and_of_several(session: AsyncSession) -> None:
    """A relationship of a class to itself can be followed, both ways, into all tables of what it leads to."""
    boss = Person(name="Boss", team=[Engineer(name="Ada", language="Ada"), Person(name="Bob")])
    session.add_all([boss, Person(name="Else")])
    await session.flush()
    ada, bob = boss.team
    bob.chief = None
    await session.flush()
    bob.name = "Robert"
    await session.flush()

    team = await get_changes(Person, session=session, resource_ids=boss.id, include="team")
    chief = await get_changes(Person, session=session, resource_ids=ada.id, include="chief")

    assert shown(team) == {
        ("QPerson", boss.id, "insert"),
        ("QPerson", ada.id, "insert"),
        ("QEngineer", ada.id, "insert"),
        ("QPerson", bob.id, "insert"),
        ("QPerson", bob.id, "update"),
    }
    assert len(team) == 6
    assert shown(chief) == {
        ("QPerson", boss.id, "insert"),
        ("QPerson", ada.id, "insert"),
        ("QEngineer", ada.id, "insert"),
    }


async def test_related_rows_by_keys_of_every_kind(session: AsyncSession) -> None:
    """Foreign keys of several columns, and those to another key than the one that names the row, are followed."""
    book, other = Book(id=1, isbn="x-1", title="One"), Book(id=2, isbn="x-2", title="Two")
    book.chapters = [Chapter(number=2, title="b", footnotes=[Footnote(text="n")]), Chapter(number=1, title="a")]
    other.chapters = [Chapter(number=2, title="c", footnotes=[Footnote(text="m")])]
    session.add_all([book, other])
    await session.flush()

    of_book = await get_changes(Book, session=session, resource_ids="x-1", include="chapters")
    of_chapter = await get_changes(Chapter, session=session, resource_ids=(1, 2), include=["book", "footnotes"])
    of_note = await get_changes(Footnote, session=session, resource_ids=1, include="chapter")

    assert shown(of_book) == {
        ("QBook", "x-1", "insert"),
        ("QChapter", (1, 1), "insert"),
        ("QChapter", (1, 2), "insert"),
    }
    assert shown(of_chapter) == {
        ("QChapter", (1, 2), "insert"),
        ("QBook", "x-1", "insert"),
        ("QFootnote", 1, "insert"),
    }
    assert shown(of_note) == {("QFootnote", 1, "insert"), ("QChapter", (1, 2), "insert")}


async def test_a_relationship_that_the_trail_does_not_tell_is_refused(session: AsyncSession) -> None:
    """Without the foreign key in the trail, nobody knows which rows are related: an error, not an empty answer."""
    with pytest.raises(RetrievalError, match=r"the trail of QFootnote doesn't tell hidden_id.*track it"):
        await get_changes(Footnote, session=session, resource_ids=1, include="hidden")


async def test_values_are_compared_as_they_are_stored(session: AsyncSession) -> None:
    """Decorated types, padded text, floats, large numbers and bytes are asked for as the model holds them."""
    value = Value(id=1, shout="loud", padded="ab", ratio=0.1, large=2**62 + 1, data=b"\x00\xff")
    session.add_all([value, Value(id=2, shout="other", padded="abc", ratio=0.2, large=2**62 + 2, data=b"\x00")])
    await session.commit()

    wanted: list[dict[str, Any]] = [
        {"shout": "loud"}, {"padded": "ab"}, {"ratio": 0.1}, {"large": 2**62 + 1},
        {"data": b"\x00\xff"}, {"shout": "loud", "padded": "ab", "ratio": 0.1},
    ]  # fmt: skip
    found = [await get_changes(Value, session=session, new=each) for each in wanted]

    assert [[each.resource_id for each in changes] for changes in found] == [[1]] * len(wanted)
    assert await get_changes(Value, session=session, new={"large": 2**62}) == []
    assert await get_changes(Value, session=session, new={"shout": "loud", "padded": "abc"}) == []


async def test_tables_with_one_label_agree_or_say_nothing(session: AsyncSession, engine: AsyncEngine) -> None:
    """Without a model, a change whose label two tables have is told as far as they agree; named, each is typed."""
    ours, theirs = tables_of_one_label()
    async with engine.begin() as connection:
        await connection.run_sync(ours.create)
    await session.execute(ours.insert().values(id=1, a=2, b="3.50"))
    await session.flush()

    (both,) = await get_changes(session=session)
    (one,) = await get_changes(ours, session=session)
    (other,) = await get_changes(theirs, session=session)

    assert (both.model, both.resource_id) == (None, 1)
    assert both.fields == {"id": (None, 1), "a": (None, 2), "b": (None, "3.50")}
    assert (one.model, one.fields["b"].new) == (ours, "3.50")
    assert other.model is theirs
    assert repr(other.fields["b"].new) == repr(Decimal("3.50"))


async def test_what_was_of_another_type_then_is_as_it_is_stored(session: AsyncSession, engine: AsyncEngine) -> None:
    """Values and keys that the model's types can't read any more are shown in their stored form."""
    session.add(Value(id=1, ratio=0.5))
    await session.commit()
    changed = sa.text("UPDATE sqlaudit_change SET resource_id = 'old', new_values = :values")
    if engine.dialect.name == "postgresql":
        changed = sa.text("UPDATE sqlaudit_change SET resource_id = 'old', new_values = CAST(:values AS JSONB)")
    async with engine.begin() as connection:
        await connection.execute(changed, {"values": '{"ratio": "half", "gone": [1]}'})

    (change,) = await get_changes(Value, session=session)

    assert change.resource_id == "old"
    assert change.fields == {"ratio": (None, "half"), "gone": (None, [1])}


def test_models_of_several_databases_are_asked_one_at_a_time(database: Database) -> None:
    """Each database has a trail of its own: a question to two of them is an error, to one of them is answered."""
    first, second = database.make_engine(), database.make_engine()
    Base.metadata.create_all(first)
    set_config(SQLAuditConfig())

    with Session(binds={Person: first, Book: second}) as session:
        assert count_changes(Book, session=session) == 0
        with pytest.raises(RetrievalError, match="in several databases"):
            get_changes([Person, Book], session=session)
        with pytest.raises(RetrievalError, match="name a model, whose database is meant"):
            get_changes(session=session)
        with pytest.raises(sa.exc.UnboundExecutionError):
            get_changes(Value, session=session)
    first.dispose()
    second.dispose()


async def test_children_of_untracked_tables_are_refused(session: AsyncSession, engine: AsyncEngine) -> None:
    """Through a secondary table that isn't audited, nobody knows which rows were related."""

    class Own(DeclarativeBase):
        pass

    link = Table(
        "q_link",
        Own.metadata,
        Column("left_id", ForeignKey("q_left.id"), primary_key=True),
        Column("right_id", ForeignKey("q_right.id"), primary_key=True),
    )

    class Right(Own):
        __tablename__ = "q_right"
        id: Mapped[int] = mapped_column(primary_key=True)

    @track_table(table_label="QLeft")
    class Left(Own):
        __tablename__ = "q_left"
        id: Mapped[int] = mapped_column(primary_key=True)
        rights: Mapped[list[Right]] = relationship(secondary=link)

    with pytest.raises(UntrackedError, match=r"The table q_link is not tracked; audit it with track\(\)"):
        await get_changes(Left, session=session, resource_ids=1, include="rights")

    track(link)
    async with engine.begin() as connection:
        await connection.run_sync(Own.metadata.create_all)
    session.add(Left(id=1, rights=[Right(id=5)]))
    await session.commit()
    changes = await get_changes(Left, session=session, resource_ids=1, include="rights")

    assert shown(changes) == {("QLeft", 1, "insert"), ("q_link", (1, 5), "insert")}
    assert len(await stored_trail(engine)) == 2


async def test_relationships_by_other_columns_than_the_key(session: AsyncSession, engine: AsyncEngine) -> None:
    """A shared key, and a foreign key to a column that changes, are followed by what the trail says of them."""

    class Own(DeclarativeBase):
        pass

    @track_table(table_label="QCountry")
    class Country(Own):
        __tablename__ = "q_country"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str] = mapped_column(unique=True)
        flag: Mapped["Flag | None"] = relationship(uselist=False)
        towns: Mapped[list["Town"]] = relationship(foreign_keys="Place.country_id")

    @track_table(table_label="QFlag")
    class Flag(Own):
        __tablename__ = "q_flag"
        id: Mapped[int] = mapped_column(ForeignKey("q_country.id"), primary_key=True)
        colour: Mapped[str]

    class Place(Own):
        """Its table isn't audited, only that of towns."""

        __tablename__ = "q_place"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "place"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        country_id: Mapped[int | None] = mapped_column(ForeignKey("q_country.id"))

    @track_table(["mayor", "country_code"], table_label="QTown")
    class Town(Place):
        __tablename__ = "q_town"
        __mapper_args__ = {"polymorphic_identity": "town"}
        id: Mapped[int] = mapped_column(ForeignKey("q_place.id"), primary_key=True)
        mayor: Mapped[str]
        country_code: Mapped[str | None] = mapped_column(ForeignKey("q_country.code"))
        country: Mapped[Country | None] = relationship(foreign_keys=country_code)

    async with engine.begin() as connection:
        await connection.run_sync(Own.metadata.create_all)
    country = Country(id=1, code="UA", flag=Flag(colour="blue and yellow"))
    session.add_all([country, Country(id=2, code="FR", flag=Flag(colour="tricolore"))])
    await session.flush()
    session.add(Town(id=5, mayor="m", country_code="UA"))
    await session.commit()

    with_flag = await get_changes(Country, session=session, resource_ids=1, include="flag")
    with_country = await get_changes(Town, session=session, resource_ids=5, include="country")

    assert shown(with_flag) == {("QCountry", 1, "insert"), ("QFlag", 1, "insert")}
    assert shown(with_country) == {("QTown", 5, "insert"), ("QCountry", 1, "insert")}
    with pytest.raises(RetrievalError, match=r"'towns', which is related by columns of q_place: audit that table"):
        await get_changes(Country, session=session, resource_ids=1, include="towns")


async def test_a_secondary_that_is_no_table_is_refused(session: AsyncSession) -> None:
    """A relationship through a join has no rows of its own to be followed."""

    class Own(DeclarativeBase):
        pass

    @track_table(table_label="QUncle")
    class Uncle(Own):
        __tablename__ = "q_uncle"
        id: Mapped[int] = mapped_column(primary_key=True)
        nieces: Mapped[list["Niece"]] = relationship(
            secondary=lambda: sa.join(Parent.__table__, Middle.__table__),
            primaryjoin="Uncle.id == Parent.uncle_id",
            secondaryjoin="Niece.middle_id == Middle.id",
            viewonly=True,
        )

    class Parent(Own):
        __tablename__ = "q_parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        uncle_id: Mapped[int] = mapped_column(ForeignKey("q_uncle.id"))

    class Middle(Own):
        __tablename__ = "q_middle"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("q_parent.id"))

    @track_table(table_label="QNiece")
    class Niece(Own):
        __tablename__ = "q_niece"
        id: Mapped[int] = mapped_column(primary_key=True)
        middle_id: Mapped[int] = mapped_column(ForeignKey("q_middle.id"))

    with pytest.raises(RetrievalError, match="no table in between"):
        await get_changes(Uncle, session=session, resource_ids=1, include="nieces")


async def test_without_autoflush_pending_objects_stay_pending(
    maker: async_sessionmaker[AsyncSession], session: Any
) -> None:
    """A session that doesn't autoflush isn't flushed by a question, and scoped sessions are as good as others."""
    async with maker(autoflush=False) as other:
        other.add(Value(id=1))

        assert await count_changes(session=other) == 0
        assert len(other.new) == 1
    scoped: Any = async_scoped_session(maker, scopefunc=lambda: None)
    assert [change async for change in stream_changes(session=scoped)] == []
    assert str(select_changes(session=scoped)).startswith("SELECT")
    await scoped.remove()
