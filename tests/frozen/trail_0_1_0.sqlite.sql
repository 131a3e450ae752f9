-- The trail's table as sqlaudit 0.1.0 makes it on sqlite, and changes as it writes them. From its release on, never edited.

CREATE TABLE sqlaudit_change (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    transaction_id CHAR(32) NOT NULL,
    recorded_at DATETIME NOT NULL,
    operation VARCHAR(8) NOT NULL,
    resource_type VARCHAR(100) NOT NULL,
    resource_id TEXT NOT NULL,
    changed_by VARCHAR(255),
    impersonated_by VARCHAR(255),
    reason TEXT,
    context JSON,
    old_values JSON,
    new_values JSON
);

CREATE INDEX sqlaudit_change_resource ON sqlaudit_change (resource_type, resource_id, id);

CREATE INDEX sqlaudit_change_transaction ON sqlaudit_change (transaction_id);

CREATE INDEX sqlaudit_change_actor ON sqlaudit_change (changed_by, recorded_at);

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (1, '01a209d694627e4cb28ea82a326271ad', '2026-11-23 19:16:27.365349', 'insert', 'Customer', '1', '42', NULL, 'GDPR request 17', '{"request_id": "r-1"}', NULL, '{"id":1,"name":"Joan","balance":"1.50"}');

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (2, '01a209d694627e4cb28ea82a326271ad', '2026-11-23 19:16:27.365349', 'insert', 'Customer', '2', '42', NULL, 'GDPR request 17', '{"request_id": "r-1"}', NULL, '{"id":2,"name":"Olena O''Hara","balance":"7.00"}');

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (3, '01a209d6946a7b26bfc42fd2a89a2223', '2026-11-23 19:16:27.371408', 'update', 'Customer', '1', '43', '42', NULL, NULL, '{"name":"Joan"}', '{"name":"Jane"}');

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (4, '01a209d6946d7ce9a6636261516535f8', '2026-11-23 19:16:27.373988', 'delete', 'Customer', '2', NULL, NULL, NULL, NULL, '{"id":2,"name":"Olena O''Hara","balance":"7.00"}', NULL);
