"""What billing periods are called: by the local date that they start on, in a form that tells their cycle.

    monthly     2026-10       the month
    weekly      2026-W41      the ISO week
    quarterly   2026-Q4       the quarter
    yearly      2026          the year
    10 days     2026-10-05    the date

No label is the end of another after a hyphen, so that an invoice's number can be taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta

LABEL_PATTERN = r"\d{4}(?:-(?:\d{2}(?:-\d{2})?|W\d{2}|Q[1-4]))?"
LABELS = "2026-10 (a month), 2026-W41 (a week), 2026-Q4 (a quarter), 2026 (a year) or 2026-10-05 (days)"
# Events lie in 1970 to 2199; their first and last periods may start or end a little outside.
_FIRST_YEAR, _LAST_YEAR = 1969, 2200
_DAY = timedelta(days=1)


class PeriodError(ValueError):
    """A label that names no billing period."""


def label_of(first_day: date, cycle: str) -> str:
    """The label of a period that starts on a local date; unique among the periods of a calendar.

    Source: docs/rules.md, "Periods and windows".
    """
    match cycle:
        case "monthly":
            return f"{first_day:%Y-%m}"
        case "weekly":
            year, week, _ = first_day.isocalendar()
            return f"{year}-W{week:02}"
        case "quarterly":
            return f"{first_day:%Y}-Q{(first_day.month + 2) // 3}"
        case "yearly":
            return f"{first_day:%Y}"
    return first_day.isoformat()


def cycle_of_label(label: str) -> str:
    """The cycle whose periods have such labels: monthly, weekly, quarterly, yearly or days.

    Raises:
      PeriodError: it is no label.
    """
    return _read(label)[0]


def days_of_label(label: str) -> tuple[date, date]:
    """The first and the last local date on which a period of this label may start.

    Raises:
      PeriodError: it is no label.
    """
    _, first, following = _read(label)
    return first, following - _DAY


def labels_near(first: date, last: date) -> list[str]:
    """The labels, of any cycle, of periods that start on one of some dates."""
    days = [first + number * _DAY for number in range((last - first).days + 1)]
    return sorted({label_of(day, cycle) for day in days for cycle in (*_FORMS, "days")})


def _read(label: str) -> tuple[str, date, date]:
    """Cycle, first day and the day after the last."""
    for cycle, read in (*_FORMS.items(), ("days", _day)):
        try:
            first, following = read(label)
        except ValueError:
            continue
        if label_of(first, cycle) == label and _FIRST_YEAR <= first.year <= _LAST_YEAR:
            return cycle, first, following
    raise PeriodError(f"expected the label of a billing period, like {LABELS}, got {label!r}")


def _month(label: str) -> tuple[date, date]:
    return _months(label, r"(\d{4})-(\d\d)", 1)


def _week(label: str) -> tuple[date, date]:
    first = date.fromisoformat(f"{label}-1")
    return first, first + 7 * _DAY


def _quarter(label: str) -> tuple[date, date]:
    return _months(label, r"(\d{4})-Q([1-4])", 3)


def _year(label: str) -> tuple[date, date]:
    return _months(f"{label}-01", r"(\d{4})-(01)", 12)


def _day(label: str) -> tuple[date, date]:
    first = date.fromisoformat(label)
    return first, first + _DAY


def _months(label: str, pattern: str, months: int) -> tuple[date, date]:
    found = re.fullmatch(pattern, label, re.ASCII)
    if not found:
        raise ValueError(label)
    month = int(found[1]) * 12 + (int(found[2]) - 1) * months % 12
    return date(month // 12, month % 12 + 1, 1), date((month + months) // 12, (month + months) % 12 + 1, 1)


_FORMS: dict[str, Callable[[str], tuple[date, date]]] = {
    "monthly": _month,
    "weekly": _week,
    "quarterly": _quarter,
    "yearly": _year,
}
