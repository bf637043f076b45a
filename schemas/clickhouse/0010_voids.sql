-- Events that count no more. Written by rate_usage from voiding events, before these are archived; read by rate_usage,
-- explain, audits and whoever adds up usage_events. The columns name an archived event; an id that was reused with
-- another time is two of them.
CREATE TABLE voids (
    tenant_id     LowCardinality(String),
    time          DateTime64(6, 'UTC')   COMMENT 'of the voided event, and of the voiding one',
    source        LowCardinality(String) COMMENT 'of the voided event',
    id            String                 COMMENT 'of the voided event',
    reason        String,
    void_id       String                 COMMENT 'of the voiding event, which is in usage_events with source /meterline/void',
    received_time DateTime64(6, 'UTC')   COMMENT 'of the voiding event'
) ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, time, source, id);
