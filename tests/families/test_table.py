"""The table of models says what the tiny pipelines do."""

import csv

import pytest

from families import FAMILIES, table
from families.unreached import UNREACHED


def kept() -> list[list[str]]:
    with table.CSV.open() as file:
        return list(csv.reader(file))


def test_the_table_names_every_network() -> None:
    head, *rows = kept()
    assert head == table.HEAD
    assert {row[0] for row in rows} == {f.network for f in FAMILIES} | {n for n, _ in UNREACHED}
    text, page = table.written(rows)
    assert (table.CSV.read_text(), table.PAGE.read_text()) == (text, page)


@pytest.mark.parametrize("name", ["WanPipeline", "SanaPipeline", "CosmosTextToWorldPipeline"])
def test_rows_are_what_is_measured(name: str) -> None:
    family = next(f for f in FAMILIES if f.pipeline == name)
    assert table.row(family) in kept()


@pytest.mark.slow
def test_all_rows_are_what_is_measured() -> None:
    assert [table.HEAD, *table.rows()] == kept()
