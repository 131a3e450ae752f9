"""The types that one database has: a maker of codecs for each."""

import importlib
import ipaddress
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from sqlaudit.codec.generic import Find, Makers
from sqlaudit.codec.values import Codec, JSONValue

__all__ = ["CANONICAL", "DIALECT_MAKERS", "bound_type_of"]

_TEXTS: Final = (
    postgresql.MACADDR,
    postgresql.MACADDR8,
    postgresql.MONEY,
    postgresql.TSVECTOR,
    postgresql.TSQUERY,
    postgresql.REGCLASS,
    postgresql.REGCONFIG,
    postgresql.JSONPATH,
    # Of MariaDB, which older versions of SQLAlchemy don't know.
    *(getattr(mysql, name) for name in ("INET4", "INET6") if hasattr(mysql, name)),
)
"""Types whose values Python knows as text."""

CANONICAL: Final = (
    *_TEXTS,
    postgresql.INET,
    postgresql.CIDR,
    postgresql.BIT,
    postgresql.HSTORE,
    postgresql.ranges.AbstractRange,
    mysql.SET,
    mysql.YEAR,
)
"""Types that have several texts for one value, of which the database keeps one."""


def _text(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return Codec(str, str)


def _address(type_: Any, dialect: Dialect, find: Find) -> Codec:
    # create_engine(native_inet_types=False) reads them as text.
    as_text = getattr(dialect, "_native_inet_types", None) is False

    def decode(stored: JSONValue) -> Any:
        if as_text:
            return stored
        if isinstance(type_, postgresql.CIDR):
            return ipaddress.ip_network(stored)
        return ipaddress.ip_interface(stored) if "/" in stored else ipaddress.ip_address(stored)

    return Codec(str, decode)


def _bits(type_: Any, dialect: Dialect, find: Find) -> Codec:
    def encode(value: Any) -> JSONValue:
        # SQLAlchemy 2.0 hands on what asyncpg gives.
        return str(value.as_string()).replace(" ", "") if hasattr(value, "as_string") else str(value)

    driver = getattr(dialect, "driver", None)

    def decode(stored: JSONValue) -> Any:
        own: Any = getattr(postgresql, "BitString", None)
        if own is None and driver == "asyncpg":
            own = importlib.import_module("asyncpg").BitString
        return stored if own is None else own(stored)

    return Codec(encode, decode)


def _hstore(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return Codec(dict, dict, as_text=False)


def _domain(type_: Any, dialect: Dialect, find: Find) -> Codec:
    # SQLAlchemy hands on what the driver gives, which is the plain Python value of these.
    if isinstance(type_.data_type, _PLAIN) and not isinstance(type_.data_type, sqltypes.Enum):
        return replace(find(type_.data_type, dialect), is_altered=True, plain=frozenset())
    raise LookupError(type_)


_PLAIN: Final = (
    sqltypes.Integer,
    sqltypes.String,
    sqltypes.Numeric,
    sqltypes.Boolean,
    sqltypes.Date,
    sqltypes.DateTime,
)


_BOUNDS: Final[tuple[tuple[tuple[type, ...], TypeEngine[Any]], ...]] = (
    ((postgresql.INT4RANGE, postgresql.INT8RANGE), sqltypes.Integer()),
    ((postgresql.INT4MULTIRANGE, postgresql.INT8MULTIRANGE), sqltypes.Integer()),
    ((postgresql.NUMRANGE, postgresql.NUMMULTIRANGE), sqltypes.Numeric()),
    ((postgresql.DATERANGE, postgresql.DATEMULTIRANGE), sqltypes.Date()),
    ((postgresql.TSRANGE, postgresql.TSMULTIRANGE), sqltypes.DateTime()),
    ((postgresql.TSTZRANGE, postgresql.TSTZMULTIRANGE), sqltypes.DateTime(timezone=True)),
)


def bound_type_of(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type of the bounds of a range, or multirange, of PostgreSQL; a LookupError if it's another type."""
    bound_type = next((bound for ranges, bound in _BOUNDS if isinstance(type_, ranges)), None)
    if bound_type is None:
        raise LookupError(type_)
    return bound_type


def _range(type_: Any, dialect: Dialect, find: Find) -> Codec:
    bound = find(bound_type_of(type_), dialect)

    def encode(value: Any) -> JSONValue:
        if value.empty:
            return {"empty": True}
        return {"lower": bound.dump(value.lower), "upper": bound.dump(value.upper), "bounds": value.bounds}

    def decode(stored: JSONValue) -> Any:
        if stored == {"empty": True}:
            return postgresql.Range(empty=True)
        lower, upper = bound.load(stored["lower"]), bound.load(stored["upper"])
        return postgresql.Range(lower, upper, bounds=stored["bounds"])

    if not isinstance(type_, postgresql.ranges.AbstractMultiRange):
        return Codec(encode, decode, as_text=False)
    return Codec(
        lambda ranges: [encode(each) for each in ranges],
        lambda stored: postgresql.ranges.MultiRange(decode(each) for each in stored),
        as_text=False,
    )


def _set(type_: Any, dialect: Dialect, find: Find) -> Codec:
    # In the order of the type, which is the database's.
    return Codec(lambda value: [each for each in type_.values if each in value], set, as_text=False)


def _integer(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return find(sqltypes.Integer(), dialect)


def _blob(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return find(sqltypes.LargeBinary(), dialect)


DIALECT_MAKERS: Final[Makers] = (
    (postgresql.DOMAIN, _domain),
    (postgresql.ranges.AbstractRange, _range),
    (postgresql.INET, _address),
    (postgresql.CIDR, _address),
    (postgresql.BIT, _bits),
    (postgresql.HSTORE, _hstore),
    (postgresql.OID, _integer),
    *((each, _text) for each in _TEXTS),
    (mysql.SET, _set),
    (mysql.YEAR, _integer),
    (mysql.BIT, _integer),
    (mysql.TINYBLOB, _blob),
    (mysql.MEDIUMBLOB, _blob),
    (mysql.LONGBLOB, _blob),
)
"""None of these types is another's base."""
