"""The records as one table, for records/README.md and the README.

python recipes/table.py > records/README.md
"""

import json
from pathlib import Path

from potstill.methods import published
from potstill.report import comparison_tables
from potstill.studies import STUDIES, compare

RECORDS = Path(__file__).parents[1] / "records"
HEAD = """# Records

What was really measured. Every JSON file in the table is one run, with its configuration, commit, machine, seeds and
all values; those named "matching" are older ones of the same recipe, without its second stage; those named "rates" hold
trials, not finished runs; those named "at-128" are evaluations of a run's set by a wider network, whose commit
and machine they tell; "start" is what a recipe begins with, its rates set to 0.
This page is made from the records by `python recipes/table.py > records/README.md`.

Test accuracy in per cent: mean of the networks, and the 95 % interval of that mean. Minutes are of experts,
distilling and evaluation; memory is the peak of the process.

| record | images | epochs | random | random, soft labels | distilled | published | difference | full set (epochs) | \
minutes | memory | commit |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def figure(found: dict | None) -> str:
    """A mean with its interval."""
    if found is None:
        return "–"
    if not found["ci95"]:
        return f"{100 * found['mean']:.1f}"
    low, high = (100 * value for value in found["ci95"])
    return f"{100 * found['mean']:.1f} ({low:.1f}–{high:.1f})"


def row(name: str, record: dict) -> str:
    """One line of the table."""
    accuracy, seconds = record["accuracy"], record["seconds"]
    dataset, _, told = name.rpartition("-ipc")
    several = any(stage.get("pictures", 1) > 1 for stage in record["config"].get("stages", {}).values())
    method, ipc = (record.get("method") or ["datm"])[0], int(told.split("-")[0])
    known = None if several else published.accuracy(method, dataset, ipc)  # which is of one picture a slot
    apart = 100 * (accuracy["distilled"]["mean"] - known.accuracy) if known else None
    minutes = " + ".join(f"{(seconds[stage] or 0) / 60:.1f}" for stage in ("experts", "distill", "evaluate"))
    cells = [
        f"[{name}]({name}.json)",
        str(record["images"]),
        str(record["protocol"]["epochs"]),
        figure(accuracy.get("random")),
        figure(accuracy.get("random_soft")),
        f"**{figure(accuracy['distilled'])}**",
        f"{100 * known.accuracy:.1f}" if known else "–",
        f"{apart:+.1f}" if apart is not None else "–",
        f"{figure(full)} ({record['protocol']['full_epochs']})" if (full := accuracy.get("full")) else "–",
        minutes,
        f"{record['peak_memory_bytes'] / 1e9:.1f} GB",
        record["commit"],
    ]
    return f"| {' | '.join(cells)} |"


def study_section(name: str, record: dict) -> str:
    """A study: what it is, its picture and its table."""
    study = STUDIES[record["kind"]]
    header, rows = study.table(record)
    lines = [header, ["---"] * len(header), *(row["cells"] for row in rows)]
    seconds = [sum(cell["seconds"][stage] or 0 for stage in ("distill", "evaluate")) for cell in record["cells"]]
    return "\n".join(
        [
            f"\n## {name}\n",
            f"{record['dataset']}, {record['environment']['threads']} thread(s), "
            f"{sum(seconds) / 60:.0f} minutes without its experts, commit {record['commit']}: "
            f"`python recipes/findings.py {name}`, all values in [{name}.json]({name}.json).\n",
            f"{study.summary(record)}.\n",
            f"![{name}]({name}.png)\n",
            *(f"| {' | '.join(line)} |" for line in lines),
        ]
    )


def comparison_section(name: str, record: dict) -> str:
    """A comparison: its picture, its tables, and what was found in sentences."""
    lines = [
        f"\n## {name}\n",
        f"{record['dataset']}, {record['set_seeds']} set(s) a row, {record['protocol']['seeds']} networks a set, "
        f"{record['environment']['threads']} thread(s), commit {record['commit']}: "
        f"`python recipes/comparisons.py {name.removeprefix('compare-')}`, all values in [{name}.json]({name}.json). "
        "Bold: the best of a column, and what is not significantly worse.\n",
        f"![{name}]({name}.png)\n",
    ]
    for caption, header, rows in comparison_tables.tables(record):
        cells = [[f"**{text}**" if best else text for text, best in row] for row in rows]
        lines += [
            f"| {' | '.join(line)} |" for line in ([f"{caption}: {header[0]}", *header[1:]], ["---"] * len(header))
        ]
        lines += [f"| {' | '.join(line)} |" for line in cells]
        lines.append("")
    told = [*comparison_tables.sentences(record), *(f"`{change}`" for change in comparison_tables.changes(record))]
    return "\n".join([*lines, *(f"{sentence}\n" for sentence in told)])


def scaling_section(name: str, record: dict) -> str:
    """How tasks scale with workers, what each costs beside its work, and DATM's cells on many machines."""
    lines = [
        f"\n## {name}\n",
        "Tasks a minute by workers of one thread each (the digits' network, ten images per class), and milliseconds "
        f"that a task costs beside its work, by {record['empty_tasks']:,} that do none. Commit {record['commit']}: "
        f"`python -m bench.scaling --data data`, all values in [{name}.json]({name}.json).\n",
        "| | 1 worker | 2 workers | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for kind, by in record["tasks_a_minute"].items():
        lines.append(f"| {kind} a minute | {by['1']:.1f} | {by['2']:.1f} | {by['2'] / by['1']:.2f} |")
    lines.append("")
    for how, each in record["overhead_ms"].items():
        most = 60_000 / each
        lines.append(
            f"By {how} a task costs {each:.2f} ms: driver and store are the limit where more than {most:,.0f} tasks "
            "end in a minute; with tasks of a minute, where there are more workers than that.\n"
        )
    return "\n".join([*lines, *_on_paper(record.get("datm_on_paper"))])


def _on_paper(found: dict | None) -> list[str]:
    if found is None:
        return []
    hours = ", ".join(f"{value:,.0f} hours on {workers} workers" for workers, value in found["hours"].items())
    cells = len(found.get("seconds_of_cells", range(9)))  # without Tiny ImageNet's in records that do not name them
    return [
        f"{cells} of DATM's twelve published cells on paper: {found['worker_hours']:,.0f} hours of a worker like this "
        f"one; {hours}. A set is one task, and the longest takes {found['longest_hours']:,.0f} hours: beyond that more "
        "workers gain nothing, but for several processes at that set (`torchrun`).\n"
    ]


def foreign_section(name: str, record: dict) -> str:
    """A set evaluated by others' code: each figure beside ours, and what had to be changed to run it."""
    header = ["evaluated by", "accuracy", "networks, epochs", "less ours", "their commit"]
    ours = record["ours"]
    each = f"{len(ours['accuracy']['per_seed'])}, {ours['protocol']['epochs']}"
    rows = [header, ["---"] * len(header), ["potstill", figure(ours["accuracy"]), each, "", ""]]
    for foreign, told in record["evaluations"].items():
        apart, (low, high) = told["difference"], (100 * value for value in told["difference"]["ci95"])
        rows.append([
            foreign, figure(told["accuracy"]), f"{len(told['accuracy']['per_seed'])}, {told['epochs']}",
            f"{100 * apart['mean']:+.1f} ({low:+.1f} to {high:+.1f})", str(told["their_commit"])[:12],
        ])  # fmt: skip
    changes = [
        f"- {foreign}, commit {told['commit']}: {'; '.join(told['changes'])}."
        for foreign, told in record["evaluations"].items()
    ]
    return "\n".join([
        f"\n## {name}\n",
        f"The set [{record['set']}]({record['set']}.json), exported by `potstill export --to pt` and evaluated "
        f"by the code that others published: `{record['command']}`, all values in [{name}.json]({name}.json). "
        "Differences with Welch's 95 % interval.\n",
        *(f"| {' | '.join(line)} |" for line in rows),
        "\nWhat was changed to run it here:\n",
        *changes,
    ])  # fmt: skip


def authors_section(name: str, record: dict) -> str:
    """An iteration of each method against the code that its authors published, and what was changed to run that."""
    header = ["case", "their script", "commit", "theirs", "ours", "theirs / ours", "shape"]
    rows = [header, ["---"] * len(header)]
    for line in record["lines"]:
        script = f"{line['repository']}/{line['script']}"
        told = [f"{line[side]:,.0f} ms" for side in ("theirs_ms", "ours_ms")] if "failed" not in line else ["–", "–"]
        ratio = f"{line['ratio']:.2f}" if "failed" not in line else line["failed"]
        rows.append([line["case"], script, str(line["commit"])[:7], *told, ratio, line["shape"]])
    environment = record["environment"]
    return "\n".join([
        f"\n## {name}\n",
        "An iteration of each method, ours in turns with the script that its authors published, in float32 on "
        f"{environment['threads']} thread(s); medians. Commit {record['commit']}: `python -m bench.authors --code "
        f"FOLDER`, all values and what was changed in [{name}.json]({name}.json).\n",
        *(f"| {' | '.join(line)} |" for line in rows),
    ])  # fmt: skip


def presets_section(name: str, record: dict) -> str:
    """Presets that were cut short: what was forecast, and what it came to."""
    lines = [
        f"\n## {name}\n",
        f"The presets of Tiny ImageNet on {record['classes']} classes of CIFAR-100, enlarged to its shape and cut "
        "short: what `potstill forecast` says, and what `potstill run` then took, as forecast → measured. `python "
        f"recipes/tiny_shape.py`, the whole commands and all values in [{name}.json]({name}.json). The first "
        "forecast makes the whitening (eigenvectors of 12,288 values), and its peak of memory is that; the run finds "
        "it kept.\n",
        "| preset | experts, s | distilling, s | evaluation, s | memory, GB | commit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for preset, found in record["presets"].items():
        seconds, memory = found["seconds"], found["memory_bytes"]
        told = [f"{seconds[part]['forecast']:.0f} → {seconds[part]['measured']:.0f}" for part in seconds]
        told.append(f"{memory['forecast'] / 1e9:.1f} → {memory['measured'] / 1e9:.1f}")
        lines.append(f"| {' | '.join([preset, *told, str(found['commit'])])} |")
    return "\n".join(lines)


def noise_section(name: str, record: dict) -> str:
    """What gradients of a refinement have in common."""
    stem = Path(record["set"]).stem
    rows = [f"| {case} | {one['mean']:+.3f} ± {one['standard_error']:.3f} |" for case, one in record["cosines"].items()]
    return "\n".join([
        f"\n## {name}\n",
        f"What the gradients of an iteration that refines [{stem}]({stem}.json) have in common: mean "
        f"cosine of pairs among {record['gradients']}, ± its standard error, commit {record['commit']}: `python "
        f"recipes/gradient_noise.py`, all values in [{name}.json]({name}.json). Where nothing is alike it is the share "
        "of a gradient's square that is signal.\n",
        "| alike in all | cosine |",
        "| --- | --- |",
        *rows,
    ])  # fmt: skip


def page() -> str:
    """The table of runs, then the studies."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}
    lines = [HEAD]
    lines += [row(name, record) for name, record in records.items() if "accuracy" in record]
    lines += [study_section(name, record) for name, record in records.items() if record.get("kind") in STUDIES]
    lines += [
        comparison_section(name, record) for name, record in records.items() if record.get("kind") == compare.KIND
    ]
    lines += [scaling_section(name, record) for name, record in records.items() if "tasks_a_minute" in record]
    lines += [presets_section(name, record) for name, record in records.items() if "presets" in record]
    lines += [noise_section(name, record) for name, record in records.items() if "cosines" in record]
    lines += [authors_section(name, record) for name, record in records.items() if "changed_in_all" in record]
    lines += [foreign_section(name, record) for name, record in records.items() if record.get("kind") == "foreign"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
