"""What the CRM knows: sixteen tables, with inheritance, many-to-many, JSON, money, enums, soft deletion."""

import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Enum,
    ForeignKey,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    func,
)
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlaudit import track, track_table


@track_table()
class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={"fk": "fk_%(table_name)s_%(column_0_name)s", "ix": "ix_%(column_0_label)s"})


class SoftDelete:
    """What is deleted stays, and is left out of what is shown."""

    deleted_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))


class Timestamps:
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True), onupdate=func.now())


class Role(enum.Enum):
    SALES = "sales"
    MANAGER = "manager"
    ADMIN = "admin"


class Stage(enum.Enum):
    LEAD = "lead"
    OFFER = "offer"
    WON = "won"
    LOST = "lost"


# --- who works with it -----------------------------------------------------------------------------------------------


team_member = Table(
    "team_member",
    Base.metadata,
    Column("team_id", ForeignKey("team.id", ondelete="CASCADE"), primary_key=True),
    Column("user_id", ForeignKey("app_user.id", ondelete="CASCADE"), primary_key=True),
)
track(team_member)


@track_table(exclude_fields=["last_seen"], masked_fields=["api_key"])
class User(Base):
    __tablename__ = "app_user"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[Role] = mapped_column(Enum(Role), default=Role.SALES)
    api_key: Mapped[str] = mapped_column(String(100), unique=True)
    last_seen: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))


class Team(Base):
    __tablename__ = "team"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    members: Mapped[list[User]] = relationship(secondary=team_member)


class Setting(Base):
    __tablename__ = "setting"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)


# --- whom it is about ------------------------------------------------------------------------------------------------


party_tag = Table(
    "party_tag",
    Base.metadata,
    Column("party_id", ForeignKey("party.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tag.id", ondelete="CASCADE"), primary_key=True),
)
track(party_tag)


class Tag(Base):
    __tablename__ = "tag"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)


class Party(SoftDelete, Timestamps, Base):
    """A company or a person: each in a table of its own, joined to this one."""

    __tablename__ = "party"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_abstract": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(200))
    tags: Mapped[list[Tag]] = relationship(secondary=party_tag, lazy="selectin")
    addresses: Mapped[list["Address"]] = relationship(cascade="all, delete-orphan")


class Company(Party):
    __tablename__ = "company"
    __mapper_args__ = {"polymorphic_identity": "company"}

    id: Mapped[int] = mapped_column(ForeignKey("party.id"), primary_key=True)
    vat_number: Mapped[str | None] = mapped_column(String(30))
    people: Mapped[list["Person"]] = relationship(back_populates="company", foreign_keys="Person.company_id")


class Person(Party):
    __tablename__ = "person"
    __mapper_args__ = {"polymorphic_identity": "person"}

    id: Mapped[int] = mapped_column(ForeignKey("party.id"), primary_key=True)
    email: Mapped[str | None] = mapped_column(String(200))
    birthday: Mapped[dt.date | None]
    company_id: Mapped[int | None] = mapped_column(ForeignKey("company.id"))
    company: Mapped[Company | None] = relationship(back_populates="people", foreign_keys=[company_id])


class Address(Base):
    __tablename__ = "address"

    id: Mapped[int] = mapped_column(primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("party.id"))
    street: Mapped[str] = mapped_column(String(200))
    city: Mapped[str] = mapped_column(String(100))


# --- what is sold ----------------------------------------------------------------------------------------------------


class Product(SoftDelete, Base):
    __tablename__ = "product"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))


class Deal(SoftDelete, Timestamps, Base):
    __tablename__ = "deal"

    id: Mapped[int] = mapped_column(primary_key=True)
    party_id: Mapped[int] = mapped_column(ForeignKey("party.id"))
    owner_id: Mapped[int] = mapped_column(ForeignKey("app_user.id"))
    title: Mapped[str] = mapped_column(String(200))
    stage: Mapped[Stage] = mapped_column(Enum(Stage), default=Stage.LEAD)
    amount: Mapped[Decimal] = mapped_column(Numeric(14, 2), default=Decimal(0))
    custom: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON()), default=dict)
    version: Mapped[int] = mapped_column()
    lines: Mapped[list["DealLine"]] = relationship(cascade="all, delete-orphan", lazy="selectin")

    __mapper_args__ = {"version_id_col": version}


class DealLine(Base):
    __tablename__ = "deal_line"

    deal_id: Mapped[int] = mapped_column(ForeignKey("deal.id", ondelete="CASCADE"), primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id"), primary_key=True)
    quantity: Mapped[int]
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))


class Attachment(Base):
    __tablename__ = "attachment"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    deal_id: Mapped[int] = mapped_column(ForeignKey("deal.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    content: Mapped[bytes] = mapped_column(LargeBinary)


# --- what was said ---------------------------------------------------------------------------------------------------


class Activity(Timestamps, Base):
    """A call, a meeting, a note: all in one table."""

    __tablename__ = "activity"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_abstract": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    party_id: Mapped[int] = mapped_column(ForeignKey("party.id"))
    deal_id: Mapped[int | None] = mapped_column(ForeignKey("deal.id", ondelete="SET NULL"))
    text: Mapped[str] = mapped_column(Text)


class Call(Activity):
    __mapper_args__ = {"polymorphic_identity": "call"}

    duration: Mapped[dt.timedelta | None]


class Meeting(Activity):
    __mapper_args__ = {"polymorphic_identity": "meeting"}

    place: Mapped[str | None] = mapped_column(String(200))


class Note(Activity):
    __mapper_args__ = {"polymorphic_identity": "note"}
