"""What users give and receive: operations, keys, field changes."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, Protocol, TypeAlias, final, runtime_checkable

__all__ = [
    "MASKED",
    "FieldChange",
    "Masked",
    "Operation",
    "ResourceIdType",
    "SortDirection",
    "SortField",
    "TrailType",
    "UserIdType",
]

ResourceIdType: TypeAlias = Any
"""
The key of a resource: the Python value of its key column, or its text; a
tuple for a key of several columns.
"""

UserIdType: TypeAlias = str | int | uuid.UUID
"""The id of a user, as the application knows it. The trail stores its text."""

SortField: TypeAlias = Literal["timestamp", "resource_id", "changed_by", "operation"]
"""What retrieval can sort by. Changes that are equal in it come in the order of time."""

SortDirection: TypeAlias = Literal["asc", "desc"]


class Operation(StrEnum):
    """What was done to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    BASELINE = "baseline"
    """The row existed before auditing began; this is its state then."""


@final
class Masked:
    """The type of `MASKED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<masked>"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MASKED"


MASKED: Final = Masked()
"""Stands in a field change for a value that was withheld from the trail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """
    The old and new value of one field within one change.

    Detached from any session. Values have the Python types of the model's
    columns; `MASKED` stands for a value that was withheld.
    """

    change_id: int
    """The id of the change that this is a part of; grows in the order of time."""
    transaction_id: uuid.UUID
    """The same for all changes of one database transaction."""
    timestamp: datetime
    """When the row was changed, by the database's clock; aware, in the configured zone."""
    operation: Operation
    resource_type: str
    """The label of the changed table."""
    resource_id: Any
    """The key of the row: a Python value, a tuple if it has several columns."""
    field_name: str
    old_value: Any
    """The value before; None for an insert or a baseline."""
    new_value: Any
    """The value after; None for a delete."""
    changed_by: Any
    """The actor, of the type of the user model's id (str without a user model); None if unknown."""
    impersonated_by: Any
    """Who acted as *changed_by*, if anybody did."""
    reason: str | None
    context: Mapping[str, Any]
    """The extra facts that were given to the audit context."""


@runtime_checkable
class TrailType(Protocol):
    """
    A column type that says itself how its values are stored in the trail.

    For types of your own, or of a library, whose values sqlaudit can't store
    exactly by itself: `PickleType`, PostGIS's, those with a ``bind_expression``.
    Give their class these two methods; None, SQL NULL, is never asked about.
    """

    def to_trail(self, value: Any, /) -> Any:
        """Return *value*, as the type reads it, as plain JSON: equal values equally, different ones differently."""

    def from_trail(self, stored: Any, /) -> Any:
        """Return the value of what `to_trail` returned."""
