"""How values are written in the trail, and read back from it."""

import base64
import datetime as dt
import decimal
import enum
import gc
import hashlib
import itertools
import json
import os
import uuid
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st
from sqlalchemy import (
    ARRAY,
    BINARY,
    CHAR,
    JSON,
    VARBINARY,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    PickleType,
    String,
    Table,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    create_engine,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType, TypeEngine, UserDefinedType

from sqlaudit import MASKED
from sqlaudit.codec import JSON_NULL, Codec, codec_of, decode_value, is_supported, key_text, key_value

SQLITE: Dialect = make_url("sqlite://").get_dialect()()
POSTGRESQL: Dialect = make_url("postgresql+psycopg://").get_dialect()()
MARIADB: Dialect = make_url("mariadb+pymysql://").get_dialect()()

moderately = settings(max_examples=40, deadline=None)


# --- types and values ------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1
    GREEN = 2


class Size(enum.StrEnum):
    SMALL = "s"
    LARGE = "l"


class Level(str, enum.Enum):  # noqa: UP042 (StrEnum is tested beside it; str() of this one is its name)
    LOW = "low"
    HIGH = "high"


class Encrypted(TypeDecorator[str]):
    """Text that is ciphertext in the database, another one each time."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        nonce, clear = os.urandom(8), value.encode()
        return base64.b64encode(nonce + _xor(nonce, clear)).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        sent = base64.b64decode(value)
        return _xor(sent[:8], sent[8:]).decode()


def _xor(nonce: bytes, text: bytes) -> bytes:
    blocks = (hashlib.sha256(nonce + bytes([number])).digest() for number in itertools.count())
    return bytes(a ^ b for a, b in zip(text, itertools.chain.from_iterable(blocks), strict=False))


class Cents(TypeDecorator[decimal.Decimal]):
    """An amount of money that the database holds as a whole number."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: decimal.Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: int | None, dialect: Dialect) -> decimal.Decimal | None:
        return None if value is None else decimal.Decimal(value) / 100


class EmptyIsNone(TypeDecorator[str]):
    """Text whose None is the empty string in the database."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str:
        return value or ""

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return value or None


class Point(TypeDecorator[tuple[int, int]]):
    """A pair that the database holds as a JSON document."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: tuple[int, int] | None, dialect: Dialect) -> dict[str, int] | None:
        return None if value is None else {"$x": value[0], "y": value[1]}

    def process_result_value(self, value: dict[str, int] | None, dialect: Dialect) -> tuple[int, int] | None:
        return None if value is None else (value["$x"], value["y"])


class Renamed(TypeDecorator[int]):
    """A decorator that decorates nothing."""

    impl = Integer
    cache_ok = True


class Document(TypeDecorator[dict[str, Any]]):
    """A document: JSONB on PostgreSQL, text elsewhere, as in SQLAlchemy's recipes."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any] | None:
        found: dict[str, Any] | None = json.loads(value) if isinstance(value, str) else value
        return found


others = st.none() | st.booleans() | st.integers() | st.text()
scalars = others | st.floats(allow_nan=False, allow_infinity=False)
# What has an exponent is a whole number for jsonb.
small_scalars = others | st.floats(-1e15, 1e15)
names = st.text() | st.sampled_from(["$json", "$masked", "$", "$ref"])
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
binary_documents = st.recursive(
    small_scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
big_integers = st.integers(-(2**63), 2**63 - 1)
moments = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1))  # noqa: DTZ001 (naive ones are meant)
offsets = st.builds(dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)))
aware_moments = st.builds(lambda moment, zone: moment.replace(tzinfo=zone), moments, offsets)
durations = st.timedeltas(dt.timedelta(days=-10_000), dt.timedelta(days=10_000))
# Negative zero has a test of its own.
amounts = st.decimals(-(10**7), 10**7, places=4).filter(lambda amount: amount != 0 or not amount.is_signed())

# SQLite turns a document that is a number into one: 1.0 is read back as 1.
EVERYWHERE = [
    pytest.param(Boolean(), st.booleans(), id="Boolean"),
    pytest.param(Integer(), big_integers, id="Integer"),
    pytest.param(BigInteger(), big_integers, id="BigInteger"),
    pytest.param(Float(), st.floats(allow_nan=False), id="Float"),
    pytest.param(Float(asdecimal=True), st.floats(-1000, 1000).map(lambda each: round(each, 6)), id="Float-asdecimal"),
    pytest.param(Numeric(12, 2), amounts, id="Numeric-rounded"),
    pytest.param(Numeric(12, 4), amounts, id="Numeric"),
    pytest.param(Numeric(), amounts, id="Numeric-without-scale"),
    pytest.param(String(), st.text(), id="String"),
    pytest.param(String(), st.sampled_from([*Size, *Level]), id="String-of-str-enum"),
    pytest.param(Text(), st.text(), id="Text"),
    pytest.param(Enum(Color), st.sampled_from(Color), id="Enum"),
    pytest.param(
        Enum(Color, values_callable=lambda members: [str(each.value) for each in members]),
        st.sampled_from(Color),
        id="Enum-by-value",
    ),
    pytest.param(Enum("a", "b", name="letter"), st.sampled_from(["a", "b"]), id="Enum-of-strings"),
    pytest.param(LargeBinary(), st.binary(), id="LargeBinary"),
    pytest.param(DateTime(), moments, id="DateTime"),
    pytest.param(Date(), st.dates(), id="Date"),
    pytest.param(Time(), st.times(), id="Time"),
    pytest.param(Interval(), durations, id="Interval"),
    pytest.param(Uuid(), st.uuids(), id="Uuid"),
    pytest.param(Uuid(as_uuid=False), st.uuids().map(lambda each: each.hex.upper()), id="Uuid-as-text"),
    pytest.param(JSON(), documents.filter(lambda document: isinstance(document, (dict, list, str, bool))), id="JSON"),
    pytest.param(Encrypted(), st.text(), id="TypeDecorator-encrypting"),
    pytest.param(Cents(), st.decimals(-(10**9), 10**9, places=2), id="TypeDecorator-of-Integer"),
    pytest.param(EmptyIsNone(), st.text(min_size=1), id="TypeDecorator-of-None"),
    pytest.param(Point(), st.tuples(st.integers(), st.integers()), id="TypeDecorator-of-JSON"),
    pytest.param(Renamed(), big_integers, id="TypeDecorator-without-processing"),
]
"""Types that every database has, with values as users give them."""

POSTGRESQL_ONLY = [
    pytest.param(DateTime(timezone=True), aware_moments, id="DateTime-aware"),
    pytest.param(Time(timezone=True), st.times(timezones=offsets), id="Time-aware"),
    pytest.param(postgresql.INTERVAL(), st.timedeltas(), id="INTERVAL"),
    pytest.param(postgresql.JSONB(), binary_documents.filter(lambda document: document is not None), id="JSONB"),
    pytest.param(postgresql.UUID(), st.uuids(), id="UUID"),
    pytest.param(postgresql.BYTEA(), st.binary(), id="BYTEA"),
    pytest.param(ARRAY(Integer), st.lists(st.none() | big_integers), id="ARRAY"),
    pytest.param(
        postgresql.ARRAY(Numeric(12, 4), dimensions=2), st.lists(st.lists(amounts, min_size=1)), id="ARRAY-nested"
    ),
    pytest.param(postgresql.ARRAY(String, as_tuple=True), st.lists(st.text()).map(tuple), id="ARRAY-as-tuple"),
    pytest.param(ARRAY(Enum(Color)), st.lists(st.sampled_from(Color)), id="ARRAY-of-Enum"),
    pytest.param(ARRAY(Cents()), st.lists(st.decimals(-100, 100, places=2)), id="ARRAY-of-TypeDecorator"),
    pytest.param(
        ARRAY(postgresql.JSONB()), st.lists(st.dictionaries(names, binary_documents, max_size=3)), id="ARRAY-of-JSONB"
    ),
]
"""Types whose values no other database gives back as they were."""

TYPES = [pytest.param(case.values[0], id=case.id) for case in [*EVERYWHERE, *POSTGRESQL_ONLY]]


class Memory:
    """SQLite in memory: what a value is once it has been in the database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tables: dict[TypeEngine[Any], Table] = {}

    def read_back(self, type_: TypeEngine[Any], value: Any) -> Any:
        if type_ not in self._tables:
            self._tables[type_] = Table(f"t{len(self._tables)}", MetaData(), Column("value", type_))
            self._tables[type_].create(self._connection)
        table = self._tables[type_]
        self._connection.execute(table.delete())
        self._connection.execute(table.insert(), {"value": value})
        return self._connection.execute(select(table.c.value)).scalar_one()


@pytest.fixture(scope="module", name="memory")
def _memory() -> Iterator[Memory]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        yield Memory(connection)
    engine.dispose()


def through_json(stored: Any) -> Any:
    """Return *stored* as it comes back from the trail's JSON columns."""
    return json.loads(json.dumps(stored, allow_nan=False))


def is_plain(stored: Any) -> bool:
    """Return whether *stored* is made of what JSON has alone."""
    if isinstance(stored, dict):
        return all(type(key) is str and is_plain(value) for key, value in stored.items())
    if isinstance(stored, list):
        return all(map(is_plain, stored))
    return stored is None or type(stored) in (bool, int, float, str)


# --- every type ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Dialect sqlite")
@pytest.mark.parametrize(("type_", "values"), EVERYWHERE)
@given(data=st.data())
@moderately
def test_a_stored_value_loads_as_the_database_would_give_it_back(
    memory: Memory, type_: TypeEngine[Any], values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """What the trail holds loads as the very value that the column itself gives back."""
    value = data.draw(values)
    codec = codec_of(type_, SQLITE)
    in_database = memory.read_back(type_, value)

    loaded = codec.load(through_json(codec.dump(value)))

    assert loaded == in_database
    assert type(loaded) is type(in_database)


@pytest.mark.filterwarnings("ignore:Dialect sqlite")
@pytest.mark.parametrize(("type_", "values"), EVERYWHERE)
@given(data=st.data())
@moderately
def test_a_value_from_memory_is_the_same_as_the_one_read_back(
    memory: Memory, type_: TypeEngine[Any], values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """A value as the user gave it and as the database gives it back are one value, and no change of it."""
    value = data.draw(values)
    codec = codec_of(type_, SQLITE)
    in_database = memory.read_back(type_, value)

    from_memory, read = codec.dump(value), codec.dump(in_database)

    assert codec.same(from_memory, read)
    assert codec.same(read, from_memory)
    assert from_memory == read or not codec.one_form


@pytest.mark.parametrize(("type_", "values"), POSTGRESQL_ONLY)
@given(data=st.data())
@moderately
def test_a_stored_value_of_postgresql_loads_as_it_was(
    type_: TypeEngine[Any], values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """Values of the types that are PostgreSQL's own load as they were dumped."""
    value = data.draw(values)
    codec = codec_of(type_, POSTGRESQL)

    loaded = codec.load(through_json(codec.dump(value)))

    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("dialect", "type_", "values"),
    [
        *(pytest.param(SQLITE, *case.values, id=f"sqlite-{case.id}") for case in EVERYWHERE),
        *(pytest.param(POSTGRESQL, *case.values, id=f"postgresql-{case.id}") for case in EVERYWHERE + POSTGRESQL_ONLY),
    ],
)
@given(data=st.data())
@settings(moderately, max_examples=20)
def test_a_stored_value_is_plain_json(
    dialect: Dialect, type_: TypeEngine[Any], values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """A stored value is made of what JSON has, and of nothing that merely looks like it."""
    value = data.draw(values)

    stored = codec_of(type_, dialect).dump(value)

    assert is_plain(stored)
    assert through_json(stored) == stored


@pytest.mark.parametrize("type_", TYPES)
def test_null_is_stored_as_null(type_: TypeEngine[Any]) -> None:
    """An SQL NULL is null in the trail, unless the user's own type sends something else for None."""
    codec = codec_of(type_, POSTGRESQL)

    stored = codec.dump(None)

    assert stored == ("" if isinstance(type_, EmptyIsNone) else None)
    assert codec.load(stored) is None


@pytest.mark.parametrize("type_", TYPES)
def test_a_masked_value_loads_as_masked(type_: TypeEngine[Any]) -> None:
    """The mark of a withheld value loads as `MASKED` for a column of any type."""
    codec = codec_of(type_, POSTGRESQL)

    loaded = codec.load({"$masked": True})

    assert loaded is MASKED


# --- numbers ---------------------------------------------------------------------------------------------------------


_LONG = "123456789012345678901234567890.12"


@pytest.mark.parametrize(
    ("dialect", "given_value", "stored"),
    [
        pytest.param(POSTGRESQL, decimal.Decimal("1.5"), "1.50", id="postgresql-short"),
        pytest.param(POSTGRESQL, decimal.Decimal("1E+2"), "100.00", id="postgresql-exponent"),
        pytest.param(POSTGRESQL, 7, "7.00", id="postgresql-int"),
        pytest.param(POSTGRESQL, "2.5", "2.50", id="postgresql-str"),
        pytest.param(POSTGRESQL, decimal.Decimal("1.005"), "1.01", id="postgresql-rounded"),
        pytest.param(POSTGRESQL, decimal.Decimal(_LONG), _LONG, id="postgresql-long"),
        pytest.param(MARIADB, decimal.Decimal("1.5"), "1.50", id="mariadb-short"),
        pytest.param(MARIADB, decimal.Decimal("1.005"), "1.01", id="mariadb-rounded"),
        pytest.param(MARIADB, decimal.Decimal(_LONG), _LONG, id="mariadb-long"),
    ],
)
def test_a_decimal_has_the_scale_of_its_column(dialect: Dialect, given_value: Any, stored: str) -> None:
    """A decimal is stored as text, with as many digits after the point as its column keeps."""
    codec = codec_of(Numeric(40, 2), dialect)

    dumped = codec.dump(given_value)

    assert dumped == stored
    assert codec.load(dumped) == decimal.Decimal(stored)


def test_decimals_without_a_scale_are_compared_as_numbers() -> None:
    """Where the column keeps any scale, 1.5 and 1.50 are stored as they are, and are no change of one another."""
    codec = codec_of(Numeric(), POSTGRESQL)

    short, long = codec.dump(decimal.Decimal("1.5")), codec.dump(decimal.Decimal("1.50"))

    assert (short, long) == ("1.5", "1.50")
    assert codec.same(short, long)
    assert not codec.same(short, codec.dump(decimal.Decimal("1.51")))


def test_a_decimal_of_any_scale_has_all_its_digits() -> None:
    """A NUMERIC without a scale keeps every digit on PostgreSQL, and so does the trail."""
    codec = codec_of(Numeric(), POSTGRESQL)
    value = decimal.Decimal("12345678901234567890.12345678901234567890")

    loaded = codec.load(codec.dump(value))

    assert loaded == value


@pytest.mark.parametrize("zero", ["-0", "-0.00", "-0.001"])
def test_a_decimal_zero_has_no_sign(zero: str) -> None:
    """PostgreSQL's NUMERIC has no negative zero, so the trail has none either: -0 instead of 0 is no change."""
    codec = codec_of(Numeric(10, 2), POSTGRESQL)

    stored = codec.dump(decimal.Decimal(zero))

    assert stored == "0.00"


@pytest.mark.filterwarnings("ignore:Dialect sqlite")
def test_a_numeric_that_is_read_as_float_is_not_rounded_on_sqlite(memory: Memory) -> None:
    """SQLite keeps every digit of a float, and SQLAlchemy rounds it for decimals alone."""
    type_ = Numeric(10, 2, asdecimal=False)
    codec = codec_of(type_, SQLITE)

    loaded = codec.load(codec.dump(1.239))

    assert loaded == memory.read_back(type_, 1.239)


@pytest.mark.filterwarnings("ignore:Dialect sqlite")
def test_a_decimal_has_the_scale_that_it_is_read_with(memory: Memory) -> None:
    """A column with a decimal_return_scale loads as the column itself is read."""
    type_ = Numeric(10, 4, decimal_return_scale=2)
    codec = codec_of(type_, SQLITE)

    loaded = codec.load(codec.dump(decimal.Decimal("1.2345")))

    assert loaded == memory.read_back(type_, decimal.Decimal("1.2345"))


def test_a_float_that_is_read_as_decimal_is_rounded_as_sqlalchemy_does(memory: Memory) -> None:
    """SQLAlchemy reads a Float(asdecimal=True) with ten digits after the point, and so does the trail."""
    type_ = Float(asdecimal=True)
    codec = codec_of(type_, SQLITE)

    loaded = codec.load(codec.dump(0.123456789012345))

    assert loaded == memory.read_back(type_, 0.123456789012345)


@pytest.mark.parametrize("type_", [Float(), Numeric(10, 2), Numeric()], ids=["Float", "Numeric", "unscaled"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_what_json_has_no_number_for_is_stored_as_text(type_: TypeEngine[Any], number: str) -> None:
    """NaN and the infinities are strings in the trail, and numbers again when loaded."""
    codec = codec_of(type_, POSTGRESQL)
    value = type_.python_type(number)

    stored = codec.dump(value)
    loaded = codec.load(through_json(stored))

    assert isinstance(stored, str)
    assert str(loaded) == str(value)
    assert codec.same(stored, codec.dump(value))


# --- text, enums, bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("member", "stored"), [(Size.LARGE, "l"), (Level.HIGH, "high")])
def test_a_str_enum_in_a_string_column_is_its_value(member: str, stored: str) -> None:
    """A member of a str enum is stored as the text that is sent for it, not as its name."""
    dumped = codec_of(String(), SQLITE).dump(member)

    assert dumped == stored
    assert type(dumped) is str


def test_a_char_is_padded_as_postgresql_pads_it() -> None:
    """PostgreSQL pads a CHAR(5) with blanks: what it made of a value is known when it was read back."""
    assert codec_of(CHAR(5), POSTGRESQL).is_altered
    assert not codec_of(String(5), POSTGRESQL).is_altered
    assert not codec_of(CHAR(5), SQLITE).is_altered


def test_an_enum_is_stored_as_its_name() -> None:
    """A member is stored as the column holds it: by name."""
    stored = codec_of(Enum(Color), SQLITE).dump(Color.RED)

    assert stored == "RED"


def test_an_enum_with_a_values_callable_is_stored_as_its_value() -> None:
    """A member is stored as the column holds it: as the values callable says."""
    type_ = Enum(Level, values_callable=lambda members: [each.value for each in members])

    stored = codec_of(type_, SQLITE).dump(Level.HIGH)

    assert stored == "high"


def test_the_enums_of_the_dialects_are_stored_alike() -> None:
    """PostgreSQL's own ENUM writes a member as the portable one does."""
    stored = codec_of(postgresql.ENUM(Color, name="color"), POSTGRESQL).dump(Color.GREEN)

    assert stored == "GREEN"


@pytest.mark.parametrize("value", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")], ids=type)
def test_bytes_are_stored_as_base64(value: Any) -> None:
    """Whatever holds the bytes, base64 is stored, and bytes are loaded."""
    codec = codec_of(LargeBinary(), SQLITE)

    stored = codec.dump(value)

    assert stored == "AP8="
    assert codec.load(stored) == b"\x00\xff"


def test_a_uuid_is_stored_in_its_canonical_form() -> None:
    """However a UUID was given, its stored form is lower case with hyphens."""
    codec = codec_of(Uuid(as_uuid=False), SQLITE)

    stored = codec.dump("0F8FAD5BD9CB469FA16570867728950E")

    assert stored == "0f8fad5b-d9cb-469f-a165-70867728950e"


# --- times -----------------------------------------------------------------------------------------------------------


@given(moment=aware_moments)
@moderately
def test_an_aware_datetime_is_stored_in_utc(moment: dt.datetime) -> None:
    """An aware datetime is stored as the same instant in UTC, with microseconds."""
    codec = codec_of(DateTime(timezone=True), POSTGRESQL)

    stored = codec.dump(moment)

    assert stored.endswith("+00:00")
    assert dt.datetime.fromisoformat(stored) == moment
    assert stored == codec.dump(moment.astimezone(dt.UTC))


def test_microseconds_are_stored_also_when_they_are_zero() -> None:
    """Stored datetimes and times have the same length, so that their texts sort as they do."""
    moment = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)

    stored = codec_of(DateTime(timezone=True), POSTGRESQL).dump(moment)

    assert stored == "2024-01-02T03:04:05.000000+00:00"
    assert codec_of(Time(), POSTGRESQL).dump(moment.time()) == "03:04:05.000000"


@pytest.mark.parametrize("dialect", [SQLITE, MARIADB], ids=["sqlite", "mariadb"])
@pytest.mark.parametrize("type_", [DateTime(timezone=True), Time(timezone=True)], ids=["DateTime", "Time"])
def test_an_offset_is_dropped_where_the_database_drops_it(dialect: Dialect, type_: TypeEngine[Any]) -> None:
    """SQLite and MariaDB keep the wall clock and lose the offset, and so does the trail."""
    zone = dt.timezone(dt.timedelta(hours=3))
    moment = dt.datetime(2024, 1, 2, 3, 4, tzinfo=zone)
    value = moment if isinstance(type_, DateTime) else moment.timetz()
    codec = codec_of(type_, dialect)

    loaded = codec.load(codec.dump(value))

    assert loaded == value.replace(tzinfo=None)


def test_sqlite_gives_back_an_aware_datetime_as_the_trail_does(memory: Memory) -> None:
    """What the trail says of an aware datetime on SQLite is what SQLite gives back."""
    type_ = DateTime(timezone=True)
    moment = dt.datetime(2024, 1, 2, 3, 4, tzinfo=dt.timezone(dt.timedelta(hours=3)))
    codec = codec_of(type_, SQLITE)

    loaded = codec.load(codec.dump(moment))

    assert loaded == memory.read_back(type_, moment)


def test_a_date_column_keeps_only_the_date() -> None:
    """A datetime that was given to a date column is stored as its date."""
    stored = codec_of(Date(), SQLITE).dump(dt.datetime(2024, 1, 2, 3, 4))  # noqa: DTZ001 (no zone is meant)

    assert stored == "2024-01-02"


@given(duration=st.timedeltas())
@moderately
def test_any_duration_is_loaded_as_it_was(duration: dt.timedelta) -> None:
    """Every timedelta there is, the negative ones too, is loaded exactly."""
    codec = codec_of(Interval(), POSTGRESQL)

    loaded = codec.load(codec.dump(duration))

    assert loaded == duration


@pytest.mark.parametrize(
    ("duration", "stored"),
    [
        (dt.timedelta(days=1, hours=2, microseconds=5), "P1DT7200.000005S"),
        (dt.timedelta(hours=-1), "-P0DT3600.000000S"),
        (dt.timedelta(0), "P0DT0.000000S"),
    ],
)
def test_a_duration_is_stored_as_iso_8601(duration: dt.timedelta, stored: str) -> None:
    """A duration is stored as days and seconds of ISO 8601, a negative one with a sign in front."""
    dumped = codec_of(Interval(), SQLITE).dump(duration)

    assert dumped == stored


def test_a_text_that_is_no_duration_is_refused() -> None:
    """A stored form that isn't a duration is an error, not a duration of zero."""
    codec = codec_of(Interval(), SQLITE)

    with pytest.raises(ValueError, match="yesterday"):
        codec.load("yesterday")


_TRUNCATING: TypeEngine[Any] = sqlite.DATETIME(truncate_microseconds=True)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("dialect", "type_"),
    [
        pytest.param(POSTGRESQL, postgresql.TIMESTAMP(precision=0), id="postgresql.TIMESTAMP"),
        pytest.param(POSTGRESQL, postgresql.TIME(precision=0), id="postgresql.TIME"),
        pytest.param(POSTGRESQL, postgresql.INTERVAL(precision=0), id="INTERVAL"),
        pytest.param(SQLITE, _TRUNCATING, id="sqlite.DATETIME"),
        pytest.param(MARIADB, DateTime(), id="mariadb-DATETIME"),
    ],
)
def test_fractions_that_the_column_may_not_keep_are_read_back(dialect: Dialect, type_: TypeEngine[Any]) -> None:
    """What is left of fractions of seconds is known when the value was read back, not before."""
    assert codec_of(type_, dialect).is_altered


# --- documents -------------------------------------------------------------------------------------------------------


def test_the_json_value_null_is_not_an_sql_null() -> None:
    """The JSON value null and SQL's NULL have different stored forms, and both load as None."""
    codec = codec_of(JSON(), POSTGRESQL)

    value, null = codec.dump(JSON_NULL), codec.dump(None)

    assert value == {"$json": None}
    assert null is None
    assert not codec.same(value, null)
    assert codec.load(value) is None
    assert codec.load(null) is None


@pytest.mark.parametrize(
    "document",
    [{"$json": None}, {"$json": {"$json": 1}}, {"$masked": True}, {"$ref": "#/a", "b": 1}, [{"$json": 1}]],
    ids=str,
)
def test_a_document_that_looks_like_a_mark_is_no_mark(document: Any) -> None:
    """Keys of the user's that begin with a dollar sign come back as they were."""
    codec = codec_of(JSON(), POSTGRESQL)

    loaded = codec.load(through_json(codec.dump(document)))

    assert loaded == document


@given(document=documents, other=documents)
@moderately
def test_documents_are_one_value_only_if_their_json_is(document: Any, other: Any) -> None:
    """Two documents are the same if their JSON is, whatever Python holds to be equal."""
    codec = codec_of(JSON(), POSTGRESQL)
    assume(document is not None and other is not None)

    same = codec.same(codec.dump(document), codec.dump(other))

    assert same == (json.dumps(document, sort_keys=True) == json.dumps(other, sort_keys=True))


@pytest.mark.parametrize(("document", "other"), [(1, True), (0, False), (1, 1.0), ({"a": 1}, {"a": True})])
def test_a_number_is_not_a_truth_in_a_document(document: Any, other: Any) -> None:
    """In JSON, 1 and true are different, though Python says that they are equal."""
    codec = codec_of(JSON(), POSTGRESQL)

    same = codec.same(document, other)

    assert not same


def test_the_order_of_keys_is_no_change_of_a_document() -> None:
    """Two documents that differ in the order of their keys are one value."""
    codec = codec_of(JSON(), POSTGRESQL)

    same = codec.same(codec.dump({"a": 1, "b": 2}), codec.dump({"b": 2, "a": 1}))

    assert same


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({1: "a"}, id="key"),
        pytest.param({"a": (1, 2)}, id="tuple"),
        pytest.param({"a": Size.SMALL}, id="enum"),
        pytest.param(
            {"a": float("nan")},
            id="nan",
        ),
    ],
)
def test_a_document_is_stored_as_the_json_that_it_becomes(memory: Memory, document: Any) -> None:
    """What JSON turns into something else (keys into text, tuples into lists) is turned in the trail, too."""
    codec = codec_of(JSON(), SQLITE)

    stored = codec.dump(document)

    assert is_plain(stored)
    assert through_json(stored) == stored
    assert str(codec.load(stored)) == str(memory.read_back(JSON(), document))


def test_a_document_of_an_engine_with_its_own_serializer_is_stored_as_that_writes_it() -> None:
    """A document with dates, which the engine's own serializer accepts, is stored as that writes it."""
    engine = create_engine("sqlite://", json_serializer=lambda value: json.dumps(value, default=str))
    codec = codec_of(JSON(), engine.dialect)

    stored = codec.dump({"day": dt.date(2024, 1, 2)})

    assert stored == {"day": "2024-01-02"}


def test_a_list_that_is_an_item_of_an_array_of_json_comes_back() -> None:
    """An item of ARRAY(JSONB) may be a list, and what is in it comes back as it was."""
    codec = codec_of(ARRAY(postgresql.JSONB(), dimensions=1), POSTGRESQL)

    loaded = codec.load(codec.dump([[{"$a": 1}]]))

    assert loaded == [[{"$a": 1}]]


# --- the user's own types --------------------------------------------------------------------------------------------


@given(secret=st.text().map("secret-{}".format))
@moderately
def test_plaintext_of_an_encrypted_column_is_never_stored(secret: str) -> None:
    """A column that is encrypted in its table is encrypted in the trail."""
    codec = codec_of(Encrypted(), POSTGRESQL)

    stored = codec.dump(secret)

    assert "secret-" not in stored
    assert codec.load(stored) == secret


def test_ciphertexts_are_compared_by_what_they_say() -> None:
    """Two ciphertexts of one text are no change of it, and those of two texts are one."""
    codec = codec_of(Encrypted(), POSTGRESQL)

    stored, again, other = codec.dump("a"), codec.dump("a"), codec.dump("b")

    assert stored != again
    assert codec.same(stored, again)
    assert not codec.same(stored, other)


def test_a_decorator_stores_what_it_would_send() -> None:
    """A decorator's stored form is what its process_bind_param gives to the database."""
    stored = codec_of(Cents(), SQLITE).dump(decimal.Decimal("12.34"))

    assert stored == 1234


def test_a_decorator_is_asked_for_the_dialect_in_use() -> None:
    """A decorator that sends something else to each database is given the database's dialect."""

    class DialectName(TypeDecorator[str]):
        impl = String
        cache_ok = True

        def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
            return f"{value}@{dialect.name}"

    stored = [codec_of(DialectName(), dialect).dump("x") for dialect in (SQLITE, POSTGRESQL)]

    assert stored == ["x@sqlite", "x@postgresql"]


def test_a_decorator_is_stored_by_the_type_that_it_has_on_the_dialect() -> None:
    """A decorator that is JSONB on PostgreSQL and text elsewhere comes back on both."""
    document = {"a": 1}
    codecs = [codec_of(Document(), dialect) for dialect in (SQLITE, POSTGRESQL)]

    loaded = [codec.load(codec.dump(document)) for codec in codecs]

    assert loaded == [document, document]


def test_a_decorator_of_json_that_sends_null_stores_null() -> None:
    """None in a decorator of JSON is SQL's NULL, if that is what its process_bind_param says."""
    codec = codec_of(Point(), POSTGRESQL)

    stored = codec.dump(None)

    assert stored is None


def test_a_variant_is_written_by_the_type_that_it_is_on_the_dialect() -> None:
    """A type with variants is encoded by the one that the database in use has."""
    type_ = String().with_variant(Integer(), "postgresql")

    stored = [codec_of(type_, dialect).dump("7") for dialect in (SQLITE, POSTGRESQL)]

    assert stored == ["7", 7]


def test_the_types_of_an_engine_do_not_keep_its_dialect_alive() -> None:
    """The codecs of a dialect that is gone are gone, those of decorators too."""
    engine = create_engine("sqlite://")
    codec_of(String(), engine.dialect)
    codec_of(Encrypted(), engine.dialect)
    reference = weakref.ref(engine.dialect)

    engine.dispose()
    del engine
    gc.collect()

    assert reference() is None


def test_a_codec_is_made_once_for_a_type_and_a_dialect() -> None:
    """Asked again, the same codec is given; another dialect has its own."""
    type_ = DateTime(timezone=True)

    codec = codec_of(type_, SQLITE)

    assert codec_of(type_, SQLITE) is codec
    assert codec_of(type_, POSTGRESQL) is not codec


# --- refused types ---------------------------------------------------------------------------------------------------


class Geometry(UserDefinedType[Any]):
    cache_ok = True


class SqlEncrypted(TypeDecorator[str]):
    impl = LargeBinary
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        return func.pgp_sym_encrypt(bindvalue, "key")


class SqlDecrypted(TypeDecorator[str]):
    impl = LargeBinary
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return func.pgp_sym_decrypt(column, "key")


class Processing(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        return str.swapcase


class Pickled(TypeDecorator[Any]):
    impl = PickleType
    cache_ok = True


class SqlEncryptedString(String):
    def bind_expression(self, bindvalue: Any) -> Any:
        return func.pgp_sym_encrypt(bindvalue, "key")


class ProcessingString(String):
    def bind_processor(self, dialect: Dialect) -> Any:
        return str.swapcase


@pytest.mark.parametrize(
    "type_",
    [
        PickleType(),
        Pickled(),
        Geometry(),
        SqlEncrypted(),
        SqlDecrypted(),
        Processing(),
        NullType(),
        ARRAY(PickleType()),
        postgresql.DOMAIN("document", JSON()),
        postgresql.ranges.AbstractRange(),
        String().with_variant(Geometry(), "postgresql"),
        SqlEncryptedString(),
        pytest.param(
            ProcessingString(),
        ),
    ],
    ids=lambda type_: type(type_).__name__,
)
def test_a_type_whose_values_cannot_be_written_exactly_is_refused(type_: TypeEngine[Any]) -> None:
    """What nobody knows how to write, or is written by SQL alone, is not supported, and has no codec."""
    supported = is_supported(type_)

    assert not supported
    with pytest.raises(LookupError):
        codec_of(type_, POSTGRESQL)


@pytest.mark.parametrize(
    "type_",
    [
        *TYPES,
        pytest.param(String().with_variant(Integer(), "postgresql"), id="variant"),
        pytest.param(postgresql.CITEXT(), id="CITEXT"),
        pytest.param(BINARY(3), id="BINARY"),
        pytest.param(VARBINARY(3), id="VARBINARY"),
    ],
)
def test_a_type_whose_values_can_be_written_exactly_is_supported(type_: TypeEngine[Any]) -> None:
    """Every type that has a codec is said to be supported."""
    supported = is_supported(type_)

    assert supported
    assert isinstance(codec_of(type_, POSTGRESQL), Codec)


# --- what is in memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (String(3), "abc"),
        (Integer(), 1),
        (Integer(), True),
        (Boolean(), True),
        (Float(), 1.5),
        (LargeBinary(), b"a"),
        (Numeric(), decimal.Decimal(1)),
        (Date(), dt.date.min),
        (Uuid(), uuid.UUID(int=1)),
        (Enum(Color), Color.RED),
    ],
)
def test_a_value_that_cannot_be_changed_in_place_is_what_was_read(type_: TypeEngine[Any], value: object) -> None:
    """An immutable value in an object is the one that the database held."""
    exact = codec_of(type_, POSTGRESQL).is_exact_in_memory(value)

    assert exact


@pytest.mark.parametrize(
    ("type_", "value"),
    [(String(), 1.0), (String(), Color.RED), (String(3), "abc "), (Integer(), 1.5), (Integer(), "1")],
)
def test_a_value_of_which_the_database_makes_another_is_read(type_: TypeEngine[Any], value: object) -> None:
    """What the row holds of a value of another kind, or one that is too long, only the database knows."""
    codec = codec_of(type_, POSTGRESQL)

    assert codec.must_be_read(value)
    assert not codec.is_plain(value)
    assert not codec.is_exact_in_memory(value)


@pytest.mark.parametrize("value", [[], {}, bytearray(), (1, [])], ids=type)
def test_a_value_that_can_be_changed_in_place_may_be_another_than_was_read(value: object) -> None:
    """A mutable value in an object need not be the one that the database held."""
    exact = codec_of(String(), SQLITE).is_exact_in_memory(value)

    assert not exact


def test_none_of_a_json_column_may_be_one_of_two_things() -> None:
    """None in memory is NULL for any column but one of JSON, whose value null is None, too."""
    exact = {type_: codec_of(type_(), SQLITE).is_exact_in_memory(None) for type_ in (String, JSON)}

    assert exact == {String: True, JSON: False}


# --- columns that have changed since ---------------------------------------------------------------------------------


def test_a_value_of_a_column_that_is_gone_is_its_stored_form() -> None:
    """Without a column, what was stored is given as it is."""
    value = decode_value(None, "2024-01-02")

    assert value == "2024-01-02"


def test_a_masked_value_of_a_column_that_is_gone_is_masked() -> None:
    """Without a column, the mark of a withheld value still is that."""
    value = decode_value(None, {"$masked": True})

    assert value is MASKED


@pytest.mark.parametrize(
    ("type_", "stored"),
    [
        pytest.param(Enum(Color), "BLUE", id="member-removed"),
        pytest.param(Integer(), "twelve", id="text-became-integer"),
        pytest.param(Date(), "next week", id="text-became-date"),
    ],
)
def test_a_value_that_the_column_can_no_longer_hold_is_its_stored_form(type_: TypeEngine[Any], stored: str) -> None:
    """A value from before the column had its type of today is given as it was stored."""
    value = decode_value(codec_of(type_, SQLITE), stored)

    assert value == stored


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        (Integer(), 7, "7"),
        (String(), "a b", "a b"),
        (String(), '["a"]', '["a"]'),
        (String(), "7", "7"),
        (Uuid(), uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Date(), dt.date(2024, 1, 2), "2024-01-02"),
        (Enum(Color), Color.RED, "RED"),
        (Cents(), decimal.Decimal("1.25"), "125"),
    ],
)
def test_the_text_of_a_key_of_one_column_is_its_value(type_: TypeEngine[Any], value: Any, text: str) -> None:
    """A key of one column is stored as the value itself, and is read as the type of the column."""
    codec = codec_of(type_, SQLITE)

    stored = key_text([codec.dump(value)])

    assert stored == text
    assert key_value([codec], stored) == value


def test_the_text_of_a_key_of_several_columns_is_a_json_array() -> None:
    """A key of several columns is stored as a JSON array without spaces, letters as they are."""
    text = key_text([7, "ä", None])

    assert text == '[7,"ä",null]'


_composite = st.tuples(st.text(), big_integers, st.uuids(), st.dates())


@given(key=_composite)
@moderately
def test_a_key_of_several_columns_is_read_as_it_was(key: tuple[Any, ...]) -> None:
    """A composite key is read as the tuple of Python values that it was."""
    codecs = [codec_of(type_, POSTGRESQL) for type_ in (String(), Integer(), Uuid(), Date())]

    text = key_text([codec.dump(value) for codec, value in zip(codecs, key, strict=True)])

    assert key_value(codecs, text) == key


_awkward = st.lists(st.text(st.sampled_from('",[]\\ \n0\u2028'), max_size=4), min_size=2, max_size=2)


@given(key=_awkward, other=_awkward)
@settings(moderately, max_examples=150)
def test_keys_of_several_columns_never_collide(key: list[str], other: list[str]) -> None:
    """Two keys have the same text only if they are the same key, whatever characters they are made of."""
    text, other_text = key_text(key), key_text(other)

    assert (text == other_text) == (key == other)


def test_a_number_and_its_text_are_different_parts_of_a_key() -> None:
    """In a composite key, 1 and "1" aren't confused."""
    number, text = key_text([1, 2]), key_text(["1", 2])

    assert number != text


@given(amount=amounts)
@moderately
def test_equal_keys_have_one_text(amount: decimal.Decimal) -> None:
    """A key that is given with fewer digits than its column keeps has the same text."""
    codec = codec_of(Numeric(12, 4), POSTGRESQL)

    text, short = key_text([codec.dump(amount)]), key_text([codec.dump(amount.normalize())])

    assert text == short


def test_a_key_that_json_has_no_number_for_is_read() -> None:
    """An infinite float is no good key, but it is one, and its history can be read."""
    codec = codec_of(Float(), POSTGRESQL)

    value = key_value([codec], key_text([codec.dump(float("inf"))]))

    assert value == float("inf")
