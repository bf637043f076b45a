-- Catalogs as they came into force: a stream takes a new one without being started again, and what was billed can be
-- recomputed with the prices of the time. Written by `meterline catalog publish` and by streams when they start.
CREATE TABLE catalogs (
    digest        String                 COMMENT 'SHA-256 of the content; runs.catalog_digest',
    in_force_from DateTime64(6, 'UTC')   COMMENT 'for events received from then on',
    content       String CODEC(ZSTD(3))  COMMENT 'JSON'
) ENGINE = ReplacingMergeTree
ORDER BY (in_force_from, digest);
