"""An async-first audit trail for SQLAlchemy 2: who changed which row, when, from what, to what."""

from sqlaudit.baseline import create_baseline, create_baseline_sync
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
from sqlaudit.retrieval import (
    count_changes,
    count_changes_by,
    count_changes_by_sync,
    count_changes_sync,
    get_changes,
    get_changes_sync,
    get_resource_changes,
    get_resource_changes_sync,
    select_changes,
    stream_changes,
    stream_changes_sync,
)
from sqlaudit.schema import (
    check_audit_tables,
    check_audit_tables_sync,
    create_audit_tables,
    create_audit_tables_sync,
)
from sqlaudit.tables import audit_metadata, trail_table
from sqlaudit.types import MASKED, Change, FieldChange, OldNew, Operation

__all__ = [
    "MASKED",
    "AuditContext",
    "AuditContextManager",
    "Change",
    "FieldChange",
    "OldNew",
    "Operation",
    "SQLAuditConfig",
    "SQLAuditError",
    "Subscription",
    "audit_context",
    "audit_metadata",
    "bind_audit_context",
    "check_audit_tables",
    "check_audit_tables_sync",
    "clear_audit_context",
    "count_changes",
    "count_changes_by",
    "count_changes_by_sync",
    "count_changes_sync",
    "create_audit_tables",
    "create_audit_tables_sync",
    "create_baseline",
    "create_baseline_sync",
    "get_audit_context",
    "get_changes",
    "get_changes_sync",
    "get_config",
    "get_resource_changes",
    "get_resource_changes_sync",
    "has_config",
    "register_hooks",
    "select_changes",
    "set_audit_context",
    "set_config",
    "stream_changes",
    "stream_changes_sync",
    "track",
    "track_table",
    "trail_table",
]
