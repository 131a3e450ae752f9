"""
Programs that are run through each driver, written once for sync sessions: an AsyncSession runs them with run_sync.

`basic_program` does a bit of everything; `typed_program` writes a value of every generic type that all databases keep.
"""

import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ForeignKey
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlaudit import track, track_table


class Base(DeclarativeBase):
    pass


book_tag = sa.Table(
    "book_tag",
    Base.metadata,
    sa.Column("book_id", ForeignKey("book.id"), primary_key=True),
    sa.Column("tag_id", ForeignKey("tag.id"), primary_key=True),
)
track(book_tag)


@track_table()
class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50), unique=True)
    uses: Mapped[int] = mapped_column(default=0)


@track_table(masked_fields=["secret"])
class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(sa.String(50))
    secret: Mapped[str | None] = mapped_column(sa.String(50))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    tags: Mapped[list[Tag]] = relationship(secondary=book_tag)
    chapters: Mapped[list["Chapter"]] = relationship(cascade="all, delete-orphan", order_by="Chapter.id")


@track_table()
class Chapter(Base):
    __tablename__ = "chapter"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(sa.String(50))
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))


def basic_program(session: Session) -> None:
    """Write by objects and statements, with cascades, links and a savepoint that is rolled back."""
    red, blue = Tag(id=1, name="red"), Tag(id=2, name="blue ✓")
    book = Book(id=1, title="Ünï", secret="s", price=Decimal("1.5"), tags=[red])
    book.chapters = [Chapter(id=1, title="one"), Chapter(id=2, title="two")]
    session.add_all([blue, book])
    session.commit()

    # Expired: the old values are read.
    book.title = "B"
    book.secret = "t"
    session.commit()
    book.tags.append(blue)
    book.tags.remove(red)
    del book.chapters[0]
    session.commit()

    with session.begin_nested():
        book.price = Decimal("2.25")
        savepoint = session.begin_nested()
        book.title = "never"
        session.add(Tag(id=9, name="never"))
        session.execute(sa.update(Tag).values(uses=9))
        savepoint.rollback()
    session.commit()

    session.execute(sa.insert(Tag), [{"id": number, "name": f"tag {number}"} for number in (3, 4, 5)])
    session.bulk_insert_mappings(sa.inspect(Tag), [{"id": 6, "name": "tag 6", "uses": 1}])
    session.commit()
    session.execute(sa.update(Tag).where(Tag.id < 4).values(uses=Tag.uses + 1))
    session.execute(sa.update(Tag), [{"id": 4, "name": "four"}, {"id": 5, "uses": 0}])
    _upsert(session, [{"id": 5, "name": "five", "uses": 5}, {"id": 7, "name": "seven", "uses": 7}])
    session.execute(sa.delete(Tag).where(Tag.id == 3))
    session.commit()

    session.delete(book)
    session.commit()

    session.add(Tag(id=8, name="rolled back"))
    session.flush()
    session.rollback()


def _upsert(session: Session, rows: list[dict[str, Any]]) -> None:
    dialect = session.connection().dialect.name
    statement: Any
    if dialect == "mariadb":
        statement = mysql.insert(Tag).values(rows)
        statement = statement.on_duplicate_key_update(name=statement.inserted.name, uses=statement.inserted.uses)
    else:
        insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
        statement = insert(Tag).values(rows)
        excluded = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={"name": excluded.name, "uses": excluded.uses}
        )
    session.execute(statement)


class Colour(enum.Enum):
    RED = "r"
    GREEN = "vert"


@track_table()
class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.Text)
    whole: Mapped[int | None] = mapped_column(sa.BigInteger)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(12, 4))
    ratio: Mapped[float | None] = mapped_column(sa.Double)
    done: Mapped[bool | None]
    day: Mapped[dt.date | None]
    hour: Mapped[dt.time | None] = mapped_column(sa.Time().with_variant(mysql.TIME(fsp=6), "mysql", "mariadb"))
    moment: Mapped[dt.datetime | None] = mapped_column(
        sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    )
    colour: Mapped[Colour | None] = mapped_column(sa.Enum(Colour))
    token: Mapped[uuid.UUID | None]
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    span: Mapped[dt.timedelta | None] = mapped_column(sa.Interval)


class Blob(Base):
    __tablename__ = "blob_"
    __mapper_args__ = {"eager_defaults": False}
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes | None] = mapped_column(sa.LargeBinary)


track_table()(Blob)

_FIRST: dict[str, Any] = {
    "text": "Ünï ✓ 🐘 '\"\\%s:x",
    "whole": -(2**63),
    "price": Decimal("1.5"),
    "ratio": 0.1,
    "done": True,
    "day": dt.date(2024, 2, 29),
    "hour": dt.time(1, 2, 3, 4),
    "moment": dt.datetime(2024, 2, 29, 1, 2, 3, 4),  # noqa: DTZ001 (naive ones are meant)
    "colour": Colour.GREEN,
    "token": uuid.UUID(int=17),
    "document": {"a": [1, None, "✓", 1.5, {"$json": True}]},
    "span": dt.timedelta(days=3, seconds=5),
}
_SECOND: dict[str, Any] = {
    "text": "",
    "whole": 2**63 - 1,
    "price": Decimal("-12345678.9012"),
    "ratio": -12345.678901,
    "done": False,
    "day": dt.date(9999, 12, 31),
    "hour": dt.time(23, 59, 59),
    "moment": dt.datetime(1000, 1, 1),  # noqa: DTZ001
    "colour": Colour.RED,
    "token": uuid.UUID(int=0),
    "document": [],
    "span": dt.timedelta(days=-3, seconds=1),
}


def typed_program(session: Session) -> None:
    """Write values of every type, known in memory and not, and NULLs."""
    thing, other = Thing(id=1, **_FIRST), Thing(id=2)
    session.add_all([thing, other])
    session.commit()
    for name, value in _SECOND.items():
        setattr(thing, name, value)
        setattr(other, name, value)
    session.commit()
    session.refresh(thing)
    for name, value in _FIRST.items():
        setattr(thing, name, value)
    session.commit()
    session.execute(sa.update(Thing).where(Thing.id == 2).values(_FIRST))
    session.execute(sa.update(Thing), [{"id": 1, **_SECOND}])
    session.commit()
    session.delete(thing)
    session.execute(sa.delete(Thing).where(Thing.id == 2))
    session.commit()


def bytes_program(session: Session) -> None:
    """Write bytes: any, none and NULL."""
    blob = Blob(id=1, data=bytes(range(256)))
    session.add_all([blob, Blob(id=2)])
    session.commit()
    blob.data = b""
    session.commit()
    session.execute(sa.update(Blob).values(data=b"\x00\xff"))
    session.execute(sa.delete(Blob))
    session.commit()
