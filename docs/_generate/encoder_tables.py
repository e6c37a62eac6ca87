"""Write the tables of the study of a sentence encoder as Markdown, from its results.

python docs/_generate/encoder_tables.py FOLDER
"""

import math
import sys
from pathlib import Path

import numpy as np
from tables import table

sys.path.append(str(Path(__file__).parents[1] / "encoder"))

import curves
import schedule
from curves import estimate

NAMES = {
    "variance": "variance captured",
    "base_relative": "error beside the base, ‖Δ − X‖/‖W‖",
    "weighted_error": "error weighted by the inputs",
    "output_change": "change of the outputs on a few texts",
    "cosine": "cosine of the updates",
    "columns": "overlap of the outputs' spaces",
    "rows": "overlap of the inputs' spaces",
    "norm_ratio": "‖Δ₂‖/‖Δ₁‖",
    "weighted_cosine": "cosine weighted by the first's inputs",
    "weighted_ratio": "‖Δ₂x‖/‖Δ₁x‖ on the first's inputs",
    "output_ratio": "outputs moved by the second alone, over those by the first",
    "sum_change": "outputs moved by adding the second, over those by the first",
}
PART_NAMES = {
    "matrices": "all matrices, without biases and norms",
    "attention": "attention alone",
    "MLP": "MLP alone",
    "half": "half of every matrix, Δ/2",
    "random": "a random half of the directions",
}


def write_all(folder):
    """Write every table into a folder."""
    results = curves.load()
    tables = {
        "encoder-size": size(results),
        "encoder-scores": scores(results),
        "encoder-ranks": ranks(results),
        "encoder-weighted": weighted(results),
        "encoder-enough": enough(results),
        "encoder-vectors": vectors(results),
        "encoder-parts": parts(results),
        "encoder-prediction": prediction(results),
        "encoder-sums": sums(results),
        "encoder-sum-prediction": sum_prediction(results),
        "encoder-written": written(results),
    }
    for name, text in tables.items():
        Path(folder, f"{name}.md").write_text(text, encoding="utf-8")


def interval(values, digits=".3f"):
    """Return a mean over seeds with half its 95 % interval, as text."""
    found = estimate(values)
    return f"{found.mean:{digits}} ± {found.half:{digits.lstrip('+')}}"


def span(values):
    """Return the least and the greatest of some ranks, as text."""
    low, high = min(values), max(values)
    texts = ["none" if math.isinf(value) else f"{value:g}" for value in dict.fromkeys((low, high))]
    return " to ".join(texts)


def size(results):
    """Return a table of the size of the study and its cost."""
    shown = results.of("full", "movies", 0)
    rows = [
        ["seeds of the movies, each with a test set, head and order of its own", len(schedule.SEEDS)],
        ["seeds of the corpus, and of each adapter that is added to others", len(schedule.FEWER_SEEDS)],
        ["learning rate, full and LoRA", " and ".join(f"{rate:g}" for rate in schedule.RATES.values())],
        ["steps of a fine-tune, and texts per step", f"{schedule.STEPS} × {schedule.BATCH}"],
        ["texts tested on", shown["texts"]],
        [
            "texts for the inputs' second moments; for the change of the outputs",
            f"{schedule.MOMENT_TEXTS}; {schedule.FEW_TEXTS}",
        ],
        ["pairs of adapters added", len(results.kind("sum"))],
        ["processor time", f"{curves.cost(results) / 60:.0f} min"],
    ]
    return table(["", "here"], rows)


def scores(results):
    """Return a table of what full fine-tuning, LoRA and a head alone reach."""
    rows = []
    for task in ("movies", "corpus"):
        seeds = results.seeds(task)
        sources = [
            ("head of the fine-tune on the untouched encoder", [results.part(task, seed, "nothing") for seed in seeds]),
            ("a head fitted to the untouched encoder", [results.of("head", task, seed) for seed in seeds]),
            *(
                (f"LoRA, r = {rank}", [results.of("lora", task, seed, rank) for seed in seeds])
                for rank in (schedule.RANKS if task == "movies" else (schedule.SUMMED_RANK,))
            ),
            ("full fine-tuning", [results.of("full", task, seed) for seed in seeds]),
        ]
        rows += [
            [f"{task}, {name}", *(interval([record[what] for record in records]) for what in ("accuracy", "loss"))]
            for name, records in sources
        ]
    return table(["", "accuracy", "loss"], rows)


def kept(results, task, way, rank=None, what="accuracy"):
    """Return the fraction of the gain that a part keeps, for each seed."""
    return [results.kept(task, seed, results.part(task, seed, way, rank), what) for seed in results.seeds(task)]


def percent(values):
    """Return a mean fraction over seeds with half its 95 % interval, in percent."""
    found = estimate(values)
    return f"{found.mean:.0%} ± {100 * found.half:.0f}"


def ranks(results):
    """Return a table of what the best update of each rank captures, and keeps of each task."""
    rows = []
    for rank in (*schedule.PLAIN_RANKS, None):
        way = "matrices" if rank is None else "plain"
        cells = ["all" if rank is None else f"{rank}"]
        for task in ("movies", "corpus"):
            captured = np.mean([results.part(task, seed, way, rank)["variance"] for seed in results.seeds(task)])
            low, high = curves.text_interval(results, task, way, rank)
            cells += [f"{captured:.0%}", percent(kept(results, task, way, rank)), f"{low:.0%} to {high:.0%}"]
        rows.append(cells)
    heads = ["variance", "accuracy kept, by seeds", "by texts"]
    return table(["rank", *(f"{task}: {head}" for task in ("movies", "corpus") for head in heads)], rows)


def weighted(results):
    """Return a table of the accuracy of truncations by the norm and by the inputs."""
    rows = []
    for rank in schedule.WEIGHTED_RANKS:
        cells = [f"{rank}"]
        for task in ("movies", "corpus"):
            pair = [
                np.array([results.part(task, seed, way, rank)["accuracy"] for seed in results.seeds(task)])
                for way in ("plain", "weighted")
            ]
            cells += [*(f"{values.mean():.3f}" for values in pair), interval(pair[1] - pair[0], "+.3f")]
        rows.append(cells)
    heads = ["plain", "weighted", "difference"]
    return table(["rank", *(f"{task}: {head}" for task in ("movies", "corpus") for head in heads)], rows)


def enough(results):
    """Return a table of the ranks that were enough, beside the ranks that measures of the whole update give."""
    rows = []
    for task in ("movies", "corpus"):
        seeds = results.seeds(task)
        updates = [results.of("full", task, seed)["update"] for seed in seeds]
        rows += [
            [f"{task}: plain truncation keeps {curves.ENOUGH:.0%} of the gain", ranks_of(results, task, "plain")],
            [f"{task}: weighted truncation does", ranks_of(results, task, "weighted")],
            *(
                [
                    [
                        f"{task}: LoRA trained at the rank does",
                        span([curves.lora_enough(results, seed) for seed in seeds]),
                    ]
                ]
                if task == "movies"
                else []
            ),
            *(
                [f"{task}: {name}, mean over the layers", span([round(update["ranks"][name], 1) for update in updates])]
                for name in updates[0]["ranks"]
            ),
            *(
                [f"{task}: {name}, one rank for all layers", span([update["all_together"][name] for update in updates])]
                for name in updates[0]["all_together"]
            ),
        ]
    return table(["", "rank, least to greatest over seeds"], rows)


def ranks_of(results, task, way):
    """Return the span over seeds of the rank that was enough."""
    return span([curves.rank_enough(results, task, seed, way) for seed in results.seeds(task)])


def vectors(results):
    """Return a table of what the biases and norms of the fine-tune do, alone and beside its matrices."""
    sources = [
        ("nothing", "nothing", None),
        ("biases and norms alone", "vectors", None),
        ("matrices at rank 1", "plain", 1),
        ("matrices at rank 1, and biases and norms", "plain and vectors", 1),
        ("all matrices", "matrices", None),
    ]
    rows = [
        [
            name,
            *(
                interval([results.part(task, seed, way, rank)["accuracy"] for seed in results.seeds(task)])
                for task in ("movies", "corpus")
            ),
        ]
        for name, way, rank in sources
    ]
    rows.append(
        [
            "everything",
            *(
                interval([results.of("full", task, seed)["accuracy"] for seed in results.seeds(task)])
                for task in ("movies", "corpus")
            ),
        ]
    )
    return table(["what is kept of the fine-tune", "movies: accuracy", "corpus: accuracy"], rows)


def parts(results):
    """Return a table of parts that are not leading ones: their measures, and what they keep."""
    rows = []
    for way, name in PART_NAMES.items():
        measured = [
            np.mean([results.part(task, seed, way)[measure] for task, seed in curves.FINE_TUNES])
            for measure in curves.MEASURES
        ]
        rows.append(
            [
                name,
                *(f"{value:.2g}" for value in measured),
                *(percent(kept(results, task, way)) for task in ("movies", "corpus")),
            ]
        )
    return table(
        ["part", *(NAMES[name] for name in curves.MEASURES), "movies: accuracy kept", "corpus: accuracy kept"], rows
    )


def prediction(results):
    """Return a table of how well each measure predicts the accuracy kept."""
    rows = []
    for measure, sign in curves.MEASURES.items():
        cells = [NAMES[measure]]
        for ways in (curves.RANKED, None):
            found = curves.predict(*curves.points(results, measure, ways), sign)
            cells += [correlation(found), f"{found.error:.2f}"]
        rows.append(cells)
    return table(["measure", "ranks: ρ", "error", "all parts: ρ", "error"], rows)


def correlation(found):
    """Return a rank correlation and its range as groups are left out, as text."""
    return f"{found.correlation:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def sums(results):
    """Return a table of what sums keep of each adapter's gain, by what the two have in common."""
    rows = curves.sums(results)
    lines = []
    for relation in sorted({row["relation"] for row in rows}):
        some = [row for row in rows if row["relation"] == relation]
        alone, summed = (np.mean([row[name] for row in some]) for name in ("alone", "summed"))
        fractions = [row["kept"] for row in some]
        lines.append(
            [
                relation,
                len(some),
                span_of([row["cosine"] for row in some], "+.3f"),
                span_of([row["columns"] for row in some], ".2f"),
                f"{alone:.3f}",
                f"{summed:.3f}",
                f"{np.mean(fractions):.0%} ({min(fractions):.0%} to {max(fractions):.0%})",
            ]
        )
    return table(
        ["the two adapters", "cases", "cosine", "φ of outputs", "accuracy alone", "of the sum", "gain kept"], lines
    )


def span_of(values, digits):
    """Return the least and greatest of some figures."""
    return f"{min(values):{digits}} to {max(values):{digits}}"


def sum_prediction(results):
    """Return a table of how well each figure of a pair predicts what the sum keeps."""
    rows = curves.sums(results)
    return table(
        ["figure", "rank correlation with the gain kept"],
        [[NAMES[name], correlation(curves.predict_sums(rows, name))] for name in curves.CANDIDATES],
    )


def written(results):
    """Return a table of the adapters of the guide: their size, and what they do for the task."""
    job = results.of("written", "movies", 0)
    whole = results.of("full", "movies", 0)
    rows = [
        [
            row["rank"],
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['variance']:.0%}",
            f"{row['accuracy']:.3f}",
            f"{results.kept('movies', 0, row):.0%}",
        ]
        for row in job["written"]
    ]
    rows.append(["full fine-tune", "", "", f"{whole['accuracy']:.3f}", "100%"])
    return table(["rank", "folder", "variance", "accuracy", "of the accuracy gained"], rows)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
