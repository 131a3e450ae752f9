"""
How PostgreSQL itself writes the values of a column as the trail stores them: codec/ once more, in SQL.

Nothing in here depends on what a session has set: DateStyle, IntervalStyle,
TimeZone, bytea_output; what does can be set for the function: see `ValueSQL.settings`.
Casts say which type is meant: a column that is of a similar one, json for jsonb, is
recorded, and doesn't fail each write of its table.
"""

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from sqlalchemy import Dialect, types as sqltypes
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator

from sqlaudit.codec.dialects import bound_type_of
from sqlaudit.types import TrailType

__all__ = ["HELPERS", "ValueSQL", "literal", "quoted", "value_sql", "withheld_sql"]

Template: TypeAlias = Callable[[str], str]
"""Makes SQL of the SQL of a value."""


@dataclass(frozen=True, slots=True)
class ValueSQL:
    """What is asked of the values of one column type."""

    document: Template
    """The stored form, as ``jsonb_build_object`` and ``jsonb_build_array`` take it."""
    compared: Template
    """What is equal of two values if their stored forms are."""
    text: Template | None
    """The stored form as a part of a key, or as an actor; None: the values can't be such."""
    is_text: bool = True
    """The stored form is a JSON string."""
    items: Template | None = None
    """Of an array of such values: the stored form of all of it; None: each is written by itself."""
    settings: frozenset[str] = frozenset()
    """The settings that the values are shown by."""
    helpers: frozenset[str] = frozenset()
    """The functions of `HELPERS` that are called."""


def value_sql(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    """
    Return the SQL for a column type; *helper* gives the qualified name of a function of `HELPERS`.

    Raises:
        LookupError: PostgreSQL can't write its values as the type would.
    """
    variant = getattr(type_, "_variant_mapping", {}).get(dialect.name)
    if variant is not None:
        return value_sql(variant, dialect, helper)
    if isinstance(type_, TrailType):
        raise LookupError(type_)
    if isinstance(type_, sqltypes.Interval):
        return _interval(type_, dialect, helper)
    if isinstance(type_, TypeDecorator):
        return value_sql(type_.load_dialect_impl(dialect), dialect, helper)
    for known, make in _MAKERS:
        if isinstance(type_, known):
            return make(type_, dialect, helper)
    raise LookupError(type_)


def withheld_sql(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    """Return the SQL for a masked column, whose values are compared, never stored: any type will do."""
    try:
        known = value_sql(type_, dialect, helper)
    except LookupError:
        known = ValueSQL(document=str, compared=_exactly, text=_as_text)
    return replace(known, document=lambda _: """'{"$masked": true}'::jsonb""")


# --- names and texts -------------------------------------------------------------------------------------------------


def quoted(*names: str) -> str:
    """
    Return names, quoted and dotted, in one line.

    Drivers take a percent sign for the beginning of a parameter, or not: there is none.
    """
    return ".".join(map(_quoted, names))


_TO_ESCAPE: Final = re.compile(r"[%\x00-\x1f]")
_TO_ESCAPE_IN_LITERAL: Final = re.compile(r"[\\%\x00-\x1f]")


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    if not _TO_ESCAPE.search(name):
        return f'"{doubled}"'
    escaped = _TO_ESCAPE.sub(lambda found: f"\\{ord(found[0]):04x}", doubled.replace("\\", "\\\\"))
    return f'U&"{escaped}"'


def literal(text: str) -> str:
    """Return *text* as a literal in one line, whatever standard_conforming_strings says; without a percent sign."""
    doubled = text.replace("'", "''")
    if not _TO_ESCAPE_IN_LITERAL.search(text):
        return f"'{doubled}'"
    escaped = _TO_ESCAPE.sub(lambda found: f"\\{ord(found[0]):03o}", doubled.replace("\\", "\\\\"))
    return f"E'{escaped}'"


# --- the types -------------------------------------------------------------------------------------------------------


def _as_text(value: str) -> str:
    return f"{value}::text"


def _exactly(value: str) -> str:
    """As text, of which each letter counts: no collation that ignores case, no operators of extensions."""
    return f'{value}::text COLLATE "C"'


def _itself(value: str) -> str:
    return value


def _cast_array(type_: str) -> Template:
    return lambda array: f"to_jsonb({array}::{type_}[])"


_PLAIN: Final = ValueSQL(document=_itself, compared=_itself, text=_as_text, is_text=False, items=_cast_array("text"))


def _number(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    return replace(_PLAIN, items=lambda array: f"to_jsonb({array})")


def _oid(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    return replace(_PLAIN, document=lambda value: f"{value}::bigint", items=_cast_array("bigint"))


_TEXT: Final = ValueSQL(document=_as_text, compared=_exactly, text=_as_text, items=_cast_array("text"))


def _text(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    return _TEXT


def _padded(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    # The cast takes the blanks away, as a key is written; the value itself keeps them.
    return replace(_TEXT, document=_itself, items=lambda array: f"to_jsonb({array})")


def _money(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    return replace(_TEXT, compared=_itself, settings=frozenset({"lc_monetary"}))


def _uuid(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    if type_.native_uuid:
        return replace(_TEXT, compared=_itself)

    def dashed(value: str) -> str:
        return f"{value}::text::uuid"

    return ValueSQL(document=dashed, compared=dashed, text=lambda value: f"{value}::text::uuid::text")


def _float(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    settings, helpers = frozenset({"extra_float_digits"}), frozenset({"sqlaudit_float"})
    to_float = helper("sqlaudit_float")

    def document(value: str) -> str:
        return f"{to_float}({value}::float8)"

    def key(value: str) -> str:
        # A jsonb has no exponents, Python's repr() has them for these.
        number = f"abs({value}::float8)"
        return (
            f"CASE WHEN {number} >= 1e16 AND {number} < 'Infinity' OR {number} < 1e-4 AND {number} > 0 "
            f"THEN {value}::float8::text ELSE {document(value)} #>> '{{}}' END"
        )

    if not type_.asdecimal:
        return ValueSQL(
            document, lambda value: f"{value}::float8", key, is_text=False, settings=settings, helpers=helpers
        )
    scale = type_._effective_decimal_return_scale  # noqa: SLF001 (nothing else says it)

    def rounded(value: str) -> str:
        return document(f"round({value}::float8::text::numeric, {scale})")

    return ValueSQL(rounded, rounded, None, is_text=False, settings=settings, helpers=helpers)


def _is_unscaled(type_: Any) -> bool:
    """Return whether a type is of numbers with any scale, which are compared as numbers."""
    is_exact = isinstance(type_, sqltypes.Numeric) and not isinstance(type_, sqltypes.Float)
    return is_exact and type_.scale is None and type_.precision is None


def _numeric(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    scale = 0 if type_.scale is None else type_.scale

    def kept(value: str) -> str:
        number = f"{value}::numeric"
        return number if _is_unscaled(type_) else f"round({number}, {scale})"

    return replace(
        _TEXT, document=lambda value: f"{kept(value)}::text", compared=kept, text=lambda value: f"{kept(value)}::text"
    )


def _binary(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    def base64(value: str) -> str:
        return f"translate(encode({value}::bytea, 'base64'), E'\\n', '')"

    return ValueSQL(base64, _itself, base64)


_MICROSECONDS: Final = 'YYYY-MM-DD"T"HH24:MI:SS.US'
_MOMENTS: Final = (dt.datetime.min, dt.datetime.max)  # noqa: DTZ901 (the zone is written beside it)


def _datetime(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    offset = "+00:00" if type_.timezone else ""
    pattern = f'{_MICROSECONDS}"{offset}"' if offset else _MICROSECONDS
    first, last = (f"'{each.isoformat(timespec='microseconds')}{offset}'" for each in _MOMENTS)

    def isoformat(value: str) -> str:
        moment = f"({value}::timestamptz AT TIME ZONE 'UTC')" if type_.timezone else f"{value}::timestamp"
        # Python has no years before 1 and after 9999: they are told as PostgreSQL writes them. The infinities are,
        # for asyncpg, the last and the first moment that Python has.
        return (
            f"CASE WHEN {moment} >= '0001-01-01' AND {moment} < 'infinity' "
            f"THEN to_char({moment}, '{pattern}') "
            f"WHEN {moment} = 'infinity' THEN {last} WHEN {moment} = '-infinity' THEN {first} "
            f"ELSE to_char({moment}, '{pattern} BC') END"
        )

    return ValueSQL(isoformat, _itself, isoformat)


def _date(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    def finite(value: str) -> str:
        return (
            f"CASE {value} WHEN 'infinity' THEN '{dt.date.max}' WHEN '-infinity' THEN '{dt.date.min}' ELSE {value} END"
        )

    return ValueSQL(finite, _itself, lambda value: f"(to_jsonb({finite(value)}) #>> '{{}}')")


def _time(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    def isoformat(value: str) -> str:
        return f"to_char({value}::time, 'HH24:MI:SS.US')"

    if not type_.timezone:
        return ValueSQL(isoformat, _itself, isoformat)

    def with_offset(moment: str) -> str:
        value = f"{moment}::timetz"
        offset = f"make_interval(secs => abs(extract(timezone FROM {value}))::float8)"
        return (
            f"concat({isoformat(value)}, CASE WHEN extract(timezone FROM {value}) < 0 THEN '-' ELSE '+' END, "
            f"to_char({offset}, 'HH24:MI'), nullif(to_char({offset}, ':SS'), ':00'))"
        )

    def or_null(value: str) -> str:
        return f"CASE WHEN {value} IS NOT NULL THEN {with_offset(value)} END"

    return ValueSQL(or_null, _itself, or_null)


def _interval(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    duration = helper("sqlaudit_duration")
    if isinstance(type_, sqltypes.Interval) and not type_.native:
        # A moment so much after an epoch.
        epoch = literal(type_.epoch.isoformat(" "))

        def isoformat(value: str) -> str:
            return f"{duration}({value}::timestamp - {epoch}::timestamp)"
    else:

        def isoformat(value: str) -> str:
            return f"{duration}({value}::interval)"

    return ValueSQL(isoformat, isoformat, isoformat, helpers=frozenset({"sqlaudit_duration"}))


def _address(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    # The cast to text shows the width of the net where the value itself doesn't.
    def shown(value: str) -> str:
        return f"(to_jsonb({value}) #>> '{{}}')"

    if getattr(dialect, "_native_inet_types", None) is False:
        return ValueSQL(shown, shown, shown)
    address = helper("sqlaudit_address")

    def of_python(value: str) -> str:
        return f"{address}({shown(value)})"

    return ValueSQL(of_python, of_python, of_python, helpers=frozenset({"sqlaudit_address"}))


def _hstore(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    # Casts are found wherever the extension is.
    def document(value: str) -> str:
        return f"{value}::jsonb"

    return ValueSQL(document, document, None, is_text=False)


def _json(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    kind = "jsonb" if isinstance(type_, postgresql.JSONB) else "json"
    name = f"sqlaudit_{kind}"
    wrapped = helper(name)

    def document(value: str) -> str:
        return f"{wrapped}({value}::{kind})"

    def compared(value: str) -> str:
        # Of a JSON, 1 and 1.0 are two.
        return document(value) if kind == "jsonb" else f"{document(value)}::text"

    # Python can't tell the null within an array from an SQL NULL.
    return ValueSQL(document, compared, None, is_text=False, helpers=frozenset({name, "sqlaudit_document"}))


def _array(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    item = value_sql(type_.item_type, dialect, helper)
    nested = helper("sqlaudit_nested")

    def one_by_one(array: str) -> str:
        each = item.document("each.item")
        if isinstance(type_.item_type, sqltypes.JSON):
            each = f"""nullif({each}, '{{"$json": null}}')"""
        flat = (
            f"coalesce((SELECT jsonb_agg({each} ORDER BY each.place) "
            f"FROM unnest({array}) WITH ORDINALITY AS each (item, place)), '[]')"
        )
        lengths = (
            f"(SELECT array_agg(array_length({array}, each.dimension) ORDER BY each.dimension) "
            f"FROM generate_series(2, array_ndims({array})) AS each (dimension))"
        )
        return f"CASE WHEN {array} IS NOT NULL THEN {nested}({flat}, {lengths}) END"

    document = item.items or one_by_one
    helpers = item.helpers if item.items else item.helpers | {"sqlaudit_nested"}
    compared = _itself if _is_unscaled(type_.item_type) else document
    return ValueSQL(document, compared, None, is_text=False, settings=item.settings, helpers=helpers)


def _range(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    bound = value_sql(bound_type_of(type_), dialect, helper)

    def document(value: str) -> str:
        return (
            f"CASE WHEN {value} IS NULL THEN NULL WHEN isempty({value}) THEN jsonb_build_object('empty', true) "
            f"ELSE jsonb_build_object('lower', {bound.document(f'lower({value})')}, "
            f"'upper', {bound.document(f'upper({value})')}, 'bounds', "
            f"concat(CASE WHEN lower_inc({value}) THEN '[' ELSE '(' END, "
            f"CASE WHEN upper_inc({value}) THEN ']' ELSE ')' END)) END"
        )

    def documents(value: str) -> str:
        return (
            f"CASE WHEN {value} IS NOT NULL THEN coalesce((SELECT jsonb_agg({document('each.range')} "
            f"ORDER BY each.place) FROM unnest({value}) WITH ORDINALITY AS each (range, place)), '[]') END"
        )

    make = documents if isinstance(type_, postgresql.ranges.AbstractMultiRange) else document
    # jsonb puts the shorter names first, and so does Python's Range: its text is the same.
    return ValueSQL(make, make, lambda value: f"({make(value)})::text", is_text=False)


def _domain(type_: Any, dialect: Dialect, helper: Template) -> ValueSQL:
    return value_sql(type_.data_type, dialect, helper)


_MAKERS: Final[tuple[tuple[type, Callable[[Any, Dialect, Template], ValueSQL]], ...]] = (
    (postgresql.DOMAIN, _domain),
    (postgresql.ranges.AbstractRange, _range),
    (postgresql.INET, _address),
    (postgresql.CIDR, _address),
    (postgresql.BIT, _text),
    (postgresql.HSTORE, _hstore),
    (postgresql.OID, _oid),
    (postgresql.MONEY, _money),
    (postgresql.MACADDR, _text),
    (postgresql.MACADDR8, _text),
    (postgresql.TSVECTOR, _text),
    (postgresql.TSQUERY, _text),
    (postgresql.REGCLASS, _text),
    (postgresql.REGCONFIG, _text),
    (postgresql.JSONPATH, _text),
    (sqltypes.Boolean, _number),
    (sqltypes.Integer, _number),
    (sqltypes.Float, _float),
    (sqltypes.Numeric, _numeric),
    (sqltypes.CHAR, _padded),
    (sqltypes.NCHAR, _padded),
    (sqltypes.Enum, _text),
    (sqltypes.String, _text),
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
"""The first that fits, as for the codecs."""


# --- what SQL lacks --------------------------------------------------------------------------------------------------

_NUMBERS_TO_REWRITE: Final = r"[0-9][eE][-+0-9]|[.][0-9]*[0-9]0(?![0-9])|[0-9.]{17}"
"""Numbers of which Python's repr() may be another text: all others are as they are in a jsonb, too."""

_TO_REWRITE: Final = rf"[$]|\\u0024|^\s*null\s*$|{_NUMBERS_TO_REWRITE}"

_TOKEN: Final = r'"(?:[^"\\]|\\.)*"|-?[0-9][-+.0-9eE]*|[^-"0-9]+'


def _of_document(type_: str, *, keeps_text: bool) -> Template:
    return lambda document: (
        f"""
  -- sqlaudit, version 1: a document of a {type_} column as the trail stores it
  SELECT CASE
    WHEN document::text ~ {literal(_TO_REWRITE)} THEN {document}(document::text, {str(keeps_text).lower()})
    ELSE document::jsonb
  END
"""
    )


HELPERS: Final[dict[str, tuple[str, dict[str, str], Callable[[Template], str]]]] = {
    "sqlaudit_float": (
        "(number double precision) RETURNS jsonb LANGUAGE sql STABLE",
        {},
        lambda _: (
            """
  -- sqlaudit, version 1: a float as the trail stores it, which shows that it is one
  SELECT CASE
    WHEN number = trunc(number) AND abs(number) < 1e16 THEN to_jsonb(round(number::bigint::numeric, 1))
    WHEN number = 'NaN' THEN '"nan"'::jsonb
    WHEN number = 'Infinity' THEN '"inf"'::jsonb
    WHEN number = '-Infinity' THEN '"-inf"'::jsonb
    ELSE to_jsonb(number)
  END
"""
        ),
    ),
    "sqlaudit_duration": (
        "(span interval) RETURNS text LANGUAGE sql STABLE",
        {},
        lambda _: (
            """
  -- sqlaudit, version 1: a duration as the trail stores it: a year has 365 days for the drivers, a month 30
  SELECT CASE
    WHEN isfinite(span) THEN concat(
      CASE WHEN of_all.seconds < 0 THEN '-' END, 'P', div(abs(of_all.seconds), 86400),
      'DT', round(mod(abs(of_all.seconds), 86400), 6), 'S'
    )
    ELSE span::text
  END
  FROM (SELECT extract(epoch FROM span) - extract(year FROM span) * 21600 AS seconds) AS of_all
"""
        ),
    ),
    "sqlaudit_address": (
        "(address text) RETURNS text LANGUAGE sql STABLE",
        {},
        lambda _: (
            """
  -- sqlaudit, version 1: an address as Python writes it, which has no dots in addresses like ::1.2.3.4
  SELECT CASE
    WHEN address ~ '^::[0-9]+[.]' THEN concat(
      '::', nullif(to_hex(parts.number >> 16), '0') || ':', to_hex(parts.number & 65535), substring(address FROM '/.*')
    )
    ELSE address
  END
  FROM (
    SELECT CASE
      WHEN address ~ '^::[0-9]+[.]' THEN split_part(substr(address, 3), '/', 1)::inet - '0.0.0.0'::inet
    END AS number
  ) AS parts
"""
        ),
    ),
    "sqlaudit_json": (
        "(document json) RETURNS jsonb LANGUAGE sql STABLE",
        {},
        lambda helper: _of_document("json", keeps_text=True)(helper("sqlaudit_document")),
    ),
    "sqlaudit_jsonb": (
        "(document jsonb) RETURNS jsonb LANGUAGE sql STABLE",
        {},
        lambda helper: _of_document("jsonb", keeps_text=False)(helper("sqlaudit_document")),
    ),
    "sqlaudit_document": (
        "(document text, keeps_text boolean) RETURNS jsonb LANGUAGE plpgsql STABLE",
        {"search_path": "pg_catalog, pg_temp", "extra_float_digits": "1"},
        lambda _: (
            rf"""
-- sqlaudit, version 1: a document as Python reads and writes it: its floats, and what looks like a mark
<<rewriting>>
DECLARE
  written text;
  is_large boolean;
  stored jsonb;
BEGIN
  SELECT
    string_agg(
      CASE
        WHEN each.number IS NULL THEN each.token
        WHEN each.number = trunc(each.number) AND abs(each.number) < 1e16
        THEN round(each.number::bigint::numeric, 1)::text
        ELSE each.number::text
      END, '' ORDER BY each.place
    ),
    bool_or(each.is_infinite OR abs(each.number) >= 1e16)
  INTO rewriting.written, rewriting.is_large
  FROM (
    SELECT
      one.match[1] AS token,
      one.place,
      one.match[1] ~ '^-?[0-9].*[.eE]' AND abs(one.match[1]::numeric) > 1.7976931348623158e308 AS is_infinite,
      CASE
        WHEN one.match[1] !~ '^-?[0-9].*[.eE]' OR abs(one.match[1]::numeric) > 1.7976931348623158e308 THEN NULL
        WHEN abs(one.match[1]::numeric) < 3e-324 THEN 0
        ELSE one.match[1]::float8
      END AS number
    FROM regexp_matches(document, {literal(_TOKEN)}, 'g') WITH ORDINALITY AS one (match, place)
  ) AS each;
  IF keeps_text AND rewriting.is_large THEN
    RETURN jsonb_build_object('$json_text', document);
  END IF;
  rewriting.stored := rewriting.written::jsonb;
  IF jsonb_typeof(rewriting.stored) = 'null' OR jsonb_typeof(rewriting.stored) = 'object' AND EXISTS (
    SELECT FROM jsonb_each(CASE jsonb_typeof(rewriting.stored) WHEN 'object' THEN rewriting.stored END) AS each
    WHERE starts_with(each.key, '$')
  ) THEN
    RETURN jsonb_build_object('$json', rewriting.stored);
  END IF;
  RETURN rewriting.stored;
END
"""
        ),
    ),
    "sqlaudit_nested": (
        "(items jsonb, lengths integer[]) RETURNS jsonb LANGUAGE plpgsql STABLE",
        {"search_path": "pg_catalog, pg_temp"},
        lambda _: (
            """
-- sqlaudit, version 1: the items of an array of several dimensions, of the lengths from the second on
<<nesting>>
DECLARE
  nested jsonb := items;
BEGIN
  FOR dimension IN REVERSE coalesce(array_length(lengths, 1), 0)..1 LOOP
    SELECT jsonb_agg(part.items ORDER BY part.place)
    INTO nesting.nested
    FROM (
      SELECT (each.place - 1) / lengths[dimension] AS place, jsonb_agg(each.item ORDER BY each.place) AS items
      FROM jsonb_array_elements(nesting.nested) WITH ORDINALITY AS each (item, place)
      GROUP BY (each.place - 1) / lengths[dimension]
    ) AS part;
  END LOOP;
  RETURN nesting.nested;
END
"""
        ),
    ),
}
"""The functions that columns of some types need: the head, the settings, and the body, which may call others."""
