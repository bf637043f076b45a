-- Lines of drafts and issued invoices. A line whose invoice_id is in no row of invoices belongs to an attempt that
-- did not finish, or to a draft that was replaced, and counts nowhere.
CREATE TABLE invoice_lines (
    invoice_id         String,
    line_number        UInt32,
    invoice_line_id    String,
    tenant_id          LowCardinality(String),
    billing_account_id LowCardinality(String),
    account_id         LowCardinality(String) COMMENT 'who used it; the subscription''s account for fixed fees',
    subscription_id    LowCardinality(String),
    charge_id          LowCardinality(String),
    meter_id           LowCardinality(String) COMMENT 'empty for fixed fees',
    rate_card_version  LowCardinality(String),
    rating_key_id      UInt64                 COMMENT 'with account_id: what the line is about, also in line_items',
    dimensions         Map(String, String),
    period_start       DateTime64(0, 'UTC'),
    period_end         DateTime64(0, 'UTC'),
    description        String,
    unit               LowCardinality(String),
    quantity           Decimal(38, 12)        COMMENT 'posted by this line',
    exact_amount       Decimal(76, 18)        COMMENT 'unrounded: what the line items say by now, less what was posted',
    amount             Decimal(76, 18)        COMMENT 'rounded to the minor unit',
    currency           LowCardinality(String),
    reason             LowCardinality(String) COMMENT 'usage, fee, late_usage, correction',
    INDEX by_invoice_line_id invoice_line_id TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = ReplacingMergeTree
ORDER BY (invoice_id, line_number);
