"""A simulation as a picture: SVG in colours that show on white and on black."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from xml.sax.saxutils import escape

from meterline.runners import tables
from meterline.runners.explanation import visible
from meterline.runners.simulate.run import Simulation
from meterline.runners.simulate.tables import percent
from meterline.transforms.rules.what_if import Change, totals

_TODAY, _NEW, _TEXT = "#6e7781", "#e8590c", "#6e7781"
_LEFT, _WIDTH, _BAR, _ROW = 200, 900, 400, 44


def chart(simulation: Simulation, top: int) -> str:
    """Bars of today's and the new amount of the accounts that move most; each currency has a scale of its own."""
    changes = simulation.by_payer
    parts = [_text(0, 16, f"{simulation.period}: today and under the new catalog", bold=True), *_legend()]
    height = 60
    for currency, total in totals(changes).items():
        rows = [("total", total)] if len(changes) > 1 else []
        rows += [(payer.billing_account_id, one) for payer, one in changes.items() if payer.currency == currency][:top]
        # Of a total, bars beside those of its parts would hide them.
        scale = max((abs(amount or Decimal(0)) for name, one in rows if name != "total" for amount in one), default=0)
        parts.append(_text(0, height, currency, bold=True))
        for name, change in rows:
            parts += _row(name, change, currency, Decimal(scale), height + 8, is_total=name == "total")
            height += _ROW
        height += 30
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    style = f'font-family="system-ui, sans-serif" font-size="13" fill="{_TEXT}"'
    body = "\n  ".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img">\n  {body}\n</svg>\n'


def _legend() -> Iterator[str]:
    for place, (name, colour) in enumerate((("today", _TODAY), ("new", _NEW))):
        yield _bar(_LEFT + 90 * place, 26, Decimal(14), colour)
        yield _text(_LEFT + 90 * place + 20, 37, name)


def _row(name: str, change: Change, currency: str, scale: Decimal, top: int, is_total: bool) -> Iterator[str]:
    yield _text(_LEFT - 10, top + 22, name if len(name) <= 26 else name[:25] + "…", anchor="end", bold=is_total)
    said = f"{tables.money(change.difference, currency)} ({percent(change)} %)".replace("(new %)", "(new)")
    said = said.replace(" ( %)", "")
    sign = "+" if change.difference > 0 else ""
    if is_total:
        amounts = " → ".join("–" if one is None else tables.money(one, currency) for one in change)
        yield _text(_LEFT, top + 22, f"{amounts}: {sign}{said}", bold=True)
        return
    ends = []
    for place, (amount, colour) in enumerate(((change.today, _TODAY), (change.new, _NEW))):
        # Of what was given back the bar is as long, and hollow.
        length = _BAR * abs(amount or Decimal(0)) / scale if scale else Decimal(0)
        ends.append(length)
        yield _bar(_LEFT, top + 4 + 15 * place, length, colour, is_hollow=(amount or 0) < 0)
    yield _text(_LEFT + int(max(ends)) + 8, top + 22, f"{sign}{said}")


def _bar(left: int, top: int, width: Decimal, colour: str, is_hollow: bool = False) -> str:
    paint = f'fill="none" stroke="{colour}"' if is_hollow else f'fill="{colour}"'
    return f'<rect x="{left}" y="{top}" width="{width:.1f}" height="13" rx="2" {paint}/>'


def _text(left: int, top: int, said: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{left}" y="{top}" text-anchor="{anchor}"{weight}>{escape(visible(said))}</text>'
