"""A shop whose trail the tests of queries ask: its models, and a history that makes use of them."""

import datetime as dt
import random
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlaudit import audit_context, track, track_table


class Base(DeclarativeBase):
    pass


shop_order_tag = Table(
    "shop_order_tag",
    Base.metadata,
    Column("order_id", ForeignKey("shop_order.id"), primary_key=True),
    Column("tag_name", ForeignKey("shop_tag.name"), primary_key=True),
)
track(shop_order_tag)


@track_table(table_label="ShopTag")
class Tag(Base):
    __tablename__ = "shop_tag"

    name: Mapped[str] = mapped_column(primary_key=True)
    colour: Mapped[str | None]


@track_table(table_label="ShopCustomer")
class Customer(Base):
    __tablename__ = "shop_customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@track_table(table_label="ShopOrder", masked_fields=["secret"])
class Order(Base):
    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str | None] = mapped_column("state", sa.String(20), key="state")
    total: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    count: Mapped[int] = mapped_column(default=0)
    is_gift: Mapped[bool | None]
    placed_at: Mapped[dt.datetime | None]
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    secret: Mapped[str | None]
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("shop_customer.id"))
    customer: Mapped[Customer | None] = relationship()
    items: Mapped[list["Item"]] = relationship(back_populates="order")
    tags: Mapped[list[Tag]] = relationship(secondary=shop_order_tag)
    memos: Mapped[list["Memo"]] = relationship()


@track_table(table_label="ShopItem")
class Item(Base):
    __tablename__ = "shop_item"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str | None]
    order_id: Mapped[int | None] = mapped_column(ForeignKey("shop_order.id"))
    order: Mapped[Order | None] = relationship(back_populates="items")


class Memo(Base):
    """Not tracked."""

    __tablename__ = "shop_memo"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("shop_order.id"))


class User(Base):
    """Not tracked, but an actor."""

    __tablename__ = "shop_user"

    id: Mapped[int] = mapped_column(primary_key=True)


STATUSES = [None, "open", "paid", "10", 'with "quotes" and \\', "null"]
TOTALS = [None, Decimal("10.00"), Decimal("10.50"), Decimal("-0.01")]
COUNTS = [0, 1, 10]
TRUTHS = [None, True, False]
MOMENTS = [None, *map(dt.datetime.fromisoformat, ["2026-01-02T03:04:05", "2026-01-02T03:04:05.000006"])]
DOCUMENTS: list[Any] = [
    None, sa.null(), {}, [], 0, 1, 1.5, True, False, "1", "", "text", [1, None], [None, 1], {"a": 1, "b": [1, 2]},
    {"b": [1, 2], "a": 1}, {"a": None}, {"a": {"b": {"c d": 'e"f'}}}, {"$json": 1},
]  # fmt: skip
ACTORS = [None, 1, 2, 10]
IMPERSONATORS = [None, 7]
REASONS = [None, "because", "Because", "because "]
FACTS: list[dict[str, Any]] = [
    {},
    {"request_id": "r-1"},
    {"request_id": "r-2", "n": 1},
    {"n": True},
    {"n": None, "a b": [1]},
]


def make_history(session: Session, *, seed: int = 1, steps: int = 60) -> None:
    """Do things in the shop, each in a transaction of its own."""
    chance = random.Random(seed)
    session.add_all([Customer(id=1, name="Ann"), Customer(id=2, name="Bob")])
    session.add_all([Tag(name="red", colour="red"), Tag(name="new", colour=None)])
    session.commit()
    for _ in range(steps):
        with audit_context(
            user_id=chance.choice(ACTORS),
            impersonated_by=chance.choice(IMPERSONATORS),
            reason=chance.choice(REASONS),
            **chance.choice(FACTS),
        ):
            orders = list(session.scalars(sa.select(Order).order_by(Order.id)))
            if len(orders) < 3 or chance.random() < 0.2:
                session.add(Order(items=[Item(status="open")], **_values(chance)))
            elif chance.random() < 0.1:
                order = chance.choice(orders)
                order.items, order.tags = [], []
                session.delete(order)
            else:
                order, other = chance.sample(orders, 2)
                for name, value in chance.sample(sorted(_values(chance).items(), key=lambda pair: pair[0]), 3):
                    setattr(order, name, value)
                if chance.random() < 0.4:
                    tags = list(session.scalars(sa.select(Tag).order_by(Tag.name)))
                    order.tags = chance.sample(tags, chance.randrange(3))
                if other.items and chance.random() < 0.4:
                    item = other.items[0]
                    item.order, item.status = order, chance.choice(STATUSES)
            session.commit()


def _values(chance: random.Random) -> dict[str, Any]:
    return {
        "status": chance.choice(STATUSES),
        "total": chance.choice(TOTALS),
        "count": chance.choice(COUNTS),
        "is_gift": chance.choice(TRUTHS),
        "placed_at": chance.choice(MOMENTS),
        "document": chance.choice(DOCUMENTS),
        "secret": chance.choice(["a", "b"]),
        "customer_id": chance.choice([None, 1, 2]),
    }
