"""What the package promises: its names, and nothing beside them."""

import importlib
import pkgutil
from types import ModuleType

import pytest

import sqlaudit
from sqlaudit.exceptions import MissingExtraError

PUBLIC_MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(sqlaudit.__path__, "sqlaudit.")
    if not any(part.startswith("_") for part in found.name.split("."))
)


def test_the_package_exports_exactly_its_public_names() -> None:
    """Whatever is in the package without an underscore is exported, modules aside, and the other way round."""
    public = {
        name for name, value in vars(sqlaudit).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert set(sqlaudit.__all__) == public
    assert len(sqlaudit.__all__) == len(public)


def test_a_star_import_gives_the_everyday_names() -> None:
    """The names of the design's example are there for everybody."""
    everyday = {
        "SQLAuditConfig",
        "audit_context",
        "clear_audit_context",
        "create_audit_tables",
        "diff_resource",
        "get_audit_context",
        "get_resource_changes",
        "get_resource_changes_sync",
        "get_resource_snapshot",
        "get_snapshots",
        "load_as_of",
        "register_hooks",
        "restore_resource",
        "set_audit_context",
        "set_config",
        "track",
        "track_table",
        "undo_transaction",
    }

    assert everyday <= set(sqlaudit.__all__)


def test_the_modules_of_sqlaudit_are_there() -> None:
    """The modules that the SQLAudit library has are modules of this one."""
    names = {f"sqlaudit.{name}" for name in ("config", "context", "decorators", "hooks", "retrieval", "types")}

    assert names <= set(PUBLIC_MODULES)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_a_public_module_has_a_docstring(name: str) -> None:
    """Every public module says what it answers."""
    module = import_with_extra(name)

    assert module.__doc__


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_a_public_module_says_what_it_exports(name: str) -> None:
    """Every public module has an `__all__` of names that it has."""
    module = import_with_extra(name)

    exported = module.__all__

    assert [each for each in exported if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", sqlaudit.__all__)
def test_an_everyday_name_is_exported_by_its_module_too(name: str) -> None:
    """A name that the package re-exports is a promise of the module that it comes from."""
    inside = [module for module in PUBLIC_MODULES if not module.startswith("sqlaudit.integrations.")]
    homes = [module for module in inside if name in getattr(importlib.import_module(module), "__all__", ())]

    assert len(homes) == 1
    assert getattr(importlib.import_module(homes[0]), name) is getattr(sqlaudit, name)


def import_with_extra(name: str) -> ModuleType:
    """Return the module; the test is skipped, which CI refuses, where the package is missing that it integrates."""
    try:
        return importlib.import_module(name)
    except MissingExtraError as missing:
        pytest.skip(str(missing))
