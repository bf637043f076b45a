"""The command as a user meets it: what it prints, where errors go, and the exit codes."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import pytest

from meterline.runners.demo import quickstart
from meterline.transforms import clickhouse
from tests.command import NOW, Command

GOOD = (
    '{"specversion":"1.0","id":"%s","source":"/gw","type":"com.example.llm.request.v1","subject":"acme-assist-chat",'
    '"time":"2023-11-16T18:30:00Z","data":{"model":"large","input_tokens":%s,"output_tokens":1}}'
)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def lines(*values: str) -> bytes:
    return "".join(GOOD % (f"e{place}", value) + "\n" for place, value in enumerate(values)).encode()


# --- what goes right ----------------------------------------------------------------------------


def test_rating_says_where_each_record_went(meterline: Command, tmp_path: Path) -> None:
    said = meterline.rate(written(tmp_path, "usage.ndjson", lines("5", "7", "-1") + lines("5") + b"{oops\n"), "--json")
    report = json.loads(said.out)
    assert said.code == 0
    assert (report["records"], report["accepted"], report["duplicates"]) == (5, 2, 1)
    assert report["rejected"] == {"validate/bad_quantity": 1, "validate/malformed": 1}
    assert report["adds_up"]


def test_rating_the_next_file_gives_what_rating_both_at_once_gives(meterline: Command, tmp_path: Path) -> None:
    everything = lines("2500000", "7", "1", "999999", "3")
    several = everything.splitlines(keepends=True)
    meterline.rate(written(tmp_path, "all.ndjson", everything))
    expected = clickhouse.query(meterline.url, "SELECT * FROM line_items FINAL ORDER BY ALL").to_pylist()
    for table in ("line_items", "usage_events", "rating_keys"):
        clickhouse.connect(meterline.url).command(f"TRUNCATE TABLE {table}")
    meterline.rate(written(tmp_path, "late.ndjson", b"".join(several[3:])))
    meterline.rate(written(tmp_path, "first.ndjson", b"".join(several[:4])))
    assert clickhouse.query(meterline.url, "SELECT * FROM line_items FINAL ORDER BY ALL").to_pylist() == expected
    assert expected


def test_rejects_can_be_counted_listed_and_written_out_byte_for_byte(meterline: Command, tmp_path: Path) -> None:
    bad = b'{"broken [/red] \x1b[31m": \xff\xfe}'
    meterline.rate(written(tmp_path, "usage.ndjson", lines("1") + bad + b"\n" + lines("-5")))
    counted = json.loads(meterline("rejects", "count", "--clickhouse", meterline.url, "--json").out)
    assert {row["reason"]: int(row["records"]) for row in counted} == {"malformed": 1, "bad_quantity": 1}
    listed = meterline("rejects", "list", "--clickhouse", meterline.url)
    assert "bad_quantity" in listed.out
    assert "negative" in listed.out
    assert "[/red]" in listed.out
    assert "\x1b[31m" not in listed.out
    target = tmp_path / "again.ndjson"
    assert meterline("rejects", "export", target, "--reason", "malformed", "--clickhouse", meterline.url).code == 0
    assert target.read_bytes() == bad + b"\n"


def test_a_subject_that_the_catalog_learns_can_be_sent_again(meterline: Command, tmp_path: Path) -> None:
    stranger = lines("4").replace(b"acme-assist-chat", b"acme-new-project")
    meterline.rate(written(tmp_path, "usage.ndjson", stranger))
    again = tmp_path / "again.ndjson"
    meterline("rejects", "export", again, "--reason", "unknown_subject", "--clickhouse", meterline.url)
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    for file in (quickstart() / "catalog").iterdir():
        (catalog / file.name).write_bytes(file.read_bytes())
    with (catalog / "accounts.yaml").open("a") as accounts:
        accounts.write("  - {id: acme-new-project, parent: acme, kind: project}\n")
    words = ("rate", "--input", again, "--catalog", catalog, "--clickhouse", meterline.url, "--now", NOW, "--json")
    assert json.loads(meterline(*words).out)["accepted"] == 1


def test_a_second_issue_posts_nothing_and_late_usage_becomes_a_further_invoice(
    meterline: Command, tmp_path: Path
) -> None:
    catalog = quickstart() / "catalog"
    words = ("invoice", "--period", "2023-11", "--catalog", catalog, "--clickhouse", meterline.url, "--issue", "--json")
    later = ("--now", "2024-01-01T00:00:00Z")
    meterline.rate(written(tmp_path, "first.ndjson", lines("4000000")))
    first = json.loads(meterline(*words, *later).out)
    assert [one["number"] for one in first["invoices"]] == ["acme-2023-11-USD-1"]
    assert json.loads(meterline(*words, *later).out)["issued"] == 0
    meterline.rate(written(tmp_path, "late.ndjson", (GOOD % ("late", "1000000")).encode()))
    second = json.loads(meterline(*words, *later).out)
    assert [one["number"] for one in second["invoices"]] == ["acme-2023-11-USD-1", "acme-2023-11-USD-2"]
    assert second["invoices"][0] == first["invoices"][0]
    late = second["invoices"][1]
    assert {line["description"]: line["amount"] for line in late["lines"]}["Input tokens (large)"].startswith("1.50")
    assert {line["reason"] for line in late["lines"]} == {"late_usage"}
    balance = clickhouse.query(meterline.url, "SELECT invoice_id, sum(amount) AS s FROM postings FINAL GROUP BY 1")
    assert [row["s"] for row in balance.to_pylist()] == [0, 0]


def test_a_period_that_has_not_ended_is_not_issued(meterline: Command, tmp_path: Path) -> None:
    meterline.rate(written(tmp_path, "usage.ndjson", lines("1")))
    catalog = quickstart() / "catalog"
    words = ("invoice", "--period", "2023-11", "--catalog", catalog, "--clickhouse", meterline.url, "--issue")
    said = meterline(*words, "--now", "2023-11-20T00:00:00Z")
    assert "has not ended" in said.out
    assert clickhouse.query(meterline.url, "SELECT count() AS n FROM invoices WHERE status = 'issued'").to_pylist()[0][
        "n"
    ] in (0, b"\x00")


def test_a_query_answers_in_several_formats_and_changes_nothing(meterline: Command) -> None:
    url = ("--clickhouse", meterline.url)
    assert meterline("query", "SELECT 1 AS one, 'a' AS two", "--format", "csv", *url).out == '"one","two"\n1,"a"\n'
    assert json.loads(meterline("query", "SELECT '0.10'::Decimal(38, 2) AS x", "--format", "json", *url).out)
    refused = meterline("query", "DROP TABLE line_items", *url)
    assert refused.code == 3
    assert "expected a SELECT" in refused.err
    assert meterline("query", "SELECT count() FROM line_items", *url).code == 0


# --- what goes wrong ----------------------------------------------------------------------------

QUANTITIES = {
    '"NaN"': "bad_quantity",
    "NaN": "malformed",
    "1e400": "bad_quantity",
    '"1e400"': "bad_quantity",
    "-5": "bad_quantity",
    '"-5"': "bad_quantity",
    "null": "bad_quantity",
    "true": "bad_quantity",
    '""': "bad_quantity",
    "0.1": None,
    '"0.1"': None,
}


@pytest.mark.parametrize(("value", "reason"), QUANTITIES.items())
def test_an_odd_quantity_is_exact_or_rejected(
    value: str, reason: str | None, meterline: Command, tmp_path: Path
) -> None:
    report = json.loads(meterline.rate(written(tmp_path, "usage.ndjson", lines(value)), "--json").out)
    assert report["rejected"] == ({f"validate/{reason}": 1} if reason else {})
    if not reason:
        rows = clickhouse.query(
            meterline.url, "SELECT toString(quantity_to) AS q FROM line_items FINAL WHERE meter_id = 'input-tokens'"
        )
        assert rows.to_pylist() == [{"q": "0.1"}]


FILES = {
    "empty": (b"", {}),
    "blank lines": (b"\n \n\r\n", {}),
    "no JSON": (b"hello\nworld\n", {"validate/malformed": 2}),
    "truncated gzip": (gzip.compress(lines(*["1"] * 500))[:-40], {"read/unreadable": 1}),
    "a line of 50 MB": (b'{"x":"' + b"a" * 50_000_000 + b'"}\n' + lines("1"), {"validate/too_large": 1}),
    "invalid UTF-8": (lines("1").replace(b'"large"', b'"\xff"'), {"validate/malformed": 1}),
    "a day that does not exist": (lines("1").replace(b"11-16", b"02-31"), {"validate/bad_time": 1}),
    "unknown type": (lines("1").replace(b"request", b"answer"), {"validate/unknown_type": 1}),
    "unknown subject": (lines("1").replace(b"acme-assist-chat", b"nobody"), {"attribute/unknown_subject": 1}),
}


@pytest.mark.parametrize(("data", "rejected"), FILES.values(), ids=FILES.keys())
def test_a_bad_file_costs_only_what_is_bad(
    data: bytes, rejected: dict[str, int], meterline: Command, tmp_path: Path
) -> None:
    said = meterline.rate(written(tmp_path, "usage.ndjson", data), "--json", "--fail-on-rejects")
    report = json.loads(said.out)
    assert report["rejected"] == rejected
    assert report["adds_up"]
    assert said.code == (4 if rejected else 0)
    stored = clickhouse.query(meterline.url, "SELECT count() AS n FROM rejects FINAL").column("n")[0].as_py()
    assert stored == sum(rejected.values())


MISTAKES = {
    "no such file": (["rate", "--input", "nowhere.ndjson", "--catalog", "{catalog}"], 2, "no such file"),
    "a folder": (["rate", "--input", "{tmp}", "--catalog", "{catalog}"], 2, "a folder"),
    "no catalog": (["rate", "--input", "{file}", "--catalog", "nocatalog"], 2, "nocatalog"),
    "no ClickHouse": (
        ["rate", "--input", "{file}", "--catalog", "{catalog}", "--clickhouse", "http://u:secret@127.0.0.1:9/db"],
        3,
        "no ClickHouse answers at http://u:***@127.0.0.1:9/db",
    ),
    "an odd URL": (["query", "SELECT 1", "--clickhouse", "mysql://x"], 3, "expected chdb://PATH"),
    "an odd instant": (["rate", "--input", "{file}", "--catalog", "{catalog}", "--now", "yesterday"], 2, "expected an"),
    "no time zone": (["rate", "--input", "{file}", "--catalog", "{catalog}", "--now", "2026-01-01"], 2, "no time zone"),
    "an odd period": (["invoice", "--period", "2026-13", "--catalog", "{catalog}"], 2, "2026-13"),
    "an unknown account": (
        ["invoice", "--period", "2026-10", "--catalog", "{catalog}", "--account", "nobody"],
        2,
        "no billed account",
    ),
    "wrong SQL": (["query", "SELECT broken", "--clickhouse", "{url}"], 3, "broken"),
    "too short a retention": (["migrate", "--retention-days", "10", "--clickhouse", "{url}"], 3, "97 days"),
}


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_a_sentence_and_an_exit_code(
    words: list[str], code: int, message: str, meterline: Command, tmp_path: Path
) -> None:
    file = written(tmp_path, "usage.ndjson", lines("1"))
    places = {"catalog": quickstart() / "catalog", "tmp": tmp_path, "file": file, "url": meterline.url}
    said = meterline(*(word.format(**places) for word in words))
    assert said.code == code
    assert message in said.err
    assert "secret" not in said.err


def test_a_catalog_with_mistakes_is_listed_with_file_and_line(meterline: Command, tmp_path: Path) -> None:
    (tmp_path / "meters.yaml").write_text("meters:\n  - {id: a, event_type: t, aggregation: sum, unit: x}\n")
    said = meterline("catalog", "check", tmp_path)
    assert said.code == 2
    assert "meters.yaml:2:" in said.err
    rated = meterline("rate", "--input", tmp_path / "meters.yaml", "--catalog", tmp_path)
    assert rated.code == 2
    assert "meters.yaml:2:" in rated.err


def test_a_database_of_a_newer_version_is_left_alone(meterline: Command, tmp_path: Path) -> None:
    client = clickhouse.connect(meterline.url)
    client.command("INSERT INTO schema_migrations VALUES (99, '0099_future', 'x', now())")
    try:
        said = meterline.rate(written(tmp_path, "usage.ndjson", lines("1")))
        assert said.code == 3
        assert "schema 99" in said.err
    finally:
        client.command("ALTER TABLE schema_migrations DELETE WHERE number = 99 SETTINGS mutations_sync = 2")


def test_the_json_schema_of_a_catalog_is_printed(meterline: Command) -> None:
    assert json.loads(meterline("catalog", "schema").out)["$schema"].startswith("https://json-schema.org/")


def test_one_account_can_be_invoiced_alone(meterline: Command, tmp_path: Path) -> None:
    other = lines("1").replace(b'"e0"', b'"other"').replace(b"acme-assist-chat", b"globex-labs")
    meterline.rate(written(tmp_path, "usage.ndjson", lines("1") + other))
    catalog = quickstart() / "catalog"
    words = ("invoice", "--period", "2023-11", "--catalog", catalog, "--clickhouse", meterline.url, "--json")
    one = json.loads(meterline(*words, "--account", "globex").out)
    assert [invoice["billing_account_id"] for invoice in one["invoices"]] == ["globex"]
    both = json.loads(meterline(*words).out)
    assert [invoice["billing_account_id"] for invoice in both["invoices"]] == ["acme", "globex"]


HUGE = """
meters: [{id: m, event_type: t, aggregation: sum, value: n, unit: x, dimensions: [region]}]
rate_cards:
  - {id: c, currency: EUR, versions: [{version: v, effective_from: 2026-01-01T00:00:00Z,
     prices: {m: {model: per_unit, unit_price: "1"}}}]}
plans: [{id: p, rate_card: c, charges: [{id: m, meter: m}]}]
accounts: [{id: huge}, {id: small}]
subscriptions:
  - {id: h, account: huge, plan: p, start: 2026-01-01T00:00:00Z}
  - {id: s, account: small, plan: p, start: 2026-01-01T00:00:00Z}
"""


def test_amounts_whose_sum_is_huge_are_invoiced_and_stop_nobody_elses(meterline: Command, tmp_path: Path) -> None:
    (tmp_path / "prices").mkdir()
    (tmp_path / "prices" / "all.yaml").write_text(HUGE)
    event = '{"specversion":"1.0","id":"%s","source":"/s","type":"t","subject":"%s","time":"2026-01-05T00:00:00Z",'
    event += '"data":{"n":"%s","region":"%s"}}\n'
    rows = (("a", "huge", "60000000000000000000", "eu"), ("b", "huge", "99999999999999999999.999", "us"))
    usage = "".join(event % row for row in (*rows, ("c", "small", "5", "eu")))
    file = written(tmp_path, "usage.ndjson", usage.encode())
    place = ("--catalog", tmp_path / "prices", "--clickhouse", meterline.url, "--now", "2026-02-02T00:00:00Z")
    assert meterline("rate", "--input", file, *place).code == 0
    invoiced = json.loads(meterline("invoice", "--period", "2026-01", "--issue", *place, "--json").out)
    totals = {one["billing_account_id"]: Decimal(one["total"]) for one in invoiced["invoices"]}
    assert totals == {"huge": Decimal("160000000000000000000.00"), "small": Decimal("5.00")}
    assert meterline("audit", "--catalog", tmp_path / "prices", "--clickhouse", meterline.url).code == 0


def test_a_key_that_could_not_be_priced_breaks_one_law_of_the_audit(meterline: Command, tmp_path: Path) -> None:
    (tmp_path / "prices").mkdir()
    (tmp_path / "prices" / "all.yaml").write_text(HUGE.replace('unit_price: "1"', 'unit_price: "1000"'))
    event = '{"specversion":"1.0","id":"a","source":"/s","type":"t","subject":"huge","time":"2026-01-05T00:00:00Z",'
    file = written(tmp_path, "usage.ndjson", (event + '"data":{"n":"99999999999999999999"}}').encode())
    place = ("--catalog", tmp_path / "prices", "--clickhouse", meterline.url)
    meterline("rate", "--input", file, *place, "--now", "2026-02-02T00:00:00Z")
    said = meterline("audit", *place, "--json")
    assert said.code == 1
    broken = [one["law"] for one in json.loads(said.out)["laws"] if one["broken"]]
    assert broken == ["every rating key was priced, none was rejected at rate"]


@pytest.mark.parametrize(
    "sql",
    ["SELECT 1; DROP TABLE runs", "SELECT 1 INTO/**/OUTFILE '{}'", "SELECT 1 INTO -- x\nOUTFILE '{}'",
     "WITH 1 AS x INSERT INTO runs (run_id) SELECT 'a'"],
)  # fmt: skip
def test_a_query_can_neither_write_a_table_nor_a_file(sql: str, meterline: Command, tmp_path: Path) -> None:
    file = tmp_path / "escaped"
    assert meterline("query", sql.format(file), "--clickhouse", meterline.url, "--format", "csv").code == 3
    assert not file.exists()
    assert clickhouse.query(meterline.url, "SELECT count() AS n FROM runs").column("n")[0].as_py() == 0


@pytest.mark.parametrize(
    "sql",
    ["SELECT * FROM file('{}', 'LineAsString')", "SELECT file('{}')", "SELECT * FROM `{}`", "SELECT * FROM '{}' AS t",
     "SELECT 1 FROM line_items AS l, default.`{}`", "DESCRIBE TABLE file('{}')",
       "SELECT (SELECT * FROM fi/**/le('{}'))",
     "WITH x AS (SELECT * FROM`file`('{}', 'LineAsString')) SELECT * FROM x",
       "SELECT * FROM url('file://{}', 'LineAsString')",
     "EXPLAIN SELECT * FROM file('{}')", "SELECT 1; SELECT * FROM file('{}')",
       "SELECT * FROM executable('cat {}', 'TSV', 'a String')",
     "SELECT * FROM filesystem('{}')", "SELECT * FROM remote('127.0.0.1', system.one)"],
)  # fmt: skip
@pytest.mark.parametrize("format", ["csv", "table"])
def test_a_query_reads_nothing_but_the_database(sql: str, format: str, meterline: Command, tmp_path: Path) -> None:
    secret = written(tmp_path, "secret.csv", b"secret\n")
    said = meterline("query", sql.format(secret), "--clickhouse", meterline.url, "--format", format)
    assert said.code == 3
    assert said.out == ""
    assert "ClickHouse at" in said.err or "reads from elsewhere" in said.err
    assert "secret\n" not in said.err


@pytest.mark.parametrize(
    "sql",
    ["WITH x AS (SELECT 1 AS a) SELECT * FROM x AS y JOIN numbers(3) AS n ON n.number = y.a;", "SHOW TABLES",
     "SELECT count() FROM default.line_items AS l FINAL, system.one", "DESCRIBE line_items",
       "EXPLAIN SELECT 'file(1)' AS `url(x)`",
     "SELECT format('{{}}', 'a'), merge FROM (SELECT 1 AS merge) -- file()"],
)  # fmt: skip
def test_a_query_may_be_any_of_the_database(sql: str, meterline: Command) -> None:
    said = meterline("query", sql, "--clickhouse", meterline.url, "--format", "csv")
    assert said.code == 0, said.err


def test_names_of_columns_are_shown_as_they_are(meterline: Command) -> None:
    said = meterline("query", "SELECT 1 AS `[/red]`", "--clickhouse", meterline.url)
    assert said.code == 0
    assert "[/red]" in said.out


@pytest.mark.parametrize("period", ["0001-01", "9999-12", "1968-12", "2201-01"])
def test_a_period_out_of_range_is_a_mistake(period: str, meterline: Command) -> None:
    said = meterline(
        "invoice", "--period", period, "--catalog", quickstart() / "catalog", "--clickhouse", meterline.url
    )
    assert said.code == 2
    assert "2026-10" in said.err


@pytest.mark.parametrize("now", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "1950-01-01T00:00:00Z"])
def test_an_instant_out_of_range_is_a_mistake(now: str, meterline: Command, tmp_path: Path) -> None:
    assert meterline.rate(written(tmp_path, "usage.ndjson", lines("1")), "--now", now).code == 2


@pytest.mark.parametrize("name", ["a b.ndjson", "[1].ndjson", "it's {x} *.ndjson", "ünï.ndjson"])
def test_a_file_may_have_any_name(name: str, meterline: Command, tmp_path: Path) -> None:
    written(tmp_path, name, lines("1"))
    assert json.loads(meterline.rate(tmp_path / "*.ndjson", "--json").out)["accepted"] == 1


TWO_METERS = """
meters:
  - {id: n, event_type: t, aggregation: sum, value: n, unit: x}
  - {id: calls, event_type: t, aggregation: count, unit: x}
accounts: [{id: acme, name: Acme}]
"""


def test_usage_of_a_meter_that_the_catalog_has_no_more_keeps_its_line_items(meterline: Command, tmp_path: Path) -> None:
    def event(name: str) -> str:
        head = f'{{"specversion":"1.0","id":"{name}","source":"/s","type":"t","subject":"acme"'
        return head + ',"time":"2026-01-05T00:00:00Z","data":{"n":"2"}}\n'

    first = written(tmp_path, "1.ndjson", event("a").encode())
    both = written(tmp_path, "2.ndjson", (event("a") + event("b")).encode())
    for file, catalog in (
        (first, TWO_METERS),
        (both, TWO_METERS.replace("  - {id: calls, event_type: t, aggregation: count, unit: x}\n", "")),
    ):
        (tmp_path / "prices").mkdir(exist_ok=True)
        (tmp_path / "prices" / "all.yaml").write_text(catalog)
        place = ("--catalog", tmp_path / "prices", "--clickhouse", meterline.url)
        said = meterline("rate", "--input", file, *place, "--now", "2026-02-02T00:00:00Z", "--json")
        assert (said.code, json.loads(said.out)["adds_up"]) == (0, True)
    columns = "meter_id, toString(quantity_to) AS quantity, event_count AS events"
    sql = f"SELECT {columns} FROM line_items FINAL ORDER BY meter_id"
    assert clickhouse.query(meterline.url, sql).to_pylist() == [
        {"meter_id": "calls", "quantity": "1", "events": 1},
        {"meter_id": "n", "quantity": "4", "events": 2},
    ]


SUBSCRIPTION = ("--subscription", "projects/some-project/subscriptions/usage")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(("--input", "x", "--on", "flink"), "--on is for", id="a file on an engine"),
        pytest.param(("--input", "x", "--until-empty"), "--until-empty is for", id="a file that ends anyway"),
        pytest.param((*SUBSCRIPTION, "--now", NOW), "--now is for --input, not for", id="a stream has its own times"),
        pytest.param((*SUBSCRIPTION, "--parallelism", "2"), "--parallelism is for", id="the default, said"),
        pytest.param((*SUBSCRIPTION, "--on", "flink", "--max-batches", "3"), "--max-batches is for", id="no batches"),
        pytest.param((*SUBSCRIPTION, "--on", "dataflow", "--detach"), "--detach is for", id="Flink's on Dataflow"),
    ],
)
def test_an_option_that_would_mean_nothing_is_a_mistake(words: tuple[str, ...], says: str, meterline: Command) -> None:
    said = meterline("rate", *words, "--catalog", quickstart() / "catalog", "--clickhouse", meterline.url)
    assert said.code == 2
    assert says in " ".join(said.err.replace("│", " ").split())


@pytest.mark.parametrize("words", [("catalog", "publish", quickstart() / "catalog"), ("metrics",)])
def test_a_database_that_is_not_there_is_not_well(
    words: tuple[object, ...], meterline: Command, tmp_path: Path
) -> None:
    said = meterline(*words, "--clickhouse", f"chdb://{tmp_path}/misspelt")
    assert said.code == 3
    assert "there is no database at chdb://" in said.err
    assert not (tmp_path / "misspelt").exists()


@pytest.mark.parametrize("url", ["nonsense", "http://user:secret@localhost:8081", "http://localhost:x", "ftp://h"])
def test_an_odd_url_of_flink_is_a_mistake(url: str, meterline: Command) -> None:
    said = meterline("flink", "cancel", "--rest-url", url)
    assert said.code == 2
    assert "expected the URL of Flink's REST API" in said.err
    assert "secret" not in said.err
