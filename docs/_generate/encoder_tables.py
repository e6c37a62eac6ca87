"""Write the tables of the study of a sentence encoder as Markdown, from its results.

python docs/_generate/encoder_tables.py FOLDER
"""

import math
import sys
from pathlib import Path

import numpy as np
from tables import table, with_minus_signs, write_tables

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
    "norm_ratio": "‖Δ₂‖/‖Δ₁‖, the other one's norm over this one's",
    "weighted_cosine": "cosine weighted by this one's inputs",
    "weighted_ratio": "‖Δ₂x‖/‖Δ₁x‖ on this one's inputs x",
    "output_ratio": "outputs moved by the other, over those moved by this one",
    "sum_change": "outputs moved by adding it, over those moved by this one",
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
        "encoder-summary": summary(results),
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
    write_tables(folder, tables)


SUMMARY = """\
- **The task needs far fewer ranks than a copy of the update does.** 90 % of the variance of all layers takes rank
  {copied}. Rank 4 captures {movies}; {corpus}.
- **The rank to train at is another question.** LoRA of rank 1 has an accuracy of {lora} on the movies, and the best
  rank 1 of the full update {extracted}.
- **Weighing by the layers' inputs does not help for sure.** At ranks 1 and 2 it gains on the corpus, at rank 2 it loses
  on the movies, and at rank 4 both truncations cost about the same.
- **Biases and norms hardly matter.** With the base's own, the accuracy changes by {vectors} points.
- **The same variance means different things in different parts.** Half of every matrix, Δ/2, captures 75 % of the
  variance and keeps {half} of the loss gained; rank 4 captures less and keeps {four}. Over all parts, the rank
  correlation with the loss kept is {variance} for the variance, {base_relative} for the error
  beside the base, {weighted_error} for the error weighted by the inputs and {output_change} for
  the change of the outputs on {few} texts, whose labels are not needed.
- **Of two tasks' adapters in a sum, the smaller one suffers more**: in {suffering} pairs. No cosine says so. The rank
  correlation with the loss kept is {norm_ratio} for the ratio of the norms, {output_ratio} for
  how far the other adapter moves this one's outputs, {cosine} for the cosine. But two seeds of
  one task can be added at little loss whatever these say, and six adapters prove little.
"""


def summary(results):
    """Return what the study found, as a list; tests/test_encoder_study.py compares the words with the data."""
    every = curves.FINE_TUNES
    vectors = [results.part(*each, "matrices")["accuracy"] - results.of("full", *each)["accuracy"] for each in every]
    loss_kept = {
        name: np.mean([results.kept(*each, results.part(*each, *part), "loss") for each in every])
        for name, part in {"half": ("half",), "four": ("plain", 4)}.items()
    }
    pairs = curves.of_two_tasks(curves.sums(results))
    found = SUMMARY.format(
        copied=span([results.of("full", *each)["update"]["all_together"]["variance 0.9"] for each in every]),
        **{task: at_four(results, task) for task in ("movies", "corpus")},
        lora=accuracies([results.of("lora", "movies", seed, 1) for seed in schedule.SEEDS]),
        extracted=accuracies([results.part("movies", seed, "plain", 1) for seed in schedule.SEEDS]),
        vectors=changed(100 * np.mean(vectors)),
        **{name: percent(value) for name, value in loss_kept.items()},
        **{
            name: correlation(curves.predict(*curves.points(results, name, None, "loss"), sign))
            for name, sign in curves.MEASURES.items()
        },
        **{name: correlation(curves.predict_sums(pairs, name, "loss")) for name in curves.CANDIDATES},
        few=schedule.FEW_TEXTS,
        suffering="{} of {}".format(*curves.smaller_suffers(pairs)),
    )
    return with_minus_signs(found)


def changed(points):
    """Return a change to one decimal, as text."""
    return f"{points:+.1f}" if abs(points) >= 0.05 else "less than 0.1"


def at_four(results, task):
    """Return what rank 4 captures of a task's updates, and what it costs, as text."""
    variance = np.mean([results.part(task, seed, "plain", 4)["variance"] for seed in results.seeds(task)])
    points = 100 * curves.lost(results, task, "plain", 4).mean()
    return f"{percent(variance)} of the variance on the {task} and costs {points:.1f} points of accuracy"


def accuracies(records):
    """Return the range of the accuracies of some records, as text."""
    return span_of([record["accuracy"] for record in records], ".2f")


def interval(values, digits=".3f"):
    """Return a mean over seeds with half its 95 % interval, as text; of one seed its value."""
    if len(values) == 1:
        return f"{values[0]:{digits}}"
    found = estimate(values)
    return f"{found.mean:{digits}} ± {found.half:{digits.lstrip('+')}}"


def percent(fraction):
    """Return a fraction in percent, as text."""
    return f"{100 * fraction:.0f} %"


def span(values):
    """Return the least and the greatest of some ranks, as text."""
    low, high = min(values), max(values)
    texts = ["none" if math.isinf(value) else f"{value:g}" for value in dict.fromkeys((low, high))]
    return " to ".join(texts)


ADDED = len(schedule.FEWER_SEEDS)


def size(results):
    """Return a table of the size of the study and its cost."""
    shown = results.of("full", "movies", 0)
    rows = [
        ["seeds of the movies, each with a test set, head and order of its own", len(schedule.SEEDS)],
        ["seeds of the corpus in full; of each adapter that is added", f"{len(results.seeds('corpus'))}; {ADDED}"],
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
    return table(["", "here"], rows, "The size of the study, and what it took.")


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
    return table(["", "accuracy", "loss"], rows, "What full fine-tuning, LoRA and a head alone reach.")


def kept(results, task, way, rank=None):
    """Return the fraction of the loss gained that a part keeps, as text."""
    values = [results.kept(task, seed, results.part(task, seed, way, rank), "loss") for seed in results.seeds(task)]
    return f"{interval([100 * value for value in values], '.0f')} %"


def lost(results, task, way, rank=None):
    """Return the accuracy lost, as text, and its interval by texts."""
    low, high = curves.text_interval(results, task, way, rank)
    return f"{interval(curves.lost(results, task, way, rank))}; {low:.3f} to {high:.3f}"


def ranks(results):
    """Return a table of what the best update of each rank captures, and keeps of each task."""
    rows = []
    for rank in (*schedule.PLAIN_RANKS, None):
        way = "matrices" if rank is None else "plain"
        cells = ["all" if rank is None else f"{rank}"]
        for task in ("movies", "corpus"):
            captured = np.mean([results.part(task, seed, way, rank)["variance"] for seed in results.seeds(task)])
            cells += [percent(captured), lost(results, task, way, rank), kept(results, task, way, rank)]
        rows.append(cells)
    columns = ["variance", "accuracy lost; by texts", "loss kept"]
    heads = ["rank", *(f"{task}: {head}" for task in ("movies", "corpus") for head in columns)]
    return table(heads, rows, "What the best update of each rank captures, and what it keeps of the task.")


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
    columns = ["plain", "weighted", "difference"]
    heads = ["rank", *(f"{task}: {head}" for task in ("movies", "corpus") for head in columns)]
    return table(heads, rows, "Accuracy of truncations by the norm alone, and weighted by the layers' inputs.")


def enough(results):
    """Return a table of the ranks that were enough, beside the ranks that measures of the whole update give."""
    rows = []
    for name, way in ENOUGH.items():
        cells = [
            span([curves.rank_enough(results, task, seed, way, what) for seed in results.seeds(task)])
            if task == "movies" or way != "lora"
            else ""
            for task in ("movies", "corpus")
            for what in ("accuracy", "loss")
        ]
        rows.append([name, *cells])
    for kind, where in (("ranks", "mean over the layers"), ("all_together", "one rank for all layers")):
        for name in results.of("full", "movies", 0)["update"][kind]:
            cells = []
            for task in ("movies", "corpus"):
                values = [results.of("full", task, seed)["update"][kind][name] for seed in results.seeds(task)]
                cells += [span([round(value) for value in values]), ""]
            rows.append([f"{name}, {where}", *cells])
    heads = ["rank", *(f"{task}: {what}" for task in ("movies", "corpus") for what in ("accuracy", "loss"))]
    caption = "The least rank that was enough (none: not one tried), and the ranks by measures of the whole update."
    return table(heads, rows, caption)


ENOUGH = {"plain truncation": "plain", "weighted truncation": "weighted", "LoRA trained at the rank": "lora"}


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
    heads = ["what is kept of the fine-tune", "movies: accuracy", "corpus: accuracy"]
    return table(heads, rows, "What biases and norms do, alone and beside the matrices.")


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
                *(kept(results, task, way) for task in ("movies", "corpus")),
            ]
        )
    heads = ["part", *(NAMES[name] for name in curves.MEASURES), "movies: loss kept", "corpus: loss kept"]
    return table(heads, rows, "Parts that are not leading ones: their measures, and what they keep.")


def prediction(results):
    """Return a table of how well each measure predicts the accuracy and the loss that parts keep."""
    cases = [(ways, what) for ways in (curves.RANKED, None) for what in ("accuracy", "loss")]
    rows = []
    for measure, sign in curves.MEASURES.items():
        cells = [NAMES[measure]]
        for ways, what in cases:
            found = curves.predict(*curves.points(results, measure, ways, what), sign)
            cells.append(f"{correlation(found)}, {found.error:.2f}")
        rows.append(cells)
    heads = [f"{'truncations' if ways else 'all parts'}: {what}" for ways, what in cases]
    return table(["measure", *heads], rows, "How well each measure predicts what a part keeps.")


def correlation(found):
    """Return a rank correlation and its range as groups are left out, as text."""
    return f"{found.correlation:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def sums(results):
    """Return a table of what a sum keeps of each adapter's gain, a row for each adapter of each pair."""
    rows = [
        [
            " ".join(map(str, row["one"])),
            " ".join(map(str, row["other"])),
            f"{row['cosine']:+.3f}",
            f"{row['columns']:.2f}",
            f"{row['norm_ratio']:.2f}",
            f"{row['output_ratio']:.2f}",
            *(f"{row[name]:.3f}" for name in ("before", "alone", "summed")),
            percent(row["loss kept"]),
        ]
        for row in sorted(curves.sums(results), key=lambda row: row["loss kept"])
    ]
    heads = ["task, seed", "added", "cosine", "φ of outputs", "‖Δ₂‖/‖Δ₁‖", "outputs moved"]
    heads += ["accuracy before", "alone", "of the sum", "loss kept"]
    return table(heads, rows, "What each adapter of a pair keeps of its gain in the sum, the least first.")


def span_of(values, digits):
    """Return the least and greatest of some figures."""
    return f"{min(values):{digits}} to {max(values):{digits}}"


def sum_prediction(results):
    """Return a table of how well each figure of a pair predicts what the sum keeps."""
    rows = curves.sums(results)
    cases = [(rows, "loss"), (curves.of_two_tasks(rows), "loss"), (curves.of_two_tasks(rows), "accuracy")]
    return table(
        ["figure", "all pairs: loss kept", "two tasks: loss kept", "two tasks: accuracy kept"],
        [
            [NAMES[name], *(correlation(curves.predict_sums(some, name, what)) for some, what in cases)]
            for name in curves.CANDIDATES
        ],
        "How well each figure of a pair predicts what the sum keeps.",
    )


def written(results):
    """Return a table of the adapters of the guide: their size, what they capture, and what they do for the task."""
    rows = [
        [row["rank"], f"{row['bytes'] / 1e6:.1f} MB", percent(row["variance"]), f"{row['accuracy']:.3f}"]
        for row in results.of("written", "movies", 0)["written"]
    ]
    ends = {"base": results.part("movies", 0, "nothing"), "full-movies-0": results.of("full", "movies", 0)}
    rows += [[f"none: `{name}` itself", "", "", f"{record['accuracy']:.3f}"] for name, record in ends.items()]
    return table(["rank", "size", "variance captured", "accuracy"], rows)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
