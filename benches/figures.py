"""What the benches do with their measurements.

    figures.py table RUNS OUT --by KEY... [--median KEY...] [--worst KEY...] [--sum KEY...] [--compare KEY=VALUE]
    figures.py same ANSWER OTHER

`table` reads RUNS (lines of JSON, one a run), groups them by the keys of --by, prints a Markdown table with a row per
group, and writes the rows to OUT as lines of JSON. Rows are ordered by the keys of --by, whose values come in the order
of their first appearance. Beside the keys of a run there is `cpu_us_per_request`. --compare adds `ratio`: requests per
second, divided by those of the run of the same round whose KEY is VALUE and which agrees in the other keys of --by; the
median over the rounds.

`same` fails unless two JSON answers agree: in structure, in text, and in numbers to 1e-4.
"""

import argparse
import itertools
import json
import math
import statistics
import sys


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    table = commands.add_parser("table")
    table.add_argument("runs")
    table.add_argument("out")
    for keys in ("by", "median", "worst", "sum"):
        table.add_argument(f"--{keys}", nargs="*", default=[])
    table.add_argument("--compare", type=lambda text: text.split("=", 1))
    table.set_defaults(run=make_table)
    same = commands.add_parser("same")
    same.add_argument("answers", nargs=2)
    same.set_defaults(run=compare_answers)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


def make_table(arguments):
    with open(arguments.runs) as lines:
        runs = [json.loads(line) for line in lines]
    for run in runs:
        if run.get("requests"):
            run["cpu_us_per_request"] = 1000 * run["cpu_ms"] / run["requests"]
    values = [list(dict.fromkeys(run[key] for run in runs)) for key in arguments.by]
    rows = []
    for group in itertools.product(*values):
        labels = dict(zip(arguments.by, group))
        of_group = [run for run in runs if labels.items() <= run.items()]
        if of_group:
            rows.append(labels | figures(of_group, runs, arguments))

    with open(arguments.out, "w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    print_table(rows)


def figures(group, runs, arguments):
    """The figures of one row. A run may lack some: one without answers has no processor time per request."""
    row = {}
    for key in arguments.median:
        row[key] = over(statistics.median, group, key)
    for key in arguments.worst:
        row[f"{key}_worst"] = over(max, group, key)
    for key in arguments.sum:
        row[key] = over(sum, group, key)
    if arguments.compare:
        ratios = [run["requests_per_s"] / base["requests_per_s"] for run in group for base in baselines(run, runs, arguments)]
        row["ratio"] = round(statistics.median(ratios), 3) if ratios else None
    return row


def over(reduce, group, key):
    values = [run[key] for run in group if key in run]
    return round(reduce(values), 3) if values else None


def baselines(run, runs, arguments):
    """The run that this one is compared with, if there is one."""
    key, value = arguments.compare
    alike = [other for other in arguments.by if other != key] + ["round"]
    return [
        base for base in runs
        if base[key] == value and all(base[other] == run[other] for other in alike) and base["requests_per_s"] > 0
    ]


def print_table(rows):
    lines = [list(rows[0]), ["---"] * len(rows[0])] + [[shown(key, value) for key, value in row.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")


def shown(key, value):
    if value is None:
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else value
    return f"{value:.2f}" if key == "ratio" or value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def compare_answers(arguments):
    one, other = (json.load(open(answer)) for answer in arguments.answers)
    return 0 if agree(one, other) else 1


def agree(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)
    return one == other


if __name__ == "__main__":
    main()
