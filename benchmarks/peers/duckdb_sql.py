"""The main job in DuckDB's SQL, handed over to ClickHouse in Arrow batches."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from meterline.schemas.catalog import Catalog
from meterline.transforms import clickhouse
from peers.prices import terms, tiers

# Fewer, larger inserts leave less to merge.
_BATCH = 250_000

# A line is one column, whatever stands in it. Decimals are read from the number's text, not through a double.
_NDJSON = r"""
SELECT row_number() OVER () AS position, payload, event IS NULL AS malformed, event.specversion,
       coalesce(event.tenantid, 'default') AS tenant_id, event.id, event.source, event.type, event.subject,
       event.time IS NOT NULL AS has_time, try_cast(event.time AS TIMESTAMP) AS time,
       event.data IS NOT NULL AS has_data, coalesce(event.data.model, '') AS model,
       event.data.input_tokens, event.data.output_tokens
FROM (
    SELECT payload, json_transform(CASE WHEN json_valid(payload) THEN payload END, '{
        "specversion": "VARCHAR", "tenantid": "VARCHAR", "id": "VARCHAR", "source": "VARCHAR", "type": "VARCHAR",
        "subject": "VARCHAR", "time": "VARCHAR",
        "data": {"model": "VARCHAR", "input_tokens": "DECIMAL(38, 12)", "output_tokens": "DECIMAL(38, 12)"}}') AS event
    FROM read_csv($source, columns = {'payload': 'VARCHAR'}, auto_detect = false, header = false,
                  delim = '\x01', quote = '', escape = '', max_line_size = 16777216, strict_mode = false)
)
"""

# The payload is the JSON that a row would be, as Meterline makes one.
_PARQUET = """
SELECT row_number() OVER () AS position, false AS malformed, specversion, 'default' AS tenant_id, id, source, type,
       subject, time IS NOT NULL AS has_time, time AT TIME ZONE 'UTC' AS time, data IS NOT NULL AS has_data,
       coalesce(data.model, '') AS model, data.input_tokens::DECIMAL(38, 12) AS input_tokens,
       data.output_tokens::DECIMAL(38, 12) AS output_tokens,
       to_json({'specversion': specversion, 'id': id, 'source': source, 'type': type, 'subject': subject,
                'time': strftime(time AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ'), 'data': data})::VARCHAR AS payload
FROM read_parquet($source)
"""

# Only what the benchmark's catalog uses: subscriptions without parents that are anchored on the first of a UTC month.
_EVENTS = """
CREATE TABLE events AS
SELECT position, tenant_id, id, source, type, came.subject, time, model, input_tokens, output_tokens, payload, term,
       date_trunc('month', time) AS period,
       CASE
           WHEN malformed THEN 'malformed'
           WHEN specversion IS NULL OR coalesce(id, '') = '' OR coalesce(source, '') = '' OR coalesce(type, '') = ''
             OR coalesce(came.subject, '') = '' OR NOT has_time OR NOT has_data THEN 'missing_field'
           WHEN specversion <> '1.0' OR length(id) > 512 OR length(source) > 1024 OR length(came.subject) > 1024
             THEN 'bad_attribute'
           WHEN time IS NULL OR time < '1970-01-01' THEN 'bad_time'
           WHEN epoch_us(time) > $received + 3600000000 THEN 'in_future'
           WHEN type <> 'com.example.llm.request.v1' THEN 'unknown_type'
           WHEN input_tokens IS NULL OR output_tokens IS NULL OR input_tokens < 0 OR output_tokens < 0
             OR input_tokens >= 1e20::DECIMAL(38, 12) OR output_tokens >= 1e20::DECIMAL(38, 12) THEN 'bad_quantity'
           WHEN length(model) > 256 THEN 'bad_dimension'
           WHEN term IS NULL THEN 'unknown_subject'
       END AS reason
FROM ({events}) AS came LEFT JOIN terms
  ON came.subject = terms.account_id AND came.tenant_id = 'default'
 AND came.time AT TIME ZONE 'UTC' >= terms.starts AND came.time AT TIME ZONE 'UTC' < terms.ends
"""

_FIRSTS = """
CREATE TABLE firsts AS
SELECT min(position) AS position, count(*) AS copies FROM events WHERE reason IS NULL GROUP BY tenant_id, source, id
"""

# The few events that came again; a table of its own, so that the join is planned for its size.
_REPEATED = """
CREATE TABLE repeated AS
SELECT position, tenant_id, source, id, time, type, subject, model, input_tokens, output_tokens
FROM events SEMI JOIN (FROM firsts WHERE copies > 1) USING (position)
"""

_CONFLICTS = """
CREATE TABLE conflicts AS
SELECT events.position, events.payload
FROM events JOIN repeated AS first USING (tenant_id, source, id)
WHERE reason IS NULL
  AND (events.time, events.type, events.subject, events.model, events.input_tokens, events.output_tokens)
   <> (first.time, first.type, first.subject, first.model, first.input_tokens, first.output_tokens)
"""

_USAGE = """
CREATE TABLE usage AS
SELECT term, model, period, epoch_us(time) // 3600000000 * 3600 AS hour,
       count(*) AS events, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens
FROM events SEMI JOIN firsts USING (position)
GROUP BY ALL
"""

_KEYS = """
CREATE TABLE keys AS
SELECT terms.*, model, period, meter_id, epoch(period)::BIGINT AS period_start,
       epoch(period + INTERVAL 1 MONTH)::BIGINT AS period_end,
       '["default","' || concat_ws('","', account_id, subscription_id, meter_id, meter_id, version) || '",'
       || concat_ws(',', period_start, period_end) || ',[["model",' || to_json(model) || ']]]' AS rating_key,
       hash(rating_key) AS rating_key_id
FROM (SELECT DISTINCT term, model, period FROM usage) JOIN terms USING (term),
     (SELECT unnest(['input_tokens', 'output_tokens']) AS meter_id)
"""

# Each tier's charge of the quantity reached, less that of the quantity before.
_LINE_ITEMS = """
CREATE TABLE line_items AS
WITH metered AS (
    SELECT term, model, period, hour, events, unnest(['input_tokens', 'output_tokens']) AS meter_id,
           unnest([input_tokens, output_tokens]) AS quantity
    FROM usage
), reached AS (
    SELECT *, sum(quantity) OVER cells AS quantity_to, quantity_to - quantity AS quantity_from,
           sum(events) OVER cells AS revision
    FROM metered
    WINDOW cells AS (PARTITION BY term, model, period, meter_id ORDER BY hour)
), parts AS (
    SELECT term, model, period, meter_id, hour, tier, unit_price,
           greatest(least(quantity_to, ceiling) - floor, 0) AS units_to,
           greatest(least(quantity_from, ceiling) - floor, 0) AS units_from,
           units_to - units_from AS units,
           CASE WHEN quantity_to > floor AND quantity_from <= floor THEN flat_fee ELSE 0 END AS fee,
           (units_to * exact_price)::DECIMAL(38, 18) - (units_from * exact_price)::DECIMAL(38, 18) + fee AS amount
    FROM reached JOIN terms USING (term) JOIN tiers USING (meter_id, version)
), priced AS (
    SELECT term, model, period, meter_id, hour, sum(amount) AS amount,
           list(tier ORDER BY tier) AS tiers, list(units ORDER BY tier) AS quantities,
           list(unit_price ORDER BY tier) AS prices, list(fee ORDER BY tier) AS fees,
           list(amount ORDER BY tier) AS amounts
    FROM parts WHERE units <> 0 OR amount <> 0
    GROUP BY ALL
)
SELECT 'default' AS tenant_id, account_id AS billing_account_id,
       make_timestamptz(period_start * 1000000) AS period_start,
       make_timestamptz(period_end * 1000000) AS period_end, subscription_id, meter_id AS charge_id, meter_id,
       version AS rate_card_version, MAP {'model': model} AS dimensions, rating_key_id,
       make_timestamptz(hour * 1000000) AS window_start, make_timestamptz((hour + 3600) * 1000000) AS window_end,
       account_id, 'li_' || md5(concat_ws(' ', rating_key, account_id, hour))[:24] AS line_item_id,
       quantity_from::DECIMAL(38, 12) AS quantity_from, quantity_to::DECIMAL(38, 12) AS quantity_to,
       coalesce(amount, 0)::DECIMAL(38, 18) AS amount, currency,
       coalesce(tiers, [])::USMALLINT[] AS "tiers.tier",
       coalesce(quantities, [])::DECIMAL(38, 12)[] AS "tiers.quantity",
       coalesce(prices, [])::DECIMAL(38, 18)[] AS "tiers.unit_price",
       coalesce(fees, [])::DECIMAL(38, 18)[] AS "tiers.flat_fee",
       coalesce(amounts, [])::DECIMAL(38, 18)[] AS "tiers.amount",
       events::UBIGINT AS event_count, revision::UBIGINT AS revision
FROM reached JOIN keys USING (term, model, period, meter_id)
LEFT JOIN priced USING (term, model, period, meter_id, hour)
"""

_RATING_KEYS = """
SELECT rating_key_id, rating_key, 'default' AS tenant_id, account_id AS billing_account_id, subscription_id,
       meter_id AS charge_id, meter_id, version AS rate_card_version,
       make_timestamptz(period_start * 1000000) AS period_start, make_timestamptz(period_end * 1000000) AS period_end,
       MAP {'model': model} AS dimensions
FROM keys
"""

_ARCHIVE = """
SELECT tenant_id, account_id AS billing_account_id, account_id, make_timestamptz(epoch_us(time)) AS time,
       source, id, type, subject, rating_keys, [input_tokens, output_tokens] AS quantities, ['', ''] AS counted_values,
       make_timestamptz($received) AS received_time, payload
FROM events SEMI JOIN firsts USING (position)
JOIN (SELECT term, model, period, account_id, list(rating_key_id ORDER BY meter_id) AS rating_keys
      FROM keys GROUP BY ALL) USING (term, model, period)
"""

_REJECTS = """
SELECT 'rej_' || md5(concat_ws(' ', reason, position, payload))[:24] AS reject_id,
       CASE reason WHEN 'unknown_subject' THEN 'attribute' WHEN 'conflict' THEN 'deduplicate' ELSE 'validate' END
       AS stage, reason, reason AS message, payload, $source AS origin, position::UBIGINT AS position,
       make_timestamptz($received) AS received_time
FROM (
    SELECT position, reason, payload FROM events WHERE reason IS NOT NULL
    UNION ALL SELECT position, 'conflict', payload FROM conflicts
)
"""


def job(source: str, catalog: Catalog, url: str, received: int) -> dict[str, int]:
    """Rate a file of events into the tables; the counters by Meterline's names."""
    events = _PARQUET if source.endswith(".parquet") else _NDJSON
    database = duckdb.connect()
    database.execute("SET threads = 1; SET TimeZone = 'UTC'")
    for name, given in (("terms", terms(catalog)), ("tiers", tiers(catalog))):
        database.register("given", given)
        database.execute(f"CREATE TABLE {name} AS FROM given")
    database.execute(_EVENTS.replace("{events}", events), {"source": source, "received": received})
    for statement in (_FIRSTS, _REPEATED, _CONFLICTS, _USAGE, _KEYS, _LINE_ITEMS):
        database.execute(statement)

    def store(table: str, sql: str, **parameters: object) -> None:
        for batch in database.sql(sql, params=parameters).to_arrow_reader(_BATCH):
            insert(url, table, batch)

    store("rating_keys", _RATING_KEYS)
    store("usage_events", _ARCHIVE, received=received)
    store("line_items", "FROM line_items")
    store("rejects", _REJECTS, source=source, received=received)

    def count(rows: str) -> int:
        return database.execute(f"SELECT count(*) FROM {rows}").fetchall()[0][0]

    accepted, conflicts = count("firsts"), count("conflicts")
    return {
        "validate/records": count("events"),
        "deduplicate/accepted": accepted,
        "deduplicate/duplicate": count("events WHERE reason IS NULL") - accepted - conflicts,
    }


# What ClickHouse computes faster than DuckDB.
_COMPUTED = {"usage_events": {"identity": "sipHash128(tenant_id, source, id)"}}


def insert(url: str, table: str, batch: pa.RecordBatch) -> None:
    """Store rows by columns of the same names; embedded ClickHouse reads Arrow memory as it is, which costs it a third
    less than taking the bytes of an Arrow stream."""
    rows = pa.Table.from_batches([batch])  # The query finds it by its name.
    columns = {name: f"`{name}`" for name in rows.column_names} | _COMPUTED.get(table, {})
    names = ", ".join(f"`{name}`" for name in columns)
    values = ", ".join(columns.values())
    clickhouse.connect(url).command(f"INSERT INTO {table} ({names}) SELECT {values} FROM Python(rows)")
