"""Laws 2 and 3: what the trail tells of deleted rows, and of rows that come again, is what the witness saw."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, load_only, mapped_column

from conformance_setup import Maker, changes_of, save, start_audit, story_of, trail_of, truth_of
from sqlaudit import track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    quantity: Mapped[int | None] = mapped_column(default=7)
    note: Mapped[str | None] = mapped_column(deferred=True)
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    double: Mapped[int | None] = mapped_column(sa.Computed("quantity * 2", persisted=True))


ROW: dict[str, Any] = {
    "id": 1, "name": "a", "quantity": 4, "note": "n", "document": {"d": 1}, "double": 8,
}  # fmt: skip


def _item() -> Item:
    return Item(name="a", quantity=4, note="n", document={"d": 1})


def _deleted(**changed: Any) -> tuple[str, dict[str, Any]]:
    return "delete", {name: (value, None) for name, value in {**ROW, **changed}.items()}


async def test_delete_of_a_loaded_object_tells_the_row(maker: Maker) -> None:
    """The delete of a loaded object tells every column as it was."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        await session.refresh(item)
        await session.delete(item)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [_deleted()]


async def test_delete_of_an_expired_object_tells_the_row(maker: Maker) -> None:
    """The delete of an object that nobody loaded again tells every column as it was."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        await session.delete(item)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [_deleted()]


async def test_delete_of_a_partially_loaded_object_tells_the_row(maker: Maker) -> None:
    """The delete of an object of which one column was loaded tells every column as it was."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, _item())
    async with maker() as session:
        item = (await session.scalars(sa.select(Item).options(load_only(Item.name)))).one()
        await session.delete(item)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [_deleted()]


@pytest.mark.parametrize("expired", [False, True])
async def test_delete_of_a_changed_object_tells_the_row(maker: Maker, expired: bool) -> None:
    """Changes that were pending on a deleted object never reached the row, and aren't told."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        if not expired:
            await session.refresh(item)
        item.name = "pending"
        item.quantity = Item.quantity + 1
        item.note = None
        item.document = {"d": 2}
        await session.delete(item)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [_deleted()]


async def test_update_and_delete_in_one_transaction_are_both_told(maker: Maker) -> None:
    """An object that is changed, flushed, and deleted in one transaction tells an update and a delete."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        item.quantity = 5
        await session.flush()
        await session.delete(item)
        await session.commit()

    assert (await story_of(maker, Item))[1:] == [
        ("update", {"quantity": (4, 5), "double": (8, 10)}),
        _deleted(quantity=5, double=10),
    ]
    assert len({change.transaction_id for change in await changes_of(maker, Item)}) == 2


async def test_an_object_that_is_added_and_deleted_unflushed_tells_nothing(maker: Maker) -> None:
    """An object that never reached the database leaves no trail."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        session.add(item)
        session.expunge(item)
        await session.commit()

    assert await story_of(maker, Item) == []


async def test_an_object_that_is_added_flushed_and_deleted_tells_both(maker: Maker) -> None:
    """An object that is inserted and deleted in one transaction, flushed between, tells an insert and a delete."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        session.add(item)
        await session.flush()
        await session.delete(item)
        await session.commit()

    story = await story_of(maker, Item)
    assert [operation for operation, _ in story] == ["insert", "delete"]
    assert len({change.transaction_id for change in await changes_of(maker, Item)}) == 1


@pytest.mark.parametrize("expired", [False, True])
async def test_row_switch_tells_one_update(maker: Maker, expired: bool) -> None:
    """An object that takes the key of one that is deleted in the same flush tells an update of what it set."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        if not expired:
            await session.refresh(item)
        await session.delete(item)
        session.add(Item(id=1, name="b", note="n"))
        await session.commit()

    story = await story_of(maker, Item)
    assert [operation for operation, _ in story] == ["insert", "update"]
    assert story[1][1]["name"] == ("a", "b")
    assert "note" not in story[1][1]


async def test_row_switch_of_a_changed_object_tells_what_the_row_held(maker: Maker) -> None:
    """What was pending on the deleted object of a row switch isn't told as the old value."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        await session.refresh(item)
        item.name = "pending"
        item.document["d"] = 2
        await session.delete(item)
        session.add(Item(id=1, name="b", quantity=4, document={"d": 2}))
        await session.commit()

    assert (await story_of(maker, Item))[1][1]["name"] == ("a", "b")
    assert (await story_of(maker, Item))[1][1]["document"] == ({"d": 1}, {"d": 2})


async def test_row_switch_to_the_same_values_tells_nothing(maker: Maker) -> None:
    """An object that takes over a row as it is leaves no trail."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        await session.delete(item)
        session.add(Item(id=1, name="a", quantity=4, note="n", document={"d": 1}))
        await session.commit()

    assert len(await story_of(maker, Item)) == 1


async def test_row_switch_with_sql_expressions_tells_their_result(maker: Maker) -> None:
    """An SQL expression on the object that takes over a row is told as what it came to."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        await session.delete(item)
        session.add(Item(id=1, name=sa.func.upper("b"), quantity=Item.quantity + 1))
        await session.commit()

    fields = (await story_of(maker, Item))[1][1]
    assert fields["name"] == ("a", "B")
    assert fields["quantity"] == (4, 5)
    assert fields["double"] == (8, 10)


async def test_row_switch_tells_versions_and_onupdate(maker: Maker) -> None:
    """The version counts on in a row switch, and what onupdate sets is told."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        touched: Mapped[int] = mapped_column(default=1, onupdate=2)
        version: Mapped[int] = mapped_column()
        __mapper_args__ = {"version_id_col": version}

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a")
        await save(session, item)
        await session.delete(item)
        session.add(Item(id=1, name="b"))
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert", "update"]


async def test_row_switch_between_classes_of_one_table_is_told(maker: Maker) -> None:
    """A row that becomes an object of a sibling class tells an update, of the discriminator too."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Person(Base):
        __tablename__ = "person"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str | None]

    class Engineer(Person):
        __mapper_args__ = {"polymorphic_identity": "engineer"}
        skill: Mapped[str | None]

    class Manager(Person):
        __mapper_args__ = {"polymorphic_identity": "manager"}
        title: Mapped[str | None]

    await start_audit(maker, Base)

    async with maker() as session:
        engineer = Engineer(name="a", skill="s")
        await save(session, engineer)
        await session.delete(engineer)
        session.add(Manager(id=1, name="a", title="t"))
        await session.commit()

    assert (await story_of(maker, Person))[1:] == [("update", {"kind": ("engineer", "manager"), "title": (None, "t")})]


async def test_a_key_that_is_used_again_after_a_delete_tells_two_lives(maker: Maker) -> None:
    """Deleting, flushing and inserting under the same key tells a delete and an insert."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        await session.delete(item)
        await session.flush()
        session.add(Item(id=1, name="b"))
        await session.commit()

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert", "delete", "insert"]


@pytest.mark.parametrize("flush_between", [False, True])
async def test_changed_keys_tell_an_end_and_a_beginning(maker: Maker, flush_between: bool) -> None:
    """A changed primary key tells a delete under the old id and an insert under the new, in one transaction."""
    await start_audit(maker, Base)

    async with maker() as session:
        item = _item()
        await save(session, item)
        await session.refresh(item)
        item.id = 2
        item.name = "b"
        if flush_between:
            await session.flush()
        item.quantity = 5
        await session.commit()
        await session.delete(item)
        await session.commit()

    changes = await changes_of(maker, Item)
    assert [(each.operation, each.resource_id) for each in changes if each.field_name == "id"] == [
        ("insert", 1),
        ("delete", 1),
        ("insert", 2),
        ("delete", 2),
    ]
    assert len({each.transaction_id for each in changes}) == 3
    ended, begun, *updated, deleted = (await trail_of(maker, Item))[1:]
    quantity, double = (4, 8) if flush_between else (5, 10)
    expected = {**ROW, "id": 2, "name": "b", "quantity": quantity, "double": double}
    assert ended == _deleted()
    assert begun == ("insert", {name: (None, value) for name, value in expected.items()})
    assert updated == ([("update", {"quantity": (4, 5), "double": (8, 10)})] if flush_between else [])
    assert deleted == _deleted(id=2, name="b", quantity=5, double=10)
    renamed = (await truth_of(maker, Item))[1]
    assert renamed[0] == "update"
    assert renamed[1]["id"] == (1, 2)


async def test_changed_parts_of_composite_keys_tell_an_end_and_a_beginning(maker: Maker) -> None:
    """One part of a key of several columns makes another resource, whose other columns are told too."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Line(Base):
        __tablename__ = "line"
        order: Mapped[str] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        line = Line(order="a", number=1, text="x")
        await save(session, line)
        await session.refresh(line)
        line.number = 2
        await session.commit()

    assert (await trail_of(maker, Line))[1:] == [
        ("delete", {"order": ("a", None), "number": (1, None), "text": ("x", None)}),
        ("insert", {"order": (None, "a"), "number": (None, 2), "text": (None, "x")}),
    ]


async def test_swapped_keys_are_told(maker: Maker) -> None:
    """Two rows that change keys one after the other are told under the keys they had at the time."""
    await start_audit(maker, Base)

    async with maker() as session:
        first, second = _item(), Item(name="second")
        session.add_all([first, second])
        await session.commit()
        await session.refresh(first)
        await session.refresh(second)
        first.id = 3
        await session.flush()
        second.id = 1
        await session.flush()
        first.id = 2
        await session.commit()

    changes = await changes_of(maker, Item)
    assert [(each.operation, each.resource_id) for each in changes if each.field_name == "id"][2:] == [
        ("delete", 1),
        ("insert", 3),
        ("delete", 2),
        ("insert", 1),
        ("delete", 3),
        ("insert", 2),
    ]


async def test_row_switch_of_a_joined_object_is_told_in_each_table(maker: Maker) -> None:
    """An object of several tables that takes over a deleted one's rows tells an update in each."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Animal(Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str | None]

    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
        trick: Mapped[str | None]
        age: Mapped[int | None]

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Dog(name="Rex", trick="sit", age=1))
    async with maker() as session:
        await session.delete((await session.scalars(sa.select(Animal))).one())
        session.add(Dog(id=1, name="Max", trick="sit", age=2))
        await session.commit()

    assert (await story_of(maker, Animal))[1:] == [("update", {"name": ("Rex", "Max")})]
    assert (await story_of(maker, Dog))[1:] == [("update", {"age": (1, 2)})]


async def test_deletes_that_the_database_doesnt_confirm_are_told(maker: Maker) -> None:
    """With confirm_deleted_rows=False a delete is told as any other."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        __mapper_args__ = {"confirm_deleted_rows": False}
        id: Mapped[int] = mapped_column(primary_key=True)

    await start_audit(maker, Base)
    maker.configure(expire_on_commit=False)

    async with maker() as session, maker() as other:
        await save(session, Item())
        mine, theirs = await session.get_one(Item, 1), await other.get_one(Item, 1)
        await other.commit()
        await session.delete(mine)
        await session.commit()
        await other.delete(theirs)
        await other.commit()

    assert [operation for operation, _ in await story_of(maker, Item)] == ["insert", "delete"]
