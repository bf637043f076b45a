-- One row for each run of rate_usage that finished: what came in and where it went (the conservation law).
CREATE TABLE runs (
    run_id         String,
    started_at     DateTime64(3, 'UTC'),
    finished_at    DateTime64(3, 'UTC'),
    received_time  DateTime64(6, 'UTC')   COMMENT 'the --now of the run',
    inputs         Array(String),
    catalog_digest String,
    version        String                 COMMENT 'of Meterline',
    records        UInt64                 COMMENT 'records read',
    accepted       UInt64,
    duplicates     UInt64,
    rejected       Map(String, UInt64)    COMMENT 'by stage/reason',
    line_items     UInt64                 COMMENT 'rows written'
) ENGINE = ReplacingMergeTree
ORDER BY (started_at, run_id);
