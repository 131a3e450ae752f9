"""
Every error that sqlaudit raises.

    SQLAuditError
    ├── ConfigurationError (ValueError)     SQLAuditConfig, set_config, register_hooks
    ├── TrackingError (ValueError)          track_table, track: what is declared
    │   ├── UnknownFieldError
    │   ├── UnsupportedTypeError
    │   └── UntrackedError (LookupError)
    ├── ContextError (ValueError)           who and why
    │   ├── ActorRequiredError
    │   └── ActorCallbackError
    ├── CaptureError (RuntimeError)         a change that can't be recorded
    │   ├── UncapturedStatementError
    │   ├── TrailMissingError
    │   ├── TrailOutdatedError
    │   ├── TrailVersionError
    │   └── TriggersMissingError
    ├── RetrievalError (ValueError)         a question to the trail
    │   ├── UnknownStateError
    │   └── NotRecordedError (AttributeError)
    ├── RetentionError (ValueError)         what shall leave the trail
    ├── RestoreError (RuntimeError)         a past state can't be written back
    │   └── UndoConflictError
    ├── ReadOnlyError (TypeError)           an object as it was then was changed, or added to a session
    └── MissingExtraError (ImportError)     an integration without the package that it integrates

    UncapturedStatementWarning (UserWarning)  instead of the error, with warn_uncaptured=True
"""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "ActorCallbackError",
    "ActorRequiredError",
    "CaptureError",
    "ConfigurationError",
    "ContextError",
    "MissingExtraError",
    "NotRecordedError",
    "ReadOnlyError",
    "RestoreError",
    "RetentionError",
    "RetrievalError",
    "SQLAuditConfigError",
    "SQLAuditError",
    "TrackingError",
    "TrailMissingError",
    "TrailOutdatedError",
    "TrailVersionError",
    "TriggersMissingError",
    "UncapturedStatementError",
    "UncapturedStatementWarning",
    "UndoConflictError",
    "UnknownFieldError",
    "UnknownStateError",
    "UnsupportedTypeError",
    "UntrackedError",
]


class SQLAuditError(Exception):
    """The root of all errors of sqlaudit."""


class ConfigurationError(SQLAuditError, ValueError):
    """The configuration is missing or can't work."""


SQLAuditConfigError = ConfigurationError
"""The name that the SQLAudit library gives to `ConfigurationError`."""


class TrackingError(SQLAuditError, ValueError):
    """A declaration of what is audited can't work."""


class UnknownFieldError(TrackingError):
    """A field was named that the model doesn't have."""

    def __init__(self, owner: str, argument: str, unknown: Iterable[str], known: Iterable[str]) -> None:
        self.owner = owner
        self.unknown = sorted(unknown)
        self.known = sorted(known)
        close = [match for name in self.unknown for match in get_close_matches(name, self.known, 1)]
        hint = f" (did you mean {', '.join(close)}?)" if close else ""
        super().__init__(
            f"{argument} names {', '.join(map(repr, self.unknown))}, which {owner} doesn't have{hint}; "
            f"its fields are {', '.join(self.known)}."
        )


class UnsupportedTypeError(TrackingError):
    """A column has a type whose values the trail can't hold exactly."""

    def __init__(self, column: str, type_: str) -> None:
        self.column = column
        self.type = type_
        super().__init__(
            f"{column} is of type {type_}, whose values can't be stored exactly in the trail; leave it out "
            f"with exclude_fields, withhold its values with masked_fields, or give the type's class the methods "
            f"to_trail(value) and from_trail(stored), as sqlaudit.types.TrailType describes them."
        )


class UntrackedError(TrackingError, LookupError):
    """Something was asked about a model that isn't tracked."""

    def __init__(self, name: str, *, is_table: bool = False) -> None:
        self.name = name
        remedy = "audit it with track()" if is_table else "decorate it with @track_table()"
        super().__init__(f"{name} is not tracked; {remedy}.")


class ContextError(SQLAuditError, ValueError):
    """An actor, reason or fact can't be stored."""


class ActorRequiredError(ContextError):
    """A change has no actor, and the configuration requires one."""

    def __init__(self, resource_types: Collection[str]) -> None:
        self.resource_types = tuple(sorted(resource_types))
        super().__init__(
            f"A change of {', '.join(self.resource_types)} has no actor and require_user=True; flush within "
            f"audit_context(user_id=...), bind one with bind_audit_context(session, user_id=...), or let "
            f"get_user_id_callback return it."
        )


class ActorCallbackError(ContextError):
    """The callback that names the actor failed, so the change fails too."""


class CaptureError(SQLAuditError, RuntimeError):
    """A change can't be recorded, and therefore isn't made."""


class UncapturedStatementError(CaptureError):
    """A statement would change tracked rows without a trail."""

    def __init__(self, statement: str, table: str, remedy: str) -> None:
        self.statement = statement
        self.table = table
        super().__init__(
            f"{statement} of the tracked table {table} would leave no trail, so it was not sent; {remedy}, or say "
            f"that it shall not be audited with execution_options(sqlaudit=False)."
        )


class UncapturedStatementWarning(UserWarning):
    """A statement changed tracked rows without a trail, and the configuration lets it."""


class TrailMissingError(CaptureError):
    """The table that holds the trail isn't in the database."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            f"The trail's table {table} isn't in the database; create it with "
            f"`await create_audit_tables(engine)`, or give sqlaudit's metadata to Alembic."
        )


class TrailOutdatedError(CaptureError):
    """The table that holds the trail lacks columns that this version of sqlaudit writes."""

    def __init__(self, table: str, missing: Iterable[str]) -> None:
        self.table = table
        self.missing = list(missing)
        super().__init__(
            f"The trail's table {table} lacks {', '.join(self.missing)}; it is another table of that name, or one of "
            f"an earlier version: migrate it with `await upgrade_audit_tables(engine)` or a new revision of Alembic, "
            f"or name another with SQLAuditConfig(trail=trail_table(...))."
        )


class TrailVersionError(CaptureError):
    """A migration wants a version of the trail's schema that this release of sqlaudit doesn't know."""

    def __init__(self, table: str, version: int, newest: int) -> None:
        self.table = table
        self.version = version
        self.newest = newest
        super().__init__(
            f"There is no version {version} of the schema of the trail {table}: this release of sqlaudit knows 1 to "
            f"{newest}, and 0 for none; install the release that the migration was made with, or a later one."
        )


class RetentionError(SQLAuditError, ValueError):
    """What shall be purged from the trail wasn't said as it must be."""


class TriggersMissingError(CaptureError):
    """A table that triggers shall capture has none in the database: what was written would leave no trail."""

    def __init__(self, tables: Iterable[str]) -> None:
        self.tables = sorted(tables)
        super().__init__(
            f"The triggers of {', '.join(self.tables)} are not in the database; call create_audit_tables(engine) once, "
            f"or migrate it, or track with capture=Capture.SESSION."
        )


class RetrievalError(SQLAuditError, ValueError):
    """A question to the trail can't be answered as it was put."""


class UnknownStateError(RetrievalError):
    """The state of a row at a moment can't be known: the trail has no insert or baseline to begin with."""

    def __init__(self, resource_type: str, resource_id: str) -> None:
        self.resource_type = resource_type
        self.resource_id = resource_id
        super().__init__(
            f"What {resource_type} {resource_id} was at that moment can't be known: the trail has neither its insert "
            f"nor a baseline from before; ask for a moment after its first insert or baseline, and give the rows that "
            f"existed before auditing began a baseline."
        )


class NotRecordedError(RetrievalError, AttributeError):
    """An attribute of an object as it was then was asked for, and the trail doesn't hold it."""

    def __init__(self, owner: str, attribute: str) -> None:
        self.owner = owner
        self.attribute = attribute
        super().__init__(
            f"{owner}.{attribute} isn't known as of then: it wasn't recorded, or is a relationship; read a "
            f"relationship with get_resource_snapshot(..., include=[{attribute!r}])."
        )


class RestoreError(SQLAuditError, RuntimeError):
    """A past state can't be written back."""


class UndoConflictError(RestoreError):
    """A transaction can't be undone without undoing what others did since."""

    def __init__(self, transaction_id: object, conflicts: Iterable[Any]) -> None:
        self.transaction_id = transaction_id
        self.conflicts = tuple(conflicts)
        """What stands against it: of `timetravel.Conflict`."""
        super().__init__(
            f"The transaction {transaction_id} can't be undone: {'; '.join(map(str, self.conflicts))}. "
            f"Undo the later changes first, or all the same with force=True."
        )


class ReadOnlyError(SQLAuditError, TypeError):
    """An object as it was at a moment in the past was changed, or added to a session."""

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name
        super().__init__(
            f"This {class_name} is a copy of the past, which can't be changed or added to a session; write the past "
            f"back with restore_resource(), or change the object of today."
        )


class MissingExtraError(SQLAuditError, ImportError):
    """A module was imported without the package that it is for."""

    def __init__(self, module: str, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"{module} needs {extra}, which isn't installed; `pip install {extra}`, or install your checkout or wheel "
            f"of sqlaudit with its extra [{extra}] (on PyPI, the name is another library's)."
        )
