"""The claims of the study, each with a verdict from the figures."""

import math

import numpy as np
from analysis import ATTENTION, CLOSED, MEASURES, MLP, TUNED_AT, closed, estimate, is_enough, rank_enough

from lowrank_core.cli.demo.verdicts import Verdict

LABELS = {"standard": "α/r", "rslora": "α/√r", "twice": "α = 2r"}
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}
# The rank at which, by the article, an adapter captures style and loses facts.
ADAPTER = 8
FACTOR = 2


def findings(study):
    """Return all verdicts, by question."""
    return {
        "spectra": (facts_are_higher(study), facts_are_higher_at_equal_rates(study), mlp_is_higher(study)),
        "ranks": (
            adapter_is_enough_for_style_alone(study),
            facts_need_more(study),
            fewer_facts_need_more_too(study),
            root_needs_less(study),
        ),
        "collapse": (
            *(gets_worse(study, optimizer, "standard") for optimizer in OPTIMIZERS),
            *(gets_worse(study, optimizer, "rslora") for optimizer in OPTIMIZERS),
            *(gets_worse(study, optimizer, "twice") for optimizer in OPTIMIZERS),
            *(retuning_closes_the_gap(study, optimizer) for optimizer in OPTIMIZERS),
        ),
        "prediction": (
            spectra_order_the_tasks(study),
            measure_is_the_rank(study, "LoRA, α = 2r,", ("best", "twice")),
            measure_is_the_rank(study, "the extracted adapter", "extracted"),
        ),
        "extraction": (picked_rank_keeps_recall(study), training_beats_extraction(study)),
        "camps": (
            *(best_rate_hardly_moves(study, optimizer) for optimizer in OPTIMIZERS),
            *(root_serves_every_rank(study, optimizer) for optimizer in OPTIMIZERS),
            wide_alpha_is_higher_rank(study),
        ),
    }


def facts_are_higher(study):
    """Every measure, attention and MLP, each task at its own best rate."""
    style, facts, *_ = study.sizes.tasks
    apart = {
        (measure, name): estimate(study.measure(measure, facts, kinds) - study.measure(measure, style, kinds))
        for measure in MEASURES
        for name, kinds in (("attention", ATTENTION), ("MLP", MLP))
    }
    higher = [place for place, by in apart.items() if by.mean > 0 and by.excludes(0)]
    others = ", ".join(f"{measure} ({name})" for measure, name in apart if (measure, name) not in higher)
    return Verdict(
        "The facts update is of higher rank than the style update, by every measure of the library.",
        outcome(len(higher), len(apart)),
        f"Facts are higher beyond the 95 % interval in {len(higher)} of {len(apart)} comparisons"
        + (f"; not in: {others}." if others else "."),
    )


def facts_are_higher_at_equal_rates(study):
    """The same when both tasks are trained at one rate, since a rate changes a spectrum too."""
    style, facts, *_ = study.sizes.tasks
    kinds = ATTENTION + MLP
    smooth = [measure for measure in MEASURES if measure != "numerical rank"]
    apart = {
        (measure, rate): estimate(
            study.measure(measure, facts, kinds, rate) - study.measure(measure, style, kinds, rate)
        )
        for measure in smooth
        for rate in study.sizes.full_rates
    }
    higher = [place for place, by in apart.items() if by.mean > 0 and by.excludes(0)]
    rates = [rate for rate in study.sizes.full_rates if all((measure, rate) in higher for measure in smooth)]
    return Verdict(
        "So it is when both are trained at the same rate.",
        outcome(len(higher), len(apart)),
        f"In {len(higher)} of {len(apart)} comparisons of a measure (numerical rank apart) at a rate; by every measure "
        f"at the rates {listed(rates)}.",
    )


def mlp_is_higher(study):
    """Biderman et al.: the MLP's updates need more ranks than attention's for 90 % of the variance."""
    tasks = study.sizes.tasks[:2]
    by = {
        task: estimate(study.measure("variance 0.9", task, MLP) - study.measure("variance 0.9", task, ATTENTION))
        for task in tasks
    }
    return Verdict(
        "The MLP's update needs more ranks than attention's for 90 % of the variance (LoRA Learns Less).",
        outcome(sum(one.mean > 0 and one.excludes(0) for one in by.values()), len(tasks)),
        "MLP less attention, in ranks: "
        + "; ".join(f"{task} {interval(one, '+.1f')}" for task, one in by.items())
        + ".",
    )


def adapter_is_enough_for_style_alone(study):
    """The article's claim, for LoRA under every rule at its best rate."""
    style, facts, *_ = study.sizes.tasks
    kept, lost, figures = [], [], []
    for rule, label in LABELS.items():
        recalls = {task: study.at("recall", "best", task, "adamw", rule, ADAPTER) for task in (style, facts)}
        kept.append(is_enough(study, "recall", style, recalls[style]).all())
        lost.append(not is_enough(study, "recall", facts, recalls[facts]).any())
        figures.append(f"{label} {recalls[style].mean():.3f} and {recalls[facts].mean():.3f}")
    full = [study.at("recall", "best", task, "adamw").mean() for task in (style, facts)]
    return Verdict(
        f"A rank-{ADAPTER} adapter is enough for style and not for facts, under any rule.",
        outcome(sum(kept) + sum(lost), len(kept) + len(lost)),
        f"Recall of style and of facts at rank {ADAPTER}: {'; '.join(figures)}; full fine-tuning {full[0]:.3f} and "
        f"{full[1]:.3f}.",
    )


def facts_need_more(study):
    """Under every rule, by loss and by recall, in every seed."""
    style, facts, *_ = study.sizes.tasks
    needed = {
        (rule, what): [rank_enough(study, what, task, ("best", rule)) for task in (style, facts)]
        for rule in LABELS
        for what in ("loss", "recall")
    }
    more = [all(f > s for s, f in zip(*pair, strict=True)) for pair in needed.values()]
    figures = "; ".join(
        f"{LABELS[rule]} {span(pair[0])} and {span(pair[1])} for {what}" for (rule, what), pair in needed.items()
    )
    return Verdict(
        f"To reach full fine-tuning LoRA needs a higher rank for {facts.split()[1]} facts than for style, under every "
        "rule.",
        outcome(sum(more), len(more)),
        f"Ranks that were enough for style and for facts, best rates: {figures}.",
    )


def fewer_facts_need_more_too(study):
    """Is it that they are facts, or how many there are?"""
    style, facts, *fewer = study.sizes.tasks
    needed = {
        task: {what: rank_enough(study, what, task, ("best", "twice")) for what in ("loss", "recall")}
        for task in (*reversed(fewer), facts, style)
    }
    more = [
        all(f > s for f, s in zip(needed[task][what], needed[style][what], strict=True))
        for task in fewer
        for what in ("loss", "recall")
    ]
    return Verdict(
        "Fewer facts need a higher rank than style, too.",
        outcome(sum(more), len(more)),
        "Ranks that were enough, α = 2r, by loss and by recall: "
        + "; ".join(f"{task} {span(found['loss'])} and {span(found['recall'])}" for task, found in needed.items())
        + ".",
    )


def root_needs_less(study):
    """Does α/√r reach full fine-tuning's facts at a lower rank than α/r, each at its best rate?"""
    facts = study.sizes.tasks[1]
    pairs = [
        [rank_enough(study, what, facts, ("best", rule)) for rule in ("rslora", "standard")]
        for what in ("loss", "recall")
    ]
    less = [all(root < plain for root, plain in zip(*pair, strict=True)) for pair in pairs]
    return Verdict(
        "With the rate re-tuned at each rank, α/√r reaches full fine-tuning's facts at a lower rank than α/r.",
        outcome(sum(less), len(less)),
        "; ".join(
            f"by {what}, α/√r at {span(pair[0])}, α/r at {span(pair[1])}"
            for what, pair in zip(("loss", "recall"), pairs, strict=True)
        ).capitalize()
        + ".",
    )


def gets_worse(study, optimizer, rule):
    """Facts, from rank TUNED_AT, where the rate was tuned, to the largest, on the fresh seeds."""
    facts, top = study.sizes.tasks[1], study.sizes.ranks[-1]
    losses, recalls = (
        [study.at(what, "kept", facts, optimizer, rule, rank, fresh=True) for rank in (TUNED_AT, top)]
        for what in ("loss", "recall")
    )
    change = estimate(losses[1] - losses[0])
    return Verdict(
        f"{OPTIMIZERS[optimizer]}, the rate tuned at rank {TUNED_AT} and kept: {LABELS[rule]} gets worse with rank.",
        sign_of(change),
        f"From rank {TUNED_AT} to {top} the loss goes from {number(losses[0].mean())} to {number(losses[1].mean())} "
        f"(change {interval(change, '+.3f')}), recall from {recalls[0].mean():.3f} to {recalls[1].mean():.3f}.",
    )


def sign_of(change):
    """Whether a change is up, beyond its interval; a run that diverged is."""
    if not math.isfinite(change.mean):
        return "holds"
    if not change.excludes(0):
        return "undecided"
    return "holds" if change.mean > 0 else "fails"


def retuning_closes_the_gap(study, optimizer):
    """At the largest rank, each rule at its best rate: does α/r come as near to full fine-tuning as α/√r?"""
    facts, top = study.sizes.tasks[1], study.sizes.ranks[-1]
    gap = {}
    for choice in ("kept", "best"):
        root, plain = (
            closed(
                study, facts, study.at("loss", choice, facts, optimizer, rule, top, fresh=True), optimizer, fresh=True
            )
            for rule in ("rslora", "standard")
        )
        gap[choice] = estimate(root - plain)
    return Verdict(
        f"{OPTIMIZERS[optimizer]}: re-tuning the rate at rank {top} brings α/r to within {1 - CLOSED:.0%} of α/√r.",
        "holds" if abs(gap["best"].mean) + gap["best"].half <= 1 - CLOSED else "fails",
        f"Of the way from the base's loss to full fine-tuning's, α/√r goes further than α/r by "
        f"{interval(gap['kept'], '+.3f')} at the kept rates and by {interval(gap['best'], '+.3f')} at the best ones.",
    )


def spectra_order_the_tasks(study):
    """Pairs of tasks that a measure puts in the order of the ranks that they needed."""
    needed = {task: np.median(rank_enough(study, "recall", task, ("best", "twice"))) for task in study.sizes.tasks}
    pairs = [(one, two) for one in needed for two in needed if needed[one] < needed[two]]
    right = {}
    for measure in MEASURES:
        ranks = {task: study.measure(measure, task, ATTENTION + MLP).mean() for task in needed}
        right[measure] = sum(ranks[one] < ranks[two] for one, two in pairs)
    return Verdict(
        "A task whose update has the higher measured rank needs the higher LoRA rank.",
        outcome(sum(right.values()), len(pairs) * len(right)),
        f"Of {len(pairs)} pairs of tasks that needed different ranks, in the right order: "
        + "; ".join(f"{measure} {count}" for measure, count in right.items())
        + ".",
    )


def measure_is_the_rank(study, name, source):
    """Whether the mean measured rank is within FACTOR of the rank that was enough for recall, on every task."""
    needed = {task: np.median(rank_enough(study, "recall", task, source)) for task in study.sizes.tasks}
    ratios = {
        measure: [study.measure(measure, task, ATTENTION + MLP).mean() / rank for task, rank in needed.items()]
        for measure in MEASURES
    }
    near = [measure for measure, found in ratios.items() if all(1 / FACTOR <= ratio <= FACTOR for ratio in found)]
    return Verdict(
        f"A measured rank is the rank that {name} needed, within a factor of {FACTOR} on every task.",
        outcome(len(near), len(MEASURES)),
        "Measured over needed, task by task: "
        + "; ".join(f"{measure} {min(found):.2g} to {max(found):.2g}" for measure, found in ratios.items())
        + ".",
    )


def picked_rank_keeps_recall(study):
    """Adapters extracted at the rank that rank_for_variance picks for each matrix, on style and facts."""
    tasks, picks = study.sizes.tasks[:2], [name for name in MEASURES if name.startswith("variance")]
    lost = {(task, pick): recall_lost(study, task, pick) for task in tasks for pick in picks}
    kept = [is_enough(study, "recall", task, study.extracted("recall", task, pick)).all() for task, pick in lost]
    return Verdict(
        "An adapter extracted at the rank for 90, 95 or 99 % of the variance keeps full fine-tuning's recall.",
        outcome(sum(kept), len(kept)),
        "Recall lost: "
        + "; ".join(f"{task}, {pick}: {interval(by, '+.3f')}" for (task, pick), by in lost.items())
        + ".",
    )


def training_beats_extraction(study):
    """At the same small rank: an adapter trained from the start, and the best truncation of the full update."""
    style, facts, *_ = study.sizes.tasks
    by = {
        task: estimate(
            study.at("recall", "best", task, "adamw", "twice", ADAPTER) - study.extracted("recall", task, ADAPTER)
        )
        for task in (style, facts)
    }
    return Verdict(
        f"At rank {ADAPTER}, training an adapter beats extracting one from the full fine-tune.",
        outcome(sum(one.mean > 0 and one.excludes(0) for one in by.values()), len(by)),
        "Recall trained (α = 2r) less extracted: "
        + "; ".join(f"{task} {interval(one, '+.3f')}" for task, one in by.items())
        + ".",
    )


def best_rate_hardly_moves(study, optimizer):
    """LoRA Without Regret: under α/r the best rate hardly depends on rank; here, within one step of the grid."""
    facts, sizes = study.sizes.tasks[1], study.sizes
    grid, ranks = {"adamw": (sizes.facts_rates, sizes.ranks), "sgd": (sizes.sgd_rates, sizes.sgd_ranks)}[optimizer]
    best = {rule: [study.best_rate(facts, optimizer, rule, rank) for rank in ranks] for rule in LABELS}
    steps = np.ptp([grid.index(rate) for rate in best["standard"]])
    return Verdict(
        f"{OPTIMIZERS[optimizer]}: under α/r the best learning rate hardly depends on rank (LoRA Without Regret).",
        "holds" if steps <= 1 else "fails",
        "Best rates over all ranks: "
        + "; ".join(f"{LABELS[rule]} {min(rates):g} to {max(rates):g}" for rule, rates in best.items())
        + ".",
    )


def root_serves_every_rank(study, optimizer):
    """The promise of rank-stable scaling, as a user would notice it: what keeping a rate costs at higher ranks."""
    facts, sizes = study.sizes.tasks[1], study.sizes
    higher = [rank for rank in {"adamw": sizes.ranks, "sgd": sizes.sgd_ranks}[optimizer] if rank > TUNED_AT]
    regret = {
        rule: max(
            study.at("loss", "kept", facts, optimizer, rule, rank).mean()
            - study.at("loss", "best", facts, optimizer, rule, rank).mean()
            for rank in higher
        )
        for rule in LABELS
    }
    return Verdict(
        f"{OPTIMIZERS[optimizer]}: of the three rules, α/√r loses least when the rate of rank {TUNED_AT} is kept at "
        "higher ranks (rsLoRA).",
        "holds" if regret["rslora"] <= min(regret.values()) else "fails",
        "Largest loss of the kept rate over the best one: "
        + "; ".join(f"{LABELS[rule]} {number(cost)}" for rule, cost in regret.items())
        + ".",
    )


def wide_alpha_is_higher_rank(study):
    """Shuttleworth et al.: at a high rank, α = 2r gives an update of higher effective rank than a fixed α."""
    facts, top = study.sizes.tasks[1], study.sizes.ranks[-1]
    ranks = {
        (choice, rule): study.at("effective_rank", choice, facts, "adamw", rule, top)
        for choice in ("kept", "best")
        for rule in ("twice", "standard")
    }
    apart = {choice: estimate(ranks[choice, "twice"] - ranks[choice, "standard"]) for choice in ("kept", "best")}
    full = study.at("effective_rank", "best", facts, "adamw").mean()
    return Verdict(
        f"At rank {top}, α = 2r gives an update of higher effective rank than a fixed α (An Illusion of Equivalence).",
        outcome(sum(one.mean > 0 and one.excludes(0) for one in apart.values()), len(apart)),
        "; ".join(
            f"{choice} rates: {ranks[choice, 'twice'].mean():.1f} against {ranks[choice, 'standard'].mean():.1f}, "
            f"difference {interval(one, '+.1f')}"
            for choice, one in apart.items()
        ).capitalize()
        + f"; full fine-tuning {full:.1f}.",
    )


def recall_lost(study, task, rank):
    """Return the recall of the full fine-tune less that of its adapter of a rank."""
    return estimate(study.at("recall", "best", task, "adamw") - study.extracted("recall", task, rank))


def outcome(true, of):
    """Return the verdict on all, some or none."""
    return "holds" if true == of else "holds in part" if true else "fails"


def span(ranks):
    """Return the ranks that were enough in the seeds as text: one, or the lowest and the highest."""
    low, high = min(ranks), max(ranks)
    return rank_text(low) if low == high else f"{rank_text(low)} to {rank_text(high)}"


def rank_text(rank):
    return "none" if math.isinf(rank) else f"{rank:g}"


def number(value):
    return f"{value:.3f}" if math.isfinite(value) else "divergence"


def interval(estimated, form):
    """Return a mean and its interval as text."""
    if not math.isfinite(estimated.mean):
        return "divergence"
    return f"{estimated.mean:{form}} ± {estimated.half:{form.lstrip('+')}}"


def listed(rates):
    return ", ".join(f"{rate:g}" for rate in rates) or "none"
