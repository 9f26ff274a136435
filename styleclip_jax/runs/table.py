"""Tables on standard output, printed row by row during a measurement."""

from collections.abc import Mapping
from typing import NamedTuple

_NAME_WIDTH, _CELL_WIDTH = 28, 11


class Column(NamedTuple):
    """A heading and the format of the numbers below it."""

    heading: str
    format: str


def print_headings(title: str, columns: Mapping[str, Column]) -> None:
    """Starts a table; the columns are in the order of the mapping."""
    headings = (f"{column.heading:>{_CELL_WIDTH}}" for column in columns.values())
    print(f"\n{title}\n{'':{_NAME_WIDTH}}", *headings, flush=True)


def print_row(name: str, figures: Mapping[str, float], columns: Mapping[str, Column]) -> None:
    """Prints a row; a missing number is a dash, and a long name gets a line of its own."""
    if len(name) > _NAME_WIDTH:
        print(name)
        name = ""
    cells = (
        format(figures[key], column.format) if key in figures else "-"
        for key, column in columns.items()
    )
    print(f"{name:{_NAME_WIDTH}}", *(f"{cell:>{_CELL_WIDTH}}" for cell in cells), flush=True)
