"""Undoing a transaction: all of it, in reverse order, through the ORM, or not at all."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from conformance_setup import Maker, read_rows, save, start_audit
from databases import Database
from observing import stored_trail
from sqlaudit import audit_context, track, track_table
from sqlaudit.exceptions import RestoreError, RetrievalError, UndoConflictError
from sqlaudit.timetravel import Conflict, get_resource_snapshot, undo_transaction, undo_transaction_sync


class Base(DeclarativeBase):
    pass


book_tag = track(
    Table(
        "book_tag",
        Base.metadata,
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
        Column("book_id", ForeignKey("book.id"), primary_key=True),
        Column("note", sa.String(20)),
    )
)


@track_table()
class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@track_table(masked_fields=["code"])
class Vault(Base):
    __tablename__ = "vault"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    code: Mapped[str]


@track_table()
class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    pages: Mapped[int | None] = mapped_column(default=100)
    chapters: Mapped[list["Chapter"]] = relationship(back_populates="book", cascade="all, delete-orphan")
    tags: Mapped[list[Tag]] = relationship(secondary=book_tag)


@track_table()
class Chapter(Base):
    __tablename__ = "chapter"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))
    book: Mapped[Book] = relationship(back_populates="chapters")


@track_table()
class Review(Base):
    """Refers to a book without a relationship: the unit of work doesn't know in which order to write them."""

    __tablename__ = "a_review"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))


@track_table()
class Part(Base):
    """Goes with its book, by the database."""

    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id", ondelete="CASCADE"))


@track_table()
class Person(Base):
    __tablename__ = "person"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    favourite_id: Mapped[int | None] = mapped_column(ForeignKey("tag.id"))
    favourite: Mapped[Tag | None] = relationship()


class Author(Person):
    __tablename__ = "author"
    __mapper_args__ = {"polymorphic_identity": "author"}
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    genre: Mapped[str]


@pytest.fixture(name="maker")
async def _maker(maker: Maker, engine: AsyncEngine) -> Maker:
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine.sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    await start_audit(maker, Base)
    return maker


async def last_transaction(engine: AsyncEngine) -> uuid.UUID:
    """Return the transaction of the newest change, by plain SQL."""
    return uuid.UUID((await stored_trail(engine))[-1].transaction_id)


TABLES = ("book", "chapter", "tag", "book_tag", "a_review", "part", "person", "author")


async def tables(maker: Maker) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of all tables, by plain SQL."""
    return {name: sorted(await read_rows(maker, f"SELECT * FROM {name}"), key=repr) for name in TABLES}


async def undo(session: AsyncSession, transaction_id: uuid.UUID, **options: Any) -> list[int]:
    """Undo a transaction of this module's tables: other modules have labels like these."""
    return await undo_transaction(transaction_id, session=session, metadata=Base.metadata, **options)


async def a_library(maker: Maker) -> None:
    """Make some rows."""
    async with maker() as session:
        one, two = Tag(id=1, name="one"), Tag(id=2, name="two")
        book = Book(id=1, title="t", pages=None, tags=[one], chapters=[Chapter(id=1, title="c1")])
        await save(
            session, book, one, two, Author(id=1, name="Ada", genre="poems", favourite=Tag(id=8, name="favourite"))
        )
        await save(session, Review(id=1, book_id=1), Part(id=1, book_id=1))


async def change_everything(session: AsyncSession) -> None:
    """Change rows, one of them twice."""
    book = await session.get_one(Book, 1)
    book.title, book.pages = "changed", 5
    author = await session.get_one(Author, 1)
    author.name, author.genre = "Eve", "prose"
    await session.flush()
    book.title = "changed again"


async def insert_everything(session: AsyncSession) -> None:
    """Make rows that belong together."""
    tag = Tag(id=5, name="five")
    book = Book(id=5, title="five", tags=[tag, await session.get_one(Tag, 1)], chapters=[Chapter(id=5, title="c5")])
    session.add_all([book, Author(id=5, name="Fay", genre="novels")])
    await session.flush()
    session.add(Review(id=5, book_id=5))
    book.title = "five, changed"


async def delete_everything(session: AsyncSession) -> None:
    """Delete rows, and what belongs to them."""
    await session.execute(sa.delete(Review))
    await session.delete(await session.get_one(Book, 1))
    await session.delete(await session.get_one(Author, 1))
    await session.flush()
    await session.delete(await session.get_one(Tag, 1))


async def delete_parents(session: AsyncSession) -> None:
    """Delete rows by statements; the database deletes others with them."""
    await session.execute(sa.delete(Review))
    await session.execute(sa.delete(Chapter))
    await session.execute(sa.delete(book_tag))
    await session.execute(sa.delete(Book))


async def move_children(session: AsyncSession) -> None:
    """Let rows refer to others."""
    other = Book(id=6, title="six")
    session.add(other)
    (await session.get_one(Chapter, 1)).book = other
    await session.execute(sa.update(Review).values(book_id=1))
    await session.flush()
    await session.execute(book_tag.update().values(note="noted"))
    book = await session.get_one(Book, 1, options=[sa.orm.selectinload(Book.tags)])
    book.tags = [await session.get_one(Tag, 2)]


async def replace_rows(session: AsyncSession) -> None:
    """Use a key again."""
    tag = await session.get_one(Tag, 2)
    await session.delete(tag)
    await session.flush()
    session.add(Tag(id=2, name="another"))
    await session.flush()
    await session.execute(sa.insert(Tag).values(id=3, name="short-lived"))
    await session.execute(sa.delete(Tag).where(Tag.id == 3))


async def detach_and_delete(session: AsyncSession) -> None:
    """Delete a row that another referred to, and then that one."""
    author = await session.get_one(Author, 1)
    author.favourite_id = None
    await session.flush()
    await session.delete(await session.get_one(Tag, 8))
    await session.flush()
    await session.delete(author)


async def go_and_return(session: AsyncSession) -> None:
    """Change a row, and change it back, twice."""
    author = await session.get_one(Author, 1)
    for name in ("b", "Ada", "c", "Ada", "d"):
        author.name = name
        await session.flush()
    tag = Tag(id=9, name="short-lived")
    session.add(tag)
    await session.flush()
    await session.delete(tag)


PROGRAMS = [
    change_everything,
    insert_everything,
    delete_everything,
    delete_parents,
    move_children,
    replace_rows,
    detach_and_delete,
    go_and_return,
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("is_fresh", [True, False])
async def test_a_transaction_is_undone(maker: Maker, engine: AsyncEngine, program: Any, is_fresh: bool) -> None:
    """The tables are as they were before it, also where the session still has its objects."""
    await a_library(maker)
    before = await tables(maker)
    trail = {each.id for each in await stored_trail(engine)}
    async with maker(expire_on_commit=False) as session:
        await program(session)
        await session.commit()
        changes = [each.id for each in await stored_trail(engine) if each.id not in trail]
        assert await tables(maker) != before
        if is_fresh:
            session.expunge_all()

        undone = await undo(session, await last_transaction(engine))
        await session.commit()

    assert await tables(maker) == before
    assert undone == sorted(changes, reverse=True)


async def test_an_undone_transaction_is_a_transaction(maker: Maker, engine: AsyncEngine) -> None:
    """It is recorded, with a reason unless there is one, and can be undone itself; nothing is committed by us."""
    await a_library(maker)
    async with maker() as session:
        await change_everything(session)
        await session.commit()
        after = await tables(maker)
        first = await last_transaction(engine)

        await undo(session, first)
        assert await tables(maker) == after
        await session.commit()
        second = await last_transaction(engine)
        reasons = {each.reason for each in await stored_trail(engine) if uuid.UUID(each.transaction_id) == second}
        with audit_context(reason="second thoughts"):
            await undo(session, second)
            await session.commit()

    assert reasons == {f"undid transaction {first}"}
    assert (await stored_trail(engine))[-1].reason == "second thoughts"
    assert await tables(maker) == after


async def test_later_changes_of_the_same_fields_are_conflicts(maker: Maker, engine: AsyncEngine) -> None:
    """They are named, nothing is written; other fields of the row are none; by force, it is undone all the same."""
    await a_library(maker)
    async with maker() as session:
        book = await session.get_one(Book, 1)
        book.title = "first"
        await session.commit()
        undoing = await last_transaction(engine)
        (await session.get_one(Book, 1)).pages = 7
        await session.commit()
        await undo(session, undoing)
        assert await read_rows(maker, "SELECT title, pages FROM book") == [("first", 7)]
        await session.rollback()
        (await session.get_one(Book, 1)).title = "second"
        await session.commit()
        newest = (await stored_trail(engine))[-1].id

        with pytest.raises(UndoConflictError, match=rf"Book 1 \(title\).*{newest}.*force=True") as caught:
            await undo(session, undoing)
        assert caught.value.conflicts == (Conflict("Book", 1, ("title",), newest),)
        assert (await stored_trail(engine))[-1].id == newest
        await undo(session, undoing, force=True)
        await session.commit()

    assert await read_rows(maker, "SELECT title, pages FROM book") == [("t", 7)]


async def test_rows_that_were_changed_or_replaced_since_are_conflicts(maker: Maker, engine: AsyncEngine) -> None:
    """An inserted row that others changed, a deleted one that others made again, a changed one that is gone."""
    await a_library(maker)
    async with maker() as session:
        session.add(Tag(id=7, name="seven"))
        await session.delete(await session.get_one(Tag, 2))
        (await session.get_one(Author, 1)).name = "Eve"
        await session.commit()
        undoing = await last_transaction(engine)
        (await session.get_one(Tag, 7)).name = "changed"
        session.add(Tag(id=2, name="again"))
        await session.delete(await session.get_one(Author, 1))
        await session.commit()

        with pytest.raises(UndoConflictError) as caught:
            await undo(session, undoing)

        found = {(each.resource_type, each.resource_id, each.fields) for each in caught.value.conflicts}
        assert found == {("Tag", 7, ()), ("Tag", 2, ()), ("Person", 1, ())}
        await undo(session, undoing, force=True)
        await session.commit()

    after = await tables(maker)
    assert after["tag"] == [(1, "one"), (2, "two"), (8, "favourite")]
    assert after["person"] == [(1, "author", "Ada", 8)]
    assert after["author"] == [(1, "poems")]


async def test_rows_that_refer_to_an_inserted_one_are_conflicts(maker: Maker, engine: AsyncEngine) -> None:
    """What others have hung on a row since would go with it, or hold it: that isn't undone in silence."""
    async with maker() as session:
        await save(session, Book(id=1, title="t"))
        undoing = await last_transaction(engine)
        await save(session, Chapter(id=1, title="not ours", book_id=1))
        newest = (await stored_trail(engine))[-1].id

        with pytest.raises(UndoConflictError) as caught:
            await undo(session, undoing)
        assert caught.value.conflicts == (Conflict("Chapter", 1, ("book_id",), newest),)
        await undo(session, undoing, force=True)
        await session.commit()

    assert (await tables(maker))["chapter"] == []


async def test_masked_values_are_a_conflict(maker: Maker, engine: AsyncEngine) -> None:
    """What they were isn't known: they stay as they are, and only by force."""
    async with maker() as session:
        vault = Vault(id=1, name="v", code="old")
        await save(session, vault)
        vault.code, vault.name = "new", "new"
        await session.commit()
        undoing = await last_transaction(engine)

        with pytest.raises(UndoConflictError, match=r"withholds what Vault 1 \(code\)"):
            await undo(session, undoing)
        await undo(session, undoing, force=True)
        await session.commit()

    assert await read_rows(maker, "SELECT name, code FROM vault") == [("v", "new")]


async def test_what_can_not_be_found_is_refused(maker: Maker, engine: AsyncEngine) -> None:
    """An unknown transaction, something that is no id, a label that is nobody's, or of two tables."""
    await a_library(maker)
    undoing = await last_transaction(engine)
    twin = track(Table("twin", sa.MetaData(), Column("id", sa.Integer, primary_key=True)), table_label="Review")
    wrong: Any = str(undoing)

    async with maker() as session:
        with pytest.raises(RetrievalError, match="no change"):
            await undo(session, uuid.uuid4())
        with pytest.raises(RetrievalError, match="expected a UUID"):
            undo_transaction(wrong, session=session)
        with pytest.raises(RestoreError, match="former_labels"):
            await undo_transaction(undoing, session=session, metadata=sa.MetaData())
        with pytest.raises(RestoreError, match="metadata="):
            await undo_transaction(undoing, session=session)
    assert twin.metadata is not Base.metadata


async def test_plain_sessions_undo_too(database: Database, maker: Maker, engine: AsyncEngine) -> None:
    """With a `Session` the ids are returned, by the function with _sync in its name, too."""
    async with maker() as session:
        await save(session, Tag(id=1, name="t"))
    undoing = await last_transaction(engine)
    plain = database.make_engine()

    with Session(plain) as sync_session:
        for function in (undo_transaction, undo_transaction_sync):
            assert len(function(undoing, session=sync_session, metadata=Base.metadata)) == 1
            assert sync_session.get(Tag, 1) is None
            sync_session.rollback()
    plain.dispose()


async def test_a_state_before_is_a_state_after_undoing(maker: Maker, engine: AsyncEngine) -> None:
    """The trail goes on: the snapshot after an undone transaction is that before it."""
    await a_library(maker)
    async with maker() as session:
        before = await get_resource_snapshot(Author, 1, session=session)
        await change_everything(session)
        await session.commit()
        await undo(session, await last_transaction(engine))
        await session.commit()

        after = await get_resource_snapshot(Author, 1, session=session)

    assert after.state == before.state
    assert (after.change_id or 0) > (before.change_id or 0)
