-- Double entry: the entries of an invoice add up to zero. Only issued invoices are posted.
CREATE TABLE postings (
    posting_id         String,
    invoice_id         String,
    tenant_id          LowCardinality(String),
    billing_account_id LowCardinality(String),
    ledger_account     LowCardinality(String) COMMENT 'accounts_receivable or revenue:CHARGE',
    amount             Decimal(76, 18)        COMMENT 'debit positive, credit negative',
    currency           LowCardinality(String),
    posted_at          DateTime('UTC')
) ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, billing_account_id, invoice_id, posting_id);
