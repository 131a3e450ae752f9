"""
How the values of a column are written in the trail: plain JSON, by the column's type.

What is stored is what the column's `TypeDecorator` would send to the database,
so a column that is encrypted in its table is encrypted in the trail. A value
is written as it would be *read back*: an int that was given as ``"1"`` is 1,
a decimal has the column's scale, SQLite's datetimes have lost their offset.
"""

from sqlaudit.codec.documents import JSON_NULL
from sqlaudit.codec.finding import codec_of, is_supported
from sqlaudit.codec.values import MASK, Codec, JSONValue, decode_value, key_text, key_value

__all__ = [
    "JSON_NULL",
    "MASK",
    "Codec",
    "JSONValue",
    "codec_of",
    "decode_value",
    "is_supported",
    "key_text",
    "key_value",
]
