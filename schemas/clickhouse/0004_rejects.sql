-- What could not go on, with the reason and the original bytes. Written by rate_usage; read by `meterline rejects`.
CREATE TABLE rejects (
    reject_id     String,
    stage         LowCardinality(String),
    reason        LowCardinality(String)  COMMENT 'a code of docs/rules.md, section 1',
    message       String,
    payload       String CODEC(ZSTD(1))   COMMENT 'the original bytes',
    origin        String                  COMMENT 'file or subscription it came from',
    position      UInt64                  COMMENT 'byte offset, row or message number in it',
    received_time DateTime64(6, 'UTC')
) ENGINE = ReplacingMergeTree
ORDER BY (reason, reject_id);
