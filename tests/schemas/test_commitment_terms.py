"""The check of a commitment's term says what billing does: refused is just what no billing period would owe."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.catalog import Catalog
from meterline.schemas.catalog_money_checks import findings
from meterline.transforms.rules.attribution import Directory
from meterline.transforms.rules.billing.contracts import Contracts
from meterline.transforms.rules.periods import billing_periods
from tests import strategies

DAY = timedelta(days=1)
starts = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)).map(  # noqa: DTZ001
    lambda one: one.replace(microsecond=0, tzinfo=UTC)
)
lengths = st.one_of(st.integers(1, 40 * 86_400), st.integers(1, 400).map(lambda days: days * 86_400))


@given(
    start=starts,
    seconds=lengths,
    cycle=st.sampled_from(["weekly", "monthly", "quarterly", "yearly", "1 days", "10 days"]),
    zone=strategies.time_zones,
    anchor=st.dates(date(2024, 1, 1), date(2026, 12, 31)),
    on_a_period=st.booleans(),
)
def test_a_term_is_refused_if_and_only_if_no_period_owes_it(
    start: datetime, seconds: int, cycle: str, zone: str, anchor: date, on_a_period: bool
) -> None:
    plan = {"plan": "p", "start": "2020-01-01T00:00:00Z", "time_zone": zone, "cycle": cycle, "anchor": f"{anchor}"}
    calendar = (
        Catalog.model_validate({"subscriptions": [{"id": "s", "account": "a", **plan}]}).subscriptions[0].calendar
    )
    end = start + timedelta(seconds=seconds)
    if on_a_period:
        end = next(iter(billing_periods(end, end + DAY, calendar))).end
    one = {"id": "c", "account": "a", "kind": "postpaid", "amount": 1, "currency": "EUR", "start": start, "end": end}
    catalog = Catalog.model_validate(
        {"accounts": [{"id": "a"}], "subscriptions": [{"id": "s", "account": "a", **plan}], "commitments": [one]}
    )
    terms = Contracts(Directory(catalog))
    (commitment,) = catalog.commitments
    owed = any(terms.owes(commitment, period) for period in billing_periods(start - 400 * DAY, end + DAY, calendar))
    assert owed == (not [found for found in findings(catalog, True) if found.at[2] == "end"])
