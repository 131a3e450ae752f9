"""Laws 2 and 3: the declared fields are told, all of them, and no others; masked ones without their values."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.attributes import flag_modified

from conformance_setup import Maker, changes_of, read_rows, save, start_audit, stored_changes, story_of
from sqlaudit import MASKED, track_table


async def test_tracked_fields_alone_are_told(maker: Maker) -> None:
    """With tracked_fields nothing else is told, and a change of nothing else leaves no trail."""

    class Base(DeclarativeBase):
        pass

    @track_table(tracked_fields=["name"])
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        quantity: Mapped[int]
        touched: Mapped[int] = mapped_column(default=0, onupdate=lambda: 1)

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        item.quantity = 2
        await session.commit()
        item.quantity = 3
        item.name = "b"
        await session.commit()
        await session.delete(item)
        await session.commit()

    assert await story_of(maker, Item, only=["name"]) == [
        ("insert", {"name": (None, "a")}),
        ("update", {"name": ("a", "b")}),
        ("delete", {"name": ("b", None)}),
    ]
    assert [(old, new) for _, _, old, new in await stored_changes(maker, "Item")] == [
        (None, {"id": 1, "name": "a"}),
        ({"name": "a"}, {"name": "b"}),
        ({"id": 1, "name": "b"}, None),
    ]


async def test_excluded_fields_are_not_told(maker: Maker) -> None:
    """With exclude_fields everything else is told; a change of an excluded field alone leaves no trail."""

    class Base(DeclarativeBase):
        pass

    @track_table(exclude_fields=["quantity"])
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        quantity: Mapped[int]

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", quantity=1)
        await save(session, item)
        item.quantity = 2
        await session.commit()
        item.quantity = 3
        item.name = "b"
        await session.commit()
        await session.delete(item)
        await session.commit()

    assert await story_of(maker, Item, only=["id", "name"]) == [
        ("insert", {"id": (None, 1), "name": (None, "a")}),
        ("update", {"name": ("a", "b")}),
        ("delete", {"id": (1, None), "name": ("b", None)}),
    ]


@pytest.mark.parametrize("expired", [False, True])
async def test_masked_fields_are_told_without_their_values(maker: Maker, expired: bool) -> None:
    """A masked field is told as changed; its values, NULL too, are in no column of the trail, old or new."""

    class Base(DeclarativeBase):
        pass

    @track_table(masked_fields=["secret", "document"])
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        secret: Mapped[str | None]
        document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(name="a", secret="hush-1", document={"hush-2": 1})
        await save(session, item)
        for secret in ("hush-3", None, None, "hush-4"):
            if not expired:
                await session.refresh(item)
            item.secret = secret
            await session.commit()
        item.name = "b"
        await session.commit()
        await session.delete(item)
        await session.commit()

    masked = {"$masked": True}
    assert await stored_changes(maker, "Item") == [
        ("insert", "1", None, {"id": 1, "name": "a", "secret": masked, "document": masked}),
        ("update", "1", {"secret": masked}, {"secret": masked}),
        ("update", "1", {"secret": masked}, {"secret": masked}),
        ("update", "1", {"secret": masked}, {"secret": masked}),
        ("update", "1", {"name": "a"}, {"name": "b"}),
        ("delete", "1", {"id": 1, "name": "b", "secret": masked, "document": masked}, None),
    ]
    everything = await read_rows(maker, "SELECT * FROM sqlaudit_change")
    assert len(everything) == 6
    assert "hush" not in repr(everything)
    [updated] = [change for change in await changes_of(maker, Item) if change.operation == "update"][:1]
    assert (updated.field_name, updated.old_value, updated.new_value) == ("secret", MASKED, MASKED)


async def test_masked_fields_that_are_the_same_tell_nothing(maker: Maker) -> None:
    """A masked field of an expired object that is set to what it was leaves no trail."""

    class Base(DeclarativeBase):
        pass

    @track_table(masked_fields=["secret", "document"])
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None]
        document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(secret="hush", document={"a": [1]})
        await save(session, item)
        item.secret = "hush"
        item.document = {"a": [1]}
        await session.commit()

    assert len(await stored_changes(maker, "Item")) == 1


async def test_masked_fields_in_place_and_by_expression_are_told(maker: Maker) -> None:
    """A masked document that is changed in place, and a masked SQL expression, are told as changed."""

    class Base(DeclarativeBase):
        pass

    @track_table(masked_fields=["secret", "document"])
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None]
        document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)

    await start_audit(maker, Base)

    async with maker() as session:
        item = Item(secret="hush", document={"a": [1]})
        await save(session, item)
        await session.refresh(item)
        item.document["a"].append(2)
        flag_modified(item, "document")
        item.secret = sa.func.upper(Item.secret)
        await session.commit()

    [_, (operation, _, old, new)] = await stored_changes(maker, "Item")
    assert operation == "update"
    assert old == new == {"secret": {"$masked": True}, "document": {"$masked": True}}
