"""The promises of catalog files: every mistake is found, at its line, in plain words."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.schemas.catalog_files import CatalogError, Problem, catalog_json_schema, check_catalog, load_catalog

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "quickstart" / "catalog"
SCHEMA = ROOT / "docs" / "catalog.schema.json"

GOOD = """\
meters:
  - id: tokens
    event_type: llm.request
    aggregation: sum
    value: tokens
    unit: token
  - id: requests
    event_type: llm.request
    aggregation: count
    unit: request
rate_cards:
  - id: standard
    currency: USD
    versions:
      - version: '1'
        effective_from: 2026-01-01T00:00:00Z
        prices:
          tokens:
            model: graduated
            tiers:
              - {up_to: 100, unit_price: '0.5'}
              - {up_to: 200, unit_price: '0.4'}
              - {unit_price: '0.3'}
          requests: {model: package, package_price: 1, package_size: 10}
          fee: {model: fixed, amount: '10.00'}
      - version: '2'
        effective_from: 2026-02-01T00:00:00Z
        prices:
          tokens: {model: per_unit, unit_price: '0.1'}
plans:
  - id: basic
    rate_card: standard
    charges:
      - {id: tokens, meter: tokens}
      - {id: requests, meter: requests}
      - {id: fee}
accounts:
  - {id: acme}
  - {id: team, parent: acme, subjects: [robot]}
subscriptions:
  - {id: s1, account: acme, plan: basic, start: 2026-01-01T00:00:00Z}
"""
TEAM = "- {id: team, parent: acme, subjects: [robot]}"
SUBSCRIPTION = "- {id: s1, account: acme, plan: basic, start: 2026-01-01T00:00:00Z}"
TOKENS_2 = "tokens: {model: per_unit, unit_price: '0.1'}"


def write(folder: Path, **files: str | bytes) -> Path:
    """A catalog in `folder`; a file's name is given without `.yaml`."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}.yaml").write_bytes(data)
    return folder


def problems(folder: Path) -> list[str]:
    return [str(problem) for problem in check_catalog(folder)[1]]


def line_of(text: str, mark: str) -> int:
    return text[: text.index(mark)].count("\n") + 1


# Each: what stands in GOOD, what to write instead, and the problem expected in the line marked #!.
MISTAKES = [
    # One record
    ("    unit: token\n", "    unit: token\n    dimension: [model] #!\n",
     "meter tokens: unknown key 'dimension', did you mean 'dimensions'?; expected one of id, name, event_type, "
     "aggregation, value, expression, where, where_not, "
     "series, percentile, interval_seconds, unit, dimensions"),
    ("  - id: tokens\n", "  - name: x #!\n", "meter number 1: `id` is missing"),
    ("aggregation: sum", "aggregation: summ #!",
     "meter tokens, aggregation: expected one of sum, count, min, max, distinct, latest, average, time_weighted_sum, "
     "percentile, got summ, did you mean 'sum'?"),
    ("aggregation: sum", "aggregation: [sum] #!", "meter tokens, aggregation: expected one of sum, count, min, max, "
     "distinct, latest, average, time_weighted_sum, percentile, got a list"),
    ("    value: tokens\n", "    value: tokens\n    series: disk #!\n",
     "meter tokens, series: is for time_weighted_sum meters, this one is sum"),
    ("  - id: tokens\n    event_type: llm.request\n    aggregation: sum",
     "  - id: tokens #!\n    event_type: llm.request\n    aggregation: percentile\n    interval_seconds: 300",
     "meter tokens: a percentile meter needs `percentile`"),
    ("  - id: tokens\n    event_type: llm.request\n    aggregation: sum",
     "  - id: tokens #!\n    event_type: llm.request\n    aggregation: percentile\n    percentile: '95'",
     "meter tokens: a percentile meter needs `interval_seconds`"),
    ("    value: tokens\n", "    value: tokens\n    percentile: 101 #!\n",
     "meter tokens, percentile: must be more than 0 and at most 100, got 101"),
    ("    value: tokens\n", "    value: tokens\n    percentile: '95' #!\n",
     "meter tokens, percentile: is for percentile meters, this one is sum"),
    ("    value: tokens\n", "    value: tokens\n    interval_seconds: 59 #!\n",
     "meter tokens, interval_seconds: expected at least 60, got 59"),
    ("    value: tokens\n", "    value: tokens\n    interval_seconds: '300' #!\n",
     "meter tokens, interval_seconds: expected a whole number, got '300'"),
    ("aggregation: count", "aggregation: count\n    value: x #!",
     "meter requests, value: a count meter counts events, it takes no `value`"),
    ("aggregation: count", "aggregation: count\n    expression: a + b #!",
     "meter requests, expression: a count meter counts events; leave it out"),
    ("    value: tokens\n", "    value: tokens\n    expression: input + output #!\n",
     "meter tokens, expression: the number stands in `value` already, leave one out (line 5)"),
    ("    value: tokens\n", "    expression: input / 2 #!\n",
     "meter tokens, expression: '/' at character 7 is no part of an expression"),
    ("    value: tokens\n", "    expression: max(input) #!\n",
     "meter tokens, expression: max takes two values or more, got one"),
    ("    value: tokens\n", "    expression: 5 #!\n",
     "meter tokens, expression: 5 must be in quotes, YAML reads it as a number: write '5'"),
    ("  - id: tokens\n    event_type: llm.request\n    aggregation: sum\n    value: tokens",
     "  - id: tokens #!\n    event_type: llm.request\n    aggregation: sum",
     "meter tokens: a sum meter needs `value`, the property to read, or `expression`, to compute it from several"),
    ("    value: tokens\n", "    value: tokens\n    where: {code: 200} #!\n",
     "meter tokens, where, code: 200 must be in quotes, YAML reads it as a number: write '200'"),
    ("    value: tokens\n", "    value: tokens\n    where: {code: [ok, no]} #!\n",
     "meter tokens, where, code, 2: no must be in quotes, YAML reads it as false: write 'false' for the boolean, "
     "or 'no' for a text"),
    ("    value: tokens\n", "    value: tokens\n    where_not: {code: []} #!\n",
     "meter tokens, where_not, code: expected at least one, got none"),
    ("    value: tokens\n", "    value: tokens\n    where: [code] #!\n",
     "meter tokens, where: expected a mapping, got a list"),
    ("    value: tokens\n", "    value: tokens\n    where: {a..b: x} #!\n",
     "meter tokens, where, a..b: expected property names joined by '.', got a..b"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: '0.1', free_events: 3} #!",
     "price tokens, free_events: `fee_per_event` is missing, the fee that they do not bear"),
    ("  - id: requests\n    event_type: llm.request", "  - id: requests\n    event_type: meterline.void.v1 #!",
     "meter requests, event_type: types that begin with 'meterline.' are Meterline's own"),
    ("    unit: request", "    unit: #!", "meter requests, unit: expected text, got nothing"),
    ("    unit: request", "    unit: '' #!", "meter requests, unit: expected text, got an empty one"),
    ("    value: tokens", "    value: a..b #!", "meter tokens, value: expected property names joined by '.', got a..b"),
    ("    unit: token\n", "    unit: token\n    dimensions: [a,\n a] #!\n",
     "meter tokens, dimension 2: 'a' is named twice"),
    ("    unit: token\n", "    unit: token\n    dimensions: model #!\n",
     "meter tokens, dimensions: expected a list, got model"),
    ("  - {id: acme}", "  - acme #!", "account number 1: expected a mapping, got acme"),
    ("{id: acme}", "{id: a cme} #!", "account number 1, id: expected letters, digits, '.', '_' and '-', at most 100, "
     "starting with a letter or digit, got a cme"),
    ("{id: acme}", "{id: 007} #!", "account number 1, id: 007 must be in quotes, YAML reads it as a number: "
     "write '007'"),
    ("{id: acme}", "{id: no} #!", "account number 1, id: no must be in quotes, YAML reads it as false: write 'no'"),
    ("{id: acme}", "{id: acme, billed: 1} #!", "account acme, billed: expected true or false, got 1"),
    ("{id: acme}", "{id: acme, subjects: [ok, 12]} #!", "account acme, subject 2: 12 must be in quotes, "
     "YAML reads it as a number: write '12'"),
    ("currency: USD", "currency: ABC #!",
     "rate card standard, currency: 'ABC' is no ISO 4217 currency, expected a code like 'USD'"),
    # Prices
    (TOKENS_2, "tokens: {model: per_unit, unit_price: 0.003} #!",
     "rate card standard, version 2, price tokens, unit_price: expected a decimal number in quotes, got 0.003: "
     "write '0.003'"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: .10} #!", "got .10: write '.10'"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: 010} #!", "got 010: write '010'"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: yes} #!", "expected a decimal number in quotes, got yes"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: '1e3'} #!",
     "'1e3' is no decimal number, expected digits and a point, like '0.003'"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: -5} #!", "unit_price: must not be negative, got -5"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: 1, per: '0'} #!", "per: must be more than 0, got 0"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: '0.1234567890123456789'} #!",
     "0.1234567890123456789 has 19 decimals, at most 18 are kept exactly"),
    (TOKENS_2, "tokens: {model: per_unit} #!", "rate card standard, version 2, price tokens: `unit_price` is missing"),
    (TOKENS_2, "tokens: {unit_price: '0.1'} #!", "rate card standard, version 2, price tokens: `model` is missing, "
     "expected one of per_unit, graduated, volume, stairstep, package, percentage, "
     "graduated_percentage, dynamic, matrix, time_of_day, fixed"),
    (TOKENS_2, "tokens:\n            unit_price: '1'\n            model: perunit #!",
     "rate card standard, version 2, price tokens, model: expected one of per_unit, graduated, volume, stairstep, "
     "package, percentage, graduated_percentage, dynamic, matrix, time_of_day, fixed, got perunit, did you mean "
     "'per_unit'?"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: '1', tiers: []} #!",
     "price tokens: unknown key 'tiers'; expected one of model, included, included_rollover, minimum, maximum, "
     "fee_per_event, free_events, unit_price, per"),
    (TOKENS_2, "tokens: 5 #!", "rate card standard, version 2, price tokens: expected a mapping, got 5"),
    (TOKENS_2, TOKENS_2 + "\n          'a b': {model: per_unit, unit_price: '1'} #!",
     "price a b: expected letters, digits, '.', '_' and '-'"),
    (TOKENS_2, TOKENS_2 + "\n          no: {model: per_unit, unit_price: '1'} #!",
     "the key no must be in quotes, YAML reads it as false: write 'no'"),
    ("package_size: 10}", "package_size: 10, round: upp} #!",
     "price requests, round: expected one of up, down, got upp, did you mean 'up'?"),
    ("package_size: 10}", "package_size: 10, minimum_packages: 1.5} #!",
     "price requests, minimum_packages: expected a whole number, got 1.5"),
    ("package_size: 10}", "package_size: 10, minimum_packages: -1} #!", "expected at least 0, got -1"),
    ("{up_to: 200, unit_price: '0.4'}", "{unit_price: '0.4'} #!",
     "rate card standard, version 1, price tokens, tier 2: `up_to` is missing, only the last one may be without end"),
    ("{up_to: 200, unit_price: '0.4'}", "{up_to: 100, unit_price: '0.4'} #!",
     "price tokens, tier 2, up_to: ends at 100, it must end above 100"),
    ("{unit_price: '0.3'}", "{up_to: 300} #!",
     "price tokens, tier 3, up_to: the last one ends at 300, leave its `up_to` out so that all usage has a price"),
    ("{up_to: 100, unit_price: '0.5'}", "{up_to: 100, price: '0.5'} #!",
     "price tokens, tier 1: unknown key 'price', did you mean 'unit_price'?; expected one of up_to, unit_price, "
     "flat_fee, package_price, package_size, round"),
    ("{unit_price: '0.3'}", "{package_price: '0.3'} #!",
     "price tokens, tier 3, package_price: `package_size` is missing, the units that it buys"),
    ("{unit_price: '0.3'}", "{package_size: 50} #!",
     "price tokens, tier 3, package_size: `package_price` is missing, what one package costs"),
    ("{unit_price: '0.3'}", "{unit_price: '0.3', package_size: 50, package_price: 1} #!",
     "price tokens, tier 3, unit_price: the tier is sold in packages, leave `unit_price` out"),
    ("{unit_price: '0.3'}", "{unit_price: '0.3', round: down} #!",
     "price tokens, tier 3, round: only packages are rounded, `package_size` is missing"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: '0.1', minimum: 5, maximum: 4} #!",
     "price tokens, maximum: is 4, it must be at least the minimum of 5 (line 29)"),
    (TOKENS_2, "tokens: {model: per_unit, unit_price: '0.1', minimum: '-5'} #!",
     "minimum: must not be negative, got -5"),
    ("package_size: 10}", "package_size: 10, included: 5} #!",
     "price requests, included: packages have their own allowance, write `free_units`"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, price: {model: dynamic},\n"
     "            times: []}]} #!", "price tokens, band 1, times: expected at least one, got none"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, price: {model: dynamic},\n"
     "            times: [{from: '8:00'}]}]} #!",
     "price tokens, band 1, time 1, from: expected a time of day like '08:00', got '8:00'"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, price: {model: dynamic},\n"
     "            times: [{since: '08:00'}]}]} #!",
     "price tokens, band 1, time 1: unknown key 'since'; expected one of days, from, to"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, price: {model: dynamic},\n"
     "            times: [{to: '25:00'}]}]} #!",
     "price tokens, band 1, time 1, to: expected a time of day like '20:00', or '24:00', got '25:00'"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, price: {model: dynamic},\n"
     "            times: [{from: 20:00}]}]} #!", "price tokens, band 1, time 1, from: 20:00 must be in quotes"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, price: {model: dynamic},\n"
     "            times: [{from: '22:00', to: '06:00'}]}]} #!",
     "price tokens, band 1, time 1, to: is 06:00, it must be after 22:00; what goes over midnight is two `times`"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, price: {model: dynamic},\n"
     "            times: [{days: [monday]}]}]} #!",
     "price tokens, band 1, time 1, day 1: expected one of mon, tue, wed, thu, fri, sat, sun, got monday"),
    (TOKENS_2, "tokens: {model: time_of_day, default: {model: dynamic}, bands: [{name: a, times: [{days: [mon]}],\n"
     "            price: {model: fixed}}]} #!", "price tokens, band 1, price, model: expected one of per_unit"),
    (TOKENS_2, "tokens: {model: matrix, rows: []} #!", "price tokens, rows: expected at least one, got none"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {}, price: {model: dynamic}}]} #!",
     "price tokens, row 1, when: expected at least one, got none"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {a: yes}, price: {model: dynamic}}]} #!",
     "price tokens, row 1, when, a: yes must be in quotes, YAML reads it as true: write 'true' for the boolean, "
     "or 'yes' for a text"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {a: x}, price: {model: fixed}}]} #!",
     "price tokens, row 1, price, model: expected one of per_unit, graduated, volume, stairstep, package, percentage, "
     "graduated_percentage, dynamic, got fixed"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {a: x}, price: {unit_price: 1}}]} #!",
     "price tokens, row 1, price: `model` is missing, expected one of per_unit, graduated, volume, stairstep, package, "
     "percentage, graduated_percentage, dynamic"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {a: x}, price: {model: per_unit, unit_price: 0.5}}]} #!",
     "price tokens, row 1, price, unit_price: expected a decimal number in quotes, got 0.5: write '0.5'"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {a: x}, price: {model: per_unit, price: 5}}]} #!",
     "price tokens, row 1, price: unknown key 'price', did you mean 'unit_price'?"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {a: x}, price: {model: dynamic}}], default: {model: volume}} #!",
     "price tokens, default: `tiers` is missing"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {a: x}, price: {model: dynamic}},\n"
     " {when: {a: x, b: y}, price: {model: dynamic}}]} #!",
     "price tokens, row 2: is never reached, all that it fits is taken by row 1; put it before that one (line 29)"),
    (TOKENS_2, "tokens: {model: matrix, rows: [{when: {region: x}, price: {model: dynamic}}]} #!",
     "price tokens, row 1, when, region: meter tokens has no such dimension, expected one of none (line 2)"),
    (TOKENS_2, "tokens: {model: percentage} #!", "price tokens: `percent` is missing, or `basis_points`"),
    (TOKENS_2, "tokens: {model: percentage, percent: 2, basis_points: 200} #!",
     "price tokens, basis_points: the share stands in `percent` already, leave one out"),
    (TOKENS_2, "tokens: {model: percentage, percent: '0.12345678901234567'} #!",
     "0.12345678901234567 has 17 decimals, at most 16 are kept exactly"),
    (TOKENS_2, "tokens: {model: graduated_percentage, tiers: [{percent: 2, unit_price: 1}]} #!",
     "price tokens, tier 1: unknown key 'unit_price'; expected one of percent, basis_points, up_to, flat_fee"),
    (TOKENS_2, "tokens: {model: graduated_percentage, tiers: [{up_to: 5, percent: 2}, {flat_fee: 1}]} #!",
     "price tokens, tier 2: `percent` is missing, or `basis_points`"),
    ("requests: {model: package, package_price: 1, package_size: 10}", "requests: {model: dynamic} #!",
     "price requests, model: is dynamic, but meter requests counts (count); expected one that adds up amounts (sum) "
     "(line 9)"),
    (TOKENS_2, "tokens: {model: stairstep, steps: [{up_to: 5, price: 1}, {price: 2, flat_fee: 1}]} #!",
     "price tokens, step 2: unknown key 'flat_fee'; expected one of up_to, price"),
    (TOKENS_2, "tokens: {model: stairstep, steps: [{up_to: 5, price: 1}, {up_to: 5, price: 2}]} #!",
     "price tokens, step 2, up_to: ends at 5, it must end above 5"),
    (TOKENS_2, "tokens: {model: stairstep, steps: [{up_to: 5, price: 1}, {up_to: 6, price: 2}]} #!",
     "price tokens, step 2, up_to: the last one ends at 6, leave its `up_to` out so that all usage has a price"),
    # Instants
    ("effective_from: 2026-01-01T00:00:00Z", "effective_from: 2026-01-01 #!",
     "rate card standard, version 1, effective_from: 2026-01-01 is a date, expected an instant: "
     "write 2026-01-01T00:00:00Z"),
    ("effective_from: 2026-01-01T00:00:00Z", "effective_from: 2026-01-01T00:00:00 #!",
     "2026-01-01T00:00:00 has no time zone, write for example 2026-01-01T00:00:00Z"),
    ("effective_from: 2026-01-01T00:00:00Z", "effective_from: 2026-02-30T00:00:00Z #!",
     "2026-02-30T00:00:00Z does not exist"),
    ("effective_from: 2026-01-01T00:00:00Z", "effective_from: 2026 #!",
     "expected an instant like 2026-01-01T00:00:00Z, got 2026"),
    ("effective_from: 2026-02-01T00:00:00Z", "effective_from: 2025-12-01T00:00:00Z #!",
     "rate card standard, version 2, effective_from: takes effect at 2025-12-01T00:00:00+00:00, it must be after "
     "version 1, which stands before it and is effective from 2026-01-01T00:00:00+00:00 (line 16)"),
    ("version: '2'", "version: '1' #!", "rate card standard, version 1, version: another version has this name "
     "(line 15)"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    end: 2025-01-01T00:00:00Z} #!",
     "subscription s1, end: ends at 2025-01-01T00:00:00+00:00, it must end after its start"),
    ("plan: basic, ", "plan: basic, time_zone: Mars/Base, #!\n    ",
     "subscription s1, time_zone: 'Mars/Base' is no IANA time zone, expected one like 'Europe/Berlin'"),
    ("plan: basic, ", "plan: basic, anchor_day: 32, #!\n    ",
     "subscription s1, anchor_day: expected at most 31, got 32"),
    ("plan: basic, ", "plan: basic, cycle: fortnightly, #!\n    ",
     "subscription s1, cycle: expected weekly, monthly, quarterly, yearly or a number of days like '10 days', got "
     "fortnightly"),
    ("plan: basic, ", "plan: basic, cycle: 367 days, #!\n    ",
     "subscription s1, cycle: a period has at most 366 days, got 367 days"),
    ("plan: basic, ", "plan: basic, cycle: 10 days, #!\n    ",
     "subscription s1, cycle: `anchor` is missing, a date from which the days are counted"),
    ("plan: basic, ", "plan: basic, cycle: weekly, anchor_day: 3, #!\n    ",
     "subscription s1, anchor_day: a cycle that is weekly takes a date, `anchor`"),
    ("plan: basic, ", "plan: basic, anchor: 2026-01-31,\n    anchor_day: 3, #!\n    ",
     "subscription s1, anchor_day: the day stands in `anchor` already, leave one out (line 41)"),
    ("plan: basic, ", "plan: basic, anchor: 2026-02-29, #!\n    ",
     "subscription s1, anchor: 2026-02-29 does not exist"),
    ("plan: basic, ", "plan: basic, anchor: 31, #!\n    ",
     "subscription s1, anchor: expected a date like 2026-10-31, got 31"),
    ("plan: basic, ", "plan: basic, anchor: 1900-01-01, #!\n    ",
     "subscription s1, anchor: 1900-01-01 lies outside the years 1970 to 2199"),
    # Contracts
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: a, plan: basic}]} #!",
     "subscription s1, change 1: `at` is missing, or `contract_month`"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: a, contract_month: 2}]} #!",
     "subscription s1, change 1: changes nothing, `plan` is missing, or `prices`"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: a, contract_month: 1, "
     "plan: basic}]} #!", "subscription s1, change 1, contract_month: expected at least 2, got 1"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: start, contract_month: 2, "
     "plan: basic}]} #!",
     "subscription s1, change 1, name: 'start' is what the subscription's own `prices` are called"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: a, contract_month: 3, plan: "
     "basic}, {name: b, at: 2026-02-01T00:00:00Z, plan: basic}]} #!",
     "subscription s1, change 2, at: takes effect at 2026-02-01T00:00:00+00:00, it must be after change a at "
     "2026-03-01T00:00:00+00:00 (line 42)"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: a, contract_month: 3, plan: "
     "basic}, {name: a, contract_month: 4, plan: basic}]} #!",
     "subscription s1, change 2, name: another change has this name (line 42)"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: a, contract_month: 3, plan: "
     "gold}]} #!", "subscription s1, change 1, plan: no plan has the id 'gold'"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    prices: {tokens: {model: per_unit}}} #!",
     "subscription s1, price tokens: `unit_price` is missing"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    prices: {tokens: {model: per_unit, price: 1}}}"
     " #!", "subscription s1, price tokens: unknown key 'price', did you mean 'unit_price'?"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    prices: {tokens: {model: fixed, amount: 1}}} "
     "#!", "subscription s1, price tokens: is fixed, expected a price for usage of the meter tokens (line 34)"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    changes: [{name: a, contract_month: 3, "
     "prices: {fee: {model: dynamic}}}]} #!",
     "subscription s1, change 1, price fee: is dynamic, expected fixed (line 36)"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    prices: {other: {model: dynamic}}} #!",
     "subscription s1, price other: no plan of the subscription has a charge of this id"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    prices: {requests: {model: dynamic}}} #!",
     "subscription s1, price requests, model: is dynamic, but meter requests counts (count)"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    tiers_at_change: carry_over, "
     "changes: [{name: a, at: 2026-02-02T00:30:00Z, plan: basic}]} #!",
     "subscription s1, change 1, at: takes effect at 2026-02-02T00:30:00+00:00, where tiers of subscription s1 carry "
     "over, expected a full hour of UTC, or the start of a billing period: usage is priced by such hours (line 42)"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z, tiers_at_change: on} #!",
     "subscription s1, tiers_at_change: expected one of restart, carry_over, got on"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    trial: {}} #!",
     "subscription s1, trial: `days` is missing, or `until`"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    trial: {days: 3, until: "
     "2026-01-02T00:00:00Z}} #!",
     "subscription s1, trial, until: when it ends stands in `days` already, leave one out"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    trial: {until: 2025-01-02T00:00:00Z}} #!",
     "subscription s1, trial, until: ends at 2025-01-02T00:00:00+00:00, it must end after its start"),
    ("start: 2026-01-01T00:00:00Z}", "start: 2026-01-01T00:00:00Z,\n    trial: {day: 3}} #!",
     "subscription s1, trial: unknown key 'day', did you mean 'days'?; expected one of days, until"),
    ("fee: {model: fixed, amount: '10.00'}", "fee: {model: fixed, amount: '10.00', billed: before} #!",
     "price fee, billed: expected one of in_arrears, in_advance, got before"),
    ("fee: {model: fixed, amount: '10.00'}", "fee: {model: fixed, amount: '10.00', prorate: days} #!",
     "price fee, prorate: expected one of second, day, none, got days, did you mean 'day'?"),
    # Between records
    ("  - id: requests\n", "  - id: tokens #!\n", "meter tokens, id: another meter has this id (line 2)"),
    (TEAM, "- {id: acme} #!", "account acme, id: another account has this id (line 38)"),
    ("rate_card: standard", "rate_card: premium #!", "plan basic, rate_card: no rate card has the id 'premium'"),
    ("{id: requests, meter: requests}", "{id: requests, meter: calls} #!",
     "plan basic, charge requests, meter: no meter has the id 'calls'"),
    ("parent: acme", "parent: acne #!\n   ", "account team, parent: no account has the id 'acne'"),
    ("account: acme", "account: acne #!\n   ", "subscription s1, account: no account has the id 'acne'"),
    ("plan: basic", "plan: base #!\n   ", "subscription s1, plan: no plan has the id 'base'"),
    ("{id: fee}", "{id: fee}\n      - {id: fee} #!",
     "plan basic, charge fee, id: another charge of the plan has this id (line 36)"),
    ("{id: fee}", "{id: fee}\n      - {id: more, meter: tokens} #!",
     "plan basic, charge more, meter: charge tokens bills the meter tokens already, usage would be billed twice "
     "(line 34)"),
    ("{id: fee}", "{id: fee}\n      - {id: extra} #!",
     "plan basic, charge extra: no version of rate card standard has a price for it (line 12)"),
    ("fee: {model: fixed, amount: '10.00'}", "fee: {model: per_unit, unit_price: '1'} #!",
     "rate card standard, version 1, price fee: is per_unit, but plan basic has no meter for the charge, expected "
     "fixed (line 36)"),
    (TOKENS_2, "tokens: {model: fixed, amount: '1'} #!",
     "rate card standard, version 2, price tokens: is fixed, but plan basic bills the meter tokens with it, expected "
     "a price for usage (line 34)"),
    (TOKENS_2, TOKENS_2 + "\n          tokenz: {model: per_unit, unit_price: '1'} #!",
     "rate card standard, version 2, price tokenz: no plan with rate card standard has a charge of this id"),
    ("{id: acme}", "{id: acme, parent: team} #!",
     "account acme, parent: its parents form a circle: acme → team → acme"),
    ("{id: acme}", "{id: acme, parent: acme} #!", "account acme, parent: its parents form a circle: acme → acme"),
    ("{id: acme}", "{id: acme, billed: false} #!",
     "account acme, billed: neither the account nor one above it is billed, its usage would reach no invoice"),
    ("{id: acme}", "{id: acme, tenant: north}\n  - {id: b, parent: acme, tenant: south} #!",
     "account b, tenant: is 'south', but its parent acme has the tenant 'north' (line 38)"),
    (TEAM, TEAM + "\n  - {id: b, subjects: [x, robot]} #!",
     "account b, subject 2: 'robot' is a subject of account team already (line 39)"),
    (TEAM, TEAM + "\n  - {id: b, subjects: [acme]} #!",
     "account b, subject 1: 'acme' is a subject of account acme already (line 38)"),
    (SUBSCRIPTION, SUBSCRIPTION + "\n  - {id: s2, account: acme, plan: basic, start: 2027-01-01T00:00:00Z} #!",
     "subscription s2, start: starts at 2027-01-01T00:00:00+00:00 while subscription s1 of the same account bills "
     "tokens, requests without end (line 41)"),
    # YAML
    ("  - id: tokens\n", "  - id: tokens\n    id: other #!\n", "the key 'id' stands twice, first in line 2"),
    ("{id: acme}", "{id: acme, name: !date x} #!", "the tag !date is not known, leave it out"),
    ("{id: acme}", "{id: acme, [a]: x} #!", "a key must be text, got a list"),
    ("{id: acme}", "{id: acme, ~: x} #!", "a key must be text, got ~"),
    ("value: tokens", "value: a: b #!",
     "not YAML: mapping values are not allowed in this context: check the indentation"),
    ("{id: acme}", "{id: acme, <<: 5} #!", "<< takes over a mapping, got 5"),
    ("accounts:", "acounts: #!", "unknown key 'acounts', did you mean 'accounts'?; expected one of meters, rate_cards, "
     "plans, accounts, subscriptions"),
]  # fmt: skip


def test_a_good_catalog_has_no_problem(tmp_path: Path) -> None:
    assert problems(write(tmp_path, all=GOOD)) == []


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_reported_at_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert_reported(tmp_path, GOOD, old, new, expected)


def assert_reported(folder: Path, good: str, old: str, new: str, expected: str) -> None:
    """With `new` in place of `old`, the problem is found in the line that is marked with `#!` (any, if none is)."""
    assert old in good
    text = good.replace(old, new, 1)
    found = problems(write(folder, all=text))
    place = f"all.yaml:{line_of(text, '#!')}: " if "#!" in new else "all.yaml:"
    assert any(line.startswith(place) and expected in line for line in found), "\n".join(found)


def test_a_row_that_names_all_dimensions_may_have_limits(tmp_path: Path) -> None:
    text = GOOD.replace("    unit: token\n", "    unit: token\n    dimensions: [model, region]\n", 1)
    limited = "{model: per_unit, unit_price: '0.1', minimum: 5}"
    rows = f"[{{when: {{model: a, region: eu}}, price: {limited}}}, {{when: {{model: b}}, price: {limited}}}]"
    text = text.replace(TOKENS_2, f"tokens: {{model: matrix, rows: {rows}, default: {limited}}}")
    assert problems(write(tmp_path, all=text)) == [
        "all.yaml:30: rate card standard, version 2, price tokens, row 2, price, minimum: would hold for each value of "
        "region by itself; leave it out, or bill a meter without dimensions (line 7)",
        "all.yaml:30: rate card standard, version 2, price tokens, default, minimum: would hold for each value of "
        "model, region by itself; leave it out, or bill a meter without dimensions (line 7)",
    ]


@pytest.mark.parametrize("limit", ["minimum", "maximum"])
def test_a_limit_of_a_charge_that_is_billed_in_parts_is_reported(tmp_path: Path, limit: str) -> None:
    text = GOOD.replace("    unit: token\n", "    unit: token\n    dimensions: [model, region]\n", 1)
    text = text.replace(TOKENS_2, f"tokens: {{model: per_unit, unit_price: '0.1', {limit}: 5}}")
    (found,) = problems(write(tmp_path, all=text))
    assert found == (
        f"all.yaml:30: rate card standard, version 2, price tokens, {limit}: would hold for each value of model, "
        f"region by itself; leave it out, or bill a meter without dimensions (line 7)"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("", "a.yaml: is empty, expected a mapping with keys among meters", id="empty"),
        pytest.param("# nothing\n", "a.yaml: is empty", id="only comments"),
        pytest.param("- id: x\n", "a.yaml:1: expected a mapping with keys among", id="a list"),
        pytest.param("meters:\n", "a.yaml:1: meters: expected a list of meters, got nothing", id="no list"),
        pytest.param("rate_cards: {a: b}\n", "expected a list of rate cards, got a mapping", id="a mapping"),
        pytest.param("meters:\n  - id: [1\n", "a.yaml:2: not YAML: did not find expected ',' or ']' (while", id="open"),
        pytest.param("meters:\n\t- id: x\n", "a.yaml:2: not YAML: found character that cannot start", id="tab"),
        pytest.param(b"meters:\n- \xff\n", "a.yaml:2: byte 0xff is not UTF-8", id="not UTF-8"),
        pytest.param("meters:\n- \x07\n", "a.yaml:2: U+0007 is a control character", id="control character"),
        pytest.param("meters: []\n---\nplans: []\n", "a.yaml:2: a second document starts here", id="documents"),
        pytest.param("meters: *all\n", "a.yaml:1: *all repeats what &all marks", id="unknown alias"),
        pytest.param("meters: &all [*all]\n", "a.yaml:1: *all repeats what &all marks", id="alias of itself"),
        pytest.param("meters: " + "[" * 100_000, "a.yaml:1: nested deeper than 32 levels", id="too deep"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path, content: str | bytes, expected: str) -> None:
    (problem,) = problems(write(tmp_path, a=content))
    assert expected in problem


def test_an_alias_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    levels = [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)]
    (problem,) = problems(write(tmp_path, a="meters:\n  - &a0 [x]\n" + "".join(levels)))
    assert "aliases repeat more than 100000 values" in problem


def test_aliases_and_merged_mappings_are_read(tmp_path: Path) -> None:
    text = """\
meters:
  - &tokens {id: in, event_type: &type llm.request, aggregation: sum, value: in, unit: token}
  - {<<: *tokens, id: out, value: out}
  - {<<: [{unit: call}, *tokens], id: calls, aggregation: max, event_type: *type}
"""
    meters = load_catalog(write(tmp_path, a=text)).meters
    assert [(meter.id, meter.value, meter.unit) for meter in meters] == [
        ("in", "in", "token"),
        ("out", "out", "token"),
        ("calls", "in", "call"),
    ]


def test_a_folder_that_is_missing_empty_or_a_file_is_a_problem(tmp_path: Path) -> None:
    assert problems(tmp_path / "nowhere") == [f"{tmp_path / 'nowhere'}: does not exist"]
    assert problems(tmp_path) == [f"{tmp_path}: holds no *.yaml or *.yml file, expected at least one"]
    file = write(tmp_path, a=GOOD) / "a.yaml"
    assert problems(file) == [f"{file}: is a file, expected a folder"]


def test_a_folder_named_like_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    assert problems(tmp_path) == ["a.yaml: cannot be read: Is a directory"]


def test_records_are_merged_over_all_files_whatever_their_names(tmp_path: Path) -> None:
    head, plans = GOOD.split("plans:\n")
    plans, accounts = plans.split("accounts:\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.yml").write_text("\ufeffplans:\n" + plans)
    split = load_catalog(write(tmp_path, z=head, a="accounts:\n" + accounts))
    (tmp_path / "one").mkdir()
    assert split == load_catalog(write(tmp_path / "one", all=GOOD))


def test_hidden_folders_are_passed_over_as_config_maps_mount_each_file_twice(tmp_path: Path) -> None:
    (tmp_path / "..2026_01_01").mkdir()
    write(tmp_path / "..2026_01_01", all=GOOD)
    (tmp_path / "all.yaml").symlink_to(tmp_path / "..2026_01_01" / "all.yaml")
    assert problems(tmp_path) == []


def test_all_mistakes_are_reported_at_once_by_file_and_line(tmp_path: Path) -> None:
    text = GOOD.replace("currency: USD", "currency: usd").replace("{id: fee}", "{id: 5}")
    found = check_catalog(write(tmp_path, b=text, a="meters: [", c="accounts: [{id: x, parnt: y}]"))[1]
    assert [(problem.file, problem.line) for problem in found] == [
        ("a.yaml", 1),
        ("b.yaml", 13),
        ("b.yaml", 36),
        ("c.yaml", 1),
    ]


def test_a_clash_between_files_names_the_other_file(tmp_path: Path) -> None:
    folder = write(tmp_path, a=GOOD, b="accounts:\n  - id: acme\n")
    assert problems(folder) == ["b.yaml:2: account acme, id: another account has this id (a.yaml:38)"]


def test_what_refers_to_a_broken_record_is_no_further_problem(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, a=GOOD.replace("{id: acme}", "{id: acme, kin: x}")))
    assert "unknown key 'kin'" in problem


def test_what_refers_to_a_file_that_cannot_be_read_is_no_further_problem(tmp_path: Path) -> None:
    plans = GOOD.index("plans:")
    (problem,) = problems(write(tmp_path, a=GOOD[:plans], b="plans: [\n", c=GOOD[GOOD.index("accounts:") :]))
    assert problem.startswith("b.yaml:1: not YAML")


def test_subscriptions_that_follow_each_other_or_bill_other_meters_do_not_overlap(tmp_path: Path) -> None:
    text = GOOD.replace(SUBSCRIPTION, SUBSCRIPTION.replace("}", ", end: 2026-06-01T00:00:00Z}"))
    text += "  - {id: s2, account: acme, plan: basic, start: 2026-06-01T00:00:00Z}\n"
    text += "  - {id: s3, account: acme, plan: fees, start: 2026-01-01T00:00:00Z}\n"
    text += "  - {id: s4, account: team, plan: basic, start: 2026-01-01T00:00:00Z}\n"
    more = "plans: [{id: fees, rate_card: standard, charges: [{id: fee}]}]"
    assert problems(write(tmp_path, a=text, b=more)) == []


def test_an_overlap_is_found_behind_a_short_subscription_in_between(tmp_path: Path) -> None:
    line = "  - {{id: {}, account: acme, plan: basic, start: 2026-0{}-01T00:00:00Z, end: 2026-0{}-01T00:00:00Z}}\n"
    text = GOOD.replace(SUBSCRIPTION + "\n", "").replace("subscriptions:\n  ", "subscriptions:\n")
    text += line.format("long", 1, 9) + line.format("short", 2, 3) + line.format("late", 4, 5)
    found = problems(write(tmp_path, a=text))
    assert [line_.split(",")[0] for line_ in found] == [
        "a.yaml:42: subscription short",
        "a.yaml:43: subscription late",
    ]
    assert all("subscription long of the same account" in line_ for line_ in found)


def test_one_subject_may_belong_to_accounts_of_two_tenants(tmp_path: Path) -> None:
    more = "accounts: [{id: north, tenant: n, subjects: [robot, robot, north]}]"
    assert problems(write(tmp_path, a=GOOD, b=more)) == []


def test_a_rate_card_that_no_plan_has_yet_may_hold_any_price(tmp_path: Path) -> None:
    assert problems(write(tmp_path, a=GOOD.replace("rate_card: standard", "rate_card: b"), b="""\
rate_cards:
  - id: b
    currency: EUR
    versions:
      - version: '1'
        effective_from: 2026-01-01T00:00:00+02:00
        prices:
          tokens: {model: per_unit, unit_price: 1}
          requests: {model: per_unit, unit_price: 1}
          fee: {model: fixed, amount: 1}
""")) == []  # fmt: skip


def test_a_catalog_error_prints_one_problem_a_line(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as error:
        load_catalog(write(tmp_path, a="meters: [{id: x}]"))
    assert str(error.value).splitlines() == [
        "a.yaml:1: meter x: `event_type` is missing",
        "a.yaml:1: meter x: `aggregation` is missing",
        "a.yaml:1: meter x: `unit` is missing",
    ]
    assert error.value.problems[0] == Problem("a.yaml", 1, "meter x", "`event_type` is missing")


def test_the_example_catalog_is_good() -> None:
    catalog = load_catalog(EXAMPLE)
    assert [plan.id for plan in catalog.plans] == ["scale", "pay-as-you-go"]
    assert len(catalog.accounts) == 10


EXAMPLE_FILES = {path.name: path.read_bytes() for path in sorted(EXAMPLE.glob("*.yaml"))}


@st.composite
def damaged_files(draw: st.DrawFn) -> dict[str, bytes]:
    """The example catalog after some slips of the hand, or of the disk."""
    files = dict(EXAMPLE_FILES)
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(files)))
        lines = files[name].splitlines(keepends=True) or [b""]
        first, second = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        match draw(st.sampled_from(["delete", "double", "swap lines", "scalar", "key", "bytes", "truncate"])):
            case "delete":
                del lines[first]
            case "double":
                lines.insert(second, lines[first])
            case "swap lines":
                lines[first], lines[second] = lines[second], lines[first]
            case "scalar":
                key, colon, _ = lines[first].partition(b":")
                lines[first] = key + colon + b" " + draw(st.sampled_from(SCALARS)) + b"\n"
            case "key":
                _, colon, value = lines[first].partition(b":")
                indent = b" " * (len(lines[first]) - len(lines[first].lstrip()))
                lines[first] = indent + draw(st.sampled_from(SCALARS)) + colon + value
            case "bytes":
                cut = draw(st.integers(0, len(lines[first])))
                lines[first] = lines[first][:cut] + draw(st.binary(max_size=4)) + lines[first][cut:]
            case "truncate":
                lines[first:] = [lines[first][: draw(st.integers(0, 20))]]
        files[name] = b"".join(lines)
    return files


SCALARS = [
    *(b"", b"~", b"no", b"007", b"0x10", b"1:30", b"1_000", b"0.1", b"-0", b".inf", b".nan", b"1e999", b"9" * 5000),
    *(b"''", b'"a\\nb\\e"', b"2026-01-01", b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b"<<", b"="),
    *(b"*acme", b"&a b", b"[a, [b]]", b"{a: b}", b"{model: fixed, amount: 1}", b"!!int x", b"|", b"? [a]", b"- a"),
    *(b"model", b"tiers", b"fixed", b"versions", b"../../etc", b"/", b"\xe2\x80\xa8", b"\xc2\x85"),
    *(b"a\n\n  b", b"%YAML 9"),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(files=damaged_files())
def test_no_damage_to_the_files_raises_anything_but_a_catalog_error(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        catalog, found = check_catalog(folder)
        if catalog is None:
            with pytest.raises(CatalogError) as error:
                load_catalog(folder)
            assert str(error.value).splitlines() == [str(problem) for problem in found] != []
        else:
            assert load_catalog(folder) == catalog
            assert found == []
    for problem in found:
        # YAML ends a line also at the next-line, line-separator and paragraph-separator characters.
        lines = len(re.split("\r\n|[\n\r\x85\u2028\u2029]", files[problem.file].decode(errors="replace")))
        assert problem.line is None or 1 <= problem.line <= lines
    assert found == sorted(found, key=lambda problem: (problem.file, problem.line or 0))


class _TextDates(yaml.SafeLoader):
    """Reads dates as text, as editors with YAML 1.2 do."""


_TextDates.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def schema_errors(text: str | bytes) -> list[Any]:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return list(jsonschema.Draft202012Validator(schema).iter_errors(yaml.load(text, _TextDates)))


@pytest.mark.parametrize(
    "aggregation", ["time_weighted_sum", "percentile\n    percentile: '95'\n    interval_seconds: 300"]
)
def test_a_quantity_of_the_whole_period_has_no_price_by_the_clock(tmp_path: Path, aggregation: str) -> None:
    text = GOOD.replace("aggregation: sum", f"aggregation: {aggregation}")
    assert problems(write(tmp_path, all=text)) == []
    bands = "[{name: a, times: [{to: '08:00'}], price: {model: dynamic}}]"
    text = text.replace(TOKENS_2, f"tokens: {{model: time_of_day, default: {{model: dynamic}}, bands: {bands}}}")
    (problem,) = problems(write(tmp_path, all=text))
    assert problem == (
        f"all.yaml:{line_of(text, 'tokens: {model')}: rate card standard, version 2, price tokens, model: is "
        f"time_of_day, but meter tokens is a {aggregation.split()[0]}, which is one of the whole period; expected a "
        "price that does not look at the clock (line 4)"
    )


def test_the_json_schema_in_docs_is_up_to_date() -> None:
    hint = "run: python -m meterline.schemas.catalog_files > docs/catalog.schema.json"
    assert json.loads(SCHEMA.read_text()) == catalog_json_schema(), hint


@pytest.mark.parametrize("name", sorted(EXAMPLE_FILES))
def test_the_example_catalog_fits_the_json_schema(name: str) -> None:
    assert schema_errors(EXAMPLE_FILES[name]) == []


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples" / "pricelists").rglob("*.yaml")), ids=lambda file: file.parent.name
)
def test_published_price_lists_fit_the_json_schema(file: Path) -> None:
    assert schema_errors(file.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("'0.1'", "0.1", id="a float as price"),
        pytest.param("'0.1'", "'1e3'", id="an exponent"),
        pytest.param("model: per_unit", "model: perunit", id="an unknown price model"),
        pytest.param("    unit: token\n", "    units: token\n", id="a misspelt key"),
        pytest.param("2026-02-01T00:00:00Z", "2026-02-01", id="a date as instant"),
        pytest.param("fee: {model: fixed", "'a fee': {model: fixed", id="a price under no id"),
        pytest.param("accounts:", "acounts:", id="an unknown section"),
    ],
)
def test_the_json_schema_shows_a_mistake_in_the_editor(old: str, new: str) -> None:
    assert schema_errors(GOOD) == []
    assert old in GOOD
    assert schema_errors(GOOD.replace(old, new, 1))
