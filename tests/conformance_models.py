"""The models that several modules of the conformance tests need, and how a test begins to audit them."""

from typing import Any, TypeAlias

from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlaudit import SQLAuditConfig, register_hooks, set_config, track_table

Maker: TypeAlias = async_sessionmaker[AsyncSession]


class Base(DeclarativeBase):
    pass


# Neither audited, nor is its table: links appear and vanish without a trail.
account_topic = Table(
    "account_topic",
    Base.metadata,
    Column("account_id", ForeignKey("account.id"), primary_key=True),
    Column("topic_id", ForeignKey("topic.id"), primary_key=True),
)


class Topic(Base):
    __tablename__ = "topic"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@track_table(exclude_fields=["visits"])
class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(unique=True)
    balance: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None]
    visits: Mapped[int] = mapped_column(default=0)
    """Not tracked."""
    entries: Mapped[list["Entry"]] = relationship(back_populates="account", order_by="Entry.id")
    topics: Mapped[list[Topic]] = relationship(secondary=account_topic)


class Entry(Base):
    """Not tracked."""

    __tablename__ = "entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[str]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("account.id"))
    account: Mapped[Account | None] = relationship(back_populates="entries")


@track_table(user_id_field="edited_by")
class Page(Base):
    """Names its editor itself."""

    __tablename__ = "page"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    edited_by: Mapped[int | None]


@track_table()
class Vehicle(Base):
    __tablename__ = "vehicle"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    plate: Mapped[str]


class Truck(Vehicle):
    """Two rows in two tracked tables."""

    __tablename__ = "truck"
    __mapper_args__ = {"polymorphic_identity": "truck"}

    id: Mapped[int] = mapped_column(ForeignKey("vehicle.id"), primary_key=True)
    load: Mapped[int]


async def create_tables(engine: AsyncEngine) -> None:
    """Create the tables of the models, and the trail with them."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


async def begin_auditing(engine: AsyncEngine, maker: Maker, **config: Any) -> None:
    """Create the tables, and record what goes through the sessions of *maker*, configured with *config*."""
    await create_tables(engine)
    set_config(SQLAuditConfig(**config))
    register_hooks(maker)
