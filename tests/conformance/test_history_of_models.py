"""Whose history is it: subclasses, base classes, many-to-many relationships."""

from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Table, select
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlaudit import Operation, SQLAuditConfig, get_resource_changes, register_hooks, set_config, track_table
from sqlaudit.exceptions import RetrievalError, TrackingError
from sqlaudit.types import FieldChange


class Base(AsyncAttrs, DeclarativeBase):
    pass


@track_table()
class Person(Base):
    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Engineer(Person):
    __tablename__ = "engineer"

    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer"}


class Manager(Person):
    """In the table of its base class."""

    budget: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "manager"}


article_tag = Table(
    "article_tag",
    Base.metadata,
    Column("tag_name", ForeignKey("tag.name"), primary_key=True),
    Column("article_id", ForeignKey("article.id"), primary_key=True),
)


class Tag(Base):
    __tablename__ = "tag"

    name: Mapped[str] = mapped_column(primary_key=True)
    articles: Mapped[list["Article"]] = relationship(secondary=article_tag, back_populates="tags")


@track_table(tracked_fields=["title", "tags"])
class Article(Base):
    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    tags: Mapped[list[Tag]] = relationship(secondary=article_tag, back_populates="articles")


@pytest.fixture(name="session")
async def _session(engine: AsyncEngine, maker: async_sessionmaker[AsyncSession]) -> Any:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with maker(expire_on_commit=False) as session:
        yield session


def shown(changes: list[FieldChange]) -> list[tuple[Any, ...]]:
    """What a history shows, oldest first."""
    return [(each.resource_id, each.field_name, each.old_value, each.new_value) for each in reversed(changes)]


async def test_the_history_of_a_joined_subclass_is_one(session: AsyncSession) -> None:
    """The fields of all its tables come together, the key once, and those of other classes don't."""
    engineer = Engineer(name="Ada", language="Ada")
    session.add_all([engineer, Person(name="Bob")])
    await session.flush()
    engineer.name, engineer.language = "Ada L.", "C"
    await session.flush()

    history = shown(await get_resource_changes(Engineer, session=session))

    assert sorted(history, key=repr) == sorted(
        [
            (engineer.id, "id", None, engineer.id),
            (engineer.id, "name", None, "Ada"),
            (engineer.id, "kind", None, "engineer"),
            (engineer.id, "budget", None, None),
            (engineer.id, "language", None, "Ada"),
            (engineer.id, "name", "Ada", "Ada L."),
            (engineer.id, "language", "Ada", "C"),
        ],
        key=repr,
    )


async def test_the_history_of_a_class_in_its_base_classes_table_is_its_own(session: AsyncSession) -> None:
    """A single-table subclass shows the rows of its kind, and the base class those of all."""
    manager = Manager(name="Meg", budget=5)
    session.add_all([manager, Person(name="Bob"), Engineer(name="Ada", language="Ada")])
    await session.flush()
    manager.budget = 6
    await session.flush()

    own = await get_resource_changes(Manager, session=session)
    of_all = await get_resource_changes(Person, session=session, filter_fields=["name", "language"])

    assert {each.resource_id for each in own} == {manager.id}
    assert (own[0].field_name, own[0].old_value, own[0].new_value) == ("budget", 5, 6)
    assert {each.new_value for each in of_all} == {"Meg", "Bob", "Ada"}


async def test_a_relationship_that_is_tracked_is_a_field_of_the_history(session: AsyncSession) -> None:
    """Additions and removals, from either side and by statements, are shown in the parent's history."""
    article, other = Article(title="x"), Article(title="y")
    tags = [Tag(name="a"), Tag(name="b"), Tag(name="c", articles=[])]
    session.add_all([article, other, *tags])
    article.tags.extend(tags[:2])
    await session.flush()
    article.tags.remove(tags[0])
    tags[2].articles.append(article)
    await session.flush()
    await session.execute(article_tag.insert().values(tag_name="a", article_id=other.id))

    history = await get_resource_changes(Article, article.id, session, "tags")
    of_other = await get_resource_changes(Article, [other.id], session)

    assert sorted(shown(history), key=repr) == sorted(
        [
            (article.id, "tags", None, "a"),
            (article.id, "tags", None, "b"),
            (article.id, "tags", None, "c"),
            (article.id, "tags", "a", None),
        ],
        key=repr,
    )
    assert {each.operation for each in history} == {Operation.UPDATE}
    assert {each.resource_type for each in history} == {"Article"}
    assert shown(of_other) == [(other.id, "title", None, "y"), (other.id, "tags", None, "a")]
    rows = await session.execute(select(article_tag.c.tag_name).where(article_tag.c.article_id == article.id))
    assert {name for (name,) in rows} == {"b", "c"}


async def test_rows_of_an_association_table_are_resources_of_their_own_too(session: AsyncSession) -> None:
    """What is shown with the parent is stored once, as a change of the association's row."""
    session.add(Article(title="x", tags=[Tag(name="a")]))
    await session.flush()

    changes = await get_resource_changes(article_tag, session=session)

    assert shown(changes)[0][0] == ("a", 1)
    assert {each.resource_type for each in changes} == {"article_tag"}


async def test_a_relationship_without_a_secondary_table_is_refused() -> None:
    """A one-to-many relationship has no rows of its own: the error names the foreign key as the remedy."""

    class Own(DeclarativeBase):
        pass

    @track_table(tracked_fields=["id", "children"])
    class Parent(Own):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        children: Mapped[list["Child"]] = relationship()

    class Child(Own):
        __tablename__ = "child"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id"))

    with pytest.raises(TrackingError, match="foreign key"):
        Own.registry.configure()


async def test_a_subclass_that_the_trail_cannot_tell_apart_is_refused(session: AsyncSession) -> None:
    """Without the discriminator in the trail, the history of a single-table subclass is unknown, not wrong."""

    class Own(DeclarativeBase):
        pass

    @track_table(tracked_fields=["name"])
    class Animal(Own):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Cat(Animal):
        __mapper_args__ = {"polymorphic_identity": "cat"}

    with pytest.raises(RetrievalError, match=r"ask for Animal"):
        await get_resource_changes(Cat, session=session)
