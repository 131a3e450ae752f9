"""What stands in a database for the capture by triggers, and what should."""

from dataclasses import dataclass, field
from typing import Final, Literal

from sqlalchemy import Table

from sqlaudit.exceptions import TrackingError

__all__ = ["GUARD", "UNREADABLE", "DatabaseObject", "no_table"]

GUARD: Final = "sqlaudit_guard"
"""In the names of what guards the trail."""

UNREADABLE: Final = "unreadable"
"""In place of the definition of what this user of the database may not look into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseObject:
    """A trigger, or a function or table that triggers use. Those that do the same are equal."""

    kind: Literal["trigger", "function", "table"]
    schema: str | None
    """None: the database has no schemas."""
    table: str | None
    """The table that a trigger fires for; None for a function, or a table that triggers use."""
    name: str
    definition: str
    """What it does, as the database gives it back: what stands is as it should be if this is equal."""
    create: str = field(compare=False)
    """The statement that creates it, readable and without parameters; it replaces one where the database can."""
    drop: str = field(compare=False)
    """The statement that drops it, if it is there."""
    serves: frozenset[tuple[str | None, str]] = field(default=frozenset(), compare=False)
    """Schema and name of the tables whose rows a trigger records: others than it fires for, where foreign keys act."""

    @property
    def identity(self) -> tuple[str, str | None, str | None, str]:
        """What tells it from others."""
        return self.kind, self.schema, self.table, self.name

    @property
    def is_guard(self) -> bool:
        """Whether it guards the trail: it stays until somebody drops it."""
        return GUARD in self.name

    @property
    def is_recording(self) -> bool:
        """Whether it writes the trail."""
        return self.kind == "trigger" and not self.is_guard

    @property
    def is_readable(self) -> bool:
        """Whether this user of the database may look into it."""
        return not self.definition.endswith(UNREADABLE)


def no_table(table: Table) -> TrackingError:
    """Return the error of what is tracked, and can't have triggers."""
    return TrackingError(
        f"{table.fullname} is a view, or temporary or foreign, and has no triggers that could write the trail; record it "
        f"with capture=Capture.SESSION."
    )
