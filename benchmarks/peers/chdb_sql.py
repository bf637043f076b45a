"""The main job in ClickHouse's SQL, inside the embedded database that holds the tables.

One statement reads the file; it feeds a table that keeps nothing, from which views write archive, rejects and usage.
"""

from __future__ import annotations

from typing import Any

from meterline.schemas.catalog import Catalog
from meterline.transforms import clickhouse
from peers.prices import terms, tiers

# A line that is no JSON has an event of empty strings.
_LINES = """
SELECT line AS payload, rowNumberInAllBlocks() AS position, JSONExtract(line,
       'Tuple(specversion String, tenantid String, id String, source String, type String, subject String, time String,
        data Tuple(model String, input_tokens Nullable(Decimal(38, 12)), output_tokens Nullable(Decimal(38, 12))))')
       AS event, event.specversion AS specversion, if(event.tenantid = '', 'default', event.tenantid) AS tenant_id,
       event.id AS id, event.source AS source, event.type AS type, event.subject AS subject, event.time AS written_time,
       ifNull(parseDateTime64BestEffortOrNull(event.time, 6, 'UTC'), toDateTime64(0, 6, 'UTC')) AS time,
       event.data.model AS model,
       ifNull(event.data.input_tokens, -1) AS input_tokens, ifNull(event.data.output_tokens, -1) AS output_tokens
FROM file($source, 'LineAsString', 'line String')
"""

_TABLES = (
    """
CREATE TABLE came (
    reason LowCardinality(String), position UInt64, payload String, tenant_id LowCardinality(String), id String,
    source LowCardinality(String), type LowCardinality(String), subject LowCardinality(String),
    time DateTime64(6, 'UTC'), model String, input_tokens Decimal(38, 12), output_tokens Decimal(38, 12), term UInt32,
    account_id LowCardinality(String), identity FixedString(16)
) ENGINE = Null
""",
    """
CREATE TABLE metered (
    term UInt32, model String, period_start DateTime('UTC'), hour DateTime('UTC'), events UInt64,
    input_tokens Decimal(38, 12), output_tokens Decimal(38, 12)
) ENGINE = Memory
""",
    """
CREATE MATERIALIZED VIEW to_archive TO usage_events AS
SELECT tenant_id, account_id AS billing_account_id, account_id, time, identity, source, id, type, subject,
       arrayMap(meter -> cityHash64(term, model, toStartOfMonth(time), meter), ['input_tokens', 'output_tokens'])
       AS rating_keys,
       [input_tokens, output_tokens] AS quantities, ['', ''] AS counted_values,
       fromUnixTimestamp64Micro($received, 'UTC') AS received_time, payload
FROM came WHERE reason = ''
""",
    """
CREATE MATERIALIZED VIEW to_metered TO metered AS
SELECT term, model, toDateTime(toStartOfMonth(time), 'UTC') AS period_start, toStartOfHour(time) AS hour,
       count() AS events, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens
FROM came WHERE reason = ''
GROUP BY term, model, period_start, hour
""",
    """
CREATE MATERIALIZED VIEW to_rejects TO rejects AS
SELECT 'rej_' || lower(left(hex(identity), 24)) AS reject_id,
       if(reason = 'unknown_subject', 'attribute', 'validate') AS stage, reason, reason AS message, payload,
       $source AS origin, position, fromUnixTimestamp64Micro($received, 'UTC') AS received_time
FROM came WHERE reason != ''
""",
)

# The reasons are looked for in the few rows that are not fine: `multiIf` is lazy.
_READ = f"""
INSERT INTO came
SELECT multiIf(
           specversion = '1.0' AND id != '' AND length(id) <= 512 AND source != '' AND length(source) <= 1024
             AND type = 'com.example.llm.request.v1' AND length(model) <= 256 AND account_id != '' AND time < ends
             AND toUnixTimestamp64Micro(time) > 0 AND toUnixTimestamp64Micro(time) <= $received + 3600000000
             AND input_tokens >= 0 AND output_tokens >= 0 AND input_tokens < 1e20 AND output_tokens < 1e20, '',
           NOT isValidJSON(payload), 'malformed',
           specversion = '' OR id = '' OR source = '' OR type = '' OR subject = '' OR written_time = ''
             OR NOT JSONHas(payload, 'data'), 'missing_field',
           specversion != '1.0' OR length(id) > 512 OR length(source) > 1024 OR length(subject) > 1024, 'bad_attribute',
           toUnixTimestamp64Micro(time) <= 0, 'bad_time',
           toUnixTimestamp64Micro(time) > $received + 3600000000, 'in_future',
           type != 'com.example.llm.request.v1', 'unknown_type',
           input_tokens < 0 OR output_tokens < 0 OR input_tokens >= 1e20 OR output_tokens >= 1e20, 'bad_quantity',
           length(model) > 256, 'bad_dimension',
           'unknown_subject') AS reason,
       position, payload, tenant_id, id, source, type, subject, time, model, input_tokens, output_tokens, term,
       account_id, if(reason = '', sipHash128(tenant_id, source, id), sipHash128(position, payload)) AS identity
FROM ({_LINES}) AS came ASOF LEFT JOIN terms ON came.subject = terms.account_id AND came.time >= terms.starts
LIMIT 1 BY identity
"""

_KEYS = """
CREATE TABLE keys ENGINE = Memory AS
SELECT used.term AS term, account_id, subscription_id, version, currency, model, period_start,
       period_start + INTERVAL 1 MONTH AS period_end, meter_id,
       cityHash64(term, model, toDate(period_start), meter_id) AS rating_key_id,
       concat('["default","', arrayStringConcat([account_id, subscription_id, meter_id, meter_id, version], '","'),
              '",', toUnixTimestamp(period_start), ',', toUnixTimestamp(period_end), ',[["model",', toJSONString(model),
              ']]]') AS rating_key
FROM (SELECT DISTINCT term, model, period_start FROM metered) AS used JOIN terms ON used.term = terms.term
ARRAY JOIN ['input_tokens', 'output_tokens'] AS meter_id
"""

_RATING_KEYS = """
INSERT INTO rating_keys
SELECT rating_key_id, rating_key, 'default', account_id, subscription_id, meter_id, meter_id, version, period_start,
       period_end, map('model', model)
FROM keys
"""

# Each tier's charge of the quantity reached, less that of the quantity before; in 256 bits, which do not wrap.
_LINE_ITEMS = """
INSERT INTO line_items
WITH cells AS (
    SELECT term, model, period_start, hour, sum(events) AS events, sum(input_tokens) AS input_tokens,
           sum(output_tokens) AS output_tokens
    FROM metered GROUP BY ALL
), reached AS (
    SELECT term, model, period_start, hour, events, meter_id, sum(quantity) OVER cell AS quantity_to,
           quantity_to - quantity AS quantity_from, sum(events) OVER cell AS revision
    FROM cells ARRAY JOIN ['input_tokens', 'output_tokens'] AS meter_id, [input_tokens, output_tokens] AS quantity
    WINDOW cell AS (PARTITION BY term, model, period_start, meter_id ORDER BY hour)
), parts AS (
    SELECT rating_key_id, hour, quantity_from, quantity_to, events, revision, tier, unit_price,
           toDecimal256(greatest(least(quantity_to, ceiling) - floor, 0), 12) AS units_to,
           toDecimal256(greatest(least(quantity_from, ceiling) - floor, 0), 12) AS units_from,
           units_to - units_from AS units,
           if(quantity_to > floor AND quantity_from <= floor, flat_fee, 0) AS fee,
           toDecimal256(units_to * exact_price, 18) - toDecimal256(units_from * exact_price, 18) + fee AS amount
    FROM reached JOIN keys USING (term, model, period_start, meter_id) JOIN tiers USING (meter_id, version)
), priced AS (
    SELECT rating_key_id, hour, quantity_from, quantity_to, events, revision, sum(amount) AS total,
           arraySort(groupArrayIf((tier, units, unit_price, fee, amount), units != 0 OR amount != 0)) AS shown
    FROM parts GROUP BY ALL
)
SELECT 'default' AS tenant_id, account_id AS billing_account_id, period_start, period_end, subscription_id,
       meter_id AS charge_id, meter_id, version AS rate_card_version, map('model', model) AS dimensions, rating_key_id,
       hour AS window_start, hour + INTERVAL 1 HOUR AS window_end, account_id,
       'li_' || lower(left(hex(sipHash128(rating_key, account_id, hour)), 24)) AS line_item_id,
       quantity_from, quantity_to, total AS amount, currency,
       shown.1 AS `tiers.tier`, shown.2 AS `tiers.quantity`, shown.3 AS `tiers.unit_price`, shown.4 AS `tiers.flat_fee`,
       shown.5 AS `tiers.amount`, events AS event_count, 0 AS voided_count, revision
FROM priced JOIN keys USING (rating_key_id)
"""


def job(source: str, catalog: Catalog, url: str, received: int) -> dict[str, int]:
    """Rate a file of events into the tables; the counters by Meterline's names."""
    client = clickhouse.connect(url)
    literals = {"$received": str(received), "$source": "'" + source.replace("\\", "\\\\").replace("'", "\\'") + "'"}

    def ask(sql: str) -> Any:
        for name, literal in literals.items():
            sql = sql.replace(name, literal)
        return client.command(sql)

    # The queries find these by their names.
    given_terms = terms(catalog)  # noqa: F841
    given_tiers = tiers(catalog)  # noqa: F841
    client.command("CREATE TABLE terms ENGINE = Memory AS SELECT * FROM Python(given_terms)")
    client.command("CREATE TABLE tiers ENGINE = Memory AS SELECT * FROM Python(given_tiers)")
    for statement in (*_TABLES, _READ, _KEYS, _RATING_KEYS, _LINE_ITEMS):
        ask(statement)
    records = ask("SELECT count() FROM file($source, 'LineAsString')")
    accepted, rejected = ask("SELECT sum(events) FROM metered"), ask("SELECT count() FROM rejects")
    for name in ("to_archive", "to_metered", "to_rejects", "came", "metered", "keys", "terms", "tiers"):
        client.command(f"DROP TABLE {name}")
    return {
        "validate/records": records,
        "deduplicate/accepted": accepted,
        "deduplicate/duplicate": records - accepted - rejected,
    }
