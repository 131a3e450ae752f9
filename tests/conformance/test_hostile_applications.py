"""Laws 1, 2, 3 and 5 where the application has listeners, savepoints, keys and sessions of its own kind."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.dialects.postgresql
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, Table, delete, event, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, object_session, relationship, sessionmaker

from conformance_setup import Maker, changes_of, save, start_audit, story_of
from databases import Database
from sqlaudit import (
    SQLAuditConfig,
    bind_audit_context,
    get_resource_changes,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.exceptions import ActorRequiredError, CaptureError, UncapturedStatementError


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    rank: Mapped[int] = mapped_column(default=0)


@pytest.fixture(name="session")
async def _session(maker: Maker) -> AsyncIterator[AsyncSession]:
    """A hooked session on a database with three items."""
    await start_audit(maker, Base)
    async with maker() as session:
        await save(session, *(Item(id=n, name=f"n{n}") for n in (1, 2, 3)))
        yield session


async def test_a_flush_that_fails_before_it_begins_does_not_hide_what_follows(
    session: AsyncSession, maker: Maker
) -> None:
    """After a refusal in before_flush, the session stays usable, and its statements are recorded."""
    set_config(SQLAuditConfig(require_user=True))
    item = Item(name="anonymous")
    session.add(item)

    with pytest.raises(ActorRequiredError):
        await session.flush()
    session.expunge(item)
    bind_audit_context(session, user_id="7")
    await session.execute(update(Item).where(Item.id == 1).values(name="x"))
    await session.commit()

    assert (await story_of(maker, Item))[3:] == [("update", {"name": ("n1", "x")})]


async def test_a_flush_that_has_nothing_to_do_does_not_hide_what_listeners_did(
    session: AsyncSession, maker: Maker
) -> None:
    """A statement of a before_flush listener is recorded, though the flush then does nothing."""

    @event.listens_for(session.sync_session, "before_flush")
    def _(flushing: Session, *_: Any) -> None:
        flushing.execute(update(Item).where(Item.id == 1).values(name="by the listener"))
        flushing.expunge_all()

    session.add(Item(name="never"))
    await session.commit()

    assert (await story_of(maker, Item))[3:] == [("update", {"name": ("n1", "by the listener")})]


async def test_statements_that_listeners_replace_are_told(
    session: AsyncSession, engine: AsyncEngine, maker: Maker
) -> None:
    """A before_execute listener that returns another statement changes nothing about the trail."""

    def comment(_: Any, statement: Any, multiparams: Any, params: Any, __: Any) -> Any:
        hinted = statement.with_hint("x", dialect_name="oracle") if isinstance(statement, sa.Update) else statement
        return hinted, multiparams, params

    event.listen(engine.sync_engine, "before_execute", comment, retval=True)
    await session.execute(update(Item).where(Item.id == 1).values(name="x"))
    await session.commit()

    assert (await story_of(maker, Item))[3:] == [("update", {"name": ("n1", "x")})]


@pytest.mark.parametrize("of_session", [True, False])
async def test_savepoints_of_listeners_take_only_their_own_changes(
    session: AsyncSession, maker: Maker, of_session: bool
) -> None:
    """
    What a listener rolls back within a flush never happened; what the flush does stays, and is recorded.

    A savepoint of the session takes new objects away from the flush: it fails then, and nothing is changed.
    """

    def after_insert(mapper: Any, connection: Any, item: Item) -> None:
        inner = object_session(item)
        assert inner is not None
        try:
            with (inner if of_session else connection).begin_nested():
                connection.execute(update(Item).where(Item.id == 1).values(name="NEVER"))
                raise KeyError
        except KeyError:
            connection.execute(update(Item).where(Item.id == 3).values(name="kept"))

    event.listen(Item, "after_insert", after_insert)
    try:
        (await session.get_one(Item, 2)).name = "two"
        session.add(Item(id=9, name="nine"))
        if of_session:
            with pytest.raises(CaptureError, match="savepoint"):
                await session.commit()
            await session.rollback()
        else:
            await session.commit()
    finally:
        event.remove(Item, "after_insert", after_insert)

    story = (await story_of(maker, Item))[3:]
    expected = [
        ("update", {"name": ("n2", "two")}),
        ("insert", {"id": (None, 9), "name": (None, "nine"), "rank": (None, 0)}),
        ("update", {"name": ("n3", "kept")}),
    ]
    assert sorted(story, key=repr) == ([] if of_session else sorted(expected, key=repr))


async def test_two_sessions_on_one_connection_keep_their_actors(engine: AsyncEngine, maker: Maker) -> None:
    """On a connection that sessions share, as in test set-ups, each change has the actor of its own session, once."""
    await start_audit(maker, Base)

    async with engine.connect() as connection:
        await connection.begin()
        options: Any = {"bind": connection, "join_transaction_mode": "create_savepoint"}
        async with maker(**options) as one, maker(**options) as two:
            bind_audit_context(one, user_id="one")
            bind_audit_context(two, user_id="two")
            await one.execute(select(Item))
            await two.execute(select(Item))
            one.add(Item(id=1, name="a"))
            await one.flush()
            await one.execute(update(Item).values(name="b"))
            two.add(Item(id=2, name="c"))
            await two.flush()
            changes = await get_resource_changes(Item, session=two, filter_fields="name", sort_direction="asc")

    assert [(change.resource_id, change.new_value, change.changed_by) for change in changes] == [
        (1, "a", "one"),
        (1, "b", "one"),
        (2, "c", "two"),
    ]


async def test_a_new_resource_id_by_a_statement_tells_the_whole_row(maker: Maker) -> None:
    """An UPDATE of the resource_id_field ends one resource and begins another, with all their values."""

    class Own(DeclarativeBase):
        pass

    @track_table(resource_id_field="code")
    class Coded(Own):
        __tablename__ = "coded"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str]
        value: Mapped[int]

    await start_audit(maker, Own)

    async with maker() as session:
        await save(session, Coded(code="a", value=1))
        await session.execute(update(Coded).values(code="b"))
        await session.commit()

    told = [
        (each.operation, each.resource_id, each.field_name, each.old_value, each.new_value)
        for each in await changes_of(maker, Coded)
    ]
    assert told[3:] == [
        ("delete", "a", "id", 1, None),
        ("delete", "a", "code", "a", None),
        ("delete", "a", "value", 1, None),
        ("insert", "b", "id", None, 1),
        ("insert", "b", "code", None, "b"),
        ("insert", "b", "value", None, 1),
    ]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_keys_that_the_database_pads_are_one_resource(maker: Maker) -> None:
    """A CHAR key is the same key, whether it was given or read back padded."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Padded(Own):
        __tablename__ = "padded"
        id: Mapped[str] = mapped_column(sa.CHAR(10), primary_key=True)
        value: Mapped[int]

    await start_audit(maker, Own)

    async with maker() as session:
        padded = Padded(id="a", value=1)
        await save(session, padded)
        padded.value = 2
        await session.commit()
        await session.execute(insert(Padded).values(id="b", value=1))
        await session.execute(update(Padded).values(value=3))
        await session.commit()
        history = await get_resource_changes(Padded, "a", session, "value")

    assert [(each.old_value, each.new_value) for each in history] == [(2, 3), (1, 2), (None, 1)]


follows = Table(
    "follows",
    Base.metadata,
    Column("follower", ForeignKey("person.id"), primary_key=True),
    Column("followed", ForeignKey("person.id"), primary_key=True),
    Column("weight", Integer, server_default="1"),
)


@track_table(tracked_fields=["name", "following", "followers"])
class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    following: Mapped[list["Person"]] = relationship(
        secondary=follows,
        primaryjoin=lambda: Person.id == follows.c.follower,
        secondaryjoin=lambda: Person.id == follows.c.followed,
        back_populates="followers",
    )
    followers: Mapped[list["Person"]] = relationship(
        secondary=follows,
        primaryjoin=lambda: Person.id == follows.c.followed,
        secondaryjoin=lambda: Person.id == follows.c.follower,
        back_populates="following",
    )


async def test_both_sides_of_a_self_referential_relationship_are_told(maker: Maker) -> None:
    """Each of two fields over one association table shows the rows that are its own, whatever the keys' size."""
    await start_audit(maker, Base)
    big = 2**40

    async with maker() as session:
        one, two = Person(id=1, name="a"), Person(id=big, name="b")
        one.following.append(two)
        await save(session, one, two)
        await session.execute(follows.update().values(weight=5))
        first = await get_resource_changes(Person, 1, session, ["following", "followers"])
        second = await get_resource_changes(Person, [big, *range(2, 1500)], session, ["following", "followers"])

    assert [(each.resource_id, each.field_name, each.new_value) for each in first] == [(1, "following", big)]
    assert [(each.resource_id, each.field_name, each.new_value) for each in second] == [(big, "followers", 1)]


async def test_limits_count_what_is_shown(maker: Maker) -> None:
    """Rows of a subclass' table that show nothing of their own don't use up the limit."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Animal(Own):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    class Cat(Animal):
        __tablename__ = "cat"
        __mapper_args__ = {"polymorphic_identity": "cat"}
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)

    await start_audit(maker, Own)

    async with maker() as session:
        await save(session, Cat())
        everything = await get_resource_changes(Animal, session=session)
        limited = await get_resource_changes(Animal, session=session, limit=1)
        second = await get_resource_changes(Animal, session=session, limit=1, offset=1)

    assert len(everything) == 2
    assert limited + second == everything


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_keys_that_an_sql_default_makes_are_told(maker: Maker) -> None:
    """Rows whose key is an SQL expression are recorded, however many come at once."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Generated(Own):
        __tablename__ = "generated"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=func.gen_random_uuid())
        name: Mapped[str]

    await start_audit(maker, Own)

    async with maker() as session:
        await session.execute(insert(Generated), [{"name": "a"}, {"name": "b"}])
        await session.run_sync(lambda sync: sync.bulk_insert_mappings(Generated, [{"name": "c"}, {"name": "d"}]))
        await session.commit()

    assert len(await story_of(maker, Generated)) == 4


REFUSED: dict[str, Any] = {
    "random": delete(Item).where(Item.id.in_(select(Item.id).order_by(func.random()).limit(1))),
    "table()": update(sa.table("item", sa.column("name"))).values(name="x"),
    "text with parts": text('UPDATE "public"."item" SET name = 1'),
    "text with several": text("TRUNCATE other, item"),
    "text with only": text("DELETE FROM ONLY (item)"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_would_be_told_wrong_is_refused(session: AsyncSession, maker: Maker, name: str) -> None:
    """Nothing is sent, and nothing told."""
    with pytest.raises(UncapturedStatementError, match="item"):
        await session.execute(REFUSED[name])
    await session.commit()

    assert len(await story_of(maker, Item)) == 3


async def test_many_parameter_sets_with_a_subquery_are_refused(session: AsyncSession) -> None:
    """A subquery finds other rows after each of many parameter sets, and can't be asked beforehand."""
    smallest = select(func.min(Item.rank)).scalar_subquery()
    statement = delete(Item.__table__).where(Item.rank == smallest, Item.name != sa.bindparam("not_this"))  # type: ignore[arg-type]

    with pytest.raises(UncapturedStatementError, match="subquery"):
        await (await session.connection()).execute(statement, [{"not_this": "x"}, {"not_this": "y"}])


async def test_text_in_literals_is_no_statement(session: AsyncSession) -> None:
    """What a string says isn't done."""
    assert (await session.execute(text("SELECT 'update item set name'"))).scalar_one() == "update item set name"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)  # MariaDB's triggers can't
async def test_rows_that_a_trigger_keeps_are_not_told_as_deleted(
    session: AsyncSession, maker: async_sessionmaker[AsyncSession]
) -> None:
    """When the database keeps a row that a statement deletes, the transaction fails instead of telling it."""
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(
            text("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        )
        await session.execute(
            text("CREATE TRIGGER keep BEFORE DELETE ON item FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION keep()")
        )
    else:
        await session.execute(
            text("CREATE TRIGGER keep BEFORE DELETE ON item WHEN OLD.id = 2 BEGIN SELECT RAISE(IGNORE); END")
        )

    with pytest.raises(CaptureError, match="trigger"):
        await session.execute(delete(Item))
    with pytest.raises(CaptureError, match="roll back"):
        await session.commit()
    await session.rollback()

    assert len(await story_of(maker, Item)) == 3


async def test_statements_of_listeners_on_the_same_model_are_told(session: AsyncSession, maker: Maker) -> None:
    """A bulk statement that a mapper listener executes within the flush is no statement of the flush's own."""

    def after_insert(mapper: Any, connection: Any, item: Item) -> None:
        inner = object_session(item)
        assert inner is not None
        inner.execute(update(Item), [{"id": 1, "name": "by key"}])

    event.listen(Item, "after_insert", after_insert)
    try:
        session.add_all([Item(id=8, name="eight"), Item(id=9, name="nine")])
        await session.commit()
    finally:
        event.remove(Item, "after_insert", after_insert)

    story = (await story_of(maker, Item))[3:]
    assert sorted(operation for operation, _ in story) == ["insert", "insert", "update"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_upserts_of_rows_that_refer_to_each_other_are_told(maker: Maker) -> None:
    """The locks that a foreign key to the same table takes aren't those of another transaction."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Node(Own):
        __tablename__ = "node"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))

    await start_audit(maker, Own)

    async with maker() as session:
        statement = sa.dialects.postgresql.insert(Node).values(
            [{"id": 1, "parent_id": None}, {"id": 2, "parent_id": 1}]
        )
        await session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"parent_id": 1}))
        await session.commit()

    assert len(await story_of(maker, Node)) == 2


async def test_a_resource_id_is_never_null(maker: Maker) -> None:
    """A row without the value that identifies it is refused: its change could never be found again."""

    class Own(DeclarativeBase):
        pass

    @track_table(resource_id_field="code")
    class Coded(Own):
        __tablename__ = "coded"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str | None]

    await start_audit(maker, Own)

    async with maker() as session:
        session.add(Coded())
        with pytest.raises(CaptureError, match="never NULL"):
            await session.commit()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)  # MariaDB has no UPDATE RETURNING
def test_updates_whose_rows_are_returned_are_told_by_a_driver_that_counts_late(database: Database) -> None:
    """SQLite counts what an UPDATE with RETURNING changed while its rows are fetched, also for a plain Session."""
    engine = database.make_engine()
    Base.metadata.create_all(engine)
    set_config(SQLAuditConfig())
    makes = sessionmaker(engine)

    with register_hooks(makes), makes() as session:
        session.add_all([Item(id=1, name="a"), Item(id=2, name="b")])
        session.flush()
        returned = session.scalars(update(Item).values(name="x").returning(Item.id)).all()
        session.execute(update(Item).values(name="y"), execution_options={"synchronize_session": "fetch"})
        session.execute(delete(Item).returning(Item.id))
        session.commit()
        changes = get_resource_changes(Item, 1, session, "name")

    assert sorted(returned) == [1, 2]
    assert [(each.old_value, each.new_value) for each in changes] == [("y", None), ("x", "y"), ("a", "x"), (None, "a")]
    engine.dispose()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which lets a primary key be NULL
async def test_keys_that_are_null_in_part_are_told(maker: Maker) -> None:
    """A NULL in a key of several columns is a part of the resource id."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Partial(Own):
        __tablename__ = "partial"
        one: Mapped[str] = mapped_column(primary_key=True)
        two: Mapped[str | None] = mapped_column(primary_key=True, nullable=True)
        value: Mapped[int]

    await start_audit(maker, Own)

    async with maker() as session:
        session.add(Partial(one="a", two=None, value=1))
        await session.commit()

    assert {each.resource_id for each in await changes_of(maker, Partial)} == {("a", None)}
