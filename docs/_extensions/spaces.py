"""No line break between a number and its unit, a task and its seed, or beside ±: such spaces are made U+00A0."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

UNBROKEN = re.compile(
    r"(?<=\d) (?=(?:%|[nµm]?s|min|minutes|[kMG]B)(?!\w))"
    r"|(?<=movies|corpus|tweets) (?=\d)|(?<=facts) (?=\d)|(?<=±) | (?=±)"
)
# Code is copied, and a formula has its own spaces.
KEPT = (nodes.literal, nodes.FixedTextElement, nodes.math, nodes.raw)


class Spaces(SphinxPostTransform):
    """Replace the spaces of every page."""

    default_priority = 900

    def run(self, **_):
        """Replace the spaces of a page."""
        replace_spaces(self.document)


def replace_spaces(node):
    """Replace the spaces of all text within a node but that of code."""
    for child in list(node.children):
        if isinstance(child, nodes.Text):
            node.replace(child, nodes.Text(UNBROKEN.sub("\u00a0", child)))
        elif not isinstance(child, KEPT):
            replace_spaces(child)


def setup(app):
    app.add_post_transform(Spaces)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
