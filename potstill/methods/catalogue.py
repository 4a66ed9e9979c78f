"""The methods as a table for people: what each is, what it needs, and where it comes from."""

import html
from collections.abc import Mapping
from typing import Any

from potstill.methods.method import Method

COLUMNS = ("name", "family", "needs", "labels", "title", "citation")
SHOWN = COLUMNS[:5]  # where there is no room for citations


class Catalogue(list[dict[str, str]]):
    """A row a method, a mapping of columns to text; prints as a table, in a notebook too."""

    def __repr__(self) -> str:
        rows = [SHOWN, *([row[name] for name in SHOWN] for row in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(SHOWN))]
        lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        rows = ("".join(f"<td>{html.escape(row[name])}</td>" for name in COLUMNS) for row in self)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def catalogue(methods: Mapping[str, Method]) -> Catalogue:
    """The methods with their default settings."""
    return Catalogue(_row(method) for method in methods.values())


def _row(method: Method) -> dict[str, str]:
    settings: Any = method.settings()
    needs = ["experts"] if method.needs(settings) else []
    needs += [] if method.reads == "outputs" else [method.reads]
    return {
        "name": method.name, "family": method.family, "needs": ", ".join(needs) or "–",
        "labels": method.kind(settings), "title": method.title, "citation": method.citation,
    }  # fmt: skip
