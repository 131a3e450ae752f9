"""How MariaDB writes the value of a column as the trail keeps it: SQL, by the column's type."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from sqlalchemy import Column, types as sqltypes
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.exceptions import TrackingError
from sqlaudit.types import TrailType

__all__ = ["FUNCTIONS", "Encoder", "encoder_of", "identifier", "json_text", "literal", "masked_encoder"]


class Form(Enum):
    """What the text of a value is."""

    JSON = auto()
    """JSON by itself: a number, true, a document."""
    PLAIN = auto()
    """Text in which nothing has to be escaped."""
    TEXT = auto()
    """Any text."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """The SQL of the values of one column type. Each function takes the SQL of values, and NULL remains NULL."""

    text: Callable[[str], str]
    """The canonical text: of a string itself, of all else its JSON."""
    form: Form
    differs: Callable[[str, str], str]
    """Whether two values are two."""

    def json(self, value: str) -> str:
        """Return the SQL of a value as JSON, null included."""
        if self.form is Form.JSON:
            return f"COALESCE({self.text(value)}, 'null')"
        if self.form is Form.PLAIN:
            return f"COALESCE(CONCAT('\"', {self.text(value)}, '\"'), 'null')"
        text = self.text(value)
        # To call a function costs as much as all else; few texts need ours.
        return f"COALESCE(IF({text} REGEXP {_CONTROLS}, {_QUOTED}({text}), JSON_QUOTE({text})), 'null')"


def literal(text: str) -> str:
    """Return *text* as a literal that every connection and sql_mode reads alike."""
    # The catalogue shows no character beyond U+FFFF.
    if text.isprintable() and max(text, default="") <= "\uffff" and not text.endswith("\\"):
        return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return f"_utf8mb4 x'{text.encode().hex()}'"


def identifier(*names: str | None) -> str:
    """Return the names, those that there are, quoted, one within the other."""
    return ".".join("`" + name.replace("`", "``") + "`" for name in names if name is not None)


def json_text(text: str) -> str:
    """Return *text* as the trail writes it in JSON."""
    return json.dumps(text, ensure_ascii=False)


def encoder_of(column: Column[Any], dialect: Dialect) -> Encoder:
    """
    Return the encoder of a column's type on *dialect*.

    Raises:
        TrackingError: SQL can't say what the trail would keep of its values.
    """
    try:
        return _find(column.type, dialect)
    except LookupError:
        table = getattr(column.table, "fullname", column.table)
        raise TrackingError(
            f"Triggers can't write the values of {table}.{column.key} as Python would: its type is {column.type!r}; "
            f"use Capture.SESSION for the table, or exclude or mask the field."
        ) from None


def masked_encoder(column: Column[Any], dialect: Dialect) -> Encoder:
    """Return the encoder of a masked column: its values are compared, never written."""
    try:
        return _find(column.type, dialect)
    except LookupError:
        return Encoder(lambda value: value, Form.TEXT, _other_bytes)


def _find(type_: TypeEngine[Any], dialect: Dialect) -> Encoder:
    variant = getattr(type_, "_variant_mapping", {}).get(dialect.name)
    if variant is not None:
        return _find(variant, dialect)
    if isinstance(type_, TrailType):
        raise LookupError(type_)
    for known, make in _MAKERS:
        if isinstance(type_, known):
            return make(type_, dialect)
    raise LookupError(type_)


# --- what differs ----------------------------------------------------------------------------------------------------


def _other(old: str, new: str) -> str:
    return f"NOT ({old} <=> {new})"


def _other_bytes(old: str, new: str) -> str:
    # Collations take other cases, accents and blanks for the same.
    return f"NOT (BINARY {old} <=> BINARY {new})"


def _other_text(text: Callable[[str], str]) -> Callable[[str, str], str]:
    return lambda old, new: _other_bytes(text(old), text(new))


# --- the types -------------------------------------------------------------------------------------------------------


def _characters(value: str) -> str:
    return f"CONVERT({value} USING utf8mb4)"


def _decorated(type_: Any, dialect: Dialect) -> Encoder:
    # What the row itself holds is kept, by the type underneath.
    return _find(type_.load_dialect_impl(dialect), dialect)


def _boolean(type_: Any, dialect: Dialect) -> Encoder:
    return Encoder(lambda value: f"IF({value} IS NULL, NULL, IF({value}, 'true', 'false'))", Form.JSON, _other)


def _integer(type_: Any, dialect: Dialect) -> Encoder:
    # Without the zeros of ZEROFILL, and a BIT as the number that it is.
    return Encoder(lambda value: f"CONCAT({value} + 0)", Form.JSON, _other)


def _float(type_: Any, dialect: Dialect) -> Encoder:
    if type_.asdecimal:
        scale = type_._effective_decimal_return_scale  # noqa: SLF001 (nothing else says it)

        def rounded(value: str) -> str:
            return f"{_FLOAT}(CAST(CONCAT({value}) AS DECIMAL(65, {min(scale, 30)})))"

        return Encoder(rounded, Form.JSON, _other_text(rounded))
    if isinstance(type_, sqltypes.Double) and type_.scale is None:
        return Encoder(lambda value: f"{_FLOAT}({value})", Form.JSON, _other)

    def shown(value: str) -> str:
        # A FLOAT is shown with six digits, and so it is read.
        return f"{_FLOAT}(CONCAT({value}))"

    return Encoder(shown, Form.JSON, lambda old, new: _other(f"CONCAT({old})", f"CONCAT({new})"))


def _numeric(type_: Any, dialect: Dialect) -> Encoder:
    scale = type_.scale or 0

    def text(value: str) -> str:
        exact = value if type_.asdecimal else f"CAST({value} AS DOUBLE)"
        return f"CONCAT(CAST({exact} AS DECIMAL(65, {scale})))"

    return Encoder(text, Form.PLAIN, _other_text(text))


def _text(type_: Any, dialect: Dialect) -> Encoder:
    return Encoder(_characters, Form.TEXT, _other_bytes)


def _binary(type_: Any, dialect: Dialect) -> Encoder:
    return Encoder(lambda value: f"REPLACE(TO_BASE64({value}), '\\n', '')", Form.PLAIN, _other_bytes)


def _datetime(type_: Any, dialect: Dialect) -> Encoder:
    return Encoder(lambda value: f"REPLACE(CONCAT(CAST({value} AS DATETIME(6))), ' ', 'T')", Form.PLAIN, _other)


def _date(type_: Any, dialect: Dialect) -> Encoder:
    return Encoder(lambda value: f"CONCAT(CAST({value} AS DATE))", Form.PLAIN, _other)


def _time(type_: Any, dialect: Dialect) -> Encoder:
    return Encoder(lambda value: f"CONCAT(CAST({value} AS TIME(6)))", Form.PLAIN, _other)


def _interval(type_: Any, dialect: Dialect) -> Encoder:
    # It is kept as the time since the beginning of 1970.
    def text(value: str) -> str:
        size = f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {value})"
        return (
            f"CONCAT(IF({size} < 0, '-', ''), 'P', ABS({size}) DIV 86400000000, "
            f"'DT', ABS({size}) MOD 86400000000 DIV 1000000, '.', LPAD(ABS({size}) MOD 1000000, 6, '0'), 'S')"
        )

    return Encoder(text, Form.PLAIN, _other)


def _uuid(type_: Any, dialect: Dialect) -> Encoder:
    if type_.compile(dialect=dialect) == "UUID":
        return Encoder(lambda value: f"CONCAT({value})", Form.PLAIN, _other)

    def text(value: str) -> str:
        plain = f"LOWER(REPLACE({value}, '-', ''))"
        for place in (9, 14, 19, 24):
            plain = f"INSERT({plain}, {place}, 0, '-')"
        return plain

    return Encoder(text, Form.PLAIN, _other_text(text))


def _set(type_: Any, dialect: Dialect) -> Encoder:
    # The bits are in the order of the type, too.
    def text(value: str) -> str:
        each = ", ".join(
            f"IF({value} + 0 & {1 << place}, {literal(',' + json_text(name))}, '')"
            for place, name in enumerate(type_.values)
        )
        return f"IF({value} IS NULL, NULL, CONCAT('[', SUBSTRING(CONCAT({each}), 2), ']'))"

    return Encoder(text, Form.JSON, lambda old, new: _other(f"{old} + 0", f"{new} + 0"))


def _address(type_: Any, dialect: Dialect) -> Encoder:
    return Encoder(lambda value: f"CONCAT({value})", Form.PLAIN, _other)


def _json(type_: Any, dialect: Dialect) -> Encoder:
    def text(value: str) -> str:
        return f"{_DOCUMENT}({value})"

    def differs(old: str, new: str) -> str:
        return f"({_other_bytes(old, new)} AND NOT COALESCE({_SAME}({old}, {new}), FALSE))"

    return Encoder(text, Form.JSON, differs)


def _refused(type_: Any, dialect: Dialect) -> Encoder:
    raise LookupError(type_)


_INETS: Final = tuple(getattr(mysql, name) for name in ("INET4", "INET6") if hasattr(mysql, name))

# The first that fits: subclasses stand before their bases.
_MAKERS: Final[tuple[tuple[type, Callable[[Any, Dialect], Encoder]], ...]] = (
    (sqltypes.Interval, _interval),
    (sqltypes.PickleType, _refused),
    (TypeDecorator, _decorated),
    *((each, _address) for each in _INETS),
    (mysql.SET, _set),
    (mysql.YEAR, _integer),
    (mysql.BIT, _integer),
    (mysql.TINYBLOB, _binary),
    (mysql.MEDIUMBLOB, _binary),
    (mysql.LONGBLOB, _binary),
    (sqltypes.Boolean, _boolean),
    (sqltypes.Integer, _integer),
    (sqltypes.Float, _float),
    (sqltypes.Numeric, _numeric),
    (sqltypes.Enum, _text),
    (sqltypes.String, _text),
    (sqltypes.LargeBinary, _binary),
    (sqltypes.BINARY, _binary),
    (sqltypes.VARBINARY, _binary),
    (sqltypes.DateTime, _datetime),
    (sqltypes.Date, _date),
    (sqltypes.Time, _time),
    (sqltypes.Uuid, _uuid),
    (sqltypes.JSON, _json),
)


# --- the functions that triggers use ---------------------------------------------------------------------------------

_QUOTED: Final = "sqlaudit_quoted"
_CONTROLS: Final = r"'[\\x0B\\x0E\\x0F\\x1A-\\x1F]'"
"""The characters whose numbers Python writes in small letters, and JSON_QUOTE doesn't."""

_FLOAT: Final = "sqlaudit_float"
_DOCUMENT: Final = "sqlaudit_document"
_SAME: Final = "sqlaudit_same"

_STRINGS: Final = r'"(?:[^"\\\\]++|\\\\.)*+"'
"""The strings of a document, as a pattern in a literal."""

_REAL_NUMBERS: Final = r"-?[0-9]++(?:\\.[0-9]++(?:[eE][+-]?[0-9]++)?|[eE][+-]?[0-9]++)"

_UPPER: Final = ("0B", "0E", "0F", "1A", "1B", "1C", "1D", "1E", "1F")


def _replaced(text: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = f"REPLACE({text}, {old}, {new})"
    return text


_LOWERED: Final = _replaced(
    r"REPLACE(JSON_QUOTE(value), '\\\\', CHAR(1 USING utf8mb4))",
    [*((rf"'\\u00{code}'", rf"'\\u00{code.lower()}'") for code in _UPPER), ("CHAR(1 USING utf8mb4)", r"'\\\\'")],
)

FUNCTIONS: Final = {
    _QUOTED: (
        "value LONGTEXT CHARACTER SET utf8mb4",
        f"""BEGIN
  -- sqlaudit, version 1: a text as a string of JSON; the numbers of control characters in small letters, as Python's
  RETURN {_LOWERED};
END""",
    ),
    _FLOAT: (
        "value DOUBLE",
        """BEGIN
  -- sqlaudit, version 1: a number as Python writes it: 1.0, 1e+16, 1e-05
  DECLARE shown VARCHAR(400) CHARACTER SET utf8mb4 DEFAULT CONCAT(ABS(value));
  DECLARE digits VARCHAR(400) CHARACTER SET utf8mb4;
  DECLARE exponent INT;
  IF value IS NULL OR value = 0 OR ABS(value) >= 1e-4 AND ABS(value) < 1e16 THEN
    IF LOCATE('e', shown) THEN
      SET shown = CONCAT(CAST(ABS(value) AS DECIMAL(65, 0)));
    END IF;
    RETURN CONCAT(IF(value < 0, '-', ''), shown, IF(LOCATE('.', shown), '', '.0'));
  END IF;
  IF LOCATE('e', shown) THEN
    SET digits = REPLACE(SUBSTRING_INDEX(shown, 'e', 1), '.', '');
    SET exponent = SUBSTRING_INDEX(shown, 'e', -1);
  ELSEIF ABS(value) < 1 THEN
    SET digits = TRIM(LEADING '0' FROM SUBSTRING(shown, 3));
    SET exponent = CHAR_LENGTH(digits) - CHAR_LENGTH(shown) + 1;
  ELSE
    SET digits = TRIM(TRAILING '0' FROM shown);
    SET exponent = CHAR_LENGTH(shown) - 1;
  END IF;
  RETURN CONCAT(
    IF(value < 0, '-', ''),
    LEFT(digits, 1), IF(CHAR_LENGTH(digits) > 1, '.', ''), SUBSTRING(digits, 2),
    IF(exponent < 0, 'e-', 'e+'), LPAD(ABS(exponent), GREATEST(2, CHAR_LENGTH(ABS(exponent))), '0')
  );
END""",
    ),
    _DOCUMENT: (
        "value LONGTEXT CHARACTER SET utf8mb4",
        rf"""BEGIN
  -- sqlaudit, version 1: a document as the trail keeps it; null, and what looks like a mark of ours, is marked
  DECLARE document LONGTEXT CHARACTER SET utf8mb4 DEFAULT JSON_COMPACT(value);
  DECLARE code VARCHAR(4) CHARACTER SET utf8mb4;
  IF value IS NULL THEN
    RETURN NULL;
  END IF;
  IF document IS NULL
    OR document REGEXP '[0-9]{{17}}[.]|[0-9][eE][+]?[0-9]'
    AND REGEXP_REPLACE(document, '{_STRINGS}', '') REGEXP '[0-9]{{17}}[.]|[0-9][eE][+]?[0-9]'
  THEN
    -- As another database would give it back, it was another number.
    RETURN CONCAT('{{"$json_text":', sqlaudit_quoted(value), '}}');
  END IF;
  IF LOCATE('\\u', document) OR LOCATE('\\/', document) THEN
    -- As a string of JSON, in which only that is an escape which the trail has no need of.
    SET document = REPLACE(REPLACE(document, '\\', '\\\\'), '"', '\\"');
    SET document = REGEXP_REPLACE(document, '(?:\\\\){{4}}(*SKIP)(*F)|\\\\\\\\/', '/');
    SET document = REGEXP_REPLACE(
      document, '(?:\\\\){{4}}(*SKIP)(*F)|\\\\\\\\u(?!00[01]|0022|005[cC])', '\\\\u'
    );
    SET document = JSON_UNQUOTE(CONCAT('"', document, '"'));
  END IF;
  IF document = 'null' OR LOCATE('"$', document) AND JSON_KEYS(document) REGEXP '(\\[|, )"[$]' THEN
    RETURN CONCAT('{{"$json":', document, '}}');
  END IF;
  RETURN document;
END""",
    ),
    _SAME: (
        "one LONGTEXT CHARACTER SET utf8mb4, other LONGTEXT CHARACTER SET utf8mb4",
        rf"""BEGIN
  -- sqlaudit, version 1: whether two documents are one, in any order of keys; 1 and 1.0 are two
  DECLARE whole VARCHAR(200) CHARACTER SET utf8mb4
    DEFAULT '(?:{_STRINGS}|{_REAL_NUMBERS})(*SKIP)(*F)|-?[0-9]++';
  IF one IS NULL OR other IS NULL THEN
    RETURN one <=> other;
  END IF;
  SET one = sqlaudit_document(one), other = sqlaudit_document(other);
  RETURN BINARY one = BINARY other
    OR JSON_EQUALS(one, other)
    AND JSON_EQUALS(REGEXP_REPLACE(one, whole, '"\\0"'), REGEXP_REPLACE(other, whole, '"\\0"'));
END""",
    ),
}
"""Parameters and body by name."""
