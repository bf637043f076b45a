-- The archive: every accepted event, once, with what it was attributed to and its original bytes. The only table
-- with personal data. Written by rate_usage; read by explain, audits and, as input, by rate_usage itself.
CREATE TABLE usage_events (
    tenant_id          LowCardinality(String),
    billing_account_id LowCardinality(String),
    account_id         LowCardinality(String),
    time               DateTime64(6, 'UTC')   COMMENT 'event time',
    identity           FixedString(16)        COMMENT 'hash of tenant, source and id (12 bytes) and of the content (4 bytes)',
    source             LowCardinality(String),
    id                 String,
    type               LowCardinality(String),
    subject            LowCardinality(String),
    rating_keys        Array(UInt64)          COMMENT 'one for each meter the event feeds: rating_keys.rating_key_id',
    quantities         Array(Decimal(38, 12)) COMMENT 'in the order of rating_keys, in the meter''s unit; 1 for count and distinct',
    counted_values     Array(String)          COMMENT 'in the order of rating_keys; the value a distinct meter counts, else empty',
    received_time      DateTime64(6, 'UTC'),
    payload            String CODEC(ZSTD(1))  COMMENT 'the original bytes',
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(time)
-- Readers go from a line item (account, window) to its events; identity, last, makes a replay the same row.
ORDER BY (tenant_id, billing_account_id, time, identity)
SETTINGS merge_selector_base = 32;
