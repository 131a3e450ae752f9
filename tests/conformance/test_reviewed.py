"""What a reviewer got past the trail: listeners that write, copies of engines, odd text. Each stays closed."""

import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column

from conformance_setup import Maker, changes_of, read_rows, save, start_audit, stored_changes, story_of
from databases import Database
from sqlaudit import track_table
from sqlaudit.capture.refusals import refusal_of, tables_in_text
from sqlaudit.exceptions import CaptureError, UncapturedStatementError


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counter"

    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


@track_table()
class Page(Base):
    __tablename__ = "page"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    path: Mapped[str | None]
    number: Mapped[int | None]


pages: Any = Page.__table__
counters: Any = Counter.__table__


@pytest.fixture(name="listen")
def _listen() -> Iterator[Any]:
    """Register listeners of the application, after ours, for one test."""
    configure_mappers()
    registered: list[tuple[str, Any]] = []

    def listen(name: str, listener: Any) -> None:
        event.listen(Page, name, listener)
        registered.append((name, listener))

    yield listen
    for name, listener in registered:
        event.remove(Page, name, listener)


async def test_what_a_listener_sets_after_a_statement_of_its_own_is_told(maker: Maker, listen: Any) -> None:
    """A before_update listener that takes a number from another table, by statements, sets an attribute of the row."""
    await start_audit(maker, Base)

    def take_number(mapper: Any, connection: Any, page: Page) -> None:
        connection.execute(update(counters).values(n=counters.c.n + 1))
        page.number = connection.execute(select(counters.c.n)).scalar()

    async with maker(expire_on_commit=False) as session:
        one, two = Page(id=1, name="a"), Page(id=2, name="b")
        await save(session, Counter(id=1, n=5), one, two)
        listen("before_update", take_number)
        one.name, two.name = "c", "d"
        await session.commit()

    story = await story_of(maker, Page)
    assert sorted(fields["number"] for _, fields in story[2:]) == [(None, 6), (None, 7)]


async def test_what_a_listener_does_to_its_own_row_comes_in_order(maker: Maker, listen: Any) -> None:
    """Statements of after_insert and before_delete listeners on the object's row are told between its own changes."""
    await start_audit(maker, Base)

    def set_path(mapper: Any, connection: Any, page: Page) -> None:
        connection.execute(update(pages).where(pages.c.id == page.id).values(path=f"/{page.id}"))

    def mark(mapper: Any, connection: Any, page: Page) -> None:
        connection.execute(update(pages).where(pages.c.id == page.id).values(number=77))

    listen("after_insert", set_path)
    listen("before_delete", mark)
    async with maker(expire_on_commit=False) as session:
        page = Page(id=1, name="a")
        await save(session, page)
        await session.delete(page)
        await session.commit()

    story = await story_of(maker, Page)
    assert [operation for operation, _ in story] == ["insert", "update", "update", "delete"]
    assert story[-1][1]["number"] == (77, None)


async def test_a_cache_of_the_applications_own_hides_nothing(maker: Maker, listen: Any) -> None:
    """A compiled_cache among the execution options doesn't make a statement one of the unit of work's."""
    await start_audit(maker, Base)

    def set_path(mapper: Any, connection: Any, page: Page) -> None:
        statement = update(pages).where(pages.c.id == page.id).values(path="/")
        connection.execute(statement, execution_options={"compiled_cache": {}})

    listen("after_insert", set_path)
    async with maker() as session:
        await save(session, Page(id=1, name="a"))

    assert [operation for operation, _ in await story_of(maker, Page)] == ["insert", "update"]


async def test_an_engine_and_its_copy_are_heard_once(maker: Maker) -> None:
    """What engine.execution_options() returns shares the listeners of its engine: rows are told once."""
    await start_audit(maker, Base)
    copy = maker.kw["bind"].execution_options(isolation_level="SERIALIZABLE")

    async with maker() as session:
        await save(session, Page(name="a"))
    async with maker(bind=copy) as session:
        await session.execute(insert(pages).values([{"name": "b"}, {"name": "c"}]))
        await session.execute(update(pages).values(name=pages.c.name + "!"))
        await session.commit()

    assert len(await story_of(maker, Page)) == 3 + 3


async def test_metadata_can_still_be_pickled(maker: Maker) -> None:
    """What the library notes with a table doesn't hinder pickling the application's MetaData."""
    metadata = sa.MetaData()
    sa.Table("plain", metadata, *(column._copy() for column in pages.columns), info={**pages.info})
    await start_audit(maker, Base)
    async with maker() as session:
        await save(session, Page(id=1, name="a"))
    metadata.tables["plain"].info.update(pages.info)

    assert pickle.loads(pickle.dumps(metadata)).tables.keys() == {"plain"}


async def test_text_that_evaluates_none_is_told_as_null(maker: Maker) -> None:
    """evaluates_none() on a column that isn't JSON sends SQL NULL, and that is what is told."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Note(Own):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str | None] = mapped_column(sa.String(20).evaluates_none())

    await start_audit(maker, Own)
    async with maker() as session:
        await save(session, Note(id=1, words=None))

    assert await story_of(maker, Note) == [("insert", {"id": (None, 1), "words": (None, None)})]


@pytest.mark.parametrize("depth", [30, 300])
async def test_deep_documents_are_told(maker: Maker, depth: int) -> None:
    """A document as deep as its column takes it is told as it is; where the column doesn't, nothing is."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Deep(Own):
        __tablename__ = "deep"
        id: Mapped[int] = mapped_column(primary_key=True)
        document: Mapped[Any] = mapped_column(sa.JSON)

    document: Any = 1
    for _ in range(depth):
        document = [document]
    await start_audit(maker, Own)
    if depth > 30 and maker.kw["bind"].dialect.name == "mariadb":
        async with maker() as session:
            with pytest.raises(sa.exc.DBAPIError):
                await save(session, Deep(id=1, document=document))
            await session.rollback()
        assert await stored_changes(maker, "Deep") == []
        return
    async with maker() as session:
        await save(session, Deep(id=1, document=document))

    [told] = [each.new_value for each in await changes_of(maker, Deep) if each.field_name == "document"]
    assert told == document


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_what_sqlite_keeps_otherwise_is_told_or_refused(maker: Maker) -> None:
    """NaN is NULL in SQLite; a key with a NUL character, which its functions cut off, is refused."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Measure(Own):
        __tablename__ = "measure"
        code: Mapped[str] = mapped_column(primary_key=True)
        value: Mapped[float | None]

    await start_audit(maker, Own)
    async with maker() as session:
        await save(session, Measure(code="a", value=math.nan))
        session.add(Measure(code="a\0b", value=1.0))
        with pytest.raises(CaptureError, match="NUL"):
            await session.commit()
        await session.rollback()

    assert await read_rows(maker, "SELECT code, value FROM measure") == [("a", None)]
    assert await story_of(maker, Measure) == [("insert", {"code": (None, "a"), "value": (None, None)})]


@pytest.mark.parametrize(
    "sql",
    [
        r"SELECT E'it\'s'; UPDATE page SET name = 'x'",
        "SELECT $$it's$$; UPDATE page SET name = 'x'",
        "SELECT 1 AS \"it's\"; UPDATE page SET name = 'x'",
        "SELECT 1 AS \"a--b\"; UPDATE page SET name = 'x'",
    ],
)
def test_text_is_read_with_its_quotes(sql: str) -> None:
    """A quote within a name, an escaped or dollar-quoted string doesn't hide what follows."""
    assert isinstance(refusal_of(tables_in_text(sql, "postgresql")), UncapturedStatementError)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "sql",
    [
        "DO $$ BEGIN UPDATE page SET name = 'x'; END $$",
        "/* now */ DO LANGUAGE plpgsql 'BEGIN UPDATE page SET name = ''x''; END'",
        "DO $a$ BEGIN EXECUTE 'UPDATE page SET name = NULL'; END $a$",
        "DECLARE c CURSOR FOR SELECT 1; DO $$ BEGIN DELETE FROM page; END $$",
        "CREATE TABLE kept (id int); UPDATE page SET name = 'x'",
        "DROP TABLE IF EXISTS counter; DELETE FROM page",
        "COMMENT ON TABLE counter IS 'kept'; TRUNCATE page",
        "CREATE TABLE kept AS WITH gone AS (DELETE FROM page RETURNING *) SELECT * FROM gone",
    ],
)
async def test_text_that_writes_in_passing_is_refused(database: Database, sql: str) -> None:
    """A block of code, a statement after a definition, a table made of what a DELETE returns: none is sent."""
    engine = database.make_async_engine(driver="psycopg")  # it sends several statements at once
    maker = async_sessionmaker(engine)
    try:
        await start_audit(maker, Base)
        async with maker() as session:
            await save(session, Page(id=1, name="a"))

            with pytest.raises(UncapturedStatementError, match="page"):
                await session.execute(text(sql))
            await session.commit()

        assert await read_rows(maker, "SELECT id, name FROM page") == [(1, "a")]
        assert len(await story_of(maker, Page)) == 1
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("sql", "dialect"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON counter BEGIN UPDATE page SET name = 'x'; END", "sqlite"),
        ("CREATE OR REPLACE RULE r AS ON INSERT TO counter DO ALSO DELETE FROM page", "postgresql"),
        ("CREATE TABLE kept (id int REFERENCES page ON UPDATE CASCADE ON DELETE SET NULL)", "postgresql"),
        ("CREATE DEFINER=`a`@`b` TRIGGER t AFTER INSERT ON counter FOR EACH ROW DELETE FROM page", "mysql"),
        (
            "ALTER TABLE k ADD FOREIGN KEY (a) REFERENCES c (id) ON DELETE CASCADE, ADD b int REFERENCES page",
            "mysql",
        ),
        ("SELECT 'DO $$ UPDATE page'", "postgresql"),
    ],
)
def test_definitions_write_nothing(sql: str, dialect: str) -> None:
    """What a trigger or rule will do, and what a foreign key refers to, isn't written by defining it."""
    assert refusal_of(tables_in_text(sql, dialect)) is None


@pytest.mark.parametrize(
    "sql",
    [
        "EXECUTE IMMEDIATE 'UPDATE page SET name = 1'",
        "PREPARE later FROM 'DELETE FROM page'",
        "DROP TABLE IF EXISTS kept; UPDATE counter, page SET name = 1",
    ],
)
def test_text_that_mariadb_runs_is_read(sql: str) -> None:
    """MariaDB executes literals, and several statements where the connection allows it."""
    assert isinstance(refusal_of(tables_in_text(sql, "mysql")), UncapturedStatementError)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_text_in_a_common_table_expression_is_refused(maker: Maker) -> None:
    """DML that is text within a SELECT of SQLAlchemy's is found."""
    await start_audit(maker, Base)
    changed = text("UPDATE page SET name = 'x' RETURNING id").columns(sa.column("id", sa.Integer)).cte("changed")

    async with maker() as session:
        await save(session, Page(id=1, name="a"))
        with pytest.raises(UncapturedStatementError):
            await session.execute(select(changed.c.id))
        await session.rollback()

    assert len(await story_of(maker, Page)) == 1
