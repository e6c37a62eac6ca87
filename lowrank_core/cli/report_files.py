"""Figures as plain dictionaries, for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lowrank_core.cli.demo.article import Article, Learning, Reconstruction
from lowrank_core.cli.demo.verdicts import Verdict

__all__ = ["demo"]


def demo(article: Article, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Lay out every figure of the demo.

    Parameters
    ----------
    article : Article
    verdicts : sequence of Verdict

    Returns
    -------
    dict
        Under "style" and "facts" the figures of the ranks asked for, and under their "every_rank" those of 1 … size.
    """
    return {
        "settings": asdict(article.settings),
        "style": _reconstruction(article.style, article.settings.ranks),
        "facts": _reconstruction(article.facts, article.settings.ranks),
        "scaling": asdict(article.scalings),
        "learning": [_learning(learning) for learning in article.learning],
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def _reconstruction(update: Reconstruction, ranks: tuple[int, ...]) -> dict[str, Any]:
    return {
        "singular_values": update.singular_values,
        "norm": update.norm,
        "ranks": ranks,
        "variance_captured": update.at(update.captured, ranks),
        "best_possible": update.at(update.best, ranks),
        "errors": {rule: update.at(errors, ranks) for rule, errors in update.errors.items()},
        "every_rank": {
            "ranks": update.ranks,
            "variance_captured": update.captured,
            "best_possible": update.best,
            "errors": update.errors,
        },
    }


def _learning(learning: Learning) -> dict[str, Any]:
    fields = asdict(learning)
    return {("best_possible" if name == "best" else name): value for name, value in fields.items()}
