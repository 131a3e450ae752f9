"""What a codec is, and how keys are written. No column types in here."""

import datetime as dt
import decimal
import enum
import ipaddress
import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, type_coerce
from sqlalchemy.types import TypeEngine

from sqlaudit.codec.documents import is_same_document
from sqlaudit.types import MASKED

__all__ = ["MASK", "Codec", "JSONValue", "decode_value", "key_text", "key_value"]

JSONValue: TypeAlias = Any
"""None, bool, int, float, str, or a list or dict of them."""

MASK: Final[JSONValue] = {"$masked": True}
"""What is stored for a value that is withheld; retrieval gives `MASKED` for it."""

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
    plain: frozenset[type] = frozenset()
    """Values of exactly these types, read from the database, are stored as they are."""
    one_form: bool = True
    """Equal values have equal encodings; else they are compared decoded."""
    json: bool = False
    """The column holds JSON: None in memory may be an SQL NULL or the JSON value null."""
    keeps_text: bool = False
    """The column keeps a document as it was written: 1 and 1.0 are two, though JSON has one kind of number."""
    is_altered: bool = False
    """The database rounds or pads what it is given: a value is known when it was read back."""
    longest: int | None = None
    """Of longer texts, the database cuts off blanks at the end."""
    sees_null: bool = False
    """*encode* and *decode* are asked about None, too: a decorator may store it as something else."""

    is_padded: bool = False
    """Trailing blanks mean nothing: the database adds them."""
    raw: "tuple[TypeEngine[Any], Codec] | None" = None
    """Of a decorated type: the type underneath, as which a value can be read without decoding it."""
    is_changed: Callable[[Any], bool] | None = None
    """Says whether the database may make something else of a value, or a cipher encodes it otherwise each time."""

    @property
    def as_read(self) -> "Codec":
        """The codec of what `readable` columns give: for a decorated type, what the row itself holds."""
        return self if self.raw is None else self.raw[1]

    def readable(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return *column* as it is read to be stored: an encrypted value isn't decrypted, and not encrypted anew."""
        return column if self.raw is None else type_coerce(column, self.raw[0])

    def is_plain(self, value: object) -> bool:
        """Return whether *value*, as it is sent, is stored as it is."""
        return type(value) in self.plain and not self._is_cut(value)

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
            return is_same_document(stored, other, keeps_text=self.keeps_text)
        if stored == other:
            return True
        # Not every value's == says True or False, and what can't say is another value.
        return not self.one_form and (self.load(stored) == self.load(other)) is True

    def must_be_read(self, value: object) -> bool:
        """Return whether what the row holds can't be told from the Python value that was sent."""
        if value is None:
            return False
        return self.is_altered or self._is_cut(value) or (self.is_changed is not None and self.is_changed(value))

    def _is_cut(self, value: object) -> bool:
        return self.longest is not None and isinstance(value, str) and len(value) > self.longest

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
