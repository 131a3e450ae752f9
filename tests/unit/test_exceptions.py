"""The errors: one tree, and what their messages say."""

import importlib
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import sqlaudit
from sqlaudit import (
    AuditContext,
    SQLAuditConfig,
    create_audit_tables,
    create_audit_tables_sync,
    exceptions,
    get_resource_changes_sync,
    register_hooks,
    track,
    track_table,
    trail_table,
)
from sqlaudit.exceptions import (
    ActorRequiredError,
    ConfigurationError,
    MissingExtraError,
    SQLAuditConfigError,
    SQLAuditError,
    TrailMissingError,
    UncapturedStatementError,
    UnknownFieldError,
    UnsupportedTypeError,
    UntrackedError,
)

_LINE = re.compile(r"^    (?P<branch>[ │├└─]*)(?P<name>\w+(?:Error|Warning))(?: \((?P<builtin>\w+)\))?")


def drawn_tree() -> dict[str, list[str]]:
    """Return the classes that the docstring of the module draws, each with the names of its bases."""
    drawn: dict[str, list[str]] = {}
    path: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        depth = len(match["branch"]) // 4
        path[depth:] = [match["name"]]
        bases = [path[depth - 1] if depth else None, match["builtin"]]
        drawn[match["name"]] = [base for base in bases if base is not None] or ["Exception"]
    return drawn


def defined_tree() -> dict[str, list[str]]:
    """Return the classes that the module defines, each with the names of its bases."""
    return {
        cls.__name__: [base.__name__ for base in cls.__bases__]
        for cls in vars(exceptions).values()
        if isinstance(cls, type) and issubclass(cls, Exception)
    }


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    """The tree in the docstring shows every class, with its bases, the builtin ones too."""
    drawn = drawn_tree()

    assert drawn == defined_tree()
    assert "SQLAuditError" in drawn


def test_one_clause_catches_every_error() -> None:
    """Whatever isn't a warning is a SQLAuditError."""
    strays = [name for name in defined_tree() if not issubclass(getattr(exceptions, name), (SQLAuditError, Warning))]

    assert strays == []


def test_every_error_is_exported() -> None:
    """The module exports all of its classes, under the names of SQLAudit too."""
    names = set(exceptions.__all__)

    assert names == {*defined_tree(), "SQLAuditConfigError"}
    assert SQLAuditConfigError is ConfigurationError


@pytest.mark.parametrize("name", sorted(set(defined_tree())))
def test_every_error_has_a_docstring(name: str) -> None:
    """Each class says in its own words when it is raised."""
    cls = getattr(exceptions, name)

    assert cls.__doc__
    assert cls.__doc__ not in [base.__doc__ for base in cls.__bases__]


def test_no_other_module_defines_errors() -> None:
    """All errors of the package are in the tree."""
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(sqlaudit.__path__, "sqlaudit.")]

    strays = {
        value.__name__
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__.startswith("sqlaudit.")
        and value.__module__ != exceptions.__name__
    }

    assert strays == set()


# --- what they keep --------------------------------------------------------------------------------------------------


def test_an_unknown_field_keeps_what_was_asked_and_what_there_is() -> None:
    """The names are attributes of the error, sorted."""
    error = UnknownFieldError("the model A", "tracked_fields", ["y", "x"], ["b", "a"])

    assert (error.owner, error.unknown, error.known) == ("the model A", ["x", "y"], ["a", "b"])


def test_an_unknown_field_that_is_like_none_has_no_hint() -> None:
    """Nothing is guessed where nothing is close."""
    error = UnknownFieldError("the model A", "tracked_fields", ["zzz"], ["name"])

    assert str(error) == "tracked_fields names 'zzz', which the model A doesn't have; its fields are name."


def test_an_unsupported_type_keeps_the_column_and_its_type() -> None:
    """The column and the type are attributes of the error."""
    error = UnsupportedTypeError("t.c", "PickleType()")

    assert (error.column, error.type) == ("t.c", "PickleType()")


def test_an_untracked_model_is_a_failed_lookup() -> None:
    """Who asks for what isn't there may catch LookupError."""
    error = UntrackedError("Order")

    assert isinstance(error, LookupError)
    assert error.name == "Order"


def test_a_missing_actor_keeps_what_was_to_be_changed() -> None:
    """The resource types are an attribute of the error, each once, sorted."""
    error = ActorRequiredError({"Order", "Customer"})

    assert error.resource_types == ("Customer", "Order")


def test_an_uncaptured_statement_keeps_what_it_was() -> None:
    """The statement and the table are attributes of the error."""
    error = UncapturedStatementError("An UPDATE statement", "customer", "load the objects")

    assert (error.statement, error.table) == ("An UPDATE statement", "customer")


def test_a_missing_trail_keeps_the_name_of_its_table() -> None:
    """The table is an attribute of the error."""
    error = TrailMissingError("sqlaudit_change")

    assert error.table == "sqlaudit_change"


# --- what they say ---------------------------------------------------------------------------------------------------


def _raised(error: Exception) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


def _table(**columns: Any) -> Table:
    return Table("t", MetaData(), *(Column(name, Integer, **options) for name, options in columns.items()))


def _anything(value: Any) -> Any:
    return value


_REMEDIES: list[Any] = [
    (_raised(UnknownFieldError("A", "tracked_fields", ["nme"], ["name"])), "its fields are name."),
    (_raised(UnsupportedTypeError("t.c", "X()")), "as sqlaudit.types.TrailType describes them."),
    (_raised(UntrackedError("Order")), "decorate it with @track_table()."),
    (_raised(ActorRequiredError({"Order"})), "or let get_user_id_callback return it."),
    (
        _raised(UncapturedStatementError("A", "t", "do B")),
        "do B, or say that it shall not be audited with execution_options(sqlaudit=False).",
    ),
    (_raised(TrailMissingError("t")), "or give sqlaudit's metadata to Alembic."),
    (register_hooks, "before register_hooks(), or give config=."),
    (lambda: register_hooks(5, config=SQLAuditConfig()), "one session, or nothing for every session."),
    (lambda: AuditContext(user_id=_anything(1.5)), "expected a str, int, UUID or None."),
    (lambda: AuditContext(user_id=""), "expected an id, or None for nobody."),
    (lambda: AuditContext(facts={"a": object()}), "give str, int, float, bool, None, lists and dicts of them."),
    (lambda: AuditContext(facts={"a": "x" * 9000}), "keep large things elsewhere and give their id."),
    (lambda: SQLAuditConfig(time_zone="Mars"), "(without a system database, `pip install tzdata`)."),
    (lambda: SQLAuditConfig(user_model=int), "expected a mapped class."),
    (lambda: track_table(_anything(int)), "write @track_table(), with parentheses."),
    (lambda: track_table([]), "name at least one field, or None for all of them."),
    (lambda: track(_anything(int)), "decorate a class with @track_table()."),
    (lambda: get_resource_changes_sync(int, config=SQLAuditConfig()), "expected a mapped class or a tracked Table."),
    (
        lambda: get_resource_changes_sync(_table(id={"primary_key": True}), session=Session(), config=SQLAuditConfig()),
        "is not tracked; audit it with track().",
    ),
    (
        lambda: create_audit_tables(_anything(5)),
        "expected an engine or a connection of SQLAlchemy's.",
    ),
    (
        lambda: create_audit_tables_sync(_anything(create_async_engine("sqlite+aiosqlite://"))),
        "await the function without _sync in its name.",
    ),
    (lambda: SQLAuditConfig(capture=_anything("triggers")), "expected a Capture, such as Capture.TRIGGERS."),
    (lambda: trail_table(_anything(5)), "expected a str."),
    (lambda: trail_table(""), "expected the name of a table."),
    (lambda: trail_table("t", schema=_anything(5)), "expected a str."),
    (lambda: trail_table("t", metadata=_anything(int)), "expected a MetaData, or None."),
    (_raised(MissingExtraError("m", "celery")), "(on PyPI, the name is another library's)."),
    (lambda: track(_table(a={})), "give it one, or leave it untracked."),
    (
        lambda: track(_table(a={"primary_key": True}), masked_fields=["a"]),
        "leave it out of masked_fields, or name another resource_id_field.",
    ),
    (
        lambda: track_table(["a"], exclude_fields=["a"]),
        "leave it out of one of them.",
    ),
]


@pytest.mark.parametrize(
    ("act", "remedy"),
    [pytest.param(act, remedy, id=remedy) for act, remedy in _REMEDIES],
)
def test_a_message_ends_with_the_remedy(act: Callable[[], Any], remedy: str) -> None:
    """The last thing that an error says is what to do."""
    with pytest.raises((SQLAuditError, TypeError)) as caught:
        act()

    assert str(caught.value).endswith(remedy)


def test_every_message_is_a_sentence() -> None:
    """No message in the source ends without a full stop."""
    folder = Path(sqlaudit.__file__).parent
    raised = re.compile(
        r"raise (?:Configuration|Tracking|Context|ActorCallback|Capture|Retrieval)Error\("
        r"\s*(?P<text>(?:f?\"[^\n]*\"\s*)+)\)",
        re.MULTILINE,
    )

    messages = [
        (path.name, match["text"].strip())
        for path in sorted(folder.rglob("*.py"))
        for match in raised.finditer(path.read_text(encoding="utf-8"))
    ]

    assert len(messages) > 20
    assert [message for message in messages if not message[1].endswith('."')] == []
