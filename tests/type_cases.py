# ruff: noqa: DTZ001, DTZ901, E501 (naive datetimes are what such a column holds; tables are wide)
"""Every column type, generic and of the dialects, with the values to try it with."""

import datetime as dt
import enum
import importlib
import ipaddress
import math
import sqlite3
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.postgresql import Range

_of_sqlite: Any = sqlite
"""Without its types, which it hasn't."""

GENERIC = ("sqlite", "postgresql", "mariadb")


class Colour(enum.Enum):
    RED = "r"
    GREEN = "vert"
    OVER = "über ✓"


class Size(enum.StrEnum):
    SMALL = "s"
    LARGE = "l"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TypeCase:
    """A column type, and values for its columns: the edges, each of which is tried, and a strategy for more."""

    name: str
    make: Callable[[], Any]
    edges: tuple[Any, ...]
    more: st.SearchStrategy[Any] | None = None
    databases: tuple[str, ...] = GENERIC
    compared: Callable[[Any], Any] = field(default=lambda value: value)
    """What of a value that was read counts, for types of which equal values look different."""

    nullable: bool = True

    @property
    def values(self) -> st.SearchStrategy[Any]:
        """The values, None too."""
        # An SQL NULL after a JSON null, and the other way round, is a matter of its own.
        edges = st.sampled_from([edge for edge in self.all_edges if not isinstance(edge, sa.ClauseElement)])
        return edges if self.more is None else edges | self.more

    @property
    def all_edges(self) -> tuple[Any, ...]:
        """The edges, and None."""
        return (None, *self.edges) if self.nullable else self.edges

    def __repr__(self) -> str:
        return self.name


def typed(value: Any) -> Any:  # noqa: PLR0911 (one for each type)
    """Return *value* so that nothing is equal to it but the same value of the same type."""
    if isinstance(value, uuid.UUID):
        # asyncpg has a class of its own.
        return uuid.UUID, str(value)
    if isinstance(value, float) and value == 0:
        # Neither SQLite nor jsonb know a negative zero.
        return float, "0"
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return dt.datetime, value.astimezone(dt.UTC).isoformat()
    if isinstance(value, (list, tuple)):
        return type(value), tuple(typed(each) for each in value)
    if isinstance(value, dict):
        return dict, tuple(sorted((key, typed(each)) for key, each in value.items()))
    if isinstance(value, (set, frozenset)):
        return set, tuple(sorted(map(repr, value)))
    if isinstance(value, Range):
        return Range, value.empty, value.bounds, typed(value.lower), typed(value.upper)
    return type(value), repr(value)


# --- values ----------------------------------------------------------------------------------------------------------

TEXT_EDGES = (
    "", "a", "A", "null", "0", " ", "a ", "Ünï çødé ✓ 🐘", "'; --\"\\%s :x ${}", "\t\n\r", "é", "e\u0301", "{}",
    '{"$masked": true}',
)  # fmt: skip


def texts(size: int) -> st.SearchStrategy[str]:
    """Return texts that every database takes: no NUL, no halves of characters."""
    return st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=size)


def decimals(digits: int, scale: int) -> st.SearchStrategy[Decimal]:
    """Return decimals of so many digits, as many as *scale* of them behind the point."""
    return st.integers(-(10**digits) + 1, 10**digits - 1).map(lambda number: Decimal(f"{number}E{-scale}"))


SINGLE_EDGES = (0.0, 0.1, 1.5, -123456.789, 1e30, 16777217.0, 1e-30)
DOUBLE_EDGES = (0.0, 0.1, 1 / 3, 1e16, 3.0, -1e300, 1.7976931348623157e308, 2.2250738585072014e-308)
INFINITIES = (math.inf, -math.inf)

EAST = dt.timezone(dt.timedelta(hours=14))
WEST = dt.timezone(-dt.timedelta(hours=11, minutes=30))
SINGLES = st.floats(-(2.0**99), 2.0**99, width=32)

DATE_EDGES = (dt.date.min, dt.date.max, dt.date(2024, 2, 29), dt.date(1970, 1, 1), dt.date(1582, 10, 10))
TIME_EDGES = (dt.time.min, dt.time.max, dt.time(12), dt.time(12, 0, 0, 1), dt.time(23, 59, 59))
NAIVE_EDGES = (
    dt.datetime(1, 1, 1),
    dt.datetime.max,
    dt.datetime(2024, 2, 29, 1, 2, 3, 4),
    dt.datetime(2024, 3, 31, 2, 30),
    dt.datetime(1969, 12, 31, 23, 59, 59, 999_999),
)
AWARE_EDGES = (
    dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC),
    dt.datetime(2024, 2, 29, 1, 2, 3, 4, EAST),
    dt.datetime(2024, 2, 29, 1, 2, 3, 4, WEST),
    dt.datetime(2024, 2, 28, 11, 2, 3, 4, dt.UTC),
    dt.datetime(1800, 1, 1, tzinfo=dt.UTC),
    dt.datetime(9999, 12, 31, 9, tzinfo=dt.UTC),
)
ZONES = st.sampled_from([dt.UTC, EAST, WEST, dt.timezone(dt.timedelta(hours=5, minutes=45))])
MODERN = (dt.datetime(1971, 1, 1), dt.datetime(2037, 1, 1))
SPAN_EDGES = (
    dt.timedelta(0),
    dt.timedelta(days=400, seconds=1, microseconds=1),
    dt.timedelta(microseconds=-1),
    dt.timedelta(days=-3, hours=2),
    dt.timedelta(hours=25),
    dt.timedelta(seconds=0.6),
)
SPANS = st.timedeltas(dt.timedelta(days=-300_000), dt.timedelta(days=300_000))
TOKEN_EDGES = (uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-9abc-def678901234"), uuid.UUID(int=2**128 - 1))
BYTES_EDGES = (b"", b"\x00", bytes(range(256)), b"\x00" * 300, "é".encode())
SHORT_BYTES_EDGES = (b"", b"\x00", b"ab", b"ab\x00", b"\xff" * 16, b" ")

DOCUMENT_EDGES: tuple[Any, ...] = (
    {}, [], "", "null", 7, 1.5, False, True, "text", [None], {"a": None}, {"a": {"b": [1, None, "✓"]}}, [[[]]],
    {"": ""}, {"n": 2**60, "t": "\u2028"}, {"$json": 1}, {"$json": None}, {"$masked": True}, {"$json_text": "1"},
    {"b": 1, "a": 2}, [2**70], -1, {"é": "🐘"}, "'\"\\", sa.null(),
)  # fmt: skip
DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(2, 2**53)
    | st.floats(-(2.0**40), -1.5, width=32).filter(lambda number: not number.is_integer())
    | texts(8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(5), inner, max_size=3),
    max_leaves=6,
)


def _jsonb(value: Any) -> Any:
    # jsonb has one kind of number.
    if isinstance(value, list):
        return [_jsonb(each) for each in value]
    if isinstance(value, dict):
        return {key: _jsonb(each) for key, each in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _case(
    name: str,
    make: Any,
    edges: Any,
    more: st.SearchStrategy[Any] | None = None,
    databases: tuple[str, ...] = GENERIC,
    **options: Any,
) -> TypeCase:
    make_it = make if not isinstance(make, sa.types.TypeEngine) else lambda: make
    return TypeCase(name=name, make=make_it, edges=tuple(edges), more=more, databases=databases, **options)


def _integers(name: str, type_: Any, bits: int, databases: tuple[str, ...] = GENERIC) -> TypeCase:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return _case(name, type_, [0, 1, -1, low, high], st.integers(low, high), databases)


SERVER = ("postgresql", "mariadb")
NO_MARIADB = ("sqlite", "postgresql")
PG, MY, LITE = ("postgresql",), ("mariadb",), ("sqlite",)


def _number(value: Any) -> Any:
    # SQLite gives a float that is whole as an int, which SQLAlchemy lets pass.
    return value if value is None else float(value)


def _equal_decimal(value: Any) -> Any:
    # Without a scale, 1.0 and 1.00 are one number.
    return value if not isinstance(value, Decimal) or not value.is_finite() else format(value.normalize(), "f")


_MONEY_EDGES = [Decimal(0), Decimal("0.0001"), Decimal("-12345678.9012"), Decimal("1.10"), Decimal("1E+3"), 7, Decimal("0.00005")]  # fmt: skip

_NUMBERS: list[TypeCase] = [
    _integers("SmallInteger", sa.SmallInteger(), 16),
    _integers("SMALLINT", sa.SMALLINT(), 16),
    _integers("Integer", sa.Integer(), 32),
    _integers("INTEGER", sa.INTEGER(), 32),
    _integers("BigInteger", sa.BigInteger(), 64),
    _integers("BIGINT", sa.BIGINT(), 64),
    _case("Numeric(12,4)", sa.Numeric(12, 4), _MONEY_EDGES, decimals(12, 4) | decimals(12, 5)),
    _case("DECIMAL(12,4)", sa.DECIMAL(12, 4), _MONEY_EDGES, decimals(12, 4)),
    _case(
        "NUMERIC(10,0)",
        sa.NUMERIC(10, 0),
        [0, Decimal(5), Decimal("1.5"), Decimal("-2.5"), Decimal(1_000_000)],
        decimals(9, 0),
        compared=_equal_decimal,  # asyncpg reads a million as 1.00E+6
    ),
    _case(
        "Numeric(as float)",
        sa.Numeric(12, 4, asdecimal=False),
        [0.0, 0.5, -12345.6789, 0.00005, 3],
        st.floats(-1e7, 1e7),
        compared=_number,
    ),
    _case("Float", sa.Float(), SINGLE_EDGES, SINGLES),
    _case("Float(10)", sa.Float(10), SINGLE_EDGES, SINGLES),
    _case("Float(53)", sa.Float(53), DOUBLE_EDGES, st.floats(allow_nan=False, allow_infinity=False)),
    _case("Float(as decimal)", sa.Float(asdecimal=True), [Decimal("0.5"), 3, Decimal("-1.125")], decimals(6, 3)),
    _case(
        "Float(as decimal, scale)",
        sa.Float(53, asdecimal=True, decimal_return_scale=4),
        [Decimal("0.5"), 3, Decimal("-1.1235")],
        decimals(9, 4),
    ),
    _case("FLOAT", sa.FLOAT(), SINGLE_EDGES, SINGLES),
    _case("Float(of ints)", sa.Float(53), [3, 0, -7]),
    _case("Integer(of truths)", sa.Integer(), [True, False, 1, 0], None, ("sqlite", "mariadb")),
    _case("REAL", sa.REAL(), SINGLE_EDGES, SINGLES),
    _case("Double", sa.Double(), DOUBLE_EDGES, st.floats(allow_nan=False, allow_infinity=False)),
    _case("DOUBLE", sa.DOUBLE(), DOUBLE_EDGES, st.floats(allow_nan=False, allow_infinity=False), ("sqlite", "mariadb")),
    _case("DOUBLE_PRECISION", sa.DOUBLE_PRECISION(), DOUBLE_EDGES, st.floats(-1e300, 1e300), GENERIC),
    _case("Double(infinite)", sa.Double(), [*INFINITIES, 0.0], None, NO_MARIADB),
    _case("Boolean", sa.Boolean(), [True, False]),
    _case("Boolean(check)", lambda: sa.Boolean(create_constraint=True, name="either"), [True, False]),
    _case("BOOLEAN", sa.BOOLEAN(), [True, False]),
]

_TEXTS: list[TypeCase] = [
    _case("String", sa.String(60), (*TEXT_EDGES, Size.SMALL), texts(20)),
    _case("Unicode", sa.Unicode(60), TEXT_EDGES, texts(20)),
    _case("Text", sa.Text(), (*TEXT_EDGES, "x" * 20_000), texts(50)),
    _case("UnicodeText", sa.UnicodeText(), TEXT_EDGES, texts(50)),
    _case("VARCHAR", sa.VARCHAR(60), TEXT_EDGES, texts(20)),
    _case("TEXT", sa.TEXT(), TEXT_EDGES, texts(20)),
    _case("CHAR", sa.CHAR(5), ["", "a", "a ", " a", "äöüß✓", "A"], texts(5).filter(lambda text: text == text.rstrip())),
    _case(
        "NVARCHAR",
        sa.NVARCHAR(60),
        [text for text in TEXT_EDGES if max(text, default="") < "\U00010000"],
        None,
        ("sqlite", "mariadb"),
    ),
    _case("NCHAR", sa.NCHAR(5), ["", "a", "a ", "äöüß✓"], None, ("sqlite", "mariadb")),
    _case("CLOB", sa.CLOB(), TEXT_EDGES, texts(20), LITE),
    _case("LargeBinary", sa.LargeBinary(), BYTES_EDGES, st.binary(max_size=40)),
    _case("BLOB", sa.BLOB(), BYTES_EDGES, st.binary(max_size=40), ("sqlite", "mariadb")),
    _case("VARBINARY", sa.VARBINARY(16), SHORT_BYTES_EDGES, st.binary(max_size=16), ("sqlite", "mariadb")),
    _case("BINARY", sa.BINARY(16), SHORT_BYTES_EDGES, st.binary(max_size=16), ("sqlite", "mariadb")),
]

_TIMES: list[TypeCase] = [
    _case("Date", sa.Date(), DATE_EDGES, st.dates()),
    _case("DATE", sa.DATE(), (*DATE_EDGES, dt.datetime(2024, 1, 1)), st.dates(), NO_MARIADB),
    _case("Time", sa.Time(), TIME_EDGES, st.times()),
    _case("TIME", sa.TIME(), TIME_EDGES, st.times()),
    _case("DateTime", sa.DateTime(), NAIVE_EDGES[2:], st.datetimes(dt.datetime(1000, 1, 1), dt.datetime(9999, 1, 1))),
    _case("DateTime(edges)", sa.DateTime(), NAIVE_EDGES, st.datetimes(), NO_MARIADB),
    _case(
        "DATETIME",
        sa.DATETIME(),
        NAIVE_EDGES[2:],
        st.datetimes(dt.datetime(1000, 1, 1), dt.datetime(9999, 1, 1)),
        ("sqlite", "mariadb"),
    ),
    _case(
        "TIMESTAMP",
        sa.TIMESTAMP(),
        [dt.datetime(2024, 3, 31, 2, 30, 1, 7), dt.datetime(2000, 1, 1)],
        st.datetimes(*MODERN),
    ),
    _case(
        "DateTime(timezone)",
        sa.DateTime(timezone=True),
        AWARE_EDGES,
        st.datetimes(dt.datetime(1000, 1, 2), dt.datetime(9999, 1, 1), timezones=ZONES),
    ),
    _case("TIMESTAMP(timezone)", sa.TIMESTAMP(timezone=True), AWARE_EDGES[:4], st.datetimes(*MODERN, timezones=ZONES)),
    _case(
        "Time(timezone)",
        sa.Time(timezone=True),
        [
            dt.time(1, 2, 3, 4, dt.UTC),
            dt.time(1, 2, 3, 4, EAST),
            dt.time(15, 2, 3, 4, dt.timezone(dt.timedelta(hours=28) - dt.timedelta(hours=15))),
            dt.time(0, tzinfo=WEST),
        ],
        st.times(timezones=ZONES),
    ),
    _case("Interval", sa.Interval(), SPAN_EDGES, SPANS),
    _case("Interval(not native)", sa.Interval(native=False), SPAN_EDGES, SPANS),
    _case("Interval(precision)", sa.Interval(second_precision=3, day_precision=3), SPAN_EDGES, SPANS),
]

_OTHERS: list[TypeCase] = [
    _case("Enum", lambda: sa.Enum(Colour, name="colour"), list(Colour)),
    _case("Enum(not native)", lambda: sa.Enum(Colour, native_enum=False), list(Colour)),
    _case("Enum(texts)", lambda: sa.Enum("on", "off", "", "ü'\"", name="choice"), ["on", "off", "", "ü'\""]),
    _case(
        "Enum(values)",
        lambda: sa.Enum(Size, values_callable=lambda members: [each.value for each in members], name="size"),
        list(Size),
    ),
    _case("Uuid", sa.Uuid(), TOKEN_EDGES, st.uuids(version=4)),
    _case("Uuid(not native)", sa.Uuid(native_uuid=False), TOKEN_EDGES, st.uuids(version=4)),
    _case("Uuid(texts)", sa.Uuid(as_uuid=False), map(str, TOKEN_EDGES), st.uuids(version=4).map(str)),
    _case("UUID", sa.UUID(), TOKEN_EDGES, st.uuids(version=4), SERVER),  # SQLite takes some for numbers
    _case("JSON", sa.JSON(), DOCUMENT_EDGES, DOCUMENTS),
    _case("JSON(none as null)", sa.JSON(none_as_null=True), (*DOCUMENT_EDGES, sa.JSON.NULL), DOCUMENTS),
]

_SQLITE: list[TypeCase] = [
    _case("sqlite.DATETIME", _of_sqlite.DATETIME(truncate_microseconds=True), NAIVE_EDGES, st.datetimes(), LITE),
    _case("_of_sqlite.DATETIME(plain)", _of_sqlite.DATETIME(), NAIVE_EDGES, st.datetimes(), LITE),
    _case("sqlite.TIME", _of_sqlite.TIME(truncate_microseconds=True), TIME_EDGES, st.times(), LITE),
    _case(
        "sqlite.DATE",
        _of_sqlite.DATE(
            storage_format="%(day)02d/%(month)02d/%(year)04d", regexp=r"(?P<day>\d+)/(?P<month>\d+)/(?P<year>\d+)"
        ),
        DATE_EDGES,
        st.dates(),
        LITE,
    ),
    _case("sqlite.JSON", sqlite.JSON(), (*DOCUMENT_EDGES, [math.inf, -math.inf]), DOCUMENTS, LITE),
    _case(
        "Numeric(sqlite)",
        sa.Numeric(),
        [Decimal("0.5"), Decimal(3), Decimal("1E-7"), Decimal("-12345.123456789")],
        decimals(12, 6),
        LITE,
    ),
]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _ranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Range[Any]]:
    def made(pair: tuple[Any, Any], kind: Any) -> Range[Any]:
        lower, upper = sorted(pair) if None not in pair else pair
        return Range(lower, upper, bounds=kind)

    ends = st.tuples(st.none() | bounds, st.none() | bounds)
    return st.builds(made, ends, st.sampled_from(["[)", "[]", "()", "(]"])) | st.just(Range(empty=True))


def _multiranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Range[Any]]]:
    return st.lists(_ranges(bounds), max_size=3)


_BOUNDS: dict[str, tuple[list[Any], st.SearchStrategy[Any]]] = {
    "INT4": ([-(2**31), 1, 5, 2**31 - 2], st.integers(-(2**30), 2**30)),
    "INT8": ([-(2**63), 1, 5, 2**63 - 2], st.integers(-(2**62), 2**62)),
    "NUM": ([Decimal("-1.5"), Decimal(0), Decimal("2.50"), Decimal("1E+10")], decimals(9, 3)),
    "DATE": (
        [dt.date(1, 1, 1), dt.date(2024, 2, 29), dt.date(2024, 3, 1), dt.date(9999, 12, 30)],
        st.dates(max_value=dt.date(9000, 1, 1)),
    ),
    "TS": (
        [NAIVE_EDGES[0], NAIVE_EDGES[4], NAIVE_EDGES[2], NAIVE_EDGES[3]],
        st.datetimes(max_value=dt.datetime(9000, 1, 1)),
    ),
    "TSTZ": (
        [AWARE_EDGES[4], AWARE_EDGES[1], AWARE_EDGES[0], AWARE_EDGES[5]],
        st.datetimes(dt.datetime(1000, 1, 2), dt.datetime(9000, 1, 1), timezones=ZONES),
    ),
}


def _equal_ranges(value: Any) -> Any:
    """Return a range, or several, with numbers that are equal if their values are."""
    if isinstance(value, list):
        return type(value)(_equal_ranges(each) for each in value)
    if not isinstance(value, Range):
        return value
    return Range(_equal_decimal(value.lower), _equal_decimal(value.upper), bounds=value.bounds, empty=value.empty)


def _range_edges(bounds: list[Any]) -> list[Range[Any]]:
    first, second, third, last = bounds
    return [
        Range(empty=True),
        Range(None, None),
        Range(first, last),
        Range(second, third, bounds="[]"),
        Range(second, third, bounds="()"),
        Range(second, second, bounds="[]"),
        Range(second, second),
        Range(None, third),
        Range(second, None, bounds="()"),
    ]


def _multirange_edges(bounds: list[Any]) -> list[list[Range[Any]]]:
    first, second, third, last = bounds
    return [
        [],
        [Range(None, None)],
        [Range(first, second), Range(third, last)],
        [Range(third, last), Range(first, second)],
        [Range(first, third), Range(second, last)],
        [Range(empty=True)],
    ]


_RANGES = [
    _case(
        f"{kind}RANGE",
        getattr(postgresql, f"{kind}RANGE")(),
        _range_edges(edges),
        _ranges(more),
        PG,
        compared=_equal_ranges,
    )
    for kind, (edges, more) in _BOUNDS.items()
]
_MULTIRANGES = [
    _case(
        f"{kind}MULTIRANGE",
        getattr(postgresql, f"{kind}MULTIRANGE")(),
        _multirange_edges(edges),
        _multiranges(more),
        PG,
        compared=_equal_ranges,
    )
    for kind, (edges, more) in _BOUNDS.items()
]


def _bits(text: str) -> Any:
    own = getattr(postgresql, "BitString", None)
    if own is None:
        # SQLAlchemy 2.0 hands on what asyncpg takes.
        return importlib.import_module("asyncpg").BitString(text)
    return own(text)


def _hardware(octets: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=octets, max_size=octets).map(lambda each: each.hex(":"))


def _arrays(items: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | items, max_size=4)


def _interfaces(version: Any) -> st.SearchStrategy[Any]:
    kind = ipaddress.IPv4Interface if version == 4 else ipaddress.IPv6Interface
    width = 32 if version == 4 else 128
    return st.tuples(st.ip_addresses(v=version), st.integers(0, width)).map(lambda pair: kind(f"{pair[0]}/{pair[1]}"))


_POSTGRESQL: list[TypeCase] = [
    _case(
        "Numeric(no scale)",
        sa.Numeric(),
        [
            Decimal("0.5"),
            Decimal(3),
            Decimal("1E-7"),
            Decimal("1E+20"),
            Decimal("1.0"),
            Decimal("1.00"),
            Decimal("1234567890123456789012345678.0123456789"),
            Decimal("NaN"),
        ],
        decimals(30, 12),
        PG,
        compared=_equal_decimal,
    ),
    _case(
        "Numeric(negative scale)",
        sa.Numeric(5, -2),
        [Decimal(100), Decimal(149), Decimal(150), Decimal(-250), 0],
        decimals(5, 0),
        PG,
        compared=_equal_decimal,
    ),
    _case("Double(nan)", sa.Double(), [math.nan, math.inf, 1.0], None, PG),
    _case("REAL(nan)", sa.REAL(), [math.nan, math.inf, 0.1], None, PG),
    _case("Interval(long)", sa.Interval(), [dt.timedelta(days=900_000), dt.timedelta(days=-900_000)], None, PG),
    _case("postgresql.INTERVAL(precision)", postgresql.INTERVAL(precision=2), SPAN_EDGES, SPANS, PG),
    _case(
        "postgresql.TIMESTAMP(precision)", postgresql.TIMESTAMP(precision=1), NAIVE_EDGES[2:], st.datetimes(*MODERN), PG
    ),
    _case(
        "postgresql.TIME(precision)",
        postgresql.TIME(precision=1),
        TIME_EDGES[2:],
        st.times(max_value=dt.time(23, 59, 59)),
        PG,
    ),
    _case("BYTEA", postgresql.BYTEA(), BYTES_EDGES, st.binary(max_size=40), PG),
    _case(
        "INET",
        postgresql.INET(),
        [
            ipaddress.ip_address("10.0.0.1"),
            ipaddress.ip_interface("10.0.0.1/8"),
            ipaddress.ip_address("::1"),
            ipaddress.ip_interface("fe80::1/64"),
            "192.168.0.1/32",
            ipaddress.ip_interface("0.0.0.0/0"),
        ],
        st.ip_addresses() | _interfaces(4) | _interfaces(6),
        PG,
    ),
    _case(
        "CIDR",
        postgresql.CIDR(),
        [
            ipaddress.ip_network("10.0.0.0/8"),
            ipaddress.ip_network("::/0"),
            "192.168.0.1/32",
            ipaddress.ip_network("2001:db8::/32"),
        ],
        (_interfaces(4) | _interfaces(6)).map(lambda each: each.network),
        PG,
    ),
    _case(
        "MACADDR",
        postgresql.MACADDR(),
        ["08:00:2b:01:02:03", "08-00-2B-01-02-03", "ff:ff:ff:ff:ff:ff"],
        _hardware(6),
        PG,
    ),
    _case("MACADDR8", postgresql.MACADDR8(), ["08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03"], _hardware(8), PG),
    _case(
        "BIT",
        postgresql.BIT(4),
        map(_bits, ["0101", "0000", "1111"]),
        st.text("01", min_size=4, max_size=4).map(_bits),
        PG,
    ),
    _case(
        "BIT VARYING",
        postgresql.BIT(varying=True),
        map(_bits, ["0", "1", "0" * 100, "10"]),
        st.text("01", min_size=1, max_size=70).map(_bits),
        PG,
    ),
    _case(
        "TSVECTOR",
        postgresql.TSVECTOR(),
        ["a fat cat sat", "", "b:1A a:2", "'ü ''x'"],
        st.text(string.ascii_letters + " é", max_size=20),
        PG,
    ),
    _case(
        "TSQUERY",
        postgresql.TSQUERY(),
        ["a & b", "a|!b", "", "'ü' <-> x"],
        st.lists(st.text(string.ascii_letters, min_size=1), min_size=1, max_size=3).map(" & ".join),
        PG,
    ),
    _case("MONEY", postgresql.MONEY(), ["0", "12.34", "-1.5", "$1,234,567.89"], decimals(12, 2).map(str), PG),
    _case("OID", postgresql.OID(), [0, 5, 2**32 - 1], st.integers(0, 2**32 - 1), PG),
    _case("REGCLASS", postgresql.REGCLASS(), ["pg_class", "pg_catalog.pg_type"], None, PG),
    _case("REGCONFIG", postgresql.REGCONFIG(), ["english", "simple", "pg_catalog.german"], None, PG),
    _case("JSONPATH", postgresql.JSONPATH(), ["$.a", '$."a"', "$", "strict $[*] ? (@ > 1)"], None, PG, nullable=False),
    _case("postgresql.ENUM", lambda: postgresql.ENUM(Colour, name="pg_colour"), list(Colour), None, PG),
    _case(
        "DOMAIN of integers",
        lambda: postgresql.DOMAIN("positive", sa.Integer(), check="VALUE > 0"),
        [1, 5, 2**31 - 1],
        st.integers(1, 1000),
        PG,
    ),
    _case("DOMAIN of texts", lambda: postgresql.DOMAIN("title", sa.String(60)), TEXT_EDGES, texts(20), PG),
    _case(
        "DOMAIN of decimals", lambda: postgresql.DOMAIN("price", sa.Numeric(12, 4)), _MONEY_EDGES, decimals(12, 4), PG
    ),
    _case("DOMAIN of moments", lambda: postgresql.DOMAIN("moment", sa.DateTime(timezone=True)), AWARE_EDGES, None, PG),
    _case("postgresql.JSON", postgresql.JSON(), DOCUMENT_EDGES, DOCUMENTS, PG),
    _case("JSONB", postgresql.JSONB(), (*DOCUMENT_EDGES, 1.0), DOCUMENTS, PG, compared=_jsonb),
    _case("postgresql.UUID", postgresql.UUID(), TOKEN_EDGES, st.uuids(version=4), PG),
]

_ARRAYS: list[TypeCase] = [
    _case(
        "ARRAY of integers",
        sa.ARRAY(sa.Integer),
        [[], [1], [1, None, 3], [3, None, 1], [None]],
        _arrays(st.integers(-(2**31), 2**31 - 1)),
        PG,
    ),
    _case(
        "ARRAY of arrays",
        sa.ARRAY(sa.Integer, dimensions=2),
        [[], [[1, 2], [3, 4]], [[1], [None]]],
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(list), max_size=3),
        PG,
    ),
    _case(
        "ARRAY of any dimension", postgresql.ARRAY(sa.Text), [[], ["a"], [["a", "b"], ["c", None]], [[["x"]]]], None, PG
    ),
    _case(
        "ARRAY of texts",
        sa.ARRAY(sa.Text),
        [[], [""], ["NULL", None, "null"], ['a"b', "{c}", "d,e", "\\"], ["✓", "é"]],
        _arrays(texts(5)),
        PG,
    ),
    _case(
        "ARRAY as tuple",
        postgresql.ARRAY(sa.Integer, as_tuple=True),
        [(), (1, None), (2,)],
        _arrays(st.integers(0, 5)),
        PG,
    ),
    _case(
        "ARRAY of enums",
        lambda: postgresql.ARRAY(sa.Enum(Colour, name="colours")),
        [[], list(Colour), [Colour.RED, None]],
        _arrays(st.sampled_from(Colour)),
        PG,
    ),
    _case(
        "ARRAY of decimals",
        sa.ARRAY(sa.Numeric(10, 2)),
        [[], [Decimal("1.5"), None], [Decimal("1.50")], [Decimal("1.005")]],
        _arrays(decimals(9, 2)),
        PG,
    ),
    _case(
        "ARRAY of floats",
        sa.ARRAY(sa.Double),
        [[], [0.1, None, math.inf], [1e300]],
        _arrays(st.floats(allow_nan=False)),
        PG,
    ),
    _case("ARRAY of reals", sa.ARRAY(sa.REAL), [[], [0.1, None]], _arrays(SINGLES), PG),
    _case("ARRAY of tokens", sa.ARRAY(sa.Uuid), [[], [TOKEN_EDGES[1], None]], _arrays(st.uuids(version=4)), PG),
    _case(
        "ARRAY of unscaled decimals",
        sa.ARRAY(sa.Numeric),
        [[], [Decimal("1.5"), None], [Decimal("1.50")], [Decimal("1E+5")]],
        None,
        PG,
        compared=lambda value: value and [_equal_decimal(each) for each in value],
    ),
    _case(
        "ARRAY of moments",
        sa.ARRAY(sa.DateTime(timezone=True)),
        [[], [*AWARE_EDGES, None]],
        _arrays(st.sampled_from(AWARE_EDGES)),
        PG,
    ),
    _case("ARRAY of dates", sa.ARRAY(sa.Date), [[], [*DATE_EDGES, None]], _arrays(st.dates()), PG),
    _case("ARRAY of bytes", sa.ARRAY(sa.LargeBinary), [[], [b"", b"\x00", None]], _arrays(st.binary(max_size=5)), PG),
    _case("ARRAY of truths", sa.ARRAY(sa.Boolean), [[], [True, None, False]], _arrays(st.booleans()), PG),
    _case("ARRAY of padded texts", sa.ARRAY(sa.CHAR(3)), [[], ["a", None], ["a  "]], None, PG),
    _case(
        "ARRAY of documents",
        sa.ARRAY(postgresql.JSONB, dimensions=1),
        [[], [{"a": [1]}], [[1], "x", 5]],
        st.lists(DOCUMENTS.filter(lambda document: document is not None), max_size=3),
        PG,
        compared=lambda value: value and [_jsonb(each) for each in value],
    ),
    _case(
        "ARRAY of addresses",
        sa.ARRAY(postgresql.INET),
        [[], [ipaddress.ip_address("10.0.0.1"), None]],
        _arrays(st.ip_addresses()),
        PG,
    ),
    _case(
        "ARRAY of ranges",
        sa.ARRAY(postgresql.INT4RANGE),
        [[], [Range(1, 5), None], [Range(1, 4, bounds="[]")]],
        None,
        PG,
    ),
    _case("ARRAY of durations", sa.ARRAY(sa.Interval), [[], [*SPAN_EDGES, None]], _arrays(SPANS), PG),
]

CONTRIB: list[TypeCase] = [
    _case(
        "HSTORE",
        postgresql.HSTORE(),
        [{}, {"a": "1"}, {"a": None}, {"": ""}, {'"': "\\", "=>": "é, ✓"}, {"b": "1", "a": "2"}],
        st.dictionaries(texts(4), st.none() | texts(4), max_size=3),
        PG,
    ),
    _case("CITEXT", postgresql.CITEXT(), TEXT_EDGES, texts(20), PG),
    _case("ARRAY of CITEXT", sa.ARRAY(postgresql.CITEXT), [[], ["A", "a", None], ["a", "A", None]], None, PG),
]
"""Those of extensions that come with the server, not with the embedded one."""


# --- MariaDB ---------------------------------------------------------------------------------------------------------


def _unsigned(name: str, type_: Any, bits: int) -> TypeCase:
    return _case(name, type_, [0, 1, 2**bits - 1], st.integers(0, 2**bits - 1), MY)


_MARIADB: list[TypeCase] = [
    _integers("TINYINT", mysql.TINYINT(), 8, MY),
    _integers("TINYINT(1)", mysql.TINYINT(1), 8, MY),
    _integers("MEDIUMINT", mysql.MEDIUMINT(), 24, MY),
    _unsigned("INTEGER UNSIGNED", mysql.INTEGER(unsigned=True), 32),
    _unsigned("SMALLINT ZEROFILL", mysql.SMALLINT(zerofill=True), 16),
    _unsigned("BIGINT UNSIGNED", mysql.BIGINT(unsigned=True), 64),
    _case(
        "mysql.DECIMAL",
        mysql.DECIMAL(10, 2, unsigned=True),
        [0, Decimal("1.5"), Decimal("99999999.99"), Decimal("1.005")],
        decimals(9, 2).map(abs),
        MY,
    ),
    _case(
        "mysql.NUMERIC",
        mysql.NUMERIC(65, 30),
        [0, Decimal("1.5"), Decimal("1E-30"), Decimal("12345678901234567890123456789012345.678")],
        decimals(65, 30),
        MY,
    ),
    _case("mysql.DOUBLE(10,3)", mysql.DOUBLE(10, 3), [0.0, 1.23456, 1.0005, -9999999.999], st.floats(-1e6, 1e6), MY),
    _case("mysql.DOUBLE(as float)", mysql.DOUBLE(asdecimal=False), DOUBLE_EDGES, st.floats(-1e300, 1e300), MY),
    _case("mysql.DOUBLE", mysql.DOUBLE(), [0.0, 1.5, 0.1, 1e10, 123456.123456], decimals(12, 6), MY),
    _case("mysql.FLOAT(7,2)", mysql.FLOAT(7, 2), [0.0, 1.5, 1.005, -99999.99], st.floats(-9e4, 9e4), MY),
    _case("mysql.REAL", mysql.REAL(asdecimal=False), DOUBLE_EDGES, st.floats(-1e300, 1e300), MY),
    _case("mysql.BIT(1)", mysql.BIT(1), [0, 1], None, MY),
    _case("mysql.BIT(64)", mysql.BIT(64), [0, 1, 255, 256, 2**64 - 1], st.integers(0, 2**64 - 1), MY),
    _case("mysql.BOOLEAN", mysql.BOOLEAN(), [True, False], None, MY),
    _case("YEAR", mysql.YEAR(), [1901, 1999, 2155, 0], st.integers(1901, 2155), MY),
    _case(
        "SET",
        lambda: mysql.SET("a", "b", "ü", "d e"),
        [set(), {"a"}, {"b", "a"}, {"a", "b", "ü", "d e"}, "b,a"],
        st.sets(st.sampled_from(["a", "b", "ü", "d e"])),
        MY,
    ),
    _case(
        "SET(bitwise)",
        lambda: mysql.SET("a", "", "ü", retrieve_as_bitwise=True),
        [set(), {""}, {"a", ""}, {"ü", "", "a"}],
        st.sets(st.sampled_from(["a", "", "ü"])),
        MY,
    ),
    _case("mysql.ENUM", lambda: mysql.ENUM("x", "y", "é"), ["x", "y", "é"], None, MY),
    _case("mysql.ENUM(members)", lambda: mysql.ENUM(Colour), list(Colour), None, MY),
    _case("mysql.TIME(3)", mysql.TIME(fsp=3), TIME_EDGES, st.times(), MY),
    _case("mysql.TIME(6)", mysql.TIME(fsp=6), TIME_EDGES, st.times(), MY),
    _case("mysql.DATETIME(6)", mysql.DATETIME(fsp=6), NAIVE_EDGES[1:], st.datetimes(dt.datetime(1000, 1, 1)), MY),
    _case(
        "mysql.DATETIME(2)",
        mysql.DATETIME(fsp=2),
        NAIVE_EDGES[2:],
        st.datetimes(dt.datetime(1000, 1, 1), dt.datetime(9999, 1, 1)),
        MY,
    ),
    _case(
        "mysql.TIMESTAMP(6)", mysql.TIMESTAMP(fsp=6), [dt.datetime(2020, 1, 1, 1, 1, 1, 7)], st.datetimes(*MODERN), MY
    ),
    _case("mysql.DATE", mysql.DATE(), DATE_EDGES, st.dates(), MY),
    _case("mysql.CHAR", mysql.CHAR(5), ["", "a", "a ", "äöüß✓"], None, MY),
    _case("mysql.NCHAR", mysql.NCHAR(5), ["", "a", "a ", "äöüß"], None, MY),
    _case("mysql.NVARCHAR", mysql.NVARCHAR(10), ["", "é", "É", "e "], None, MY),
    _case("mysql.VARCHAR(binary)", mysql.VARCHAR(60, collation="utf8mb4_bin"), TEXT_EDGES, texts(20), MY),
    _case("mysql.VARCHAR(latin1)", mysql.VARCHAR(60, charset="latin1"), ["", "é", "É"], None, MY),
    _case("mysql.TEXT", mysql.TEXT(), TEXT_EDGES, texts(20), MY),
    _case("TINYTEXT", mysql.TINYTEXT(), TEXT_EDGES, texts(20), MY),
    _case("MEDIUMTEXT", mysql.MEDIUMTEXT(), TEXT_EDGES, texts(20), MY),
    _case("LONGTEXT", mysql.LONGTEXT(), (*TEXT_EDGES, "é" * 70_000), texts(20), MY),
    _case("mysql.JSON", mysql.JSON(), (*DOCUMENT_EDGES, 1.0), DOCUMENTS, MY),
    _case("Interval(mysql)", sa.Interval(second_precision=6), SPAN_EDGES, SPANS, MY),
]


# Since SQLAlchemy 2.1, and SQLite 3.45.
if hasattr(sqlite, "JSONB") and sqlite3.sqlite_version_info >= (3, 45):
    _SQLITE.append(_case("sqlite.JSONB", _of_sqlite.JSONB(), DOCUMENT_EDGES, DOCUMENTS, LITE))

ONCE_WRONG: dict[str, list[TypeCase]] = {
    "decimals without a scale": [
        _case("Numeric(10)", sa.Numeric(10), [0, Decimal(5), Decimal("1.5"), Decimal("-2.5")], decimals(8, 2), SERVER),
        _case("Numeric(mariadb)", sa.Numeric(), [0, Decimal(5), Decimal("1.5"), Decimal("-2.5")], decimals(8, 2), MY),
    ],
    "blobs": [
        _case("TINYBLOB", mysql.TINYBLOB(), SHORT_BYTES_EDGES, st.binary(max_size=20), MY),
        _case("MEDIUMBLOB", mysql.MEDIUMBLOB(), BYTES_EDGES, st.binary(max_size=20), MY),
        _case("LONGBLOB", mysql.LONGBLOB(), (*BYTES_EDGES, b"\xfe" * 70_000), st.binary(max_size=20), MY),
    ],
    "multiranges": _MULTIRANGES,
    "intervals": [
        _case("postgresql.INTERVAL(fields)", postgresql.INTERVAL(fields="DAY TO HOUR"), SPAN_EDGES, SPANS, PG),
    ],
    "digits that are not read": [
        _case(
            "Float(rounded when read)",
            sa.Float(53, asdecimal=True, decimal_return_scale=2),
            [Decimal("0.123"), Decimal("0.124"), 3],
        ),
    ],
    "JSON numbers": [
        _case("JSON of truths and numbers", sa.JSON(), [0, False, 1, True, [1], [True]]),
        _case("JSON of whole floats", sa.JSON(), [[1], [1.0], {"a": 2}, {"a": 2.0}]),
        _case("JSON of great floats", sa.JSON(), [1e300, {"a": 1e23}, [1e16]], None, PG),
        _case("JSON of whole numbers", sa.JSON(), [1.0, 2**70, -0.0, 1], None, LITE),
    ],
}

# --- all of them -----------------------------------------------------------------------------------------------------

CASES: dict[str, list[TypeCase]] = {
    "numbers": _NUMBERS,
    "texts": _TEXTS,
    "times": _TIMES,
    "others": _OTHERS,
    "own of sqlite": _SQLITE,
    "ranges": _RANGES,
    "own of postgresql": _POSTGRESQL,
    "arrays": _ARRAYS,
    "own of mariadb": _MARIADB,
}
"""By group: a test has one table for each, with a column for each of its types."""
