"""Names in a narrow column: words left out of their middle, so that different names still differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len, chop_cells

_ELLIPSIS = "…"


def fitted(texts: Sequence[str], width: int) -> list[list[str]]:
    """Return the lines of each text in a column of `width` cells.

    Of a name that is too long, whole words are left out in the middle. Where that would leave two names alike, the name
    continues on further lines, as a phrase does.

    Examples
    --------
    >>> fitted(["model.layers.*.attn.q_proj", "lm_head", "all together"], 21)
    [['model.layers.….q_proj'], ['lm_head'], ['all together']]
    """
    short = shortened(texts, width)
    return [[short[text]] if text in short else list(_lines(_words(text), width)) for text in texts]


def shortened(names: Iterable[str], width: int) -> dict[str, str]:
    """Return names by those that fit the width, or do without some of their words; none for a phrase.

    What is left of a name fits no other of the names, whatever the omitted words are.
    """
    forms = {name: [] if _is_phrase(name) else list(_forms(name)) for name in dict.fromkeys(names)}
    counts = Counter(form for candidates in forms.values() for form in set(candidates))
    short = {}
    for name, candidates in forms.items():
        own = [form for form in candidates if counts[form] == 1 and cell_len(form) <= width]
        if cell_len(name) <= width:
            short[name] = name
        elif own:
            short[name] = own[0]
    return short


def _forms(name: str) -> Iterator[str]:
    """Yield a name without some of its middle words, the longest first; words between underscores come last."""
    for words in (_words(name), _words(name, "._/")):
        omitted = [(start, end) for end in range(1, len(words)) for start in range(1, end)]
        forms = [
            f"{''.join(words[:start])}{_ELLIPSIS}{words[end - 1][-1]}{''.join(words[end:])}" for start, end in omitted
        ]
        yield from sorted(forms, key=lambda form: (cell_len(form), form.index(_ELLIPSIS)), reverse=True)


def _words(text: str, separators: str = "") -> list[str]:
    """Return the words of a text, each with the separators after it: of a name dots, or else underscores."""
    separators = separators or (" " if _is_phrase(text) else "./" if re.search(r"[./]", text) else "_")
    # Spaces at the beginning indent the first word.
    return re.findall(rf"^ *[^{separators}]*[{separators}]*|[^{separators}]+[{separators}]*", text)


def _is_phrase(text: str) -> bool:
    return " " in text.strip()


def _lines(words: Sequence[str], width: int) -> Iterator[str]:
    """Yield lines of as many words as fit; a word longer than a line is cut, having nowhere else to go."""
    line = ""
    for word in words:
        if line and cell_len(line + word.rstrip()) > width:
            yield line.rstrip()
            line = ""
        *full, line = chop_cells(line + word, width) if cell_len((line + word).rstrip()) > width else [line + word]
        yield from full
    yield line.rstrip()
