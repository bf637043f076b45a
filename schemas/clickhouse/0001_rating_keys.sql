-- What the 64-bit ids in usage_events.rating_keys stand for. Written by rate_usage, read by explain and audits.
CREATE TABLE rating_keys (
    rating_key_id      UInt64                 COMMENT 'xxh3 of rating_key',
    rating_key         String                 COMMENT 'JSON: tenant, billing account, subscription, charge, meter, version, period, dimensions',
    tenant_id          LowCardinality(String),
    billing_account_id LowCardinality(String),
    subscription_id    LowCardinality(String) COMMENT 'empty: unpriced usage',
    charge_id          LowCardinality(String),
    meter_id           LowCardinality(String),
    rate_card_version  LowCardinality(String),
    period_start       DateTime64(0, 'UTC'),
    period_end         DateTime64(0, 'UTC'),
    dimensions         Map(String, String)
) ENGINE = ReplacingMergeTree
ORDER BY (rating_key_id, rating_key);
