"""Write the tables of measured speeds as Markdown, from what ``python -m benchmarks.compare --json`` recorded.

python docs/_generate/performance_tables.py FOLDER
"""

import sys
from pathlib import Path

from tables import recorded, table, write_tables


def write_all(folder):
    """Write every table into a folder."""
    measured = recorded("performance")
    tables = {
        "performance": ratios(measured),
        "performance-machine": machine(measured),
        "performance-missed": missed(measured),
        "performance-runs": runs(measured),
        "performance-limits": limited(measured),
        "reaches": reaches(measured),
    }
    write_tables(folder, tables)


def ratios(measured):
    """Return a table of the ratios alone; each case links to what limits it."""
    rows = [[linked(line), ratio(line), line["rival"]["name"]] for line in measured["lines"]]
    return table(["what is computed", "ratio", "measured against"], rows).replace("--:|\n", "---|\n", 1)


def linked(line):
    """Return a case as a link to the section on what limits its row."""
    return f"[{line['case']}](#limits-{line['row']})"


def ratio(line):
    """Return the peer's time over ours, or that our answer was wrong."""
    return "**wrong answer**" if line["verdict"] == "WRONG" else times(line["ratio"])


def machine(measured):
    """Return the machine and the versions in one sentence."""
    found = measured["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number)
    return f"The machine: {found['processor']}, {found['cores']} cores; {versions}.\n"


def missed(measured):
    """Return a list of the rows that are short of their targets, each with the parts that take its time."""
    short = [line for line in measured["lines"] if line["verdict"] != "met"]
    if not short:
        return f"All {len(measured['lines'])} measured ratios reach their targets.\n"
    items = [
        f"- {linked(line)}: {ratio(line)} beside {line['rival']['name']}, and the target is {times(line['at_least'])}."
        + (f" Of our time: {'; '.join(limits(line))}." if line["limits"] else "")
        for line in short
    ]
    return f"{len(short)} of {len(measured['lines'])} are short of their targets:\n\n" + "\n".join(items) + "\n"


def limits(line):
    """Return each part that cannot be avoided, as a fraction of our time."""
    ours = line["ours"]["seconds"]
    return [f"{limit['name']}, {100 * limit['seconds'] / ours:.0f} %" for limit in line["limits"]]


def runs(measured):
    """Return a table of what is recorded of each row: times, target, and once where all rows have the same, when."""
    rows = [
        [
            line["case"],
            duration(line["ours"]["seconds"]),
            f"{line['rival']['name']}: {duration(line['rival']['seconds'])}",
            ratio(line),
            times(line["at_least"]) if line["at_least"] else "–",
            line["verdict"],
            *when(line).values(),
        ]
        for line in measured["lines"]
    ]
    heads = ["case", "ours", "fastest peer", "ratio", "target", "verdict"]
    conditions = [when(line) for line in measured["lines"]]
    if any(each != conditions[0] for each in conditions):
        return table([*heads, *conditions[0]], rows)
    date, load = conditions[0].values()
    told = f"All rows were measured on {date}, at a load average of {load}.\n\n"
    return told + table(heads, [row[: len(heads)] for row in rows])


def when(line):
    """Return when a row was measured, and beside what load."""
    return {"measured": line["date"], "load": f"{line['load']:.1f}"}


def limited(measured):
    """Return a list of the parts that cannot be avoided, of each row that has some."""
    return "".join(f"- {line['case']}: {'; '.join(limits(line))}.\n" for line in measured["lines"] if line["limits"])


def reaches(measured):
    """Return a table of the machine that performance was measured on, and what it reaches."""
    found = measured["machine"]
    told = [["processor", found["processor"]], ["cores", found["cores"]], ["date", found["date"]]]
    told += [[name, number] for name, number in found["versions"].items() if number]
    told += [["load average at the start", f"{found['load']:.1f}"]]
    return table(["", ""], told + [[name, f"{figure:.3g}"] for name, figure in found["reaches"].items()])


def times(figure):
    """Return a ratio with its sign."""
    return f"{figure:.3g}×" if figure < 1000 else f"{figure:,.0f}×"


def duration(seconds):
    """Return a time with its unit."""
    unit, size = next((pair for pair in (("s", 1.0), ("ms", 1e-3)) if seconds >= pair[1]), ("µs", 1e-6))
    return f"{seconds / size:.3g} {unit}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
