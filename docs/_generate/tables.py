"""Write every table of results of the site as Markdown, from figures that the library computes or recorded.

python docs/_generate/tables.py FOLDER
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from lowrank_core import LowRankUpdate, spectrum
from lowrank_core._linalg import thresholds
from lowrank_core._linalg.routes import Problem, choose_route
from lowrank_core.cli.demo.experiments import Settings
from lowrank_core.cli.demo.experiments import run as run_article
from lowrank_core.cli.demo.verdicts import verdicts

ROOT = Path(__file__).parents[2]
RULES = {"standard": "α/r", "rslora": "α/√r"}
SIZE, SMALL = 256, 64  # powers of four; SMALL is the largest side of matrices taken eight at once
CODE_OR_FORMULA = re.compile(r"(`[^`]*`|\$[^$]*\$)")
MINUS = re.compile(r"(?<![\w^-])-(?=\d)")
EPS32, EPS64 = 2.0**-23, 2.0**-52


def write_all(folder):
    """Write every table into a folder."""
    article = run_article(Settings())
    tables = {
        "truncated": truncated(article),
        "captured": captured(article),
        "scalings": scalings(article),
        "learned": learned(article),
        "verdicts": judged(article),
        "routes": routes(),
        "thresholds": thresholds_table(),
        "accuracy": accuracy(),
        "drawn": drawn_errors(),
        "mutation": mutation(),
        "reasons": reasons(),
        "survivors": survivors(),
        "long": long_profile(),
        "versions": versions(),
        "fuzz": fuzzed(),
    }
    write_tables(folder, tables)


def write_tables(folder, tables):
    """Write tables, by their names, into a folder."""
    for name, text in tables.items():
        Path(folder, f"{name}.md").write_text(text, encoding="utf-8")


def table(heads, rows, caption=None):
    """Return a Markdown table, with all columns but the first aligned right."""
    lines = [
        "| " + " | ".join(heads) + " |",
        "|---" + "|--:" * (len(heads) - 1) + "|",
        *("| " + " | ".join(with_minus_signs(str(cell)) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(["```{table} " + caption, *lines, "```", ""] if caption else [*lines, ""])


def with_minus_signs(text):
    """Return text with minus signs where it has hyphens for them, except in code and formulas."""
    parts = CODE_OR_FORMULA.split(text)
    parts[::2] = [MINUS.sub("−", part) for part in parts[::2]]
    return "".join(parts)


def truncated(article):
    """Return a table of the errors of the truncated, scaled updates."""
    ranks = article.settings.ranks
    updates = (article.style, article.facts)
    heads = ["r", *(f"{u.name}, {what}" for u in updates for what in ("best", *RULES.values()))]
    columns = [u.at(figures, ranks) for u in updates for figures in (u.best, *(u.errors[rule] for rule in RULES))]
    return table(heads, [[r, *(f"{column[i]:.6f}" for column in columns)] for i, r in enumerate(ranks)])


def captured(article):
    """Return a table of the variance that each rank captures."""
    ranks = article.settings.ranks
    columns = [100 * u.at(u.captured, ranks) for u in (article.style, article.facts)]
    rows = [[r, *(f"{column[i]:.4f} %" for column in columns)] for i, r in enumerate(ranks)]
    return table(["r", "style", "facts"], rows)


def scalings(article):
    """Return a table of γ and γ²r for each rank."""
    found = article.scalings
    heads = ["r", *(f"γ, {label}" for label in RULES.values()), *(f"γ²r, {label}" for label in RULES.values())]
    columns = [figures[rule] for figures in (found.gamma, found.gain) for rule in RULES]
    return table(heads, [[r, *(f"{column[i]:.5g}" for column in columns)] for i, r in enumerate(found.ranks)])


def learned(article):
    """Return a table of the errors after learning, for each optimiser and rule."""
    first = article.learning[0]
    names = {"sgd": "descent", "adam": "Adam"}
    heads = ["r", "best"]
    columns = [first.best]
    for learning in article.learning:
        for rule, label in RULES.items():
            heads.append(f"{names[learning.optimizer]} {learning.learning_rate:g}, {label}")
            columns.append(learning.errors[rule])
    return table(heads, [[r, *(f"{column[i]:.3f}" for column in columns)] for i, r in enumerate(first.ranks)])


def judged(article):
    """Return a table of claims and verdicts."""
    rows = [[verdict.claim, f"**{verdict.outcome}**", verdict.because] for verdict in verdicts(article)]
    return table(["claim", "verdict", "because"], rows).replace("--:", "---")


def routes():
    """Which algorithm a matrix takes, by dtype, shape and what is asked of it."""
    asked = [((64, 64), None), ((64, 64), 8), ((1024, 4096), None), ((4096, 4096), 32), ((4096, 4096), 512)]
    rows = []
    for shape, rank in asked:
        found = [choose_route("auto", Problem(dtype, shape, rank)).name for dtype in ("float64", "float32", "bfloat16")]
        size = f"{shape[0]} × {shape[1]}, {'all values' if rank is None else f'the leading {rank}'}"
        rows.append([size, *found])
    return table(["matrix", "float64", "float32", "float16, bfloat16"], rows).replace("--:", "---")


def thresholds_table():
    """Return a table of the sizes at which one route gives way to another."""
    rows = [
        ["direct: a kernel takes eight matrices at once", f"up to {thresholds.SMALL_ENTRIES:,} entries"],
        ["direct: factors by a kernel", f"smaller side up to {thresholds.LARGE:,}"],
        [
            "auto, float32 and below: factors by gram up to that side",
            f"one side at least {thresholds.GRAM_FACTORS} times the other",
        ],
        ["direct: QR factorisation first", f"{thresholds.TALL} rows or more for each column, or the reverse"],
        ["direct: reduction in two stages", f"smaller side from {thresholds.TWO_STAGES_SVD:,} on"],
        ["gram: a kernel takes eight matrices at once", f"smaller side up to {thresholds.LARGE:,}"],
        ["a matrix is decomposed alone, on BLAS's own threads", f"smaller side above {thresholds.LARGE:,}"],
        ["gram: reduction in two stages", f"smaller side from {thresholds.TWO_STAGES:,} on"],
        *(
            [
                f"krylov for {what}, under auto",
                f"smaller side s ≥ {smallest:,}, rank ≤ {thresholds.KRYLOV_LARGEST_FRACTION:g}·s",
            ]
            for what, smallest in (
                ("values", thresholds.KRYLOV_SMALLEST_SIDE),
                *(
                    (f"factors, {dtype}", smallest)
                    for dtype, smallest in thresholds.KRYLOV_FACTORS_SMALLEST_SIDE.items()
                ),
            )
        ),
        *(
            [
                f"krylov for values gives way to all of them, {dtype}",
                f"more than {most:g}·s basis vectors, or {expected:g}·s expected",
            ]
            for dtype, (most, expected) in thresholds.KRYLOV_GIVES_UP.items()
        ),
        *(
            [
                f"krylov for factors gives way to all of them, {dtype}",
                f"values that do not stand out with {fraction:.2g}·s basis vectors",
            ]
            for dtype, fraction in thresholds.KRYLOV_DENSE_FROM.items()
        ),
        ["factors in float32: a kernel forms their Gram matrices", f"rank up to {thresholds.NARROW_FACTOR}"],
    ]
    return table(["route", "where"], rows).replace("--:", "---")


def accuracy():
    """Return a table of the largest errors on matrices whose singular values are known without rounding."""
    rows = []
    for (kind, values), few in zip(spectra_of(SIZE).items(), spectra_of(SMALL).values(), strict=True):
        U, V, W = (exact_rotation(seed, SIZE) for seed in range(3))
        update = in_float32((U * values) @ V.T)
        doubled = np.where(np.arange(SIZE) < SIZE // 2, 2.0, 1.0)
        product = LowRankUpdate(in_float32((U * values) @ W), in_float32((W.T * doubled) @ V.T))
        small = in_float32((exact_rotation(0, SMALL) * few) @ exact_rotation(1, SMALL).T)
        rows.append(
            [
                kind.replace(str(SIZE - 1), "n − 1").replace(str(SIZE), "n"),
                f"{worst(small.astype(np.float64), 'direct', few) / (SMALL * EPS64):.1g}",
                f"{worst(small, 'direct', few) / (SMALL * EPS64):.1g}",
                f"{worst(update.astype(np.float64), 'direct', values) / (SIZE * EPS64):.1g}",
                f"{worst(update, 'gram', values) / EPS32:.1g}",
                f"{worst(product, 'gram', values * doubled) / EPS32:.1g}",
            ]
        )
    heads = [
        "singular values of an n × n update",
        f"direct, eight at once, n = {SMALL}, float64: over n·eps64·σ₁",
        "the same, float32: over n·eps64·σ₁",
        f"direct, one column after another, n = {SIZE}, float64: over n·eps64·σ₁",
        f"gram, n = {SIZE}, float32: over eps32·σ₁",
        f"factors, by Gram matrices, n = {SIZE}, float32: over eps32·σ₁",
    ]
    return table(heads, rows)


def drawn_errors():
    """Return a table of the largest errors beside mpmath, over every kind of drawn update."""
    from benchmarks import drawn

    rows = [
        [f"{name}: over {route.unit}", *(worst_of(drawn, name, dtype) for dtype in drawn.DTYPES)]
        for name, route in drawn.ROUTES.items()
    ]
    rows.append(["krylov: energy missed, over the tolerance", *(f"{drawn.shortfall(d, 20):.1g}" for d in drawn.DTYPES)])
    missed = [f"{drawn.shortfall_of_copies(dtype, 4):.1g}" for dtype in drawn.DTYPES]
    rows.append([f"krylov, {drawn.SIDE_OF_COPIES} values with many copies: energy missed, over the tolerance", *missed])
    return table(["stored in", *drawn.DTYPES], rows)


def worst_of(drawn, name, dtype):
    """Return a route's largest error in its unit, or a dash where it is not for this dtype."""
    return f"{drawn.worst(name, dtype, 20):.2g}" if dtype in drawn.tried(name) else "–"


def recorded(name):
    """Return the record of a command that takes too long for a build."""
    return json.loads((ROOT / "docs" / "numbers" / f"{name}.json").read_text(encoding="utf-8"))


def mutation():
    """Return a table of the mutants of each module, or folder of modules, and how many of them a test kills."""
    folders = {}
    for name, result in recorded("mutation").items():
        folders.setdefault(name if result["one_in"] == 1 else name.rpartition("/")[0], []).append(result)
    rows = [
        [
            f"`{name}.py`" if results[0]["one_in"] == 1 else f"`{name}/`, one in {results[0]['one_in']}",
            *(sum(result[key] or 0 for result in results) for key in ("mutants", "killed")),
            None if results[0]["hung"] is None else sum(result["hung"] for result in results),
        ]
        for name, results in folders.items()
    ]
    rows.append(["all", *(sum(row[column] or 0 for row in rows) for column in (1, 2, 3))])
    heads = ["module", "mutants", "killed", "of these, hung", "killed, of all"]
    return table(
        heads, [[*row[:3], "–" if row[3] is None else row[3], f"{100 * row[2] / row[1]:.1f} %"] for row in rows]
    )


def reasons():
    """Return a table of why mutants survive: the reasons given for five of them or more, and all others."""
    survivors = [mutant for result in recorded("mutation").values() for mutant in result["survivors"]]
    found = Counter(mutant["reason"] or "a test is missing" for mutant in survivors)
    often = [[reason[0].upper() + reason[1:], number] for reason, number in found.most_common() if number >= 5]
    others = ["Other reasons", len(survivors) - sum(number for _, number in often)]
    return table(["why a mutant survives", "mutants"], [*often, others, ["All", len(survivors)]])


def survivors():
    """Return a folded list for each module of the mutants that survive, each as a difference, and why."""
    modules = {name: result["survivors"] for name, result in recorded("mutation").items() if result["survivors"]}
    return "\n".join(
        f"<details>\n<summary><code>{name}.py</code>: {len(found)}</summary>\n\n{differences(found)}\n</details>\n"
        for name, found in modules.items()
    )


def differences(survivors):
    """Return each mutant as the line that it changes, the line that it makes of it, and why they are equivalent."""
    return "\n".join(
        f"```diff\n- {mutant['was']}\n+ {mutant['became']}\n```\n\n{mutant['reason'] or '**A test is missing**'}.\n"
        for mutant in survivors
    )


def long_profile():
    """Return a table of the properties, examples and minutes of the long profile, file by file."""
    results = recorded("long")
    keys = ("properties", "examples", "minutes")
    rows = [[f"`{name}.py`", *(result[key] for key in keys)] for name, result in results.items()]
    rows.append(["all", *(round(sum(result[key] for result in results.values()), 1) for key in keys)])
    return table(["file", *keys], rows)


def versions():
    """Return a table of the releases that the tests ran with, and the outcome."""
    results = recorded("versions").values()
    names = ("numpy", "numba", "safetensors", "hypothesis")
    rows = [
        [result["python"], result["releases"], *(result.get(name, "–") for name in names), result_of(result)]
        for result in results
    ]
    return table(["Python", "releases", *names, "tests"], rows).replace("--:", "---")


def result_of(result):
    """Return the outcome of the tests with some releases, in a few words."""
    words = {"passed": f"{result.get('tests')} passed", "failed": "**failed**"}
    return words.get(result["outcome"], result["outcome"])


def fuzzed():
    """Return a table of what the fuzzer tried on the file readers."""
    results = recorded("fuzz")
    return table(list(results), [[f"{figure:,}" if isinstance(figure, int) else figure for figure in results.values()]])


def spectra_of(size):
    """Return descending spectra of small whole numbers."""
    half = size // 2
    return {
        "all 1": np.ones(size),
        f"{size}, {size - 1}, … 1": np.arange(size, 0, -1.0),
        "half of them 3, half 0": np.r_[np.full(half, 3.0), np.zeros(half)],
        "one 1000, the others 1": np.r_[1000.0, np.ones(size - 1)],
        "1024, 512, … 1, then 0": np.r_[2.0 ** np.arange(10, -1, -1.0), np.zeros(size - 11)],
    }


def exact_rotation(seed, size):
    """Return an orthogonal matrix whose entries are whole numbers over its size, so that products are exact.

    Sylvester's Hadamard matrix over √size is orthogonal and, as size is a power of four, exact; so is the product of
    two of them with random signs between.
    """
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (2, size))
    H = np.ones((1, 1))
    while len(H) < size:
        H = np.block([[H, H], [H, -H]])
    H /= np.sqrt(size)
    return (H * signs[0]) @ (H * signs[1])


def in_float32(matrix):
    """Return a matrix in float32, once it is known that no entry is rounded."""
    stored = matrix.astype(np.float32)
    if not np.array_equal(stored, matrix):
        raise ValueError("entries have more bits than float32")
    return stored


def worst(update, method, values):
    """Return the largest error of a singular value, over σ₁."""
    return np.max(np.abs(spectrum(update, method=method).values - values)) / values[0]


if __name__ == "__main__":
    sys.path.append(str(ROOT))
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
