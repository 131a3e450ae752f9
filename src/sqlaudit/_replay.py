"""Stored changes folded into a state, and two states compared. No session in here."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

from sqlaudit.codec import JSONValue
from sqlaudit.types import Operation

__all__ = ["MISSING", "FieldDiff", "Folded", "Missing", "StoredChange", "folded", "paths_between", "unwound"]

Path: TypeAlias = tuple[str | int, ...]
"""Where in a JSON document: keys and indexes, outermost first."""

OPENING: Final = (Operation.INSERT.value, Operation.BASELINE.value)
"""Changes that tell the whole row, and after which it is there."""

COMPLETE: Final = (*OPENING, Operation.DELETE.value)
"""Changes that tell the whole row: nothing before them has to be read to know it."""


@final
class Missing:
    """The type of `MISSING`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<missing>"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
"""Stands in a diff for the value of a field, or a place in a document, that wasn't there."""


@dataclass(frozen=True, slots=True)
class StoredChange:
    """A change as it is stored, under the column keys of today."""

    id: int
    operation: str
    old: Mapping[str, JSONValue]
    new: Mapping[str, JSONValue]


@dataclass(frozen=True, slots=True)
class Folded:
    """What changes lead to."""

    values: dict[str, JSONValue] | None
    """The stored values by column key; None when there is no row."""
    is_known: bool
    """Whether it is the whole truth: the changes begin with one that tells the whole row."""
    change_id: int | None
    """The last change that was applied."""


def folded(changes: Iterable[StoredChange]) -> Folded:
    """Return the state of a row after *changes*, oldest first."""
    values: dict[str, JSONValue] | None = None
    is_known, last = False, None
    for change in changes:
        last = change.id
        if change.operation == Operation.DELETE.value:
            values, is_known = None, True
        elif change.operation in OPENING:
            values, is_known = dict(change.new), True
        else:
            # An update of a row that the trail knows as deleted: it came back unseen.
            is_known = is_known and values is not None
            values = {**(values or {}), **change.new}
    return Folded(values, is_known, last)


def unwound(changes: Iterable[StoredChange]) -> Folded:
    """
    Return the state of a row before *changes*, newest first.

    It is known as far as they tell it: wholly, if one of them is a delete or a
    baseline, or the oldest an insert; otherwise the fields that were updated.
    """
    values: dict[str, JSONValue] | None = {}
    is_known, last = False, None
    for change in changes:
        last = change.id
        if change.operation == Operation.INSERT.value:
            values, is_known = None, True
        elif change.operation == Operation.DELETE.value:
            values, is_known = dict(change.old), True
        elif change.operation == Operation.BASELINE.value:
            values, is_known = dict(change.new), True
        else:
            is_known = is_known and values is not None
            values = {**(values or {}), **change.old}
    return Folded(values, is_known, last)


# --- two states ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """The value of a field at two moments."""

    old: Any
    """The value at the start; `MISSING` if there was no row, or the field wasn't recorded yet."""
    new: Any
    """The value at the end; `MISSING` likewise."""

    def json_changes(self) -> dict[Path, "FieldDiff"]:
        """
        Return what differs within two JSON values, by path.

        ``("address", "city")`` leads through objects, and numbers through lists,
        which are compared place by place. A place that only one of them has is
        `MISSING` in the other; values that aren't both objects, or both lists,
        differ as a whole, under the path ``()``.
        """
        return dict(paths_between(self.old, self.new))

    def text_diff(self, *, context: int = 3) -> str:
        """
        Return the unified diff of two texts, without a header; None and `MISSING` are empty.

        Args:
            context: so many unchanged lines around each change.
        """
        sides = ["" if value is None or value is MISSING else str(value) for value in (self.old, self.new)]
        old, new = (side.splitlines() for side in sides)
        lines = difflib.unified_diff(old, new, n=context, lineterm="")
        # The first two say "---" and "+++", and nothing else without names of files.
        return "\n".join(list(lines)[2:])


def paths_between(old: Any, new: Any, path: Path = ()) -> Iterator[tuple[Path, FieldDiff]]:
    """Yield the places in which two documents differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from paths_between(old.get(key, MISSING), new.get(key, MISSING), (*path, key))
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        for index in range(max(len(old), len(new))):
            before, after = (side[index] if index < len(side) else MISSING for side in (old, new))
            yield from paths_between(before, after, (*path, index))
    elif isinstance(old, bool) is not isinstance(new, bool) or old != new:
        # For Python, true is 1.
        yield path, FieldDiff(old, new)
