-- The trail's table as sqlaudit 0.1.0 makes it on mariadb, and changes as it writes them. From its release on, never edited.

CREATE TABLE sqlaudit_change (
    id BIGINT NOT NULL COMMENT 'grows in the order of time; for one resource, the order in which it was changed' AUTO_INCREMENT,
    transaction_id CHAR(32) NOT NULL COMMENT 'the same for all changes of one transaction',
    recorded_at DATETIME(6) NOT NULL COMMENT 'the database''s clock at the statement, UTC',
    operation VARCHAR(8) NOT NULL COMMENT 'insert, update, delete or baseline',
    resource_type VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL COMMENT 'the label of the changed table',
    resource_id VARCHAR(660) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL COMMENT 'the key; a JSON array for several columns',
    changed_by VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin COMMENT 'who; NULL if nobody knows',
    impersonated_by VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin COMMENT 'who acted as changed_by',
    reason TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin COMMENT 'why',
    context JSON COMMENT 'extra facts',
    old_values JSON COMMENT 'by column key; NULL for an insert',
    new_values JSON COMMENT 'by column key; NULL for a delete',
    PRIMARY KEY (id)
)COMMENT='the audit trail, append-only; written by sqlaudit';

CREATE INDEX sqlaudit_change_resource ON sqlaudit_change (resource_type, resource_id, id);

CREATE INDEX sqlaudit_change_actor ON sqlaudit_change (changed_by, recorded_at);

CREATE INDEX sqlaudit_change_transaction ON sqlaudit_change (transaction_id);

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (1, '01a209de815978159ea272146814f448', '2026-11-23 19:25:06.782309', 'insert', 'Customer', '1', '42', NULL, 'GDPR request 17', '{"request_id": "r-1"}', NULL, '{"id":1,"name":"Joan","balance":"1.50"}');

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (2, '01a209de815978159ea272146814f448', '2026-11-23 19:25:06.782309', 'insert', 'Customer', '2', '42', NULL, 'GDPR request 17', '{"request_id": "r-1"}', NULL, '{"id":2,"name":"Olena O''Hara","balance":"7.00"}');

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (4, '01a209de816078e6a180ead62ebf25e6', '2026-11-23 19:25:06.785894', 'update', 'Customer', '1', '43', '42', NULL, NULL, '{"name":"Joan"}', '{"name":"Jane"}');

INSERT INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id, changed_by, impersonated_by, reason, context, old_values, new_values)
VALUES (5, '01a209de81627383a2df0615fabcd594', '2026-11-23 19:25:06.788368', 'delete', 'Customer', '2', NULL, NULL, NULL, NULL, '{"id":2,"name":"Olena O''Hara","balance":"7.00"}', NULL);
