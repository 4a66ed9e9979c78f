"""A comparison's record as tables (terminal, CSV, LaTeX) and sentences."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.report.study_page import percent
from potstill.runs.written import stages_of

Record = Mapping[str, Any]
Row = Mapping[str, Any]
NAMED = {"random": "random", "random:labels=soft": "random with soft labels"}
ALL = "all images"
FIELDS = (
    "method", "labels", "images per class", "network", "accuracy", "low", "high", "sets", "networks", "gain",
    "gain low", "gain high", "best", "published", "seconds of distilling", "seconds of experts",
    "iterations", "images", "bytes", "failed",
)  # fmt: skip


def titles(record: Record) -> dict[str, str]:
    """What people call each method: of the settings that are changed in it only what tells it from another that would
    be called the same.
    """
    names = methods(record)
    short = {name: " + ".join(_titled(*stage) for stage in stages_of(name)) for name in names}
    alike = {name: [other for other in names if short[other] == short[name]] for name in names}
    return {
        name: NAMED.get(name, short[name] if len(alike[name]) == 1 else _apart(name, alike[name])) for name in names
    }


def _apart(name: str, alike: Sequence[str]) -> str:
    """A method with the last of its changes that alone tells it from those like it, or else with all that they lack."""
    each = {
        other: {(stage, one.partition("=")[0]): one for stage, changes in stages_of(other) for one in changes}
        for other in alike
    }
    values = {at: {changes.get(at) for changes in each.values()} for changed in each.values() for at in changed}
    alone = [at for at, those in values.items() if len(those) == len(alike)]
    told = alone[-1:] or [at for at, those in values.items() if len(those) > 1]
    found = []
    for stage, _ in stages_of(name):
        changes = [each[name][at] for at in told if at[0] == stage and at in each[name]]
        found.append(f"{stage}:{','.join(changes)}" if changes else stage)
    return " + ".join(found)


def _told(name: str, title: str) -> str:
    """What a title leaves out: the method as it was asked for; nothing where that says no more."""
    in_words = name.replace(":labels=soft", " with soft labels").replace("+", " + ")
    return "" if title in (name, in_words) else name


def _titled(stage: str, changes: Sequence[str]) -> str:
    return f"{stage} with soft labels" if "labels=soft" in changes else stage


def sizes(record: Record) -> list[int]:
    """Images per class, ascending."""
    return sorted({row["ipc"] for row in record["rows"]})


def methods(record: Record) -> list[str]:
    """Names of the rows, the controls first."""
    found = list(dict.fromkeys(row["name"] for row in record["rows"]))
    return sorted(found, key=lambda name: name not in NAMED)


def by_place(record: Record) -> dict[tuple[str, int], Row]:
    """Rows by method and size."""
    return {(row["name"], row["ipc"]): row for row in record["rows"]}


# --- tables --------------------------------------------------------------------------------------------------------


def short(figure: Mapping[str, Any] | None) -> str:
    """A mean with half of its interval, in per cent: 47.7 ±0.9."""
    if figure is None:
        return "–"
    low_high = figure["ci95"]
    return f"{100 * figure['mean']:.1f}" + (f" ±{50 * (low_high[1] - low_high[0]):.1f}" if low_high else "")


def cell_text(row: Row, network: str) -> str:
    """Accuracy of a row, or why there is none."""
    if found := row["accuracy"].get(network):
        return short(found) + ("" if len(found["per_seed"]) == len(row["sets"]) else " …")
    if network not in row["accuracy"]:
        return "–"
    return "failed" if row["failed"] else "…"


def table(record: Record, network: str) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Header, and for each method its cells by images per class; whether it is among the best of a column."""
    columns, full = sizes(record), record["full"].get(network)
    rows = [*_cells(record, [(ipc, network) for ipc in columns]).values()]
    if full:
        rows.append([(ALL, False), *((short(full), False) for _ in columns)])
    return ["method", *(f"{ipc} per class" for ipc in columns)], rows


def across_networks(record: Record) -> bool:
    """Whether the same sets train several networks; else each of several is that of some rows."""
    return any(len(row["accuracy"]) > 1 for row in record["rows"])


def tables(record: Record) -> list[tuple[str, list[str], list[list[tuple[str, bool]]]]]:
    """What is compared in few tables (caption, header, rows): by size; where there are several networks, by network."""
    if not across_networks(record):
        return [(network, *table(record, network)) for network in record["full"]]
    return [(f"{ipc} image{'s' if ipc > 1 else ''} per class", *_by_network(record, ipc)) for ipc in sizes(record)]


def _by_network(record: Record, ipc: int) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """A method's cells by network at a size, and their mean."""
    networks, places = list(record["full"]), by_place(record)
    rows = [
        [*cells, (_mean([places[name, ipc]["accuracy"].get(network) for network in networks]), False)]
        for name, cells in _cells(record, [(ipc, network) for network in networks]).items()
    ]
    if any(full := [record["full"][network] for network in networks]):
        rows.append([(ALL, False), *((short(found), False) for found in full), (_mean(full), False)])
    return ["method", *networks, "mean"], rows


def _mean(figures: Sequence[Mapping[str, Any] | None]) -> str:
    """Of several networks' accuracies, once all are there."""
    means = [figure["mean"] for figure in figures if figure is not None]
    return f"{100 * sum(means) / len(means):.1f}" if len(means) == len(figures) else "–"


def _cells(record: Record, columns: Sequence[tuple[int, str]]) -> dict[str, list[tuple[str, bool]]]:
    """For each method its title, and its cells by (size, network); whether each is among the best of its column."""
    places = by_place(record)
    return {
        name: [(title, False), *(
            (cell_text(row, network), bool(row["best"][network]))
            for ipc, network in columns for row in [places[name, ipc]]
        )]
        for name, title in titles(record).items()
    }  # fmt: skip


def network_table(record: Record, network: str) -> dict[str, Any]:
    """What the page shows of one network: for each method and size the figure and what stands below it."""
    places, titled = by_place(record), titles(record)
    rows = [
        {
            "title": titled[name], "told": _told(name, titled[name]),
            "labels": places[name, sizes(record)[0]]["labels"],
            "cells": [_cell(record, places[name, ipc], network) for ipc in sizes(record)],
        }
        for name in methods(record)
    ]  # fmt: skip
    return {"network": network, "rows": rows, "full": percent(found) if (found := record["full"][network]) else None}


def _cell(record: Record, row: Row, network: str) -> dict[str, Any]:
    gain, known = row["gain"].get(network), _published(row, network)
    return {
        "text": cell_text(row, network), "best": row["best"][network],
        "networks": short(row["networks"].get(network)),
        "gain": f"{percent(gain, '+')} over {titles(record)[gain['over']]}" if gain else "",
        "published": f"published {100 * known['accuracy']:.1f} ({known['source']})" if known else "",
        "seconds": row["seconds"]["distilling"],
    }  # fmt: skip


def _published(row: Row, network: str) -> Mapping[str, Any] | None:
    """What was published of a row, which is of the network that distils."""
    return row["published"] if network == row["config"]["network"]["name"] else None


def as_csv(record: Record) -> str:
    """A line for each row and network, with every figure as a fraction of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in record["rows"]:
        for network, found in row["accuracy"].items():
            ends = (found or {}).get("ci95") or (None, None)
            gain = row["gain"].get(network) or {"mean": None, "ci95": None}
            writer.writerow([
                row["name"], row["labels"], row["ipc"], network, (found or {}).get("mean"), *ends,
                len(found["per_seed"]) if found else 0, len(row["networks"][network]["per_seed"]) if found else 0,
                gain["mean"], *(gain["ci95"] or (None, None)), row["best"][network],
                (_published(row, network) or {}).get("accuracy"), row["seconds"]["distilling"],
                row["seconds"]["experts"], row["iterations"], row["images"], row["bytes"], row["failed"],
            ])  # fmt: skip
    return text.getvalue()


def as_latex(record: Record) -> str:
    """A table for a paper (booktabs), one block a network; the best and what is not significantly worse in bold."""
    columns = sizes(record)
    lines = [
        f"% {record['dataset']}; potstill {record['version']}; means over {record['set_seeds']} sets, 95 % intervals",
        *(f"% {change}" for change in changes(record)),
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}", r"\toprule",
        " & ".join(["images per class", *map(str, columns)]) + r" \\",
    ]  # fmt: skip
    for network in record["full"]:
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{{network}}} \\"]
        for first, *cells in table(record, network)[1]:
            texts = [rf"\textbf{{{_tex(text)}}}" if best else _tex(text) for text, best in cells]
            lines.append(" & ".join([_tex(first[0]), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    for letter in "\\&%_#{}$":
        text = text.replace(letter, {"\\": r"\textbackslash "}.get(letter, f"\\{letter}"))
    return text.replace(" ±", r"\,$\pm$\,").replace("…", r"\dots").replace("–", "--")


# --- sentences -----------------------------------------------------------------------------------------------------


def sentences(record: Record) -> list[str]:
    """For each size and network: which is best, and which differences are larger than chance."""
    found = []
    for ipc in sizes(record):
        of_one_set = []
        for network in record["full"]:
            there = [row for row in record["rows"] if row["ipc"] == ipc and row["accuracy"].get(network)]
            if len(there) < 2:
                continue
            first = max(there, key=lambda row: row["accuracy"][network]["mean"])
            if first["accuracy"][network]["ci95"]:
                found.append(_sentence(record, there, first, network))
            else:
                accuracy = short(first["accuracy"][network])
                of_one_set.append(f"{titles(record)[first['name']]} on {network} ({accuracy} %)")
        if of_one_set:
            found.append(
                f"{ipc} per class: highest is {', '.join(of_one_set)}; of one set a row no difference can be told from "
                "chance (--set-seeds)."
            )
    return found


def _sentence(record: Record, there: Sequence[Row], first: Row, network: str) -> str:
    titled = titles(record)

    def name_of(row: Row) -> str:
        return titled[row["name"]]

    alike = [name_of(row) for row in there if row["best"][network] and row is not first]
    text = f"{first['ipc']} per class, {network}: {name_of(first)} is best with {short(first['accuracy'][network])} %"
    text += f"; not significantly worse: {', '.join(alike)}" if alike else "; all others are significantly worse"
    gains = [(row, row["gain"][network]) for row in there if row["gain"].get(network)]
    sure = [name_of(row) for row, gain in gains if gain["ci95"] and gain["ci95"][0] > 0]
    worse = [name_of(row) for row, gain in gains if gain["ci95"] and gain["ci95"][1] < 0]
    if gains:
        text += f". Better than random images with their kind of labels, beyond chance: {', '.join(sure) or 'none'}"
    return text + (f"; worse: {', '.join(worse)}." if worse else ".")


def changes(record: Record) -> list[str]:
    """What titles leave out."""
    return [f"{title}: {told}" for name, title in titles(record).items() if (told := _told(name, title))]


def notes(record: Record) -> list[str]:
    """A sentence for what failed, diverged, or was changed in published settings."""
    found = [f"The full training set failed: {record['full_failed']}"] if record["full_failed"] else []
    titled = titles(record)
    found += changes(record)
    for row in record["rows"]:
        where = f"{titled[row['name']]} at {row['ipc']} per class"
        if row["failed"]:
            found.append(f"{where} failed: {row['failed']}")
        if row["diverged"]:
            found.append(f"{where}: {row['diverged']} What was evaluated is the last set that was kept before.")
        if row["changed"]:
            found.append(f"{where} differs from what its authors published in {'; '.join(row['changed'])}.")
    return found
