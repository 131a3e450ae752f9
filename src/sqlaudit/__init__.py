"""An async-first audit trail for SQLAlchemy 2: who changed which row, when, from what, to what."""

from sqlaudit.config import SQLAuditConfig, get_config, has_config, set_config
from sqlaudit.context import (
    AuditContext,
    AuditContextManager,
    audit_context,
    bind_audit_context,
    clear_audit_context,
    get_audit_context,
    set_audit_context,
)
from sqlaudit.decorators import track, track_table
from sqlaudit.exceptions import SQLAuditError
from sqlaudit.hooks import Subscription, register_hooks
from sqlaudit.retrieval import get_resource_changes, get_resource_changes_sync
from sqlaudit.schema import (
    check_audit_tables,
    check_audit_tables_sync,
    create_audit_tables,
    create_audit_tables_sync,
)
from sqlaudit.tables import audit_metadata, trail_table
from sqlaudit.timetravel import (
    FieldDiff,
    Snapshot,
    diff_resource,
    diff_resource_sync,
    get_resource_snapshot,
    get_resource_snapshot_sync,
    get_snapshots,
    get_snapshots_sync,
    load_as_of,
    load_as_of_sync,
    restore_resource,
    restore_resource_sync,
    undo_transaction,
    undo_transaction_sync,
)
from sqlaudit.types import MASKED, FieldChange, Operation

__all__ = [
    "MASKED",
    "AuditContext",
    "AuditContextManager",
    "FieldChange",
    "FieldDiff",
    "Operation",
    "SQLAuditConfig",
    "SQLAuditError",
    "Snapshot",
    "Subscription",
    "audit_context",
    "audit_metadata",
    "bind_audit_context",
    "check_audit_tables",
    "check_audit_tables_sync",
    "clear_audit_context",
    "create_audit_tables",
    "create_audit_tables_sync",
    "diff_resource",
    "diff_resource_sync",
    "get_audit_context",
    "get_config",
    "get_resource_changes",
    "get_resource_changes_sync",
    "get_resource_snapshot",
    "get_resource_snapshot_sync",
    "get_snapshots",
    "get_snapshots_sync",
    "has_config",
    "load_as_of",
    "load_as_of_sync",
    "register_hooks",
    "restore_resource",
    "restore_resource_sync",
    "set_audit_context",
    "set_config",
    "track",
    "track_table",
    "trail_table",
    "undo_transaction",
    "undo_transaction_sync",
]
