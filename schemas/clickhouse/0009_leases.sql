-- Who may write: one rating job, and one invoice job, at a time. A holder that does not renew its lease loses it.
CREATE TABLE leases (
    name       LowCardinality(String) COMMENT 'rate_usage or invoice_accounts',
    holder     String                 COMMENT 'id of the run',
    host       String,
    process    UInt32,
    started_at DateTime64(3, 'UTC'),
    expires_at DateTime64(3, 'UTC')   COMMENT 'by the server''s clock; in the past: released or lost',
    version    UInt64                 COMMENT 'counts the renewals; the highest wins'
) ENGINE = ReplacingMergeTree(version)
ORDER BY (name, holder);
