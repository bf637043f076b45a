-- Rated usage: absolute rows, so that writing one again changes nothing. Written by rate_usage; read by invoices,
-- the cost of an account, and finance. Read it with FINAL.
CREATE TABLE line_items (
    tenant_id          LowCardinality(String),
    billing_account_id LowCardinality(String)  COMMENT 'who gets the invoice',
    period_start       DateTime64(0, 'UTC')         COMMENT 'billing period [start, end)',
    period_end         DateTime64(0, 'UTC'),
    subscription_id    LowCardinality(String)  COMMENT 'empty: unpriced usage',
    charge_id          LowCardinality(String),
    meter_id           LowCardinality(String),
    rate_card_version  LowCardinality(String),
    dimensions         Map(String, String),
    rating_key_id      UInt64                  COMMENT 'the columns above, hashed; usage_events.rating_keys has it',
    window_start       DateTime64(0, 'UTC')         COMMENT 'usage window [start, end)',
    window_end         DateTime64(0, 'UTC'),
    account_id         LowCardinality(String)  COMMENT 'who used it',
    line_item_id       String,
    quantity_from      Decimal(38, 12)         COMMENT 'cumulative in the period, before this line',
    quantity_to        Decimal(38, 12)         COMMENT 'cumulative in the period, after this line',
    amount             Decimal(38, 18)         COMMENT 'currency units, unrounded',
    currency           LowCardinality(String)  COMMENT 'ISO 4217; empty: unpriced',
    tiers Nested (
        tier       UInt16,
        quantity   Decimal(38, 12),
        unit_price Decimal(38, 18),
        flat_fee   Decimal(38, 18),
        amount     Decimal(38, 18)
    ),
    event_count        UInt64                  COMMENT 'events of this line that count',
    voided_count       UInt64                  COMMENT 'events of this line that were voided, and count no more',
    revision           UInt64                  COMMENT 'events that determine this row, voided ones twice; the highest wins',
    INDEX by_line_item_id line_item_id TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = ReplacingMergeTree(revision)
PARTITION BY toYYYYMM(period_start)
-- Readers filter by account, then period; window and account, last, make a replay the same row.
ORDER BY (tenant_id, billing_account_id, period_start, subscription_id, charge_id, meter_id, rate_card_version,
          rating_key_id, window_start, account_id);
