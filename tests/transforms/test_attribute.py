"""Whole batches are attributed as the rules attribute one event."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from meterline.schemas.arrow import ATTRIBUTED
from meterline.schemas.catalog import Catalog, TimeOfDay
from meterline.schemas.catalog_files import load_catalog
from meterline.schemas.meters import Aggregation
from meterline.schemas.records import RatingKey
from meterline.transforms.attribute import Attributor
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.scan import Scanner
from meterline.transforms.shape import EventShape
from tests.simulation.delivery import load, microseconds
from tests.simulation.generator import World, generate
from tests.simulation.price_models import with_every_model

Row = dict[str, Any]


def attributable(catalog: Catalog, records: list[bytes], received: datetime) -> pa.RecordBatch:
    """Events as `validate` passes them on."""
    events = Scanner(EventShape.of(catalog)).scan(records, microseconds(received)).events
    origin = pa.DictionaryArray.from_arrays(pa.array([0] * events.num_rows, pa.int32()), ["file"])
    return events.append_column("origin", origin).append_column(
        "position", pa.array(range(events.num_rows), pa.int64())
    )


FILTERED = """
meters:
  - {id: a, event_type: call, aggregation: sum, value: n, unit: u, where: {kind: x}}
  - {id: b, event_type: call, aggregation: sum, value: n, unit: u, where: {kind: y}}
  - {id: c, event_type: call, aggregation: count, unit: u, where_not: {kind: [x, y, z]}}
accounts: [{id: acme}]
"""


def test_which_meters_an_event_feeds_is_content_and_what_a_filter_asks_for_is_not(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(FILTERED)
    catalog = load_catalog(tmp_path)
    event = (
        '{"specversion":"1.0","id":"1","source":"/s","type":"call","time":"2026-10-01T00:00:00Z","subject":"acme",'
        '"data":{"n":1,"kind":%s}}'
    )
    records = [(event % kind).encode() for kind in ('"x"', '"y"', '"z"', '"w"', '""', "null", "[1]")]
    events = attributable(catalog, records, datetime(2026, 10, 2, tzinfo=UTC))
    attributed, _ = Attributor(Directory(catalog)).attribute(events)
    fed = [[RatingKey.parse(key).meter_id for key in keys] for keys in attributed["rating_keys"].to_pylist()]
    assert fed == [["a"], ["b"], [], ["c"], ["c"], ["c"], ["c"]]
    contents = [identity[12:] for identity in attributed["identity"].to_pylist()]
    assert len(set(contents)) == len(set(contents[:4])) == 4


def expected(book: Directory, row: Row, account: str) -> list[tuple[str, Decimal, str]]:
    """What the event says to each meter of its type, one by one."""
    found = []
    for meter in book.meters_by_type[row["type"]]:
        segment = book.segment_at(account, meter.id, row["time"])
        assert segment.start <= row["time"] < segment.end
        key = RatingKey(
            row["tenant_id"],
            book.billing_account_of(account),
            segment.subscription_id,
            segment.charge_id,
            meter.id,
            segment.rate_card_version,
            segment.period_start,
            segment.period_end,
            segment.dimensions(meter, [row[f"d:{path}"] for path in meter.dimensions]),
        )
        counted = meter.aggregation in (Aggregation.COUNT, Aggregation.DISTINCT)
        value = row[f"v:{meter.value}"] if meter.aggregation is Aggregation.DISTINCT else ""
        found.append((key.text, Decimal(1) if counted else row[f"q:{meter.value}"], value))
    return found


@pytest.mark.parametrize("altered", [None, with_every_model], ids=["", "every price model"])
@pytest.mark.parametrize("seed", range(25))
def test_a_batch_is_attributed_as_each_event(
    seed: int, altered: Callable[[World, int], World] | None, tmp_path: Path
) -> None:
    world = generate(seed, events=150, bad=0.1)
    world = altered(world, seed) if altered else world
    catalog = load(world, tmp_path)
    book = Directory(catalog)
    events = attributable(catalog, world.records, world.received)
    attributed, unknown = Attributor(book).attribute(events)
    assert attributed.schema == ATTRIBUTED

    came = events.to_pylist()
    strangers = [row for row in came if book.account_of(row["tenant_id"], row["subject"]) is None]
    assert unknown.to_pylist() == strangers
    known = [row for row in came if book.account_of(row["tenant_id"], row["subject"]) is not None]
    for row, told in zip(known, attributed.to_pylist(), strict=True):
        account = book.account_of(row["tenant_id"], row["subject"])
        assert account is not None
        assert told["account_id"] == account
        assert told["billing_account_id"] == book.billing_account_of(account)
        said = list(zip(told["rating_keys"], told["quantities"], told["counted_values"], strict=True))
        assert said == expected(book, row, account)
        for name in ("tenant_id", "source", "id", "type", "subject", "time", "received_time", "payload", "position"):
            assert told[name] == row[name]


@pytest.mark.parametrize("seed", range(10))
def test_how_events_are_cut_into_batches_changes_nothing(seed: int, tmp_path: Path) -> None:
    """What an attributor remembers of earlier batches is right for later ones."""
    rng = Random(seed)
    world = generate(seed, events=120, bad=0)
    catalog = load(world, tmp_path)
    events = attributable(catalog, world.records, world.received)
    together = Attributor(Directory(catalog)).attribute(events)[0].to_pylist()
    one = Attributor(Directory(catalog))
    order = rng.sample(range(events.num_rows), events.num_rows)
    apart: dict[int, Row] = {}
    while order:
        size = rng.randint(1, 9)
        part, order = order[:size], order[size:]
        for row in one.attribute(events.take(pa.array(part)))[0].to_pylist():
            apart[row["position"]] = row
    assert [apart[row["position"]] for row in together] == together


def test_no_events(tmp_path: Path) -> None:
    world = generate(1, events=0)
    catalog = load(world, tmp_path)
    attributed, unknown = Attributor(Directory(catalog)).attribute(attributable(catalog, [], world.received))
    assert attributed.num_rows == unknown.num_rows == 0


RECORD = (
    '{"specversion":"1.0","id":"ID","source":"/s","type":"call","time":"2026-10-01T12:30:00Z","subject":"acme",'
    '"data":{"n":"1.5","user":"u","region":"eu"}}'
)
RECEIVED = datetime.fromisoformat("2026-10-02T00:00:00+00:00")


def identity_of(catalog: Catalog, record: str, beside: str = "") -> bytes:
    """16 bytes, whatever stands beside the event in its batch."""
    records = [one.encode() for one in (beside, record) if one]
    attributed, _ = Attributor(Directory(catalog)).attribute(attributable(catalog, records, RECEIVED))
    assert attributed.num_rows == len(records)
    found: bytes = attributed["identity"][len(records) - 1].as_py()
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"1.5"', "1.50"),
        ('"n":"1.5"', '"n":15e-1,"extra":7'),
        ("12:30:00Z", "14:30:00.0000009+02:00"),
        ('"id"', '"traceparent":"00","id"'),
        ('"id"', '"tenantid":"default","id"'),
    ],
)
def test_another_spelling_is_the_same_event(catalog: Catalog, old: str, new: str) -> None:
    assert old in RECORD
    other = RECORD.replace(old, new)
    assert identity_of(catalog, other) == identity_of(catalog, RECORD) == identity_of(catalog, RECORD, beside=other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"1.5"', "1.500000000001"),
        ('"u"', '"v"'),
        ('"eu"', '"us"'),
        ('"eu"', "null"),
        ("12:30:00Z", "12:30:00.000001Z"),
        ('"acme"', '"web"'),
        ('"subject":"web"', '"subject":"user:1"'),
    ],
)
def test_what_can_move_an_amount_is_content(catalog: Catalog, old: str, new: str) -> None:
    first = RECORD.replace('"acme"', '"web"') if "web" in old else RECORD
    one, other = identity_of(catalog, first), identity_of(catalog, first.replace(old, new))
    assert one[:12] == other[:12]
    assert one[12:] != other[12:]


def test_a_band_of_time_is_no_content(catalog: Catalog) -> None:
    """It comes with a version of the prices: a copy that comes after must stay a duplicate."""
    price = catalog.rate_cards[0].versions[0].prices["c-sum"]
    band = {"name": "day", "times": [{"from": "18:00", "to": "18:01"}], "price": price}  # 12:30 UTC in Kolkata
    by_time = TimeOfDay.model_validate({"model": "time_of_day", "bands": [band], "default": price})
    prices = dict.fromkeys(catalog.rate_cards[0].versions[0].prices, by_time)
    version = catalog.rate_cards[0].versions[0].model_copy(update={"prices": prices})
    card = catalog.rate_cards[0].model_copy(update={"versions": (version,)})
    banded = Catalog.model_validate({**dict(catalog), "rate_cards": (card,)})
    assert identity_of(banded, RECORD) == identity_of(catalog, RECORD)
    attributed, _ = Attributor(Directory(banded)).attribute(attributable(banded, [RECORD.encode()], RECEIVED))
    keys = [RatingKey.parse(text) for text in attributed["rating_keys"][0].as_py()]
    assert {dict(key.dimensions)["local time"] for key in keys if key.charge_id} == {"day"}


@pytest.mark.parametrize(("old", "new"), [('"ID"', '"I"'), ('"/s"', '"/"')])
def test_id_and_source_are_the_identity(catalog: Catalog, old: str, new: str) -> None:
    one, other = identity_of(catalog, RECORD), identity_of(catalog, RECORD.replace(old, new))
    assert one[:12] != other[:12]
    assert one[12:] == other[12:]
