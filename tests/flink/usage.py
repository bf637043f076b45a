"""Usage to be rated under fire: lines with duplicates, late and bad ones, and the catalog that prices them.

No two events have one id and different content: then the order in which they come changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

ACCOUNTS = 30
MODELS = ("large", "small", "embed")
DUPLICATES, LATE, BAD = 0.02, 0.003, 0.01
HORIZON = timedelta(days=35)
REASONS = ("malformed", "unknown_type", "unknown_subject", "too_old", "in_future", "bad_quantity")


@dataclass(frozen=True)
class Usage:
    """Lines in the order of their arrival; `news` has of each line the id if it is the first accepted one with it."""

    lines: list[bytes]
    news: list[str | None]

    @property
    def accepted(self) -> int:
        return sum(id is not None for id in self.news)

    @property
    def rejected(self) -> set[bytes]:
        return self._rejected

    _rejected: set[bytes]

    def write(self, file: Path) -> Path:
        file.write_bytes(b"".join(line + b"\n" for line in self.lines))
        return file


def usage(seed: str, events: int, now: datetime, earlier: list[bytes]) -> Usage:
    """Events of about the last day and a half, in about the order of their times.

    Args:
      now: Of the first delivery: what is late, too old or in the future is so by far.
      earlier: Accepted lines of before, which some duplicates repeat; new ones are added.
    """
    random = Random(seed)
    lines: list[bytes] = []
    news: list[str | None] = []
    rejected: set[bytes] = set()
    for number in range(events):
        kind = random.random()
        if kind < DUPLICATES and earlier:
            # Of a moment ago, or of any time.
            first = random.choice((0, max(0, len(earlier) - 500)))
            lines.append(earlier[random.randrange(first, len(earlier))])
            news.append(None)
            continue
        ago = timedelta(hours=36) * (1 - number / events) + timedelta(seconds=random.randint(60, 300))
        if kind > 1 - LATE:
            ago = timedelta(seconds=random.randint(2 * 86_400, 30 * 86_400))
        id = f"{seed}-{number:07d}"
        event = _event(random, id, now - ago)
        if DUPLICATES <= kind < DUPLICATES + BAD:
            line = _spoilt(random.choice(REASONS), event, now)
            rejected.add(line)
            news.append(None)
        else:
            line = _text(event)
            earlier.append(line)
            news.append(id)
        lines.append(line)
    return Usage(lines, news, rejected)


def _event(random: Random, id: str, time: datetime) -> dict[str, Any]:
    event = {
        "specversion": "1.0",
        "id": id,
        "source": random.choice(("/gateway/eu-1", "/gateway/us-1")),
        "type": "com.example.llm.request.v1",
        "subject": f"account-{random.randrange(ACCOUNTS):02d}",
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "model": random.choice(MODELS),
            "input_tokens": int(random.lognormvariate(7, 1.3)) + 1,
            "output_tokens": int(random.lognormvariate(5.5, 1)) + 1,
        },
    }
    if random.random() < 0.1:
        event["type"] = "com.example.storage.v1"
        event["data"] = {"gigabytes": f"{random.randint(1, 10**9)}e-7"}
    return event


def _spoilt(reason: str, event: dict[str, Any], now: datetime) -> bytes:
    match reason:
        case "malformed":
            return _text(event)[:-20]
        case "unknown_type":
            event["type"] = "com.example.unknown"
        case "unknown_subject":
            event["subject"] = "nobody"
        case "too_old":
            event["time"] = (now - HORIZON - timedelta(days=30)).isoformat()
        case "in_future":
            event["time"] = (now + timedelta(days=30)).isoformat()
        case "bad_quantity":
            event["data"] = dict.fromkeys(event["data"], "-1")
    return _text(event)


def _text(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def write_catalog(folder: Path) -> Path:
    """Tiers, all ways to add usage up, two currencies' calendars, and a meter that nothing prices."""
    llm, storage = "com.example.llm.request.v1", "com.example.storage.v1"
    meters = [
        {"id": "input", "event_type": llm, "aggregation": "sum", "value": "input_tokens", "dimensions": ["model"]},
        {"id": "output", "event_type": llm, "aggregation": "sum", "value": "output_tokens"},
        {"id": "requests", "event_type": llm, "aggregation": "count"},
        {"id": "models", "event_type": llm, "aggregation": "distinct", "value": "model"},
        {"id": "peak", "event_type": storage, "aggregation": "max", "value": "gigabytes"},
        {"id": "held", "event_type": storage, "aggregation": "latest", "value": "gigabytes"},
    ]
    prices = {
        "input": {
            "model": "graduated",
            "per": "1000000",
            "tiers": [{"up_to": 1_000_000, "unit_price": "3"}, {"unit_price": "2.5"}],
        },
        "output": {
            "model": "volume",
            "per": "1000000",
            "tiers": [{"up_to": 200_000, "unit_price": "15"}, {"unit_price": "12"}],
        },
        "requests": {"model": "package", "package_size": 1000, "package_price": "0.40", "round": "up"},
        "peak": {"model": "per_unit", "unit_price": "0.023"},
        "held": {"model": "per_unit", "unit_price": "0.1"},
    }
    catalog = {
        "meters": [{**meter, "unit": "unit"} for meter in meters],
        "rate_cards": [
            {
                "id": "card",
                "currency": "USD",
                "versions": [{"version": "2020", "effective_from": "2020-01-01T00:00:00Z", "prices": prices}],
            }
        ],
        "plans": [{"id": "plan", "rate_card": "card", "charges": [{"id": name, "meter": name} for name in prices]}],
        "accounts": [{"id": f"account-{number:02d}"} for number in range(ACCOUNTS)],
        "subscriptions": [
            {
                "id": f"subscription-{number:02d}",
                "account": f"account-{number:02d}",
                "plan": "plan",
                "start": "2020-01-01T00:00:00Z",
                "time_zone": ("UTC", "Asia/Kolkata", "America/New_York")[number % 3],
            }
            for number in range(ACCOUNTS)
        ],
    }
    folder.mkdir()
    # JSON is YAML.
    (folder / "catalog.yaml").write_text(json.dumps(catalog, indent=1))
    return folder
