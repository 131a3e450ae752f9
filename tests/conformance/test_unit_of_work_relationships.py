"""Laws 2 and 3: what relationships write is told as the witness saw it."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, event
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.orderinglist import ordering_list
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    WriteOnlyMapped,
    mapped_column,
    relationship,
    selectinload,
)

from conformance_setup import Maker, changes_of, save, start_audit, story_of, trail_of, truth_of
from sqlaudit import track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    lines: Mapped[list["Line"]] = relationship(back_populates="order", cascade="all, delete-orphan")
    notes: Mapped[list["Note"]] = relationship(back_populates="order")


@track_table()
class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("order.id"))
    text: Mapped[str | None]
    order: Mapped[Order | None] = relationship(back_populates="lines")


@track_table()
class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("order.id"))
    text: Mapped[str | None]
    order: Mapped[Order | None] = relationship(back_populates="notes")


def _line(identity: int = 1, order: int = 1, text: str | None = "x") -> tuple[str, dict[str, Any]]:
    return "delete", {"id": (identity, None), "order_id": (order, None), "text": (text, None)}


@pytest.mark.parametrize("expired", [False, True])
async def test_orphans_that_are_removed_from_a_collection_tell_a_delete(maker: Maker, expired: bool) -> None:
    """A child that delete-orphan deletes, removed from its parent's collection, tells its row."""
    await start_audit(maker, Base)

    async with maker() as session:
        order = Order(lines=[Line(text="x"), Line(text="y")])
        await save(session, order)
        await session.refresh(order, ["lines"])
        line = order.lines[0]
        if expired:
            session.expire(line)
        order.lines.remove(line)
        await session.commit()

    assert (await story_of(maker, Line))[2:] == [_line()]
    assert len(await story_of(maker, Order)) == 1


async def test_orphans_whose_parent_is_unset_tell_a_delete(maker: Maker) -> None:
    """A child whose parent is set to None, which makes it an orphan, tells its row."""
    await start_audit(maker, Base)

    async with maker() as session:
        order = Order(lines=[Line(text="x")])
        await save(session, order)
        await session.refresh(order, ["lines"])
        line = order.lines[0]
        await session.refresh(line, ["order"])
        line.order = None
        await session.commit()

    assert (await story_of(maker, Line))[1:] == [_line()]


async def test_orphans_that_were_changed_tell_the_row_as_it_was(maker: Maker) -> None:
    """Changes that were pending on an orphan never reached the row."""
    await start_audit(maker, Base)

    async with maker() as session:
        order = Order(lines=[Line(text="x")])
        await save(session, order)
        await session.refresh(order, ["lines"])
        line = order.lines[0]
        line.text = "pending"
        order.lines.clear()
        await session.commit()

    assert (await story_of(maker, Line))[1:] == [_line()]


async def test_orphans_that_move_to_another_parent_tell_an_update(maker: Maker) -> None:
    """A child that goes from one collection to another isn't deleted; its foreign key is told."""
    await start_audit(maker, Base)

    async with maker() as session:
        old, new = Order(lines=[Line(text="x")]), Order(lines=[])
        await save(session, old)
        await save(session, new)
        await session.refresh(old, ["lines"])
        await session.refresh(new, ["lines"])
        new.lines.append(old.lines[0])
        await session.commit()

    assert (await story_of(maker, Line))[1:] == [("update", {"order_id": (1, 2)})]


async def test_orphans_that_were_never_flushed_tell_nothing(maker: Maker) -> None:
    """A new child that is removed before the flush leaves no trail."""
    await start_audit(maker, Base)

    async with maker() as session:
        order = Order(lines=[Line(text="x")])
        session.add(order)
        order.lines.clear()
        await session.commit()

    assert await story_of(maker, Line) == []


@pytest.mark.parametrize("loaded", [False, True])
async def test_cascaded_deletes_are_told(maker: Maker, loaded: bool) -> None:
    """Children that the unit of work deletes with their parent tell their rows, be they loaded or not."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Order(name="a", lines=[Line(text="x"), Line(text="y"), Line(text="z")]))
    async with maker() as session:
        options = [selectinload(Order.lines)] if loaded else []
        order = (await session.scalars(sa.select(Order).options(*options))).one()
        await session.delete(order)
        await session.commit()

    assert (await story_of(maker, Line))[3:] == [_line(1, 1, "x"), _line(2, 1, "y"), _line(3, 1, "z")]
    assert [operation for operation, _ in await story_of(maker, Order)] == ["insert", "delete"]


@pytest.mark.parametrize("loaded", [False, True])
async def test_foreign_keys_that_a_delete_sets_to_null_are_told(maker: Maker, loaded: bool) -> None:
    """Children whose foreign key the unit of work sets to NULL with their parent's delete tell an update."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Order(notes=[Note(text="x"), Note(text="y")]))
    async with maker() as session:
        options = [selectinload(Order.notes)] if loaded else []
        order = (await session.scalars(sa.select(Order).options(*options))).one()
        await session.delete(order)
        await session.commit()

    assert (await story_of(maker, Note))[2:] == [("update", {"order_id": (1, None)})] * 2


@pytest.mark.parametrize("expired", [False, True])
async def test_foreign_keys_that_a_relationship_sets_are_told(maker: Maker, expired: bool) -> None:
    """A child that is given another parent by relationship, be it expired, tells both keys."""
    await start_audit(maker, Base)

    async with maker() as session:
        old, new, note = Order(name="old"), Order(name="new"), Note(text="x")
        note.order = old
        await save(session, old, note)
        await save(session, new)
        if not expired:
            await session.refresh(note)
        await session.refresh(note, ["order"])
        if expired:
            session.expire(note, ["order_id", "text"])
        note.order = new
        await session.commit()

    assert (await story_of(maker, Note))[1:] == [("update", {"order_id": (1, 2)})]


async def test_foreign_keys_that_a_never_loaded_relationship_sets_are_told(maker: Maker) -> None:
    """A child that is given a parent without its old one ever being loaded tells both keys."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Note(text="x", order=Order(name="old")))
    async with maker() as session:
        note = (await session.scalars(sa.select(Note).options(selectinload(Note.order)))).one()
        session.expire(note, ["order_id"])
        note.order = Order(name="new", notes=[])
        await session.commit()

    assert (await story_of(maker, Note))[1:] == [("update", {"order_id": (1, 2)})]


async def test_relationships_that_are_deleted_tell_null(maker: Maker) -> None:
    """`del` of a many-to-one relationship is told as the NULL that it writes."""
    await start_audit(maker, Base)

    async with maker() as session:
        note = Note(text="x", order=Order(name="a"))
        await save(session, note)
        await session.refresh(note, ["order"])
        del note.order
        await session.commit()

    assert (await story_of(maker, Note))[1:] == [("update", {"order_id": (1, None)})]


async def test_children_that_are_appended_tell_their_new_key(maker: Maker) -> None:
    """New and existing children that are appended to a parent's collection tell the foreign key they got."""
    await start_audit(maker, Base)

    async with maker() as session:
        order, note = Order(name="a"), Note(text="existing")
        await save(session, order, note)
        await session.refresh(order, ["notes"])
        order.notes.append(note)
        order.notes.append(Note(text="new"))
        await session.commit()

    assert sorted((await story_of(maker, Note))[1:]) == [
        ("insert", {"id": (None, 2), "order_id": (None, 1), "text": (None, "new")}),
        ("update", {"order_id": (None, 1)}),
    ]
    assert len(await story_of(maker, Order)) == 1


async def test_a_parent_whose_collection_alone_changed_tells_nothing(maker: Maker) -> None:
    """A change of a collection is told by the rows that hold the foreign keys, and by them alone."""
    await start_audit(maker, Base)

    async with maker() as session:
        order = Order(notes=[Note(text="x")])
        await save(session, order)
        await session.refresh(order, ["notes"])
        order.notes.clear()
        await session.commit()

    assert (await story_of(maker, Note))[1:] == [("update", {"order_id": (1, None)})]
    assert len(await story_of(maker, Order)) == 1


async def test_inserts_that_know_each_other_by_relationship_are_told_with_their_keys(maker: Maker) -> None:
    """A whole graph of new objects is told with the foreign keys that the flush found."""
    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, *(Order(name=name, lines=[Line(text=f"{name}{n}") for n in "12"]) for name in "ab"))

    assert [(fields["text"][1], fields["order_id"][1]) for _, fields in await story_of(maker, Line)] == [
        ("a1", 1),
        ("a2", 1),
        ("b1", 2),
        ("b2", 2),
    ]


class Mutual(DeclarativeBase):
    pass


@track_table()
class Widget(Mutual):
    __tablename__ = "widget"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    favorite_id: Mapped[int | None] = mapped_column(ForeignKey("entry.id", name="favorite"))
    favorite: Mapped["Entry | None"] = relationship(foreign_keys="Widget.favorite_id", post_update=True)


@track_table()
class Entry(Mutual):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)
    widget_id: Mapped[int | None] = mapped_column(ForeignKey("widget.id"))
    widget: Mapped[Widget | None] = relationship(foreign_keys=widget_id)


@pytest.mark.session_capture
async def test_post_update_is_told(maker: Maker) -> None:
    """Rows that point at each other, whose keys are set by an UPDATE of their own, are told as each flush left them."""
    await start_audit(maker, Mutual)

    async with maker() as session:
        widget = Widget(name="w")
        first, second = Entry(widget=widget), Entry(widget=widget)
        widget.favorite = first
        await save(session, widget, first, second)
        await session.refresh(widget, ["favorite"])
        widget.favorite = second
        await session.commit()
        await session.refresh(widget, ["favorite"])
        widget.favorite = first
        widget.name = "v"
        await session.commit()

    assert await trail_of(maker, Widget) == [
        ("insert", {"id": (None, 1), "name": (None, "w"), "favorite_id": (None, 1)}),
        ("update", {"favorite_id": (1, 2)}),
        ("update", {"name": ("w", "v"), "favorite_id": (2, 1)}),
    ]
    assert len(await story_of(maker, Entry)) == 2
    # The witness sees each statement, the trail the net change of a flush.
    assert len(await truth_of(maker, Widget)) == 5


@pytest.mark.session_capture
@pytest.mark.parametrize("expired", [False, True])
async def test_post_update_before_a_delete_is_told(maker: Maker, expired: bool) -> None:
    """The delete of a row, whose key was set to NULL by an UPDATE before, tells the row as the flush found it."""
    await start_audit(maker, Mutual)

    async with maker() as session:
        widget = Widget(name="w")
        entry = Entry(widget=widget)
        widget.favorite = entry
        await save(session, widget, entry)
        await session.refresh(entry, ["widget"])
        await session.refresh(widget, ["favorite"])
        if expired:
            session.expire(widget, ["name", "favorite_id"])
        await session.delete(widget)
        await session.delete(entry)
        await session.commit()

    assert (await trail_of(maker, Widget))[1:] == [
        ("delete", {"id": (1, None), "name": ("w", None), "favorite_id": (1, None)})
    ]
    assert (await story_of(maker, Entry))[1:] == [("delete", {"id": (1, None), "widget_id": (1, None)})]


async def test_post_update_of_an_untouched_row_is_told(maker: Maker) -> None:
    """A row whose only change is the post_update that another row's delete causes tells its new foreign key."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        boss_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
        staff: Mapped[list["Person"]] = relationship(post_update=True)

    await start_audit(maker, Base)

    async with maker() as session:
        boss = Person(name="boss", staff=[Person(name="a"), Person(name="b")])
        await save(session, boss)
        await session.refresh(boss, ["staff"])
        await session.delete(boss)
        await session.commit()

    assert {
        change.resource_id: (change.old_value, change.new_value)
        for change in await changes_of(maker, Person)
        if change.operation == "update" and change.field_name == "boss_id"
    } == {2: (1, None), 3: (1, None)}


async def test_association_objects_and_proxies_are_told(maker: Maker) -> None:
    """Rows that an association proxy makes and removes are told, with their extra columns."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)
        links: Mapped[list["UserTag"]] = relationship(back_populates="user", cascade="all, delete-orphan")
        tags: AssociationProxy[list["Tag"]] = association_proxy("links", "tag")

    @track_table()
    class UserTag(Base):
        __tablename__ = "user_tag"
        user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), primary_key=True)
        tag_id: Mapped[int] = mapped_column(ForeignKey("tag.id"), primary_key=True)
        special: Mapped[str] = mapped_column(server_default="no")
        user: Mapped[User] = relationship(back_populates="links")
        tag: Mapped["Tag"] = relationship()

        def __init__(self, tag: "Tag", special: str | None = None) -> None:
            self.tag = tag
            if special is not None:
                self.special = special

    @track_table()
    class Tag(Base):
        __tablename__ = "tag"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    await start_audit(maker, Base)

    async with maker() as session:
        red, blue = Tag(name="red"), Tag(name="blue")
        user = User()
        await save(session, user, red, blue)
        await session.refresh(user, ["links"])
        user.tags.append(red)
        user.links.append(UserTag(blue, special="yes"))
        await session.commit()
    async with maker() as session:
        loaded = selectinload(User.links).selectinload(UserTag.tag)
        user = (await session.scalars(sa.select(User).options(loaded))).one()
        user.tags.pop(0)
        await session.commit()

    story = await story_of(maker, UserTag)
    assert [operation for operation, _ in story] == ["insert", "insert", "delete"]
    assert story[2][1] == {"user_id": (1, None), "tag_id": (1, None), "special": ("no", None)}


async def test_write_only_and_dynamic_collections_are_told(maker: Maker) -> None:
    """What is added to and removed from collections that are never loaded is told by the children's rows."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Account(Base):
        __tablename__ = "account"
        id: Mapped[int] = mapped_column(primary_key=True)
        orders: WriteOnlyMapped["Purchase"] = relationship(cascade="all, delete-orphan", passive_deletes=True)
        visits: DynamicMapped["Visit"] = relationship()

    @track_table()
    class Purchase(Base):
        __tablename__ = "purchase"
        id: Mapped[int] = mapped_column(primary_key=True)
        account_id: Mapped[int] = mapped_column(ForeignKey("account.id"))

    @track_table()
    class Visit(Base):
        __tablename__ = "visit"
        id: Mapped[int] = mapped_column(primary_key=True)
        account_id: Mapped[int | None] = mapped_column(ForeignKey("account.id"))

    await start_audit(maker, Base)

    async with maker() as session:
        account = Account()
        first, second, visit = Purchase(), Purchase(), Visit()
        session.add(account)
        account.orders.add_all([first, second])
        account.visits.append(visit)
        await session.commit()
        account.orders.remove(first)
        account.visits.remove(visit)
        await session.commit()

    assert (await story_of(maker, Purchase))[2:] == [("delete", {"id": (1, None), "account_id": (1, None)})]
    assert (await story_of(maker, Visit))[1:] == [("update", {"account_id": (1, None)})]


async def test_ordering_lists_tell_the_positions(maker: Maker) -> None:
    """The positions that an ordering list rewrites are told."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Deck(Base):
        __tablename__ = "deck"
        id: Mapped[int] = mapped_column(primary_key=True)
        slides: Mapped[list["Slide"]] = relationship(
            order_by="Slide.position", collection_class=ordering_list("position"), cascade="all, delete-orphan"
        )

    @track_table()
    class Slide(Base):
        __tablename__ = "slide"
        id: Mapped[int] = mapped_column(primary_key=True)
        deck_id: Mapped[int] = mapped_column(ForeignKey("deck.id"))
        position: Mapped[int | None]

    await start_audit(maker, Base)

    async with maker() as session:
        deck = Deck(slides=[Slide(), Slide(), Slide()])
        await save(session, deck)
        await session.refresh(deck, ["slides"])
        for slide in deck.slides:
            await session.refresh(slide)
        deck.slides.pop(0)
        deck.slides.insert(0, Slide())
        await session.commit()

    assert len(await story_of(maker, Slide)) == 5


@pytest.mark.session_capture
async def test_trees_of_expired_rows_tell_their_old_values_with_one_select(maker: Maker, engine: AsyncEngine) -> None:
    """The old values of several levels of a tree, which a flush writes level by level, are read at once."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Node(Base):
        __tablename__ = "node"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
        name: Mapped[str]
        children: Mapped[list["Node"]] = relationship(back_populates="parent")
        parent: Mapped["Node | None"] = relationship(back_populates="children", remote_side="Node.id")

    await start_audit(maker, Base)
    reads: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT node.id, node.name"):
            reads.append(statement)

    async with maker() as session:
        nodes = [Node(name="0")]
        for level in range(1, 5):
            nodes.append(Node(name=str(level), parent=nodes[-1]))
        await save(session, *nodes)
        for level, node in enumerate(nodes):
            node.name = f"{level}!"
        await session.commit()

    assert (await story_of(maker, Node))[5:] == [("update", {"name": (str(level), f"{level}!")}) for level in range(5)]
    assert len(reads) == 1


async def test_deleted_trees_are_told_level_by_level(maker: Maker) -> None:
    """A tree that is deleted with its levels tells each row, a child before its parent."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Node(Base):
        __tablename__ = "node"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
        children: Mapped[list["Node"]] = relationship(cascade="all, delete-orphan", join_depth=5, lazy="selectin")

    await start_audit(maker, Base)

    async with maker() as session:
        await save(session, Node(children=[Node(children=[Node()])]))
    async with maker() as session:
        root = (await session.scalars(sa.select(Node).where(Node.parent_id.is_(None)))).one()
        await session.delete(root)
        await session.commit()

    assert [fields["id"][0] for _, fields in (await trail_of(maker, Node))[3:]] == [3, 2, 1]
    assert await trail_of(maker, Node) == await truth_of(maker, Node)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)  # MariaDB checks foreign keys at once
async def test_natural_keys_that_the_unit_of_work_passes_on_are_told(maker: Maker) -> None:
    """With passive_updates=False the new key of a parent, and the foreign keys of its children, are told."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Country(Base):
        __tablename__ = "country"
        code: Mapped[str] = mapped_column(primary_key=True)
        towns: Mapped[list["Town"]] = relationship(passive_updates=False)

    @track_table()
    class Town(Base):
        __tablename__ = "town"
        id: Mapped[int] = mapped_column(primary_key=True)
        country: Mapped[str] = mapped_column(ForeignKey("country.code", deferrable=True, initially="DEFERRED"))

    await start_audit(maker, Base)

    async with maker() as session:
        country = Country(code="UA", towns=[Town(), Town()])
        await save(session, country)
        await session.refresh(country)
        country.code = "UK"
        await session.commit()

    assert (await story_of(maker, Town))[2:] == [("update", {"country": ("UA", "UK")})] * 2
    assert await trail_of(maker, Country) == [
        ("insert", {"code": (None, "UA")}),
        ("delete", {"code": ("UA", None)}),
        ("insert", {"code": (None, "UK")}),
    ]
