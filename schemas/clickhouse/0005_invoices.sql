-- Drafts are replaced at will; an issued invoice never changes: corrections are further invoices and credit notes.
CREATE TABLE invoices (
    invoice_id         String                 COMMENT 'hash of the content',
    number             String                 COMMENT 'empty for drafts',
    status             Enum8('draft' = 1, 'issued' = 2),
    kind               Enum8('invoice' = 1, 'credit_note' = 2),
    tenant_id          LowCardinality(String),
    billing_account_id LowCardinality(String),
    period             LowCardinality(String) COMMENT 'label of the billing period, like 2026-10',
    sequence           UInt32                 COMMENT '1 for the first of an account, period and currency',
    currency           LowCardinality(String) COMMENT 'ISO 4217',
    total              Decimal(76, 18)        COMMENT 'sum of the lines, rounded to the minor unit',
    content_hash       String                 COMMENT 'SHA-256 of the lines',
    corrects           String                 COMMENT 'number of the first invoice of the period, for later ones',
    made_at            DateTime('UTC'),
    version            UInt64                 COMMENT 'drafts: nanoseconds when made; issued: the greatest value, so that it wins'
) ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant_id, billing_account_id, period, currency, sequence);
