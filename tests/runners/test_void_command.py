"""`meterline void` as a user meets it: after it the database is what rating the other events alone gives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.event import microseconds
from meterline.schemas.voids import EventName, Void
from meterline.transforms import clickhouse
from tests.command import Command, Said
from tests.conftest import empty_tables

NOW = "2026-02-10T00:00:00Z"
TIERS = "tiers: [{up_to: 5, unit_price: '2', flat_fee: '1'}, {up_to: 20, unit_price: '1'}, {unit_price: '0.5'}]"
CATALOG = """
meters:
  - {id: graduated, event_type: call, aggregation: sum, value: n, unit: unit, dimensions: [region]}
  - {id: volume, event_type: call, aggregation: sum, value: n, unit: unit}
  - {id: calls, event_type: call, aggregation: count, unit: call}
  - {id: least, event_type: call, aggregation: min, value: n, unit: unit}
  - {id: most, event_type: call, aggregation: max, value: n, unit: unit}
  - {id: last, event_type: call, aggregation: latest, value: n, unit: unit}
  - {id: users, event_type: call, aggregation: distinct, value: user, unit: user}
  - {id: unpriced, event_type: call, aggregation: sum, value: n, unit: unit}
rate_cards:
  - id: card
    currency: EUR
    versions:
      - version: v1
        effective_from: 2025-01-01T00:00:00Z
        prices:
          graduated: {model: graduated, first_tier_flat_at_zero: true, TIERS}
          volume: {model: volume, TIERS}
          calls: {model: package, package_size: 3, package_price: '2', minimum_packages: 1}
          least: {model: graduated, TIERS}
          most: {model: volume, TIERS}
          last: {model: graduated, TIERS}
          users: {model: per_unit, unit_price: '7'}
plans: [{id: plan, rate_card: card, charges: [CHARGES]}]
accounts: [{id: acme}, {id: web, parent: acme, subjects: [w]}, {id: app, parent: acme}, {id: south, tenant: other}]
subscriptions:
  - {id: sub, account: acme, plan: plan, start: 2026-01-01T00:00:00Z, time_zone: Asia/Kolkata}
  - {id: other, account: south, plan: plan, start: 2026-01-01T00:00:00Z}
"""
CHARGED = ("graduated", "volume", "calls", "least", "most", "last", "users")


def event(id: str, n: str, hour: int, subject: str = "web", source: str = "/gw", **more: Any) -> bytes:
    time = datetime(2026, 1, 10, tzinfo=UTC) + timedelta(hours=hour)
    data = {"n": n, "user": more.pop("user", id), "region": more.pop("region", "eu")}
    whole = {"specversion": "1.0", "id": id, "source": source, "type": "call", "subject": subject, "data": data}
    return json.dumps({**whole, "time": time.isoformat(), **more}).encode()


# Of graduated and volume the bound 5 is crossed by e-2 and the bound 20 by e-5.
EVENTS = [
    event("e-0", "1", 0),
    event("e-1", "3", 1, user="ann"),
    event("e-2", "4", 1, "app", user="ann"),
    event("e-3", "0.5", 2, user="bob"),
    event("e-4", "9", 3, "w"),
    event("e-5", "8.25", 3, user="ann"),
    event("e-6", "2", 400),
    event("e-7", "6", 2, region="us"),
]


class Meterline(Command):
    """The command on one catalog."""

    catalog: Path

    def rated(self, events: Iterable[bytes], name: str = "usage") -> dict[str, Any]:
        file = self.catalog.parent / f"{name}.ndjson"
        file.write_bytes(b"".join(event + b"\n" for event in events))
        said = self("rate", "--input", file, *self._about, "--json")
        assert said.code == 0, said.err
        report: dict[str, Any] = json.loads(said.out)
        return report

    def void(self, id: str, *words: object, reason: str = "sent twice") -> Said:
        return self("void", "--event", id, "--reason", reason, *self._about, *words)

    def invoice(self, *words: object) -> Said:
        about = ("--catalog", self.catalog, "--clickhouse", self.url, "--now", "2026-03-01T00:00:00Z")
        return self("invoice", "--period", "2026-01", *about, *words)

    def audit(self) -> Said:
        return self("audit", "--catalog", self.catalog, "--clickhouse", self.url)

    @property
    def _about(self) -> tuple[object, ...]:
        return ("--catalog", self.catalog, "--clickhouse", self.url, "--now", NOW)


@pytest.fixture
def meterline(
    database: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Meterline:
    made = Meterline(database, monkeypatch, capfd)
    made.catalog = tmp_path / "catalog"
    made.catalog.mkdir()
    charges = ", ".join(f"{{id: {name}, meter: {name}}}" for name in CHARGED)
    (made.catalog / "all.yaml").write_text(CATALOG.replace("TIERS", TIERS).replace("CHARGES", charges))
    return made


def rows(url: str, sql: str) -> list[dict[str, Any]]:
    return clickhouse.query(url, sql).to_pylist()


def counting(url: str) -> list[dict[str, Any]]:
    """Line items as far as events count in them."""
    return rows(
        url, "SELECT * EXCEPT (voided_count, revision) FROM line_items FINAL WHERE event_count > 0 ORDER BY ALL"
    )


def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    tables = {"line_items": "*", "usage_events": "*", "rating_keys": "*", "voids": "*"}
    return {table: rows(url, f"SELECT {what} FROM {table} FINAL ORDER BY ALL") for table, what in tables.items()}


def rated_alone(meterline: Meterline, events: Iterable[bytes]) -> list[dict[str, Any]]:
    """Of an empty database with these events alone. What was there before is gone."""
    empty_tables(meterline.url)
    meterline.rated(events)
    return counting(meterline.url)


def without(*ids: str) -> list[bytes]:
    return [one for one in EVENTS if json.loads(one)["id"] not in ids]


VOIDED = {
    "the only event of a cell": ("e-0",),
    "the event that crossed a tier's bound": ("e-2",),
    "the greatest, and the one that crossed the last bound": ("e-4", "e-5"),
    "the least": ("e-3",),
    "the latest, alone in a late window": ("e-6",),
    "one of several of a user": ("e-5",),
    "all of a user": ("e-1", "e-2", "e-5"),
    "all of a rating key": ("e-7",),
    "all": tuple(f"e-{n}" for n in range(8)),
}


@pytest.mark.parametrize("ids", VOIDED.values(), ids=VOIDED.keys())
def test_after_a_void_the_others_alone_count(ids: tuple[str, ...], meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    before = rows(meterline.url, "SELECT line_item_id, revision FROM line_items FINAL")
    if len(ids) == 1:
        assert meterline.void(*ids).code == 0
    else:
        voids = [void_of(one) for one in EVENTS if json.loads(one)["id"] in ids]
        assert meterline.rated(voids, "voids")["accepted"] == len(ids)
    found = counting(meterline.url)
    assert meterline.audit().code == 0
    emptied = rows(meterline.url, "SELECT * FROM line_items FINAL WHERE event_count = 0")
    assert all(row["amount"] == 0 == row["quantity_to"] - row["quantity_from"] for row in emptied)
    revisions = {
        row["line_item_id"]: row["revision"]
        for row in rows(meterline.url, "SELECT line_item_id, revision FROM line_items FINAL")
    }
    assert revisions.keys() == {row["line_item_id"] for row in before}
    assert all(revisions[row["line_item_id"]] >= row["revision"] for row in before)
    assert rows(meterline.url, "SELECT count() AS n FROM usage_events FINAL")[0]["n"] == len(EVENTS) + len(ids)
    assert found == rated_alone(meterline, without(*ids))


def test_voiding_says_what_moved_and_twice_changes_nothing(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    first = meterline.void("e-5", "--json", reason="from a test machine")
    report = json.loads(first.out)
    assert first.code == 0
    assert report["event"]["time"] == "2026-01-10T03:00:00.000000Z"
    assert not report["already_voided"]
    charge = {one["charge_id"]: one for one in report["charges"]}
    assert (charge["volume"]["quantity_before"], charge["volume"]["quantity_after"]) == (
        "33.750000000000",
        "25.500000000000",
    )
    assert (float(charge["volume"]["amount_before"]), float(charge["volume"]["amount_after"])) == (16.875, 12.75)
    known = everything(meterline.url)

    second = meterline.void("e-5", reason="another reason")
    assert second.code == 0
    assert "voided before" in second.out
    assert "from a test machine" in second.out
    assert "no quantity and no amount moved" in second.out
    assert everything(meterline.url) == known


def test_an_event_that_is_not_known_cannot_be_voided(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    known = everything(meterline.url)
    for words in (("e-9",), ("e-1", "--source", "/elsewhere"), ("e-1", "--tenant", "x"), ("e-1", "--time", NOW)):
        said = meterline.void(*words)
        assert said.code == 2
        assert "no accepted event is called" in said.err
    assert everything(meterline.url) == known


def test_a_voiding_event_cannot_be_voided(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    void = json.loads(meterline.void("e-1", "--json").out)["void_id"]
    assert meterline.void(void).code == 2


def test_a_reason_is_needed(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    for reason in ("", "x" * 2_000):
        said = meterline.void("e-1", reason=reason)
        assert said.code == 2
        assert "reason" in said.err
    assert rows(meterline.url, "SELECT * FROM voids") == []


def test_where_an_id_means_several_events_they_are_listed(meterline: Meterline) -> None:
    twins = [
        event("e-1", "1", 1, source="/other"),
        event("e-1", "1", 50),
        event("e-1", "1", 1, "south", tenantid="other"),
    ]
    meterline.rated([*EVENTS, *twins])
    said = meterline.void("e-1")
    assert said.code == 2
    assert "4 accepted events" in said.err
    for one in (
        "--source /other --time 2026-01-10T01:00:00.000000Z",
        "--time 2026-01-12T02:00:00.000000Z",
        "--tenant other",
    ):
        assert one in said.err
    assert meterline.void("e-1", "--source", "/gw", "--tenant", "default").code == 2
    assert meterline.void("e-1", "--source", "/other").code == 0
    assert meterline.void("e-1", "--tenant", "other").code == 0
    assert (
        "e-1" in meterline.void("e-1", "--tenant", "default", "--source", "/gw", "--time", "2026-01-12T02:00:00Z").out
    )
    found = counting(meterline.url)
    assert found == rated_alone(meterline, EVENTS)


def test_an_id_that_was_used_again_on_another_day_stops_the_issue_until_one_is_voided(meterline: Meterline) -> None:
    meterline.rated([*EVENTS, event("e-1", "3", 40, user="ann")])
    refused = meterline.invoice("--issue")
    assert refused.code == 1
    assert "nothing was issued" in refused.err
    assert "an identity" in refused.err
    assert "e-1" in refused.err
    assert rows(meterline.url, "SELECT * FROM invoices") == []
    refusal = meterline.invoice("--issue", "--json")
    assert refusal.code == 1
    (law,) = json.loads(refusal.out)["broken_laws"]
    assert law["first_rows"][0]["id"] == "e-1"
    drafts = meterline.invoice()
    assert drafts.code == 0
    assert "cannot be issued" in drafts.out
    assert meterline.void("e-1", "--time", "2026-01-11T16:00:00Z").code == 0
    assert meterline.audit().code == 0
    issued = meterline.invoice("--issue", "--json")
    assert issued.code == 0
    assert json.loads(issued.out)["issued"] == 2
    assert json.loads(issued.out)["broken_laws"] == []


def test_an_id_that_was_used_again_in_another_period_stops_both(meterline: Meterline) -> None:
    meterline.rated([*EVENTS, event("e-1", "3", 24 * 28, user="ann")])
    for period in ("2026-01", "2026-02"):
        assert meterline.invoice("--issue", "--interim", "--period", period).code == 1
    assert meterline.invoice("--issue", "--interim", "--period", "2026-03").code == 0
    # The other account is not concerned.
    assert meterline.invoice("--issue", "--account", "south").code == 0


def test_what_was_issued_stays_and_the_next_invoice_gives_back(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    first = json.loads(meterline.invoice("--issue", "--json").out)["invoices"]
    said = meterline.void("e-4")
    assert "acme-2026-01-EUR-1" in said.out
    second = json.loads(meterline.invoice("--issue", "--json").out)["invoices"]
    again = [one for one in second if one["number"] not in {one["number"] for one in first}]
    assert [one for one in second if one not in again] == first
    assert [one["number"] for one in again] == ["acme-2026-01-EUR-2"]
    assert sum(float(one["total"]) for one in second if one["billing_account_id"] == "acme") == pytest.approx(
        sum(
            float(one["total"])
            for one in fresh_invoices(meterline, without("e-4"))
            if one["billing_account_id"] == "acme"
        )
    )


def fresh_invoices(meterline: Meterline, events: Iterable[bytes]) -> list[dict[str, Any]]:
    rated_alone(meterline, events)
    invoices: list[dict[str, Any]] = json.loads(meterline.invoice("--issue", "--json").out)["invoices"]
    return invoices


def test_where_all_usage_was_voided_the_invoice_bills_what_is_due_without_usage(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    meterline.rated(map(void_of, EVENTS), "voids")
    found = json.loads(meterline.invoice("--json").out)["invoices"]
    expected = fresh_invoices(meterline, [event("unrelated", "1", 0, "south", tenantid="other")])
    totals = [{one["billing_account_id"]: one["total"] for one in invoices} for invoices in (found, expected)]
    assert totals[0]["acme"] == totals[1]["acme"] != "0"


def test_a_copy_of_a_voided_event_is_a_duplicate_and_late_usage_finds_it_voided(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    meterline.void("e-2")
    known = everything(meterline.url)
    report = meterline.rated(EVENTS, "again")
    assert (report["accepted"], report["duplicates"]) == (0, len(EVENTS))
    assert everything(meterline.url) == known
    late = event("late", "11", 1, "app")
    meterline.rated([late], "late")
    found = counting(meterline.url)
    assert meterline.audit().code == 0
    assert found == rated_alone(meterline, [*without("e-2"), late])


def test_rows_from_before_that_are_stored_after_lose(meterline: Meterline) -> None:
    url = meterline.url
    meterline.rated(EVENTS)
    for table in ("before", "between"):
        clickhouse.command(url, f"DROP TABLE IF EXISTS {table}")
    try:
        clickhouse.command(url, "CREATE TABLE before ENGINE = Memory AS SELECT * FROM line_items FINAL")
        meterline.void("e-2")
        clickhouse.command(url, "CREATE TABLE between ENGINE = Memory AS SELECT * FROM line_items FINAL")
        meterline.void("e-5")
        known = everything(url)
        for table in ("between", "before"):
            clickhouse.command(url, f"INSERT INTO line_items SELECT * FROM {table}")
        assert everything(url) == known
        clickhouse.command(url, "OPTIMIZE TABLE line_items FINAL")
        assert everything(url) == known
    finally:
        for table in ("before", "between"):
            clickhouse.command(url, f"DROP TABLE IF EXISTS {table}")


def test_rating_from_the_archive_honours_voids(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    meterline.void("e-2")
    known = everything(meterline.url)
    clickhouse.command(meterline.url, "TRUNCATE TABLE line_items")
    for period in ("2026-01", "2026-02"):
        about = ("--catalog", meterline.catalog, "--clickhouse", meterline.url)
        assert meterline("rate", "--from-archive", "--period", period, *about).code == 0
    assert everything(meterline.url) == known


def test_a_subject_that_moved_to_another_payer_is_voided_where_it_was_counted(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    file = meterline.catalog / "all.yaml"
    moved = file.read_text().replace(
        "{id: web, parent: acme, subjects: [w]}", "{id: web, is_billed: true, subjects: [w]}"
    )
    file.write_text(moved.replace("is_billed", "billed"))
    assert meterline.void("e-1").code == 0
    assert meterline.audit().code == 0
    (row,) = rows(
        meterline.url, "SELECT sum(voided_count) AS n FROM line_items FINAL WHERE billing_account_id = 'acme'"
    )
    assert row["n"] == 8


class Crash(RuntimeError):
    """Like a kill, at a place that the test chooses."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("table", ["rating_keys", "voids", "usage_events", "line_items", "runs"])
def test_a_void_that_broke_off_is_completed_by_the_same_command(
    table: str, after: bool, meterline: Meterline, monkeypatch: pytest.MonkeyPatch
) -> None:
    meterline.rated(EVENTS)
    known = everything(meterline.url)
    store = clickhouse.insert

    def broken(url: str, into: str, what: Any) -> None:
        if into != table or after:
            store(url, into, what)
        if into == table:
            raise Crash(table)

    with monkeypatch.context() as patch:
        patch.setattr(clickhouse, "insert", broken)
        assert meterline.void("e-2").code == 1
    if not rows(meterline.url, "SELECT * FROM voids"):
        assert everything(meterline.url) == known, "a void that is not stored has moved line items"
    assert meterline.void("e-2").code == 0
    assert meterline.audit().code == 0
    found = counting(meterline.url)
    assert found == rated_alone(meterline, without("e-2"))


# --- through the front door ---------------------------------------------------------------------


def void_of(record: bytes, **change: str) -> bytes:
    one = json.loads(record)
    time = microseconds(datetime.fromisoformat(one["time"]))
    name = EventName(one.get("tenantid", "default"), time, one["source"], one["id"])
    return Void(name._replace(**change), one["subject"], "wrong").record()


@pytest.fixture
def catalog(meterline: Meterline) -> Catalog:
    return load_catalog(meterline.catalog)


def test_a_file_of_voiding_events_is_rated_like_any_other(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    late = event("late", "11", 1, "app")
    voids = [void_of(EVENTS[1]), void_of(EVENTS[5]), void_of(EVENTS[1]), void_of(event("e-9", "1", 0))]
    report = meterline.rated([late, *voids], "voids")
    assert (report["records"], report["accepted"], report["duplicates"]) == (5, 3, 1)
    assert report["rejected"] == {"void/unknown_event": 1}
    assert report["adds_up"]
    found = counting(meterline.url)
    assert meterline.audit().code == 0
    assert found == rated_alone(meterline, [*without("e-1", "e-5"), late])


def test_a_void_that_came_before_its_event_can_be_sent_again(meterline: Meterline) -> None:
    void = void_of(EVENTS[1])
    first = meterline.rated([*EVENTS, void])
    assert first["rejected"] == {"void/unknown_event": 1}
    (reject,) = rows(meterline.url, "SELECT payload FROM rejects FINAL")
    assert reject["payload"].encode() == void
    assert meterline.rated([void], "voids")["accepted"] == 1
    found = counting(meterline.url)
    assert found == rated_alone(meterline, without("e-1"))


def test_a_void_with_another_subject_names_no_event(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    stranger = void_of(EVENTS[1]).replace(b'"subject": "web"', b'"subject": "app"')
    assert meterline.rated([stranger], "voids")["rejected"] == {"void/unknown_event": 1}


def test_usage_with_the_source_of_voids_is_rejected(meterline: Meterline) -> None:
    assert meterline.rated([event("mine", "1", 0, source="/meterline/void")])["rejected"] == {"void/bad_attribute": 1}


def test_an_archive_that_has_partly_gone_refuses_a_void(
    meterline: Meterline, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    meterline.rated(EVENTS)
    monkeypatch.setattr(clickhouse, "retention_days", lambda url: 30)
    said = meterline.void("e-1")
    assert said.code == 2
    assert "the archive keeps 30 days" in said.err


def test_a_void_explains_itself_in_both_directions(meterline: Meterline) -> None:
    meterline.rated(EVENTS)
    report = json.loads(meterline.void("e-5", "--json", reason="from a test machine").out)
    about = ("--catalog", meterline.catalog, "--clickhouse", meterline.url)
    (voided,) = json.loads(meterline("explain", "e-5", *about, "--json").out)["found"]
    assert voided["voided"] == {
        "reason": "from a test machine",
        "voided_at": NOW,
        "void_id": report["void_id"],
    }
    assert voided["voids"] is None
    (voiding,) = json.loads(meterline("explain", report["void_id"], *about, "--json").out)["found"]
    assert voiding["voids"] == {"source": "/gw", "id": "e-5", "reason": "from a test machine"}
    assert voiding["usage"] == []
    item = voided["usage"][0]["line_item"]
    (told,) = json.loads(meterline("explain", item["line_item_id"], *about, "--json").out)["found"]
    assert (told["event_count"], told["voided_count"]) == (1, 1)
    assert {one["id"]: one["voided"] for one in told["events"]} == {"e-4": False, "e-5": True}
    said = meterline("explain", "e-5", *about)
    assert "it counts no more: from a test machine" in said.out
    assert "taken out of line item" in said.out
    assert "1 event and 1 voided" in meterline("explain", item["line_item_id"], *about).out


def test_a_void_in_a_key_that_could_not_be_priced_gives_it_a_price(meterline: Meterline) -> None:
    """A quantity by mistake so large that its key has no line items: without it, it has."""
    many = [event(f"big-{n}", "99999999999999999999", 0) for n in range(3)]
    meterline.rated([*EVENTS, *many])
    assert rows(meterline.url, "SELECT * FROM line_items WHERE meter_id = 'volume'") == []
    meterline.rated(map(void_of, many), "voids")
    assert meterline.audit().code == 0
    found = counting(meterline.url)
    assert found == rated_alone(meterline, EVENTS)


def test_a_void_through_a_server_is_the_same(meterline: Meterline, server: str) -> None:
    meterline.rated(EVENTS)
    embedded, meterline.url = meterline.url, server
    assert meterline.void("e-2").code == 0
    assert meterline.void("e-2").code == 0
    assert meterline.audit().code == 0
    assert meterline.invoice("--issue").code == 0
    found = counting(embedded)
    meterline.url = embedded
    assert found == rated_alone(meterline, without("e-2"))
