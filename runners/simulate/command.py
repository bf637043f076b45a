"""The command `meterline simulate`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from meterline.runners.options import DEFAULT_DATABASE, Rounding, Url
from meterline.schemas.catalog_files import load_catalog


class By(StrEnum):
    account = "account"
    charge = "charge"


def register(app: typer.Typer, out: Console, err: Console, print_json: Callable[[Any], None]) -> None:
    """Add the command to `meterline`; it prints results to `out`, and what happens meanwhile to `err`."""

    @app.command()
    def simulate(
        catalog: Annotated[Path, typer.Option(help="Folder of the new catalog's YAML files.")],
        period: Annotated[str, typer.Option(help="Label of the billing period, like 2026-10.")],
        today: Annotated[
            Path | None,
            typer.Option(
                envvar="METERLINE_CATALOG",
                help="Folder of the catalog that the period is billed with; default: the one published last, or else "
                "the folder `catalog`.",
            ),
        ] = None,
        anew: Annotated[
            bool,
            typer.Option(
                "--anew", help="Rate today's side anew as well, by today's catalog, in place of stored line items."
            ),
        ] = False,
        by: Annotated[By, typer.Option(help="What the table has a row for.")] = By.account,
        top: Annotated[int, typer.Option(min=1, help="So many rows of the table, and bars of the chart.")] = 20,
        chart: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the accounts to this file.")] = None,
        rounding: Annotated[Rounding, typer.Option(help="As with `invoice`.")] = Rounding.half_even,
        clickhouse: Url = DEFAULT_DATABASE,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables: all rows.")] = False,
    ) -> None:
        """What if: a period's recorded usage priced by another catalog, beside what each account pays today.

        Nothing is written. Change a copy of your catalog in any way (prices, plans, subscriptions, meters, dimensions),
        and see what the same events would have cost: to the cent what `rate` and `invoice` would give for them in an
        empty database. Amounts are whole invoices with fees, discounts, credits and tax, as if none of the period had
        been issued; of grants and commitments for several periods, both sides go by what was issued for the others.

        Today's side is what the stored line items say, with the fees, discounts and tax of today's catalog.
        """
        from meterline.runners.jobs import InputError
        from meterline.runners.simulate import tables
        from meterline.runners.simulate.chart import chart as drawn
        from meterline.runners.simulate.run import simulate as simulated
        from meterline.runners.simulate.run import todays_catalog
        from meterline.transforms import clickhouse as database
        from meterline.transforms.rules.period_labels import cycle_of_label

        cycle_of_label(period)
        if chart is not None and not chart.absolute().parent.is_dir():
            raise InputError(f"--chart {chart}: there is no folder {chart.parent}")
        new = load_catalog(catalog)
        database.check_exists(clickhouse)
        database.ready(clickhouse)
        found = simulated(
            clickhouse,
            period,
            new,
            todays_catalog(clickhouse, today),
            anew=anew,
            rounding=rounding.mode,
            console=None if as_json else err,
        )
        if chart is not None:
            chart.write_text(drawn(found, top), encoding="utf-8")
        if as_json:
            print_json(found.to_json())
            return
        shown = tables.accounts if by is By.account else tables.charges
        for table in shown(found, top):
            out.print(table)
        for note in tables.notes(found):
            out.print(note, highlight=False, markup=False)
        if chart is not None:
            out.print(f"drawn to {chart}", highlight=False, markup=False)
