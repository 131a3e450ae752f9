"""The types that every database has: a maker of codecs for each."""

import base64
import datetime as dt
import decimal
import json
import math
import re
import uuid
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.default import DefaultDialect

from sqlaudit.codec.documents import (
    JSON_NULL,
    as_jsonb_reads,
    as_sqlite_keeps,
    has_large_float,
    is_plain,
    refuse_constant,
    unwrapped,
    wrapped,
)
from sqlaudit.codec.values import Codec, JSONValue

__all__ = ["GENERIC_MAKERS", "PORTABLE", "SQLALCHEMYS_DECORATORS", "Find", "Makers"]

Find = Callable[[Any, Dialect], Codec]
"""Finds the codec of a type within a type."""

PORTABLE: Final = DefaultDialect()


def _refused(type_: Any, dialect: Dialect, find: Find) -> Codec:
    raise LookupError(type_)


def _boolean(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return Codec(bool, bool, as_text=False, plain=frozenset({bool, type(None)}))


def _integer(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return Codec(
        _whole,
        _whole,
        as_text=False,
        plain=frozenset({int, type(None)}),
        is_changed=lambda value: not isinstance(value, int),
    )


def _whole(value: Any) -> int | float:
    # SQLite keeps a fraction in a column of integers.
    return value if isinstance(value, float) and math.isfinite(value) and not value.is_integer() else int(value)


def _float(type_: Any, dialect: Dialect, find: Find) -> Codec:
    dialect_name = dialect.name
    # SQLAlchemy rounds what it reads as decimals.
    shown = f".{_read_scale(type_)}f" if type_.asdecimal else None

    def encode(value: Any) -> JSONValue:
        number = float(value) if shown is None else float(format(float(value), shown))
        if math.isfinite(number):
            return number
        # SQLite makes NULL of what is no number.
        return None if math.isnan(number) and dialect_name == "sqlite" else str(number)

    def decode(stored: JSONValue) -> Any:
        return float(stored) if shown is None else decimal.Decimal(format(float(stored), shown))

    return Codec(encode, decode, as_text=False)


_ROUNDING: Final = decimal.Context(prec=decimal.MAX_PREC, rounding=decimal.ROUND_HALF_UP)


def _numeric(type_: Any, dialect: Dialect, find: Find) -> Codec:
    # Without decimals, SQLite stores a float, and SQLAlchemy rounds what it reads.
    has_decimals = dialect.name != "sqlite"
    scale = _kept_scale(type_, dialect) if has_decimals else _read_scale(type_) if type_.asdecimal else None
    unit = decimal.Decimal(1).scaleb(-scale) if scale is not None else None

    shape = f".{scale}f"

    def encode_float(value: Any) -> JSONValue:
        number = float(value)
        if not math.isfinite(number):
            return None if math.isnan(number) else str(decimal.Decimal(number))
        text = format(number, shape)
        return text[1:] if text[0] == "-" and float(text) == 0 else text

    def encode(value: Any) -> JSONValue:
        if not has_decimals:
            value = repr(float(value))
        number = value if isinstance(value, decimal.Decimal) else decimal.Decimal(str(value))
        if not number.is_finite():
            return None if number.is_nan() and not has_decimals else str(number)
        if unit is not None:
            number = number.quantize(unit, context=_ROUNDING)
        return format(number or abs(number), "f")

    python_type = decimal.Decimal if type_.asdecimal else float
    is_rounded_float = not has_decimals and scale is not None
    return Codec(encode_float if is_rounded_float else encode, python_type, one_form=scale is not None)


def _kept_scale(type_: Any, dialect: Dialect) -> int | None:
    """Return how many decimals the database keeps; None for all of them."""
    if type_.scale is not None:
        return int(type_.scale)
    # NUMERIC(10) has none, and for MariaDB neither has NUMERIC.
    return None if type_.precision is None and dialect.name == "postgresql" else 0


def _read_scale(type_: Any) -> int:
    scale: int = type_._effective_decimal_return_scale  # noqa: SLF001 (nothing else says it)
    return scale


def _string(type_: Any, dialect: Dialect, find: Find) -> Codec:
    def encode(value: Any) -> JSONValue:
        # str(member) of a str-and-Enum class is its name, not what is sent.
        return str.__str__(value) if isinstance(value, str) else str(value)

    def is_changed(value: Any) -> bool:
        # What is no text is made one by the database, or by its driver, in a way of their own.
        return not isinstance(value, str)

    longest = None if dialect.name == "sqlite" else type_.length
    return Codec(encode, str, plain=frozenset({str, type(None)}), longest=longest, is_changed=is_changed)


def _enum(type_: Any, dialect: Dialect, find: Find) -> Codec:
    # Nothing else says which text a member is written as; dialects' own enum types agree with it.
    plain: Any = sqltypes.Enum
    return Codec(plain.bind_processor(type_, PORTABLE), plain.result_processor(type_, PORTABLE, None))


def _binary(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return Codec(lambda value: base64.b64encode(value).decode("ascii"), base64.b64decode)


def _datetime(type_: Any, dialect: Dialect, find: Find) -> Codec:
    keeps_offset = type_.timezone and dialect.name not in ("sqlite", "mysql", "mariadb")

    def encode(value: Any) -> JSONValue:
        if value.tzinfo is not None:
            value = value.astimezone(dt.UTC) if keeps_offset else value.replace(tzinfo=None)
        return value.isoformat(timespec="microseconds")

    return Codec(encode, dt.datetime.fromisoformat)


def _date(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return Codec(lambda value: dt.date(value.year, value.month, value.day).isoformat(), dt.date.fromisoformat)


def _time(type_: Any, dialect: Dialect, find: Find) -> Codec:
    keeps_offset = type_.timezone and dialect.name not in ("sqlite", "mysql", "mariadb")

    def encode(value: Any) -> JSONValue:
        return (value if keeps_offset else value.replace(tzinfo=None)).isoformat(timespec="microseconds")

    return Codec(encode, dt.time.fromisoformat)


def _interval(type_: Any, dialect: Dialect, find: Find) -> Codec:
    return Codec(_encode_duration, _decode_duration)


def _uuid(type_: Any, dialect: Dialect, find: Find) -> Codec:
    python_type = uuid.UUID if type_.as_uuid else str
    return Codec(lambda value: str(uuid.UUID(str(value))), python_type)


def _json(type_: Any, dialect: Dialect, find: Find) -> Codec:
    # What create_engine(json_serializer=..., json_deserializer=...) make of a document is stored, and read.
    serialize = getattr(dialect, "_json_serializer", None) or json.dumps
    deserialize = getattr(dialect, "_json_deserializer", None)
    keeps_text = not isinstance(type_, postgresql.JSONB)

    has_numbers = dialect.name == "sqlite"

    def encode(value: Any) -> JSONValue:
        if has_numbers and type(value) in (int, float):
            value = as_sqlite_keeps(value)
        try:
            if serialize is json.dumps and is_plain(value):
                return wrapped(value)
        except RecursionError:
            return {"$json_text": serialize(value)}
        text = "null" if value is JSON_NULL else serialize(value)
        try:
            document = json.loads(text, parse_constant=refuse_constant)
            is_exact = not has_large_float(document)
        except (ValueError, RecursionError):
            return {"$json_text": text}
        if is_exact:
            return wrapped(document)
        return {"$json_text": text} if keeps_text else wrapped(json.loads(text, parse_float=as_jsonb_reads))

    def decode(stored: JSONValue) -> Any:
        if isinstance(stored, dict) and stored.keys() == {"$json_text"}:
            return (deserialize or json.loads)(stored["$json_text"])
        document = unwrapped(stored)
        return document if deserialize is None else deserialize(json.dumps(document))

    return Codec(encode, decode, as_text=False, json=True, keeps_text=keeps_text)


def _array(type_: Any, dialect: Dialect, find: Find) -> Codec:
    item = find(type_.item_type, dialect)

    def encode(value: Any) -> JSONValue:
        return [
            encode(each) if isinstance(each, (list, tuple)) and not item.json else item.dump(each) for each in value
        ]

    def decode(stored: JSONValue) -> Any:
        kind = tuple if type_.as_tuple else list
        return kind(decode(each) if isinstance(each, list) and not item.json else item.load(each) for each in stored)

    def is_changed(value: Any) -> bool:
        return any(
            is_changed(each) if isinstance(each, (list, tuple)) and not item.json else item.must_be_read(each)
            for each in value
        )

    return Codec(
        encode, decode, as_text=False, one_form=item.one_form, is_altered=item.is_altered, is_changed=is_changed
    )


Makers = tuple[tuple[type, Callable[[Any, Dialect, Find], Codec]], ...]

SQLALCHEMYS_DECORATORS: Final[Makers] = (
    (sqltypes.Interval, _interval),
    (sqltypes.PickleType, _refused),
)
"""`TypeDecorator` classes that are no decoration of the user's."""

GENERIC_MAKERS: Final[Makers] = (
    (sqltypes.Boolean, _boolean),
    (sqltypes.Integer, _integer),
    (sqltypes.Float, _float),
    (sqltypes.Numeric, _numeric),
    (sqltypes.Enum, _enum),
    (sqltypes.String, _string),
    (sqltypes.LargeBinary, _binary),
    (sqltypes.BINARY, _binary),
    (sqltypes.VARBINARY, _binary),
    (sqltypes.DateTime, _datetime),
    (sqltypes.Date, _date),
    (sqltypes.Time, _time),
    (postgresql.INTERVAL, _interval),
    (sqltypes.Uuid, _uuid),
    (sqltypes.JSON, _json),
    (sqltypes.ARRAY, _array),
)
"""The first that fits: subclasses stand before their bases."""


# --- durations, ISO 8601 ---------------------------------------------------------------------------------------------

_DURATION: Final = re.compile(r"(-?)P(\d+)DT(\d+)\.(\d{6})S")


def _encode_duration(value: dt.timedelta) -> str:
    sign = "-" if value < dt.timedelta(0) else ""
    size = abs(value)
    return f"{sign}P{size.days}DT{size.seconds}.{size.microseconds:06}S"


def _decode_duration(stored: str) -> dt.timedelta:
    match = _DURATION.fullmatch(stored)
    if match is None:
        raise ValueError(stored)
    sign, days, seconds, microseconds = match.groups()
    size = dt.timedelta(days=int(days), seconds=int(seconds), microseconds=int(microseconds))
    return -size if sign else size
