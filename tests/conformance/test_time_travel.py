"""What was it then: snapshots, diffs, instances as of then, the past written back."""

import contextlib
import dataclasses
import datetime as dt
import json
import pickle
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker, validates
from sqlalchemy.orm.attributes import flag_modified

from conformance_setup import Maker, read_rows, save, start_audit, stored_changes
from databases import Database
from observing import sent_statements, stored_trail
from sqlaudit import MASKED, SQLAuditConfig, _snapshots, audit_context, track, track_table
from sqlaudit.exceptions import (
    NotRecordedError,
    ReadOnlyError,
    RestoreError,
    RetrievalError,
    UnknownFieldError,
    UnknownStateError,
    UntrackedError,
)
from sqlaudit.timetravel import (
    MISSING,
    FieldDiff,
    diff_resource,
    diff_resource_sync,
    get_resource_snapshot,
    get_resource_snapshot_sync,
    get_snapshots,
    get_snapshots_sync,
    load_all_as_of,
    load_all_as_of_sync,
    load_as_of,
    load_as_of_sync,
    restore_resource,
    restore_resource_sync,
)


class Base(DeclarativeBase):
    pass


book_tag = track(
    Table(
        "book_tag",
        Base.metadata,
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
        Column("book_id", ForeignKey("book.id"), primary_key=True),
    )
)


@track_table()
class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@track_table(exclude_fields=["shelf"], masked_fields=["code"])
class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column("book_title")
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(8, 2), default=Decimal(1))
    about: Mapped[Any] = mapped_column(MutableDict.as_mutable(sa.JSON(none_as_null=True)), nullable=True)
    shelf: Mapped[str | None]
    code: Mapped[str] = mapped_column(default="secret")
    series_id: Mapped[int | None] = mapped_column(ForeignKey("series.id"))
    chapters: Mapped[list["Chapter"]] = relationship(back_populates="book", cascade="all, delete-orphan")
    tags: Mapped[list[Tag]] = relationship(secondary=book_tag)
    series: Mapped["Series | None"] = relationship(back_populates="books")

    @validates("title")
    def _title_has_no_x(self, _: str, title: str) -> str:
        if title == "X":
            raise ValueError(title)
        return title


@track_table()
class Chapter(Base):
    __tablename__ = "chapter"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))
    book: Mapped[Book] = relationship(back_populates="chapters")


@track_table(tracked_fields=["name"])
class Series(Base):
    __tablename__ = "series"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    rating: Mapped[int]
    books: Mapped[list[Book]] = relationship(back_populates="series")


@track_table()
class Person(Base):
    __tablename__ = "person"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]


class Author(Person):
    __tablename__ = "author"
    __mapper_args__ = {"polymorphic_identity": "author"}
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    genre: Mapped[str]


class Editor(Person):
    """In the table of its base class."""

    __mapper_args__ = {"polymorphic_identity": "editor"}
    desk: Mapped[str | None]


@track_table()
class Place(Base):
    __tablename__ = "place"
    row: Mapped[int] = mapped_column(primary_key=True)
    seat: Mapped[str] = mapped_column(primary_key=True)
    taken: Mapped[bool]


class Untracked(Base):
    __tablename__ = "untracked"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(name="maker")
async def _maker(maker: Maker) -> Maker:
    await start_audit(maker, Base)
    return maker


async def ids_of(maker: Maker, label: str, resource_id: object) -> list[int]:
    """Return the ids of the stored changes of a row, oldest first, by plain SQL."""
    rows = await read_rows(
        maker,
        "SELECT id FROM sqlaudit_change WHERE resource_type = :label AND resource_id = :key ORDER BY id",
        label=label,
        key=str(resource_id),
    )
    return [identity for (identity,) in rows]


async def a_book(maker: Maker) -> list[int]:
    """Make a book with three changes, and return their ids."""
    async with maker(expire_on_commit=False) as session:
        book = Book(id=1, title="One", price=Decimal("1.10"), about={"a": 1, "b": {"c": [1, 2]}})
        await save(session, book)
        book.title = "Two"
        book.about["b"] = {"c": [1, 3, 4]}
        await session.commit()
        book.price = None
        await session.commit()
    return await ids_of(maker, "Book", 1)


# --- snapshots -------------------------------------------------------------------------------------------------------


async def test_a_snapshot_holds_typed_values_by_attribute(maker: Maker) -> None:
    """Attribute names, Python types, masked values withheld, what is excluded left out."""
    first, second, third = await a_book(maker)

    async with maker() as session:
        snapshot = await get_resource_snapshot(Book, 1, session=session, at=second)

    assert snapshot.state == {
        "id": 1,
        "title": "Two",
        "price": Decimal("1.10"),
        "about": {"a": 1, "b": {"c": [1, 3, 4]}},
        "code": MASKED,
        "series_id": None,
    }
    assert (snapshot.model, snapshot.resource_type, snapshot.resource_id) == (Book, "Book", 1)
    assert (snapshot.at, snapshot.change_id, snapshot.exists) == (second, second, True)
    assert first < second < third


async def test_a_moment_is_a_datetime_a_change_or_a_transaction(maker: Maker, engine: AsyncEngine) -> None:
    """Datetimes are inclusive, naive ones in the configured zone; of a transaction, its last change counts."""
    first, second, third = await a_book(maker)
    trail = {each.id: each for each in await stored_trail(engine)}
    time = trail[second].recorded_at
    kyiv = SQLAuditConfig(session_factory=maker, time_zone="Europe/Kyiv")
    moments: list[Any] = [
        second,
        time,
        time.astimezone(dt.timezone(dt.timedelta(hours=-7))),
        time.astimezone(kyiv.zone).replace(tzinfo=None),
        uuid.UUID(trail[second].transaction_id),
    ]

    async with maker() as session:
        found = [await get_resource_snapshot(Book, 1, session=session, at=at, config=kyiv) for at in moments]
        before = await get_resource_snapshot(Book, 1, session=session, at=time - dt.timedelta(microseconds=1))
        now = await get_resource_snapshot(Book, 1, session=session)

    assert [each.change_id for each in found] == [second] * len(moments)
    assert (before.change_id, now.change_id) == (first, third)
    assert found[3].at == time


async def test_there_is_no_state_before_between_and_after_lives(maker: Maker) -> None:
    """Before the insert, after the delete, between two lives: the state is None; each life has its own."""
    async with maker() as session:
        for title in ("first", "second"):
            book = Book(id=1, title=title)
            await save(session, book)
            await session.delete(book)
            await session.commit()
        changes = await ids_of(maker, "Book", 1)

        states = [
            (await get_resource_snapshot(Book, 1, session=session, at=each)).state
            for each in (changes[0] - 1, *changes)
        ]

    assert [state and state["title"] for state in states] == [None, "first", None, "second", None]


async def test_a_row_that_nobody_ever_saw_has_no_state(maker: Maker) -> None:
    """Neither in the trail nor in the table: there is none."""
    async with maker() as session:
        snapshot = await get_resource_snapshot(Book, 99, session=session)

    assert (snapshot.state, snapshot.change_id) == (None, None)


async def test_what_was_before_auditing_is_unknown(maker: Maker, engine: AsyncEngine) -> None:
    """A row that the trail doesn't begin is unknown, changed since or not, by an error of its own."""
    async with engine.begin() as connection:
        for identity in (1, 2):
            await connection.execute(sa.text(f"INSERT INTO tag (id, name) VALUES ({identity}, 'old')"))
    async with maker() as session:
        (await session.get_one(Tag, 1)).name = "new"
        await session.commit()
        (change,) = await ids_of(maker, "Tag", 1)

        for key, at in ((1, change), (1, change - 1), (1, None), (2, None)):
            with pytest.raises(UnknownStateError, match=f"Tag {key}.*baseline"):
                await get_resource_snapshot(Tag, key, session=session, at=at)


async def test_a_baseline_begins_what_is_known(maker: Maker, engine: AsyncEngine) -> None:
    """From a baseline on the row is known, and before it unknown."""
    await insert_baseline(engine, "Tag", 1, {"id": 1, "name": "old"})
    (change,) = await ids_of(maker, "Tag", 1)

    async with maker() as session:
        snapshot = await get_resource_snapshot(Tag, 1, session=session, at=change)
        with pytest.raises(UnknownStateError):
            await get_resource_snapshot(Tag, 1, session=session, at=change - 1)

    assert snapshot.state == {"id": 1, "name": "old"}


async def insert_baseline(engine: AsyncEngine, label: str, key: int, values: dict[str, Any]) -> None:
    """Write a baseline into the trail, by plain SQL."""
    await insert_change(engine, "baseline", label, key, None, values)


async def insert_change(
    engine: AsyncEngine, operation: str, label: str, key: int, old: dict[str, Any] | None, new: dict[str, Any] | None
) -> None:
    """Write a change into the trail, by plain SQL."""
    sides = ["NULL" if side is None else f"'{json.dumps(side)}'" for side in (old, new)]
    transaction = uuid.uuid4()
    text = str(transaction) if engine.dialect.name == "postgresql" else transaction.hex
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO sqlaudit_change (transaction_id, recorded_at, operation, resource_type, resource_id, "
            f"old_values, new_values) VALUES ('{text}', CURRENT_TIMESTAMP, '{operation}', '{label}', '{key}', "
            f"{', '.join(sides)})"
        )


async def test_a_later_delete_tells_what_a_row_without_beginning_was(maker: Maker, engine: AsyncEngine) -> None:
    """A delete holds the whole row: from there, the changes are read backwards, as far as the trail goes."""
    async with engine.begin() as connection:
        await connection.execute(sa.text("INSERT INTO tag (id, name) VALUES (1, 'old')"))
    async with maker() as session:
        tag = await session.get_one(Tag, 1)
        for name in ("b", "c"):
            tag.name = name
            await session.commit()
        await session.delete(tag)
        await session.commit()
        first, second, third = await ids_of(maker, "Tag", 1)

        states = [
            (await get_resource_snapshot(Tag, 1, session=session, at=each)).state for each in (first, second, third)
        ]
        with pytest.raises(UnknownStateError):
            await get_resource_snapshot(Tag, 1, session=session, at=first - 1)

    assert states == [{"id": 1, "name": "b"}, {"id": 1, "name": "c"}, None]


async def test_pending_changes_are_flushed_first(maker: Maker) -> None:
    """As retrieval does: what is pending is in the trail, unless the session doesn't autoflush."""
    async with maker(autoflush=False) as other, maker() as session:
        session.add(Tag(id=1, name="pending"))
        snapshot = await get_resource_snapshot(Tag, 1, session=session)
        await session.rollback()
        other.add(Tag(id=2, name="pending"))
        unflushed = await get_resource_snapshot(Tag, 2, session=other)

    assert snapshot.state == {"id": 1, "name": "pending"}
    assert unflushed.state is None


async def test_a_snapshot_reads_from_the_last_whole_row_on(maker: Maker, engine: AsyncEngine, monkeypatch: Any) -> None:
    """What was before the last insert is neither needed nor read: the rows since then are those of one query."""
    monkeypatch.setattr(_snapshots, "ROWS_PER_SELECT", 22)
    async with maker() as session:
        for title in ("first", "second"):
            book = Book(id=1, title=title)
            await save(session, book)
            for number in range(20):
                book.title = f"{title} {number}"
                await session.commit()
            if title == "first":
                await session.delete(book)
                await session.commit()
        with sent_statements(engine) as sent:
            await get_resource_snapshot(Book, 1, session=session)

    assert len(await ids_of(maker, "Book", 1)) == 43
    assert len([each for each in sent if each.concerns_trail]) == 1


async def test_a_key_of_several_columns_is_a_tuple(maker: Maker) -> None:
    """Snapshots are asked for and answered with the keys of the model."""
    async with maker() as session:
        await save(session, Place(row=1, seat="b", taken=False))
        snapshot = await get_resource_snapshot(Place, (1, "b"), session=session)

    assert (snapshot.resource_id, snapshot.state) == ((1, "b"), {"row": 1, "seat": "b", "taken": False})


async def test_an_object_of_several_tables_has_one_state(maker: Maker) -> None:
    """Joined inheritance is merged, and the discriminator tells the class, for the base class, too."""
    async with maker() as session:
        await save(
            session,
            Author(id=1, name="Ada", genre="poems"),
            Editor(id=2, name="Ed", desk="news"),
            Person(id=3, name="Pat"),
        )
        found = {
            (model, key): await get_resource_snapshot(model, key, session=session)
            for model in (Person, Author, Editor)
            for key in (1, 2, 3)
        }

    assert (
        found[Person, 1].state == found[Author, 1].state == {"id": 1, "kind": "author", "name": "Ada", "genre": "poems"}
    )
    assert found[Person, 1].model is Author
    assert found[Editor, 2].state == {"id": 2, "kind": "editor", "name": "Ed", "desk": "news"}
    assert found[Person, 3].state == {"id": 3, "kind": "person", "name": "Pat"}
    assert [found[pair].state for pair in ((Author, 2), (Author, 3), (Editor, 1), (Editor, 3))] == [None] * 4


async def test_what_was_stored_before_a_field_was_masked_is_withheld(maker: Maker, engine: AsyncEngine) -> None:
    """A field that is masked now shows nothing of older changes."""
    await insert_change(
        engine, "insert", "Book", 5, None, {"id": 5, "book_title": "t", "price": None, "about": None, "code": "leak"}
    )

    async with maker() as session:
        snapshot = await get_resource_snapshot(Book, 5, session=session)

    assert snapshot.state is not None
    assert snapshot.state["code"] is MASKED


@pytest.mark.parametrize(
    ("model", "arguments", "error"),
    [
        (Book, {"at": "yesterday"}, RetrievalError),
        (Book, {"at": True}, RetrievalError),
        (Book, {"at": uuid.UUID(int=1)}, RetrievalError),
        (Book, {"include": ["nothing"]}, UnknownFieldError),
        (Book, {"include": 1}, RetrievalError),
        (Untracked, {}, UntrackedError),
        (Untracked.__table__, {}, UntrackedError),
        (int, {}, RetrievalError),
    ],
)
async def test_senseless_questions_are_refused(
    maker: Maker, model: Any, arguments: Any, error: type[Exception]
) -> None:
    """A moment, a relationship or a model that there isn't is an error that says so."""
    async with maker() as session:
        with pytest.raises(error):
            await get_resource_snapshot(model, 1, session=session, **arguments)


# --- all of a model --------------------------------------------------------------------------------------------------


async def test_all_rows_of_a_moment_are_iterated_over(maker: Maker) -> None:
    """Those that there were, as they were, in pages; filtered by the values of then."""
    async with maker(expire_on_commit=False) as session:
        tags = [Tag(id=number, name=f"n{number % 3}") for number in range(1, 451)]
        await save(session, *tags)
        last = (await ids_of(maker, "Tag", 450))[0]
        for tag in tags[:100]:
            tag.name = "changed"
        await session.delete(tags[449])
        await session.commit()

        then = {each.resource_id: each.state async for each in get_snapshots(Tag, session=session, at=last)}
        now = {each.resource_id async for each in get_snapshots(Tag, session=session)}
        some = [each.resource_id async for each in get_snapshots(Tag, session=session, at=last, where={"name": "n0"})]
        none = [each async for each in get_snapshots(Tag, session=session, at=last - 450)]

    assert then == {number: {"id": number, "name": f"n{number % 3}"} for number in range(1, 451)}
    assert now == set(range(1, 450))
    assert sorted(some) == list(range(3, 451, 3))
    assert none == []


async def test_filters_compare_typed_values(maker: Maker) -> None:
    """Decimals at the scale of the column, NULLs, several fields at once; masked and unknown fields are refused."""
    await a_book(maker)
    (first, *_) = await ids_of(maker, "Book", 1)

    async with maker() as session:

        async def found(at: int | None, **where: Any) -> list[int]:
            return [each.resource_id async for each in get_snapshots(Book, session=session, at=at, where=where)]

        assert await found(first, price=Decimal("1.1"), title="One") == [1]
        assert await found(first, price=Decimal("1.1"), title="Two") == []
        assert await found(None, price=None) == [1]
        with pytest.raises(UnknownFieldError, match="where"):
            await found(None, titel="One")
        with pytest.raises(RetrievalError, match="withholds"):
            await found(None, code="secret")


async def test_all_rows_of_a_subclass_are_those_of_its_kind(maker: Maker) -> None:
    """Of a base class, all come, each with its class."""
    async with maker() as session:
        await save(session, Author(id=1, name="Ada", genre="poems"), Editor(id=2, name="Ed"), Person(id=3, name="Pat"))

        found = {
            model: {each.resource_id: each.model async for each in get_snapshots(model, session=session)}
            for model in (Person, Author, Editor)
        }

    assert found == {Person: {1: Author, 2: Editor, 3: Person}, Author: {1: Author}, Editor: {2: Editor}}


async def test_unknown_rows_stop_the_iteration_or_are_skipped(maker: Maker, engine: AsyncEngine) -> None:
    """A row that the trail doesn't begin is never silently missing, unless it was asked for so."""
    async with engine.begin() as connection:
        await connection.execute(sa.text("INSERT INTO tag (id, name) VALUES (1, 'old')"))
    async with maker() as session:
        session.add(Tag(id=2, name="known"))
        await session.flush()
        (await session.get_one(Tag, 1)).name = "new"
        await session.commit()
        (known,) = await ids_of(maker, "Tag", 2)

        for at in (None, known):
            with pytest.raises(UnknownStateError):
                [each async for each in get_snapshots(Tag, session=session, at=at)]
            skipped = [each.resource_id async for each in get_snapshots(Tag, session=session, at=at, skip_unknown=True)]
            assert skipped == [2]


async def test_pages_are_of_one_moment(maker: Maker) -> None:
    """Without a moment, it is that of the first page: rows that come or change while it is iterated over don't mix."""
    async with maker() as session, maker() as other:
        await save(session, *(Tag(id=number, name="old") for number in range(1000, 1300)))
        names: list[Any] = []
        async for each in get_snapshots(Tag, session=session):
            if not names:
                await session.commit()
                (await other.get_one(Tag, 1299)).name = "new"
                await save(other, Tag(id=2000, name="new"))
            names.append(each.state and each.state["name"])

    assert names == ["old"] * 300


# --- both colours ----------------------------------------------------------------------------------------------------


async def test_everything_is_there_for_plain_sessions(database: Database, maker: Maker) -> None:
    """With a `Session` the value is returned, and the functions with _sync in their names say so in their types."""
    (first, *_) = await a_book(maker)
    engine = database.make_engine()
    with Session(engine) as session:
        plain: list[Any] = [
            get_resource_snapshot(Book, 1, session=session, at=first).state,
            get_resource_snapshot_sync(Book, 1, session=session, at=first).state,
            next(each.state for each in get_snapshots(Book, session=session, at=first)),
            next(each.state for each in get_snapshots_sync(Book, session=session, at=first)),
        ]
        assert [state["title"] for state in plain] == ["One"] * 4
        instances = [
            load_as_of(Book, 1, session=session, at=first),
            load_as_of_sync(Book, 1, session=session, at=first),
            *load_all_as_of(Book, session=session, at=first),
            *load_all_as_of_sync(Book, session=session, at=first),
        ]
        assert [each and each.title for each in instances] == ["One"] * 4
        assert diff_resource(Book, 1, first, session=session) == diff_resource_sync(Book, 1, first, session=session)
        for write in (restore_resource, restore_resource_sync):
            restored = write(Book, 1, session=session, at=first)
            assert isinstance(restored, Book)
            assert restored.title == "One"
            session.rollback()
    engine.dispose()


async def test_sessions_of_the_configured_factory_are_used(database: Database, maker: Maker) -> None:
    """Without a session, one of the factory's is opened and closed, in its colour."""
    (first, *_) = await a_book(maker)
    engine = database.make_engine()
    plain = SQLAuditConfig(session_factory=sessionmaker(engine))

    assert (await get_resource_snapshot(Book, 1, at=first)).change_id == first
    assert [each.change_id async for each in get_snapshots(Book, at=first)] == [first]
    assert get_resource_snapshot_sync(Book, 1, at=first, config=plain).change_id == first
    assert [each.change_id for each in get_snapshots_sync(Book, at=first, config=plain)] == [first]
    stream: Any = get_snapshots(Book, at=first, config=plain)
    assert [each.change_id for each in stream] == [first]
    with pytest.raises(RetrievalError, match="_sync"):
        get_snapshots_sync(Book, at=first)
    async with maker() as session:
        wrong: Any = session
        with pytest.raises(RetrievalError, match="_sync"):
            get_snapshots_sync(Book, at=first, session=wrong)
    engine.dispose()


# --- instances -------------------------------------------------------------------------------------------------------


async def test_an_instance_of_then_reads_like_the_model(maker: Maker) -> None:
    """It is an instance of the class, transient, with typed values, and no session knows it."""
    (first, *_) = await a_book(maker)

    async with maker() as session:
        book = await load_as_of(Book, 1, session=session, at=first)
        missing = await load_as_of(Book, 1, session=session, at=first - 1)

        assert isinstance(book, Book)
        code: Any = book.code
        assert (book.id, book.title, book.price, code) == (1, "One", Decimal("1.10"), MASKED)
        assert sa.inspect(book).transient
        assert book not in session
        assert list(session) == []
        assert missing is None


async def test_an_instance_of_then_can_not_be_changed_or_attached(maker: Maker) -> None:
    """Setting, deleting, appending, flagging and adding are errors, and leave it and the session as they were."""
    (first, *_) = await a_book(maker)

    async with maker() as session:
        book: Any = await load_as_of(Book, 1, session=session, at=first)
        live = Chapter(id=1, title="c")

        with pytest.raises(ReadOnlyError, match="restore_resource"):
            book.title = "changed"
        with pytest.raises(ReadOnlyError):
            del book.title
        with pytest.raises(ReadOnlyError):
            book.series = Series(name="s", rating=1)
        with pytest.raises(ReadOnlyError):
            flag_modified(book, "title")
        with pytest.raises(ReadOnlyError):
            session.add(book)
        with pytest.raises((ReadOnlyError, InvalidRequestError)):
            await session.delete(book)
        session.add(live)
        with pytest.raises(ReadOnlyError):
            live.book = book
        session.expunge_all()
        assert list(session.new) == []
        assert book.title == "One"


async def test_an_instance_of_then_loads_nothing(maker: Maker, engine: AsyncEngine) -> None:
    """Relationships, and columns that the trail doesn't hold, are errors that an attribute's absence is, too."""
    (first, *_) = await a_book(maker)

    async with maker() as session:
        book: Any = await load_as_of(Book, 1, session=session, at=first)
        with sent_statements(engine) as sent:
            for name in ("chapters", "tags", "series", "shelf"):
                with pytest.raises(NotRecordedError, match=name):
                    getattr(book, name)
            assert getattr(book, "shelf", "nowhere") == "nowhere"

    assert sent == []


async def test_instances_of_then_have_the_class_of_then(maker: Maker) -> None:
    """Polymorphic rows come as their subclasses, one by one or all."""
    async with maker() as session:
        await save(session, Author(id=1, name="Ada", genre="poems"), Editor(id=2, name="Ed"))

        one = await load_as_of(Person, 1, session=session, at=None)
        every = [each async for each in load_all_as_of(Person, session=session, at=None)]

    assert isinstance(one, Author)
    assert (one.name, one.genre, one.kind) == ("Ada", "poems", "author")
    assert {type(each) for each in every} == {Author, Editor}


async def test_core_tables_have_no_instances(maker: Maker) -> None:
    """Where objects are asked for, a table is refused."""
    table: Any = book_tag
    async with maker() as session:
        for refused in (
            lambda: load_as_of(table, (1, 1), session=session, at=None),
            lambda: load_all_as_of(table, session=session, at=None),
            lambda: restore_resource(table, (1, 1), session=session, at=None),
        ):
            with pytest.raises(RetrievalError, match="no objects"):
                refused()


# --- differences -----------------------------------------------------------------------------------------------------


async def test_a_diff_is_old_and_new_by_field(maker: Maker) -> None:
    """Documents differ by paths; the other way round, the diff is the other way round; masked values never differ."""
    first, second, third = await a_book(maker)

    async with maker() as session:
        forwards = await diff_resource(Book, 1, first, third, session=session)
        backwards = await diff_resource(Book, 1, third, first, session=session)
        none = await diff_resource(Book, 1, second, second, session=session)
        from_nothing = await diff_resource(Book, 1, first - 1, first, session=session)

    assert {name: (each.old, each.new) for name, each in forwards.items() if name != "about"} == {
        "title": ("One", "Two"),
        "price": (Decimal("1.10"), None),
    }
    assert forwards["about"].json_changes() == {("b", "c", 1): FieldDiff(2, 3), ("b", "c", 2): FieldDiff(MISSING, 4)}
    assert backwards["title"] == FieldDiff("Two", "One")
    assert none == {}
    assert from_nothing["title"] == FieldDiff(MISSING, "One")
    assert from_nothing["series_id"] == FieldDiff(MISSING, None)


# --- restoring -------------------------------------------------------------------------------------------------------


async def row_of(maker: Maker, identity: int = 1) -> tuple[Any, ...] | None:
    """Return a book's row, by plain SQL."""
    rows = await read_rows(maker, "SELECT book_title, shelf, code FROM book WHERE id = :id", id=identity)
    return rows[0] if rows else None


async def test_a_row_is_restored_through_the_orm(maker: Maker, engine: AsyncEngine) -> None:
    """What differs is set and flushed, not committed; untracked and masked fields stay; the trail tells it, and why."""
    (first, *_) = await a_book(maker)

    async with maker() as session:
        loaded = await session.get_one(Book, 1)
        loaded.shelf, loaded.code = "top", "changed"
        await session.commit()
        restored = await restore_resource(Book, 1, session=session, at=first)
        assert restored is loaded
        assert (restored.title, restored.price, restored.about) == (
            "One",
            Decimal("1.10"),
            {"a": 1, "b": {"c": [1, 2]}},
        )
        assert await row_of(maker) == ("Two", "top", "changed")
        await session.commit()

    assert await row_of(maker) == ("One", "top", "changed")
    last = (await stored_trail(engine))[-1]
    assert (last.operation, last.reason) == ("update", f"restored Book 1 to change {first}")
    assert set(last.new_values or ()) == {"book_title", "price", "about"}


async def test_a_given_reason_is_kept(maker: Maker, engine: AsyncEngine) -> None:
    """The reason of the audit context goes before the one that says what was restored."""
    (first, *_) = await a_book(maker)

    async with maker() as session:
        with audit_context(reason="ticket 7", user_id=3):
            await restore_resource(Book, 1, session=session, at=first)
            await session.commit()

    last = (await stored_trail(engine))[-1]
    assert (last.reason, last.changed_by) == ("ticket 7", "3")


async def test_single_fields_are_restored(maker: Maker) -> None:
    """Only the named ones; one that isn't tracked, or that the trail withholds, is an error."""
    (first, *_) = await a_book(maker)

    async with maker() as session:
        restored = await restore_resource(Book, 1, session=session, at=first, fields=["title"])
        assert restored is not None
        assert (restored.title, restored.price) == ("One", None)
        with pytest.raises(UnknownFieldError, match="shelf"):
            await restore_resource(Book, 1, session=session, at=first, fields=["shelf"])
        with pytest.raises(RestoreError, match="code"):
            await restore_resource(Book, 1, session=session, at=first, fields=["code"])


async def test_what_is_as_it_was_is_not_written(maker: Maker) -> None:
    """Restoring to now leaves no change."""
    await a_book(maker)
    before = await stored_changes(maker, "Book")

    async with maker() as session:
        await restore_resource(Book, 1, session=session, at=None)
        await session.commit()

    assert await stored_changes(maker, "Book") == before


async def test_validators_see_what_is_restored(maker: Maker, engine: AsyncEngine) -> None:
    """It is set as an application would: a validator that refuses it is heard, and nothing is written."""
    await a_book(maker)
    await insert_change(engine, "update", "Book", 1, {"book_title": "Two"}, {"book_title": "X"})
    wrong = (await ids_of(maker, "Book", 1))[-1]

    async with maker() as session:
        with pytest.raises(ValueError, match="X"):
            await restore_resource(Book, 1, session=session, at=wrong)

    assert (await row_of(maker) or ("",))[0] == "Two"


async def test_a_deleted_row_is_made_anew_under_its_key(maker: Maker) -> None:
    """With its values, NULLs instead of defaults among them; a masked value with a default gets that."""
    _, _, third = await a_book(maker)
    async with maker() as session:
        await session.delete(await session.get_one(Book, 1))
        await session.commit()

        restored = await restore_resource(Book, 1, session=session, at=third)

        assert isinstance(restored, Book)
        # None of these may need to be loaded: there is no await in an attribute.
        assert (restored.id, restored.title, restored.price, restored.code) == (1, "Two", None, "secret")
        await session.commit()

    assert await row_of(maker) == ("Two", None, "secret")
    assert (await stored_changes(maker, "Book"))[-1][0] == "insert"


async def test_required_values_that_the_trail_does_not_hold_are_asked_for(maker: Maker) -> None:
    """A row can't be made anew without them; `values` gives them, and may give others."""
    async with maker() as session:
        series = Series(id=1, name="S", rating=5)
        await save(session, series)
        await session.delete(series)
        await session.commit()
        (inserted, _) = await ids_of(maker, "Series", 1)

        with pytest.raises(RestoreError, match=r"'rating'.*values"):
            await restore_resource(Series, 1, session=session, at=inserted)
        with pytest.raises(UnknownFieldError, match="values"):
            await restore_resource(Series, 1, session=session, at=inserted, values={"ratng": 4})
        with pytest.raises(RestoreError, match="leave fields out"):
            await restore_resource(Series, 1, session=session, at=inserted, fields=["name"])
        await restore_resource(Series, 1, session=session, at=inserted, values={"rating": 4})
        await session.commit()

    assert await read_rows(maker, "SELECT id, name, rating FROM series") == [(1, "S", 4)]


async def test_a_row_that_did_not_exist_is_deleted_if_told_so(maker: Maker) -> None:
    """Otherwise it is an error that says how."""
    async with maker() as session:
        await save(session, Tag(id=1, name="t"))
        (first,) = await ids_of(maker, "Tag", 1)

        with pytest.raises(RestoreError, match="delete=True"):
            await restore_resource(Tag, 1, session=session, at=first - 1)
        assert await restore_resource(Tag, 1, session=session, at=first - 1, delete=True) is None
        assert await restore_resource(Tag, 1, session=session, at=first - 1) is None
        await session.commit()

    assert await read_rows(maker, "SELECT * FROM tag") == []


async def test_objects_of_several_tables_are_restored(maker: Maker) -> None:
    """Changed or deleted, through their class or its base; one that is of another class now is refused."""
    async with maker() as session:
        author = Author(id=1, name="Ada", genre="poems")
        await save(session, author)
        at = (await ids_of(maker, "Author", 1))[-1]
        author.name, author.genre = "Eve", "prose"
        await session.commit()
        await restore_resource(Person, 1, session=session, at=at)
        await session.commit()
        joined = "SELECT p.name, p.kind, a.genre FROM person p JOIN author a ON a.id = p.id"
        assert await read_rows(maker, joined) == [("Ada", "author", "poems")]

        await session.delete(author)
        await session.commit()
        restored = await restore_resource(Person, 1, session=session, at=at)
        assert type(restored) is Author
        await session.commit()
        assert await read_rows(maker, joined) == [("Ada", "author", "poems")]

        await session.delete(restored)
        await session.commit()
        await save(session, Editor(id=1, name="Ed"))
        with pytest.raises(RestoreError, match="is a Editor now"):
            await restore_resource(Author, 1, session=session, at=at)


async def test_what_a_foreign_key_led_to_is_read_again(maker: Maker) -> None:
    """A relationship that was loaded follows its restored foreign key."""
    async with maker(expire_on_commit=False) as session:
        one, two = Series(id=1, name="1", rating=1), Series(id=2, name="2", rating=2)
        book = Book(id=1, title="t", series=one)
        await save(session, book, two)
        (first,) = await ids_of(maker, "Book", 1)
        book.series = two
        await session.commit()

        await restore_resource(Book, 1, session=session, at=first)

        assert book.series_id == 1
        assert book.series is one


# --- graphs ----------------------------------------------------------------------------------------------------------


async def test_a_snapshot_brings_what_belonged_to_it(maker: Maker) -> None:
    """Children, parents and many-to-many rows as of then, those that have gone or moved since among them."""
    async with maker(expire_on_commit=False) as session:
        one, two = Tag(id=1, name="one"), Tag(id=2, name="two")
        series = Series(id=7, name="then", rating=1)
        chapters = [Chapter(id=number, title=f"c{number}") for number in (1, 2)]
        book = Book(id=1, title="t", tags=[one], chapters=chapters, series=series)
        await save(
            session, book, two, Book(id=2, title="other", tags=[one], chapters=[Chapter(id=9, title="not mine")])
        )
        then = (await stored_last(maker))[0]
        chapters[0].title = "changed"
        book.chapters.remove(chapters[1])
        book.chapters.append(Chapter(id=3, title="new"))
        book.tags = [two]
        series.name = "now"
        book.series = None
        two.name = "two now"
        await session.commit()

        include = ["chapters", "tags", "series"]
        before = await get_resource_snapshot(Book, 1, session=session, at=then, include=include)
        now = await get_resource_snapshot(Book, 1, session=session, include=include)
        of_series = await get_resource_snapshot(Series, 7, session=session, at=then, include=["books"])
        gone = await get_resource_snapshot(Book, 5, session=session, at=then, include=include)

    def shown(snapshot: Any, name: str, field: str) -> list[Any]:
        return [each.state[field] for each in snapshot.related[name]]

    assert shown(before, "chapters", "title") == ["c1", "c2"]
    assert shown(before, "tags", "name") == ["one"]
    assert shown(before, "series", "name") == ["then"]
    assert shown(now, "chapters", "title") == ["changed", "new"]
    assert shown(now, "tags", "name") == ["two now"]
    assert shown(now, "series", "name") == []
    assert shown(of_series, "books", "title") == ["t"]
    assert gone.related == {"chapters": (), "tags": (), "series": ()}


async def stored_last(maker: Maker) -> tuple[int]:
    """Return the id of the newest change, by plain SQL."""
    ((last,),) = await read_rows(maker, "SELECT max(id) FROM sqlaudit_change")
    return (last,)


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["change", "time", "now"])
async def test_a_snapshot_uses_the_index_of_the_resource(maker: Maker, engine: AsyncEngine, at: str) -> None:
    """However large the trail is, the changes of the row are found by their index, in one query per table."""
    async with maker() as session:
        session.add_all([Tag(id=number, name="n") for number in range(1, 3001)])
        await session.commit()
        tag = await session.get_one(Tag, 1500)
        for number in range(10):
            tag.name = f"n{number}"
            await session.commit()
    middle = (await ids_of(maker, "Tag", 1500))[5]
    time = next(each.recorded_at for each in await stored_trail(engine) if each.id == middle)
    moment: Any = {"change": middle, "time": time, "now": None}[at]

    async with maker() as session:
        if engine.dialect.name == "postgresql":
            await session.execute(sa.text("ANALYZE sqlaudit_change"))
        with planned(engine) as plans:
            snapshot = await get_resource_snapshot(Tag, 1500, session=session, at=moment)

    assert snapshot.state == {"id": 1500, "name": "n9" if at == "now" else "n4"}
    (plan,) = plans
    assert "sqlaudit_change_resource" in plan
    assert "Seq Scan" not in plan
    assert "SCAN sqlaudit_change" not in plan
    assert " ALL " not in plan


@contextlib.contextmanager
def planned(engine: AsyncEngine) -> Iterator[list[str]]:
    """Give the plans of the queries of the trail in the block."""
    plans: list[str] = []
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"

    def listen(connection: Any, _: Any, statement: str, parameters: Any, __: Any, ___: Any) -> None:
        if statement.startswith("SELECT") and "sqlaudit_change" in statement:
            rows = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            plans.append("\n".join(" ".join(map(str, row)) for row in rows))

    sa.event.listen(engine.sync_engine, "before_cursor_execute", listen)
    try:
        yield plans
    finally:
        sa.event.remove(engine.sync_engine, "before_cursor_execute", listen)


async def test_long_histories_are_read_in_parts(maker: Maker, engine: AsyncEngine, monkeypatch: Any) -> None:
    """However many changes a row has, so many at most are in memory; the state is the same, forwards and backwards."""
    monkeypatch.setattr(_snapshots, "ROWS_PER_SELECT", 4)
    async with engine.begin() as connection:
        await connection.execute(sa.text("INSERT INTO tag (id, name) VALUES (2, 'unseen')"))
    async with maker(expire_on_commit=False) as session:
        session.add_all([Tag(id=1, name="n"), Tag(id=3, name="n")])
        await session.commit()
        tags = [await session.get_one(Tag, number) for number in (1, 2, 3)]
        for number in range(13):
            for tag in tags:
                tag.name = f"{tag.id} {number}"
            await session.commit()
        await session.delete(tags[1])
        await session.commit()
        at = (await ids_of(maker, "Tag", 2))[1]

        with sent_statements(engine) as sent:
            one = await get_resource_snapshot(Tag, 1, session=session)
        backwards = await get_resource_snapshot(Tag, 2, session=session, at=at)
        every = [each.state async for each in get_snapshots(Tag, session=session)]

    assert len([each for each in sent if each.concerns_trail]) == 4
    assert one.state == {"id": 1, "name": "1 12"}
    assert backwards.state == {"id": 2, "name": "2 1"}
    assert every == [{"id": 1, "name": "1 12"}, {"id": 3, "name": "3 12"}]


# --- models that are out of the ordinary -----------------------------------------------------------------------------


class Odd(DeclarativeBase):
    pass


@track_table(resource_id_field="code")
class Named(Odd):
    __tablename__ = "named"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    plain: Mapped[Any] = mapped_column(MutableDict.as_mutable(sa.JSON()), nullable=True, default=dict)
    owned: Mapped[list["Owned"]] = relationship(
        primaryjoin="and_(Owned.named_id == Named.id, Owned.kept == True)", viewonly=True
    )
    children: Mapped[list["Owned"]] = relationship(back_populates="named")


@track_table()
class Owned(Odd):
    __tablename__ = "owned"
    id: Mapped[int] = mapped_column(primary_key=True)
    kept: Mapped[bool]
    named_id: Mapped[int | None] = mapped_column(ForeignKey("named.id"))
    named: Mapped[Named | None] = relationship(back_populates="children")


@pytest.fixture(name="odd")
async def _odd(engine: AsyncEngine) -> Maker:
    maker = async_sessionmaker(engine, expire_on_commit=False)
    await start_audit(maker, Odd)
    return maker


async def test_a_resource_id_of_the_users_choice_names_the_row(odd: Maker) -> None:
    """Snapshots, restored rows and relationships go by it, under the primary key of then."""
    async with odd() as session:
        named = Named(id=7, code="x", plain={"a": 1}, children=[Owned(id=1, kept=True)])
        await save(session, named)
        then = (await stored_last(odd))[0]
        named.plain = {"a": 2}
        named.children = []
        await session.commit()

        snapshot = await get_resource_snapshot(Named, "x", session=session, at=then, include=["children"])
        of_child = await get_resource_snapshot(Owned, 1, session=session, at=then, include=["named"])
        with pytest.raises(RetrievalError, match="criteria"):
            await get_resource_snapshot(Named, "x", session=session, include=["owned"])
        restored = await restore_resource(Named, "x", session=session, at=then)
        assert restored is named
        await session.delete(named)
        await session.commit()
        await restore_resource(Named, "x", session=session, at=then)
        await session.commit()

    assert snapshot.state == {"id": 7, "code": "x", "plain": {"a": 1}}
    assert [each.resource_id for each in snapshot.related["children"]] == [1]
    assert [each.resource_id for each in of_child.related["named"]] == ["x"]
    assert await read_rows(odd, "SELECT id, code FROM named") == [(7, "x")]


@pytest.mark.parametrize("value", [sa.null(), sa.JSON.NULL, {"a": 1}])
async def test_each_null_of_a_document_is_restored_as_itself(odd: Maker, value: Any) -> None:
    """SQL NULL, or the JSON value null: in a row that is there, and in one that is made anew in spite of a default."""
    query = "SELECT plain IS NULL, CAST(plain AS CHAR(100)) FROM named"
    async with odd() as session:
        await session.execute(sa.insert(Named).values(id=1, code="x", plain=value))
        await session.commit()
        then = (await stored_last(odd))[0]
        before = await read_rows(odd, query)
        for other in (sa.null(), sa.JSON.NULL, {"b": 2}):
            await session.execute(sa.update(Named).values(plain=other))
            await session.commit()
            await restore_resource(Named, "x", session=session, at=then)
            await session.commit()
            assert await read_rows(odd, query) == before
        await session.execute(sa.delete(Named))
        await session.commit()
        await restore_resource(Named, "x", session=session, at=then)
        await session.commit()

    assert await read_rows(odd, query) == before


async def test_snapshots_are_plain_values(maker: Maker) -> None:
    """They can be pickled, copied and turned into dictionaries."""
    (first, *_) = await a_book(maker)

    async with maker() as session:
        snapshot = await get_resource_snapshot(Book, 1, session=session, at=first, include=["chapters"])
        diff = await diff_resource(Book, 1, first - 1, first, session=session)

    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert pickle.loads(pickle.dumps(diff)) == diff
    assert dataclasses.asdict(snapshot)["state"] == snapshot.state


async def test_sessions_without_transactions_can_ask_too(database: Database, maker: Maker) -> None:
    """An engine in AUTOCOMMIT mode has no cursors that outlive a statement; none are needed."""
    (first, *_) = await a_book(maker)
    engine = database.make_engine(isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        assert get_resource_snapshot(Book, 1, session=session, at=first).change_id == first
        assert [each.change_id for each in get_snapshots(Book, session=session, at=first)] == [first]
    engine.dispose()
