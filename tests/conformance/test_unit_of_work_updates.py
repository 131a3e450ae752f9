# ruff: noqa: DTZ001 (naive datetimes are what such a column holds)
"""Laws 2 and 3: what the trail tells of updated rows is what the witness saw."""

import datetime as dt
import warnings
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    composite,
    mapped_column,
    synonym,
    undefer,
)

from conformance_setup import Maker, save, start_audit, story_of
from sqlaudit import SQLAuditConfig, set_config, track, track_table
from sqlaudit.exceptions import CaptureError


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    quantity: Mapped[int | None]
    note: Mapped[str | None] = mapped_column(deferred=True)


async def test_update_of_a_loaded_object_tells_what_changed(maker: Maker) -> None:
    """Only the changed column of a loaded object is told, with the value before and after."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        item.name = "b"
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b")})]


async def test_update_of_an_expired_object_tells_the_old_value(maker: Maker) -> None:
    """The old value of an object that a commit expired is the database's, though nobody loaded it."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        item.name = "b"
        item.quantity = None
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b"), "quantity": (1, None)})]


async def test_update_of_a_single_expired_attribute_tells_the_old_value(maker: Maker) -> None:
    """The old value of one attribute that was expired is the database's."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        session.expire(item, ["name"])
        item.name = "b"
        item.quantity = 2
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b"), "quantity": (1, 2)})]


async def test_update_of_a_deferred_column_tells_the_old_value(maker: Maker) -> None:
    """The old value of a deferred column that was never loaded is the database's, and loading it changes nothing."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Item(name="a", note="old"))
    async with maker() as session:
        item = (await session.scalars(sa.select(Item))).one()
        item.note = "new"
        await session.commit()
    async with maker() as session:
        item = (await session.scalars(sa.select(Item).options(undefer(Item.note)))).one()
        item.note = "newest"
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"note": ("old", "new")}),
        ("update", {"note": ("new", "newest")}),
    ]


async def test_update_of_never_loaded_columns_of_a_joined_subclass_tells_the_old_values(maker: Maker) -> None:
    """The columns of a subclass, whose object was loaded through its base, are told with their old values."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Animal(Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]

    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
        trick: Mapped[str]
        age: Mapped[int]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Dog(name="Rex", trick="sit", age=3))
    async with maker() as session:
        dog = (await session.scalars(sa.select(Animal))).one()
        assert isinstance(dog, Dog)
        dog.trick = "roll"
        dog.name = "Max"
        await session.commit()

    assert (await story_of(maker, Dog))[1:] == [("update", {"trick": ("sit", "roll")})]
    assert (await story_of(maker, Animal))[1:] == [("update", {"name": ("Rex", "Max")})]


async def test_the_same_value_on_a_loaded_object_tells_nothing(maker: Maker) -> None:
    """Assigning what is there already leaves no trail."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        item.name = "a"
        await session.commit()

    assert len(await story_of(maker, Item)) == 1


async def test_the_same_value_on_an_expired_object_tells_nothing(maker: Maker, engine: AsyncEngine) -> None:
    """An UPDATE that sets an expired attribute to what the row holds already leaves no trail."""
    await start_audit(maker, Base)
    updates: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE item"):
            updates.append(statement)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        item.name = "a"
        await session.commit()

    assert len(updates) == 1
    assert len(await story_of(maker, Item)) == 1


async def test_set_and_set_back_tells_nothing(maker: Maker) -> None:
    """A value that is changed and changed back before the flush leaves no trail, be it loaded or expired."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await session.refresh(item)
        item.name = "b"
        item.name = "a"
        await session.commit()
        item.name = "b"
        item.name = "a"
        await session.commit()

    assert len(await story_of(maker, Item)) == 1


async def test_attributes_deleted_from_a_new_object_tell_null(maker: Maker) -> None:
    """`del` of an attribute before the first flush is told as the NULL that is inserted."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        session.add(item)
        del item.quantity
        await session.commit()

    assert [fields["quantity"] for _, fields in await story_of(maker, Item)] == [(None, None)]


@pytest.mark.parametrize("expired", [False, True])
async def test_sql_expressions_tell_their_result(maker: Maker, expired: bool) -> None:
    """An SQL expression is told as what it came to, also on an expired attribute."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=41)
        await save(session, item)
        if not expired:
            await session.refresh(item)
        item.quantity = Item.quantity + 1
        item.name = sa.func.upper(Item.name)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"quantity": (41, 42), "name": ("a", "A")})]


async def test_sql_expressions_that_change_nothing_tell_nothing(maker: Maker) -> None:
    """An SQL expression that comes to the value that the row holds leaves no trail."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=41)
        await save(session, item)
        item.quantity = Item.quantity + 0
        await session.commit()

    assert len(await story_of(maker, Item)) == 1


@pytest.mark.parametrize("eager_defaults", ["auto", True, False])
@pytest.mark.parametrize("expired", [False, True])
async def test_columns_that_every_update_changes_are_told(maker: Maker, expired: bool, eager_defaults: object) -> None:
    """What onupdate sets, in Python or in SQL, and what is computed from it is told with its old value."""
    versions = iter(range(1, 100))

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"eager_defaults": eager_defaults}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        touched: Mapped[int] = mapped_column(default=0, onupdate=lambda: next(versions))
        length: Mapped[int] = mapped_column(default=0, onupdate=sa.text("length + 10"))
        double: Mapped[int] = mapped_column(sa.Computed("length * 2", persisted=True))

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a")
        await save(session, item)
        for name in ("b", "c"):
            if not expired:
                await session.refresh(item)
            item.name = name
            await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"name": ("a", "b"), "touched": (0, 1), "length": (0, 10), "double": (0, 20)}),
        ("update", {"name": ("b", "c"), "touched": (1, 2), "length": (10, 20), "double": (20, 40)}),
    ]


async def test_onupdate_that_the_application_sets_itself_is_told(maker: Maker) -> None:
    """A value that is assigned takes the place of onupdate, and is told."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        touched: Mapped[dt.datetime] = mapped_column(
            default=dt.datetime(2020, 1, 1), onupdate=lambda: dt.datetime(2021, 1, 1)
        )

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a")
        await save(session, item)
        item.touched = dt.datetime(2022, 1, 1, 0, 0, 1)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"touched": (dt.datetime(2020, 1, 1), dt.datetime(2022, 1, 1, 0, 0, 1))})
    ]


@pytest.mark.parametrize("expired", [False, True])
async def test_version_columns_are_told(maker: Maker, expired: bool) -> None:
    """The version that SQLAlchemy counts is told on insert, update and delete, also of expired objects."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        version: Mapped[int] = mapped_column()
        __mapper_args__ = {"version_id_col": version}

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a")
        await save(session, item)
        if not expired:
            await session.refresh(item)
        item.name = "b"
        await session.commit()
        if not expired:
            await session.refresh(item)
        await session.delete(item)
        await session.commit()

    assert [fields["version"] for _, fields in await story_of(maker, Item)] == [(None, 1), (1, 2), (2, None)]


async def test_version_of_a_base_table_is_told_when_only_the_subclass_changed(maker: Maker) -> None:
    """A change of the subclass' table alone counts the version in the base's table, which is told there."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Animal(Base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        version: Mapped[int] = mapped_column()
        __mapper_args__ = {
            "polymorphic_on": "kind",
            "polymorphic_identity": "animal",
            "version_id_col": version,
        }

    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
        trick: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        dog = Dog(trick="sit")
        await save(session, dog)
        dog.trick = "roll"
        await session.commit()

    assert (await story_of(maker, Dog))[1:] == [("update", {"trick": ("sit", "roll")})]
    assert (await story_of(maker, Animal))[1:] == [("update", {"version": (1, 2)})]


async def test_versions_that_the_application_counts_are_told(maker: Maker) -> None:
    """With version_id_generator=False the version is an ordinary column, and told."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        version: Mapped[int] = mapped_column()
        __mapper_args__ = {"version_id_col": version, "version_id_generator": False}

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", version=10)
        await save(session, item)
        await session.refresh(item)
        item.name = "b"
        item.version = 11
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b"), "version": (10, 11)})]


async def test_objects_that_are_written_one_by_one_are_told(maker: Maker) -> None:
    """With batch=False, where listeners and statements alternate, the same is told."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"batch": False}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        items = [Item(name=f"old {number}") for number in range(5)]
        await save(session, *items)
        for number, item in enumerate(items):
            item.name = f"new {number}"
        await session.commit()

    assert len(await story_of(maker, Item)) == 10


async def test_what_listeners_change_in_before_flush_is_told(maker: Maker) -> None:
    """Objects that an application's listener changes, adds or deletes in before_flush are told."""
    await start_audit(maker, Base)

    async with maker() as session:
        first, second, third = Item(name="a"), Item(name="b"), Item(name="c")
        await save(session, first, second, third)

        @event.listens_for(session.sync_session, "before_flush")
        def _(sync: Any, context: Any, instances: Any) -> None:
            if first in sync.dirty:
                second.name = "changed"
                sync.delete(third)
                sync.add(Item(name="added"))

        first.name = "x"
        await session.commit()

    assert sorted(operation for operation, _ in (await story_of(maker, Item))[3:]) == [
        "delete",
        "insert",
        "update",
        "update",
    ]


@pytest.mark.parametrize("expired", [False, True])
async def test_what_listeners_set_in_mapper_events_is_told(maker: Maker, expired: bool) -> None:
    """What before_insert and before_update of the application set, also on an expired attribute, is told."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        slug: Mapped[str | None]

    for name in ("before_insert", "before_update"):

        @event.listens_for(Item, name)
        def _(mapper: Any, connection: Any, item: Item) -> None:
            item.slug = f"slug of {item.name}"

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a")
        await save(session, item)
        if not expired:
            await session.refresh(item)
        item.name = "b"
        await session.commit()

    story = await story_of(maker, Item)
    assert story[0][1]["slug"] == (None, "slug of a")
    assert story[1:] == [("update", {"name": ("a", "b"), "slug": ("slug of a", "slug of b")})]


async def test_what_a_listener_sets_before_ours_runs_is_told(maker: Maker) -> None:
    """A listener of the application that runs first, and again one that runs last, are both told."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        first: Mapped[int] = mapped_column(default=0)
        last: Mapped[int] = mapped_column(default=0)

    @event.listens_for(Item, "before_update")
    def _(mapper: Any, connection: Any, item: Item) -> None:
        item.first = 1

    track_table()(Item)
    await start_audit(maker, Base)

    @event.listens_for(Item, "before_update")
    def _(mapper: Any, connection: Any, item: Item) -> None:
        item.last = 1

    async with maker() as session:
        item = Item(name="a")
        await save(session, item)
        item.name = "b"
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [("update", {"name": ("a", "b"), "first": (0, 1), "last": (0, 1)})]


async def test_composites_are_told_by_their_columns(maker: Maker) -> None:
    """A composite attribute is told as the columns that it is made of, those that changed."""

    class Base(DeclarativeBase):
        pass

    class Point:
        def __init__(self, x: int, y: int) -> None:
            self.x, self.y = x, y

        def __composite_values__(self) -> tuple[int, int]:
            return self.x, self.y

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

        __hash__ = None  # type: ignore[assignment]

    @track_table()
    class Vertex(Base):
        __tablename__ = "vertex"
        id: Mapped[int] = mapped_column(primary_key=True)
        start: Mapped[Point] = composite(Point, mapped_column("x1", sa.Integer), mapped_column("y1", sa.Integer))

    await start_audit(maker, Base)

    async with maker() as session:
        vertex = Vertex(start=Point(1, 2))
        await save(session, vertex)
        vertex.start = Point(1, 3)
        await session.commit()

    assert await story_of(maker, Vertex) == [
        ("insert", {"id": (None, 1), "x1": (None, 1), "y1": (None, 2)}),
        ("update", {"y1": (2, 3)}),
    ]


async def test_other_names_of_a_column_are_told_once(maker: Maker) -> None:
    """Synonyms, hybrids and column_property expressions are neither told twice nor at all."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        title = synonym("name")

        @hybrid_property
        def label(self) -> str:
            return self.name

        @label.inplace.setter
        def _label(self, value: str) -> None:
            self.name = value

    Item.shouted = sa.orm.column_property(sa.func.upper(Item.name))
    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a")
        await save(session, item)
        item.title = "b"
        await session.commit()
        item.label = "c"
        await session.commit()

    assert await story_of(maker, Item) == [
        ("insert", {"id": (None, 1), "name": (None, "a")}),
        ("update", {"name": ("a", "b")}),
        ("update", {"name": ("b", "c")}),
    ]


@pytest.mark.parametrize("expired", [False, True])
async def test_attributes_with_other_names_than_their_columns_are_told(maker: Maker, expired: bool) -> None:
    """Attribute, column key and column name may differ; retrieval speaks of attributes."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __table__ = sa.Table(
            "item",
            Base.metadata,
            sa.Column("ITEM_ID", sa.Integer, key="item_key", primary_key=True),
            sa.Column("db_name", sa.String),
            sa.Column("db_number", sa.Integer, key="number_key"),
            sa.Column("values", sa.String),
        )
        id = __table__.c.item_key
        name = __table__.c.db_name
        number = __table__.c.number_key
        items = __table__.c["values"]

    await start_audit(maker, Base)

    async with maker() as session:
        item: Any = Item(name="a", number=1, items="x")
        await save(session, item)
        if not expired:
            await session.refresh(item)
        item.name = "b"
        item.number = 2
        item.items = "y"
        await session.commit()

    assert await story_of(maker, Item) == [
        ("insert", {"ITEM_ID": (None, 1), "db_name": (None, "a"), "db_number": (None, 1), "values": (None, "x")}),
        ("update", {"db_name": ("a", "b"), "db_number": (1, 2), "values": ("x", "y")}),
    ]


@pytest.mark.parametrize("how", ["model", "table"])
async def test_columns_that_the_mapper_leaves_out_are_told_if_the_table_is_tracked(maker: Maker, how: str) -> None:
    """Columns without an attribute are no fields of a tracked model; those of a tracked table are told."""

    class Base(DeclarativeBase):
        pass

    table = sa.Table(
        "item",
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String),
        sa.Column("hidden", sa.String, server_default="h"),
        sa.Column("touched", sa.Integer, default=1, onupdate=2),
        sa.Column("unset", sa.Integer),
    )
    if how == "table":
        track(table)

    class Item(Base):
        __table__ = table
        __mapper_args__ = {"exclude_properties": ["hidden", "touched", "unset"]}

    if how == "model":
        track_table()(Item)
    await start_audit(maker, Base)

    async with maker() as session:
        item: Any = Item(name="a")
        await save(session, item)
        item.name = "b"
        await session.commit()
        await session.delete(item)
        await session.commit()

    story = await story_of(maker, table, only=["id", "name"] if how == "model" else None)
    assert [operation for operation, _ in story] == ["insert", "update", "delete"]
    assert ("hidden" in story[0][1]) == (how == "table")


async def test_many_expired_objects_are_told(maker: Maker) -> None:
    """Six hundred expired objects in one flush are told with their old values."""
    await start_audit(maker, Base)

    async with maker() as session:
        items = [Item(name=f"old {number}", quantity=number) for number in range(600)]
        await save(session, *items)
        for number, item in enumerate(items):
            item.name = f"new {number}"
        await session.commit()

    story = await story_of(maker, Item)
    assert story[600:] == [("update", {"name": (f"old {number}", f"new {number}")}) for number in range(600)]


async def test_old_values_are_what_the_database_held_at_the_update(maker: Maker) -> None:
    """A row that another transaction has changed since it was loaded is told with what it held at the UPDATE."""
    await start_audit(maker, Base)

    async with maker() as session, maker() as other:
        item = Item(name="a", quantity=1)
        await save(session, item)
        theirs = (await other.scalars(sa.select(Item))).one()
        theirs.quantity = 2
        await other.commit()
        item.quantity = 3
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"quantity": (1, 2)}),
        ("update", {"quantity": (2, 3)}),
    ]


@pytest.mark.session_capture
async def test_stale_objects_in_memory_tell_what_the_database_held(maker: Maker) -> None:
    """With lock_rows, an object that another transaction has outdated is told with what its row held."""
    await start_audit(maker, Base)
    set_config(SQLAuditConfig(lock_rows=True))
    maker.configure(expire_on_commit=False)

    async with maker() as session, maker() as other:
        item = Item(name="a", quantity=1)
        await save(session, item)
        theirs = (await other.scalars(sa.select(Item))).one()
        theirs.quantity = 2
        await other.commit()
        item.quantity = 3
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"quantity": (1, 2)}),
        ("update", {"quantity": (2, 3)}),
    ]


@pytest.mark.session_capture
async def test_rows_that_were_deleted_by_others_are_not_deleted_twice(maker: Maker) -> None:
    """With lock_rows, a DELETE that finds some of its rows gone tells those that it found."""
    await start_audit(maker, Base)
    set_config(SQLAuditConfig(lock_rows=True))
    maker.configure(expire_on_commit=False)

    async with maker() as session, maker() as other:
        items = [Item(name=name, quantity=1) for name in "abc"]
        await save(session, *items)
        await other.delete(await other.get_one(Item, items[1].id))
        await other.commit()
        for item in items:
            await session.delete(item)
        with warnings.catch_warnings():
            # Some drivers count what an executemany has deleted: SQLAlchemy warns then.
            warnings.simplefilter("ignore", sa.exc.SAWarning)
            try:
                await session.commit()
            except CaptureError:
                pytest.fail("lock_rows knows which rows were gone")

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert"] * 3 + ["delete"] * 3


async def test_one_row_that_was_deleted_by_another_is_not_deleted_twice(maker: Maker) -> None:
    """A DELETE of one object that finds nothing is not told, also without lock_rows."""
    await start_audit(maker, Base)
    maker.configure(expire_on_commit=False)

    async with maker() as session, maker() as other:
        item = Item(name="a", quantity=1)
        await save(session, item)
        await other.delete(await other.get_one(Item, item.id))
        await other.commit()
        await session.delete(item)
        with pytest.warns(sa.exc.SAWarning, match="expected to delete"):
            await session.commit()

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert", "delete"]


async def test_computed_columns_of_expired_objects_are_told(maker: Maker) -> None:
    """What the database computes anew is told, although the object has neither its old nor its new value."""

    class Own(DeclarativeBase):
        pass

    @track_table()
    class Box(Own):
        __tablename__ = "box"
        id: Mapped[int] = mapped_column(primary_key=True)
        width: Mapped[int]
        area: Mapped[int] = mapped_column(sa.Computed("width * 10", persisted=True))

    await start_audit(maker, Own)

    async with maker() as session:
        box = Box(width=1)
        await save(session, box)
        box.width = 2
        await session.commit()

    assert (await story_of(maker, Box))[1:] == [("update", {"width": (1, 2), "area": (10, 20)})]
