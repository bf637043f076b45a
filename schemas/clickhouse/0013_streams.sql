-- What a stream's run is bound to: a job that goes on from the run's state must go on alike.
-- Written when an engine takes a job of the run; the last row counts.
CREATE TABLE streams (
    run_id          String,
    subscription    String,
    horizon_seconds UInt64               COMMENT 'oldest accepted age; decides how long state is kept',
    shards          UInt32               COMMENT 'keys of deduplication',
    catalog_digest  String               COMMENT 'the catalog for events received before others came into force',
    catalog_since   DateTime64(6, 'UTC') COMMENT 'catalogs published from then on are the run''s, too',
    job             String               COMMENT 'the engine''s id of the job that has the state',
    version         UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY run_id;
