-- A run reads the events that earlier runs archived, and never its own, which are its input. So what it reads does not
-- change while it runs, however often and however late it reads it.
ALTER TABLE usage_events
    ADD COLUMN IF NOT EXISTS run_id LowCardinality(String) COMMENT 'run of rate_usage that accepted it: runs.run_id';
