"""Figures without pyplot, so that no global state or display is touched, and pages that hold them whole."""

import base64
import io
import warnings
from pathlib import Path
from typing import Any

COLOURS = {"distilled": "#0b6e4f", "random": "#8a8f98", "random_soft": "#c98a1b", "full": "#2b4c7e"}
NAMES = {
    "distilled": "distilled set",
    "random": "random real images",
    "random_soft": "random, soft labels",
    "full": "full training set",
}
SERIES = ("#4f9d69", "#b3261e", "#7b4b94", "#2596b0", "#d0649a", "#8c5a33")  # of no name, and unlike those above


def axes(x: str, y: str, height: float = 2.9, title: str | None = None) -> tuple[Any, Any]:
    """A bare figure with labelled axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    plot = figure.add_subplot()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    plot.set_axisbelow(True)
    plot.set_xlabel(x)
    plot.set_ylabel(y)
    if title:
        plot.set_title(title, loc="left", fontsize=11)
    return figure, plot


def svg(figure: Any) -> str:
    """A figure as a data URI that holds its own fonts' outlines; the browser's fonts where ours lack a script."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="(?s)Glyph")
        content = render(figure, "svg")
    if caught:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s)Glyph")
            content = render(figure, "svg", fonttype="none")
    return data_uri(content, "image/svg+xml")


def render(figure: Any, kind: str, fonttype: str = "path") -> bytes:
    """The bytes of a figure as "svg" or "png", the same every time; letters as outlines ("path") or text ("none")."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "potstill", "svg.fonttype": fonttype}):
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Content that a page carries inside."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def page(name: str, **values: Any) -> str:
    """One of the pages, filled; a value it lacks is an error."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).with_name("pages"))
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader).get_template(
        f"{name}.html.j2"
    ).render(**values)  # fmt: skip
