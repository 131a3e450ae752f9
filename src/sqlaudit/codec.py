"""
How the values of a column are written in the trail: plain JSON, by the column's type.

What is stored is what the column's `TypeDecorator` would send to the database,
so a column that is encrypted in its table is encrypted in the trail. A value
is written as it would be *read back*: an int that was given as ``"1"`` is 1,
a decimal has the column's scale, SQLite's datetimes have lost their offset.
"""

import base64
import datetime as dt
import decimal
import enum
import importlib
import ipaddress
import json
import math
import re
import uuid
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, type_coerce, types as sqltypes
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.exceptions import CaptureError
from sqlaudit.types import MASKED, TrailType

__all__ = ["Codec", "codec_of", "decode_value", "is_supported", "key_text", "key_value"]

JSONValue: TypeAlias = Any
"""None, bool, int, float, str, or a list or dict of them."""

MASK: Final[JSONValue] = {"$masked": True}

# Objects of other types can be changed in place: what is in memory need not be
# what was read from the database.
_IMMUTABLE: Final = (
    str,
    int,
    float,
    bytes,
    decimal.Decimal,
    dt.date,
    dt.time,
    dt.timedelta,
    uuid.UUID,
    enum.Enum,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


@dataclass(frozen=True, slots=True)
class Codec:
    """Encodes and decodes the values of one column type for one dialect."""

    encode: Callable[[Any], JSONValue]
    decode: Callable[[JSONValue], Any]
    as_text: bool = True
    """The encoded values are strings, all of them."""
    one_form: bool = True
    """Equal values have equal encodings; else they are compared decoded."""
    json: bool = False
    """The column holds JSON: None in memory may be an SQL NULL or the JSON value null."""
    keeps_text: bool = False
    """The column keeps a document as it was written: 1 and 1.0 are two, though JSON has one kind of number."""
    is_altered: bool = False
    """The database rounds or pads what it is given: a value is known when it was read back."""
    sees_null: bool = False
    """*encode* and *decode* are asked about None, too: a decorator may store it as something else."""

    is_padded: bool = False
    """Trailing blanks mean nothing: the database adds them."""
    raw: "tuple[TypeEngine[Any], Codec] | None" = None
    """Of a decorated type: the type underneath, as which a value can be read without decoding it."""
    encodes_anew: Callable[[Any], bool] | None = None
    """Says whether a value is encoded otherwise each time, as a cipher does."""

    @property
    def as_read(self) -> "Codec":
        """The codec of what `readable` columns give: for a decorated type, what the row itself holds."""
        return self if self.raw is None else self.raw[1]

    def readable(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return *column* as it is read to be stored: an encrypted value isn't decrypted, and not encrypted anew."""
        return column if self.raw is None else type_coerce(column, self.raw[0])

    def as_key(self, stored: JSONValue) -> JSONValue:
        """Return the stored form of a part of a key: the same whether it was read or given."""
        return stored.rstrip(" ") if self.is_padded and stored is not None else stored

    def dump(self, value: Any) -> JSONValue:
        """Return *value*, which is None for SQL NULL, as it is stored."""
        return None if value is None and not self.sees_null else self.encode(value)

    def load(self, stored: JSONValue) -> Any:
        """Return the Python value of what is stored."""
        if stored == MASK:
            return MASKED
        return None if stored is None and not self.sees_null else self.decode(stored)

    def same(self, stored: JSONValue, other: JSONValue) -> bool:
        """Return whether two stored forms are one value."""
        if self.json:
            return _is_same_json(stored, other, keeps_text=self.keeps_text)
        if stored == other:
            return True
        # Not every value's == says True or False, and what can't say is another value.
        return not self.one_form and (self.load(stored) == self.load(other)) is True

    def must_be_read(self, value: object) -> bool:
        """Return whether what the row holds can't be told from the Python value that was sent."""
        if value is None:
            return False
        return self.is_altered or (self.encodes_anew is not None and self.encodes_anew(value))

    def is_exact_in_memory(self, value: object) -> bool:
        """Return whether *value*, found in an object, must be what the database held."""
        if value is None:
            return not self.json
        return isinstance(value, _IMMUTABLE) and not self.must_be_read(value)


def decode_value(codec: Codec | None, stored: JSONValue) -> Any:
    """Return the Python value of *stored*; its stored form if nobody knows the column any more."""
    if codec is not None:
        with suppress(LookupError, TypeError, ValueError, ArithmeticError):
            return codec.load(stored)
    # The column is gone, or was of another type then.
    return MASKED if stored == MASK else stored


# --- keys ------------------------------------------------------------------------------------------------------------


def key_text(encoded: list[JSONValue]) -> str:
    """Return the canonical text of an encoded key: the value itself for one column, a JSON array for several."""
    if len(encoded) == 1:
        (part,) = encoded
        if isinstance(part, str):
            return part
        return str(part) if type(part) is int else json.dumps(part)
    return json.dumps(encoded, separators=(",", ":"), ensure_ascii=False)


def key_value(codecs: Sequence[Codec], text: str) -> Any:
    """Return the Python value of a key from its text: a tuple if it has several columns."""
    if len(codecs) > 1:
        return tuple(codec.load(part) for codec, part in zip(codecs, json.loads(text), strict=True))
    (codec,) = codecs
    if not codec.as_text:
        # A number is itself; what JSON has no number for is text.
        with suppress(ValueError):
            return codec.load(json.loads(text))
    return codec.load(text)


# --- one codec per type ----------------------------------------------------------------------------------------------

_codecs: weakref.WeakKeyDictionary[Dialect, dict[TypeEngine[Any], Codec]] = weakref.WeakKeyDictionary()

_PORTABLE: Final = DefaultDialect()


def codec_of(type_: TypeEngine[Any], dialect: Dialect) -> Codec:
    """
    Return the codec of a column type on *dialect*.

    Raises:
        LookupError: its values can't be written exactly.
    """
    cache = _codecs.setdefault(dialect, {})
    if (codec := cache.get(type_)) is None:
        codec = cache[type_] = _find_codec(type_, dialect)
    return codec


def is_supported(type_: TypeEngine[Any]) -> bool:
    """Return whether the values of *type_* can be written exactly; for a type with variants, of all of them."""
    variants = getattr(type_, "_variant_mapping", {}).values()
    try:
        for each in (type_, *variants):
            _find_codec(each, _PORTABLE)
    except LookupError:
        return False
    return True


def _find_codec(type_: TypeEngine[Any], dialect: Dialect) -> Codec:
    variant = getattr(type_, "_variant_mapping", {}).get(dialect.name)
    if variant is not None:
        return _find_codec(variant, dialect)
    if isinstance(type_, TrailType):
        return _users_own(type_)
    if not (_is_known(type_, "bind_expression") and _is_known(type_, "column_expression")):
        # The database computes what is stored, or what is read: pgcrypto would leave plaintext in the trail.
        raise LookupError(type_)
    if not isinstance(type_, TypeDecorator) and not (
        _is_known(type_, "bind_processor") and _is_known(type_, "result_processor")
    ):
        # A type of the user's that sends something else than its base type does.
        raise LookupError(type_)
    for known, make in _MAKERS:
        if isinstance(type_, known):
            codec = make(type_, dialect)
            if not _is_altered(type_, dialect):
                return codec
            return replace(codec, is_altered=True, is_padded=isinstance(type_, (sqltypes.CHAR, sqltypes.NCHAR)))
    raise LookupError(type_)


def _is_known(type_: Any, method: str) -> bool:
    """Return whether a method is one of SQLAlchemy's own."""
    return next(each for each in type(type_).__mro__ if method in vars(each)).__module__.startswith("sqlalchemy.")


def _is_altered(type_: Any, dialect: Dialect) -> bool:
    """Return whether the database may store another value than it is given."""
    if dialect.name == "sqlite":
        # SQLite's own types can be told to leave fractions out; the generic ones keep them.
        return isinstance(type_, (sqlite.DATETIME, sqlite.TIME))
    if isinstance(type_, (sqltypes.CHAR, sqltypes.NCHAR, *_CANONICAL)):
        return True
    if dialect.name in ("mysql", "mariadb"):
        # Fractions of seconds are cut off, FLOAT is shown with six digits, BINARY is filled up.
        if isinstance(type_, sqltypes.Float):
            return not isinstance(type_, sqltypes.Double) or getattr(type_, "scale", None) is not None
        return isinstance(type_, (sqltypes.DateTime, sqltypes.Time, sqltypes.Interval, sqltypes.BINARY))
    if isinstance(type_, sqltypes.Float):
        return isinstance(type_, sqltypes.REAL) or (type_.precision is not None and type_.precision <= 24)
    precisions = ("precision", "second_precision", "fsp")
    return isinstance(type_, (sqltypes.DateTime, sqltypes.Time, sqltypes.Interval, postgresql.INTERVAL)) and any(
        getattr(type_, name, None) is not None for name in precisions
    )


_TEXTS: Final = (
    postgresql.MACADDR,
    postgresql.MACADDR8,
    postgresql.MONEY,
    postgresql.TSVECTOR,
    postgresql.TSQUERY,
    postgresql.REGCLASS,
    postgresql.REGCONFIG,
    postgresql.JSONPATH,
)
"""Types of PostgreSQL whose values Python knows as text."""

_CANONICAL: Final = (
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


def _users_own(type_: Any) -> Codec:
    """The user's own type, which says how its values are stored."""

    def encode(value: Any) -> JSONValue:
        stored = type_.to_trail(value)
        try:
            return json.loads(json.dumps(stored, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CaptureError(
                f"{type(type_).__name__}.to_trail() gave a {type(stored).__name__} that is no plain JSON ({error}); "
                f"return None, a bool, a number, a string, or lists and dicts of them."
            ) from error

    # Only a decorator is known to send what it was given.
    is_altered = not isinstance(type_, TypeDecorator)
    return Codec(encode, type_.from_trail, as_text=False, one_form=False, is_altered=is_altered)


def _decorated(type_: Any, dialect: Dialect) -> Codec:
    """The user's own type: what it would send to the database, by the type underneath."""
    underneath = type_.load_dialect_impl(dialect)
    inner = _find_codec(underneath, dialect)
    if _overrides(type_, "bind_processor") or _overrides(type_, "result_processor"):
        # It sends something else than its process_bind_param says.
        raise LookupError(type_)
    # The cache must not keep alive the dialect that is its key. Whoever encodes has a
    # connection, whoever decodes a session: for them it is there.
    living = weakref.ref(dialect)

    def encode(value: Any) -> JSONValue:
        return inner.dump(type_.process_bind_param(value, living()))

    def decode(stored: JSONValue) -> Any:
        return type_.process_result_value(inner.load(stored), living())

    ciphers: list[bool] = []

    def encodes_anew(value: Any) -> bool:
        # Some ciphers let some values pass: only one that was seen to encrypt is known.
        if not ciphers and encode(value) != encode(value):
            ciphers.append(True)
        return bool(ciphers)

    return Codec(
        encode if _overrides(type_, "process_bind_param") else inner.dump,
        decode if _overrides(type_, "process_result_value") else inner.load,
        as_text=inner.as_text,
        one_form=False,
        json=inner.json,
        keeps_text=inner.keeps_text,
        is_altered=inner.is_altered,
        is_padded=inner.is_padded,
        sees_null=True,
        raw=(underneath, inner),
        encodes_anew=encodes_anew if _overrides(type_, "process_bind_param") else None,
    )


def _overrides(type_: Any, method: str) -> bool:
    return getattr(type(type_), method) is not getattr(TypeDecorator, method)


def _refused(type_: Any, dialect: Dialect) -> Codec:
    raise LookupError(type_)


def _boolean(type_: Any, dialect: Dialect) -> Codec:
    return Codec(bool, bool, as_text=False)


def _integer(type_: Any, dialect: Dialect) -> Codec:
    return Codec(int, int, as_text=False)


def _float(type_: Any, dialect: Dialect) -> Codec:
    def encode(value: Any) -> JSONValue:
        number = float(value)
        return number if math.isfinite(number) else str(number)

    def decode(stored: JSONValue) -> Any:
        # As SQLAlchemy rounds what it reads.
        number = float(stored)
        return decimal.Decimal(f"{number:.{_read_scale(type_)}f}") if type_.asdecimal else number

    return Codec(encode, decode, as_text=False)


_ROUNDING: Final = decimal.Context(prec=decimal.MAX_PREC, rounding=decimal.ROUND_HALF_UP)


def _numeric(type_: Any, dialect: Dialect) -> Codec:
    # Without decimals, SQLite stores a float, and SQLAlchemy rounds what it reads.
    has_decimals = dialect.name != "sqlite"
    scale = type_.scale if has_decimals else _read_scale(type_) if type_.asdecimal else None
    unit = decimal.Decimal(1).scaleb(-scale) if scale is not None else None

    def encode(value: Any) -> JSONValue:
        if not has_decimals:
            value = repr(float(value)) if scale is None else f"{float(value):.{scale}f}"
        number = value if isinstance(value, decimal.Decimal) else decimal.Decimal(str(value))
        if not number.is_finite():
            return str(number)
        if unit is not None:
            number = number.quantize(unit, context=_ROUNDING)
        return format(number or abs(number), "f")

    python_type = decimal.Decimal if type_.asdecimal else float
    return Codec(encode, python_type, one_form=scale is not None)


def _read_scale(type_: Any) -> int:
    scale: int = type_._effective_decimal_return_scale  # noqa: SLF001 (nothing else says it)
    return scale


def _string(type_: Any, dialect: Dialect) -> Codec:
    def encode(value: Any) -> JSONValue:
        # str(member) of a str-and-Enum class is its name, not what is sent.
        return str.__str__(value) if isinstance(value, str) else str(value)

    return Codec(encode, str)


def _enum(type_: Any, dialect: Dialect) -> Codec:
    # Nothing else says which text a member is written as; dialects' own enum types agree with it.
    plain: Any = sqltypes.Enum
    return Codec(plain.bind_processor(type_, _PORTABLE), plain.result_processor(type_, _PORTABLE, None))


def _binary(type_: Any, dialect: Dialect) -> Codec:
    return Codec(lambda value: base64.b64encode(value).decode("ascii"), base64.b64decode)


def _datetime(type_: Any, dialect: Dialect) -> Codec:
    keeps_offset = type_.timezone and dialect.name not in ("sqlite", "mysql", "mariadb")

    def encode(value: Any) -> JSONValue:
        if value.tzinfo is not None:
            value = value.astimezone(dt.UTC) if keeps_offset else value.replace(tzinfo=None)
        return value.isoformat(timespec="microseconds")

    return Codec(encode, dt.datetime.fromisoformat)


def _date(type_: Any, dialect: Dialect) -> Codec:
    return Codec(lambda value: dt.date(value.year, value.month, value.day).isoformat(), dt.date.fromisoformat)


def _time(type_: Any, dialect: Dialect) -> Codec:
    keeps_offset = type_.timezone and dialect.name not in ("sqlite", "mysql", "mariadb")

    def encode(value: Any) -> JSONValue:
        return (value if keeps_offset else value.replace(tzinfo=None)).isoformat(timespec="microseconds")

    return Codec(encode, dt.time.fromisoformat)


def _interval(type_: Any, dialect: Dialect) -> Codec:
    return Codec(_encode_duration, _decode_duration)


def _uuid(type_: Any, dialect: Dialect) -> Codec:
    python_type = uuid.UUID if type_.as_uuid else str
    return Codec(lambda value: str(uuid.UUID(str(value))), python_type)


def _json(type_: Any, dialect: Dialect) -> Codec:
    # What create_engine(json_serializer=..., json_deserializer=...) make of a document is stored, and read.
    serialize = getattr(dialect, "_json_serializer", None) or json.dumps
    deserialize = getattr(dialect, "_json_deserializer", None)

    def encode(value: Any) -> JSONValue:
        if serialize is json.dumps and _is_plain(value):
            return _wrapped(value)
        text = "null" if value is JSON_NULL else serialize(value)
        try:
            return _wrapped(json.loads(text, parse_constant=_refuse_constant))
        except ValueError:
            return {"$json_text": text}

    def decode(stored: JSONValue) -> Any:
        if isinstance(stored, dict) and stored.keys() == {"$json_text"}:
            return (deserialize or json.loads)(stored["$json_text"])
        document = _unwrapped(stored)
        return document if deserialize is None else deserialize(json.dumps(document))

    return Codec(encode, decode, as_text=False, json=True, keeps_text=not isinstance(type_, postgresql.JSONB))


def _array(type_: Any, dialect: Dialect) -> Codec:
    item = _find_codec(type_.item_type, dialect)

    def encode(value: Any) -> JSONValue:
        return [
            encode(each) if isinstance(each, (list, tuple)) and not item.json else item.dump(each) for each in value
        ]

    def decode(stored: JSONValue) -> Any:
        kind = tuple if type_.as_tuple else list
        return kind(decode(each) if isinstance(each, list) and not item.json else item.load(each) for each in stored)

    return Codec(encode, decode, as_text=False, one_form=item.one_form, is_altered=item.is_altered)


def _text(type_: Any, dialect: Dialect) -> Codec:
    return Codec(str, str)


def _address(type_: Any, dialect: Dialect) -> Codec:
    # create_engine(native_inet_types=False) reads them as text.
    as_text = getattr(dialect, "_native_inet_types", None) is False

    def decode(stored: JSONValue) -> Any:
        if as_text:
            return stored
        if isinstance(type_, postgresql.CIDR):
            return ipaddress.ip_network(stored)
        return ipaddress.ip_interface(stored) if "/" in stored else ipaddress.ip_address(stored)

    return Codec(str, decode)


def _bits(type_: Any, dialect: Dialect) -> Codec:
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


def _hstore(type_: Any, dialect: Dialect) -> Codec:
    return Codec(dict, dict, as_text=False)


def _domain(type_: Any, dialect: Dialect) -> Codec:
    # SQLAlchemy hands on what the driver gives, which is the plain Python value of these.
    if isinstance(type_.data_type, _PLAIN) and not isinstance(type_.data_type, sqltypes.Enum):
        return replace(_find_codec(type_.data_type, dialect), is_altered=True)
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
"""The types of the bounds of PostgreSQL's ranges."""


def _range(type_: Any, dialect: Dialect) -> Codec:
    bound_type = next((bound for ranges, bound in _BOUNDS if isinstance(type_, ranges)), None)
    if bound_type is None:
        raise LookupError(type_)
    bound = _find_codec(bound_type, dialect)

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
        lambda stored: [decode(each) for each in stored],
        as_text=False,
    )


def _set(type_: Any, dialect: Dialect) -> Codec:
    # In the order of the type, which is the database's.
    return Codec(lambda value: [each for each in type_.values if each in value], set, as_text=False)


# The first that fits: subclasses before their bases, refused decorators before TypeDecorator.
_MAKERS: Final[tuple[tuple[type, Callable[[Any, Dialect], Codec]], ...]] = (
    (sqltypes.Interval, _interval),
    (sqltypes.PickleType, _refused),
    (TypeDecorator, _decorated),
    (postgresql.INTERVAL, _interval),
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
    (sqltypes.Uuid, _uuid),
    (sqltypes.JSON, _json),
    (sqltypes.ARRAY, _array),
)


# --- JSON columns ----------------------------------------------------------------------------------------------------

JSON_NULL: Final = sqltypes.JSON.NULL
"""In place of a value: the JSON value null, which Python, too, calls None."""


def _is_plain(value: object) -> bool:
    """Return whether JSON gives back a value as it is: no tuples, no keys but strings, no classes of the user's."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_plain(each) for key, each in value.items())  # type: ignore[attr-defined]
    if kind is list:
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    return kind in (str, int, bool) or value is None or (kind is float and math.isfinite(value))  # type: ignore[arg-type]


def _refuse_constant(name: str) -> None:
    """Refuse NaN and the infinities, which SQLite keeps in a document although JSON has none."""
    raise ValueError(name)


def _wrapped(document: JSONValue) -> JSONValue:
    """Return a document as it is stored: null, and what looks like one of our marks, in a mark of its own."""
    if document is None or (isinstance(document, dict) and any(key.startswith("$") for key in document)):
        return {"$json": document}
    return document


def _unwrapped(stored: JSONValue) -> JSONValue:
    return stored["$json"] if isinstance(stored, dict) and stored.keys() == {"$json"} else stored


def _is_same_json(one: JSONValue, other: JSONValue, *, keeps_text: bool) -> bool:
    """Return whether two documents are equal, in any order of keys; unlike for Python, true isn't 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _is_same_json(value, other[key], keeps_text=keeps_text) for key, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _is_same_json(each, its, keeps_text=keeps_text) for each, its in zip(one, other, strict=True)
        )
    return bool(one == other) and (type(one) is type(other) or not keeps_text)


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
