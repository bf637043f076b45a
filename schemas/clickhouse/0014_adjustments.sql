-- What follows from charges: discounts, tax and the like are lines of their own.
ALTER TABLE invoice_lines
    ADD COLUMN kind   LowCardinality(String) DEFAULT 'charge' COMMENT 'charge, discount, tax, included_tax',
    ADD COLUMN source LowCardinality(String) DEFAULT ''       COMMENT 'id of the record in the catalog that made it; empty for charges',
    ADD COLUMN terms  String                 DEFAULT ''       COMMENT 'what it was computed from, as JSON with exact numbers as text';
