"""Write the tables of the study as Markdown, from its results.

python docs/_generate/study_tables.py FOLDER
"""

import json
import sys
from pathlib import Path

from tables import table, write_tables

sys.path.append(str(Path(__file__).parents[1] / "study"))

import analysis
import findings
from findings import LABELS, OPTIMIZERS

SUMS = Path(analysis.__file__).parent / "results" / "sums.jsonl"
KINDS = (("attention", analysis.ATTENTION), ("MLP", analysis.MLP))


def write_all(folder):
    """Write every table into a folder."""
    study = analysis.load()
    tables = {
        "study-size": size(study),
        "study-measures": measures(study),
        "study-kinds": kinds_of(study),
        "study-enough": enough(study),
        "study-recall": recalls(study),
        "study-collapse": collapse(study),
        "study-prediction": prediction(study),
        "study-extraction": extraction(study),
        "study-sums": sums(),
    }
    judged = {f"study-verdicts-{question}": verdicts(found) for question, found in findings.findings(study).items()}
    write_tables(folder, tables | judged)


def verdicts(found):
    """Return a table of claims and verdicts."""
    rows = [[verdict.claim, f"**{verdict.outcome}**", verdict.because] for verdict in found]
    caption = "The claims, and the figures that decide their verdicts."
    return table(["claim", "verdict", "because"], rows, caption).replace("--:", "---")


def size(study):
    """Return a table of the size of the study and its cost."""
    seconds = analysis.cost(study)
    sizes = study.sizes
    rows = [
        ["seeds (each with its own base, tasks and adapters); fresh seeds", f"{len(study.seeds)}; {len(study.fresh)}"],
        ["fine-tunes", len(study.runs)],
        ["processor time, all processes, on a machine with other work", f"{seconds / 60:.0f} min"],
        ["steps of a fine-tune, and sentences per step", f"{sizes.steps} × {sizes.batch}"],
        ["facts in the base; style sentences held out", f"{sizes.base_facts}; {sizes.held_out}"],
        ["rates, full, AdamW", rates(sizes.full_rates)],
        ["rates, LoRA on style, AdamW", rates(sizes.style_rates)],
        ["rates, LoRA on facts, AdamW", rates(sizes.facts_rates)],
        ["rates, SGD", rates(sizes.sgd_rates)],
        ["best rates that are at an end of their grid", "{} of {}".format(*analysis.at_an_edge(study))],
    ]
    return table(["", "here"], rows, "The size of the study, and what it took.")


def measures(study):
    """Return a table of every measure of the full updates, by kind of matrix."""
    style, facts, *_ = study.sizes.tasks
    rows = []
    for measure in analysis.MEASURES:
        for name, kinds in KINDS:
            pair = [study.measure(measure, task, kinds) for task in (style, facts)]
            found = [analysis.estimate(values) for values in (*pair, pair[1] - pair[0])]
            rows.append([f"{measure}, {name}", *(findings.interval(one, ".1f") for one in found)])
    best = [f"{study.best_rate(task, 'adamw'):g}" for task in (style, facts)]
    heads = ["rank by", f"style (rate {best[0]})", f"facts (rate {best[1]})", "facts − style"]
    return table(
        heads,
        rows,
        "Ranks of the full updates by every measure: means over matrices, with 95 % intervals.",
    )


def kinds_of(study):
    """Return a table of every measure of style and facts, for each kind of matrix."""
    rows = []
    for kind in (*analysis.ATTENTION, *analysis.MLP):
        pairs = (
            [study.measure(measure, task, (kind,)).mean() for task in study.sizes.tasks[:2]]
            for measure in analysis.MEASURES
        )
        rows.append([f"`{kind}`", *(f"{style:.1f}, {facts:.1f}" for style, facts in pairs)])
    caption = "The same for each kind of matrix: means over layers and seeds, of style and then of facts."
    return table(["style, facts", *analysis.MEASURES], rows, caption)


def enough(study):
    """Return a table of the ranks at which LoRA and extraction reach full fine-tuning."""
    tasks = study.sizes.tasks[:2]
    sources = [(f"{LABELS[rule]}, {choice} rate", (choice, rule)) for choice in ("best", "kept") for rule in LABELS]
    rows = [
        [
            name,
            *(
                findings.span(analysis.rank_enough(study, what, task, source))
                for task in tasks
                for what in ("loss", "recall")
            ),
        ]
        for name, source in [*sources, ("extracted from the full fine-tune", "extracted")]
    ]
    heads = ["", *(f"{task.split()[0]}, {what}" for task in tasks for what in ("loss", "recall"))]
    return table(heads, rows, "The least rank that is enough, by loss and by recall, over the seeds.")


def recalls(study):
    """Return a table of the recall at every rank and its best rate, with intervals."""
    rows = []
    for task in study.sizes.tasks[:2]:
        for rank in study.sizes.ranks:
            trained = [study.at("recall", "best", task, "adamw", rule, rank) for rule in LABELS]
            found = [analysis.estimate(values) for values in (*trained, study.extracted("recall", task, rank))]
            rows.append([f"{task.split()[0]}, r = {rank}", *(findings.interval(one, ".3f") for one in found)])
        full = analysis.estimate(study.at("recall", "best", task, "adamw"))
        rows.append([f"{task.split()[0]}, full fine-tuning", findings.interval(full, ".3f"), "", "", ""])
    caption = "Recall at every rank, each rule at its best rate, with 95 % intervals."
    return table(["recall", *LABELS.values(), "extracted"], rows, caption)


def collapse(study):
    """Return a table of the loss on facts on the fresh seeds: at the rate kept from rank TUNED_AT, and at the best."""
    facts = study.sizes.tasks[1]

    def loss(choice, *cell):
        values = study.at("loss", choice, facts, *cell, fresh=True)
        return f"{study.rate(choice, facts, *cell):g}", findings.interval(analysis.estimate(values), ".3f")

    rows = []
    for optimizer in OPTIMIZERS:
        for rule in LABELS:
            for rank in (analysis.TUNED_AT, study.sizes.ranks[-1]):
                name = f"{OPTIMIZERS[optimizer]}, {LABELS[rule]}, r = {rank}"
                rows.append(
                    [name, *(cell for choice in ("kept", "best") for cell in loss(choice, optimizer, rule, rank))]
                )
        rows.append([f"{OPTIMIZERS[optimizer]}, full fine-tuning", "", "", *loss("best", optimizer)])
    heads = ["loss on facts, fresh seeds", "kept rate", "loss", "best rate", "loss"]
    return table(
        heads, rows, f"Loss on the facts: at the rate kept from rank {analysis.TUNED_AT}, and at the best of each rank."
    )


def prediction(study):
    """Return a table of the ranks by each measure for each task, and of those that were enough."""
    kinds = analysis.ATTENTION + analysis.MLP
    rows = [
        [
            task,
            *(findings.span(analysis.rank_enough(study, "recall", task, source)) for source in SOURCES),
            *(f"{study.measure(measure, task, kinds).mean():.1f}" for measure in analysis.MEASURES),
        ]
        for task in study.sizes.tasks
    ]
    caption = "The rank that was enough for recall, beside the mean rank by each measure of the full update."
    return table(["task", "LoRA needed", "extraction needed", *analysis.MEASURES], rows, caption)


SOURCES = (("best", "twice"), "extracted")


def extraction(study):
    """Return a table of the mean rank and the recall lost at each rank that the library picks."""
    rows = []
    for pick in analysis.MEASURES:
        if pick == "numerical rank":
            continue
        cells = []
        for task in study.sizes.tasks[:2]:
            cells += [
                f"{study.extracted('rank', task, pick).mean():.1f}",
                findings.interval(findings.recall_lost(study, task, pick), "+.3f"),
            ]
        rows.append([pick, *cells])
    heads = ["rank picked by", "style: mean rank", "recall lost", "facts: mean rank", "recall lost"]
    return table(heads, rows, "The mean rank that each criterion picks, and the recall that is lost at it.")


def sums():
    """Return a table of two adapters alone and summed, beside what their comparison says, a row for each seed."""
    lines = [json.loads(line) for line in SUMS.read_text(encoding="utf-8").splitlines()]
    rows = []
    for line in sorted(lines, key=lambda line: line["seed"]):
        recalls = [line["recall"], line["summed"]["1.0"], line["summed"]["0.5"]]
        overlaps = [
            f"{line['overlap'][side]:.2f} ({line['overlap_by_chance'][side]:.2f})" for side in ("columns", "rows")
        ]
        rows.append(
            [
                str(line["seed"]),
                f"{line['cosine']:+.4f} (± {line['cosine_deviation']:.4f})",
                f"{line['growth']:.3f}",
                *overlaps,
                *(" / ".join(f"{recall[task]:.2f}" for task in ("style", "facts 512")) for recall in recalls),
            ]
        )
    headings = ["seed", "cosine (random)", "sum", "φ of outputs (random)", "φ of inputs (random)"]
    heads = [*headings, "recall alone: style / facts", "summed", "half of each"]
    return table(heads, rows, "Two adapters, alone and added, beside what their comparison says; a row for each seed.")


def rates(values):
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_all(target)
