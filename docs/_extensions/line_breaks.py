"""No line break before a unit, between a task and its seed, beside ±, or within a word of code that a phone shows."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

UNBROKEN = re.compile(
    r"(?<=\d) (?=(?:%|[nµm]?s|min|minutes|[kMG]B)(?!\w))"
    r"|(?<=movies|corpus|tweets) (?=\d)|(?<=facts) (?=\d)|(?<=±) | (?=±)"
)
# Code is copied, and a formula has its own spaces.
KEPT = (nodes.literal, nodes.FixedTextElement, nodes.math, nodes.raw)
# In characters of code: a phone's line.
LINE = 36


class LineBreaks(SphinxPostTransform):
    """Keep numbers and their units, and short words of code, on one line."""

    default_priority = 900

    def run(self, **_):
        """Replace spaces of text by U+00A0, and mark short code by a class."""
        replace_spaces(self.document)
        for code in self.document.findall(nodes.literal):
            if max(map(len, code.astext().split()), default=0) <= LINE:
                code["classes"].append("unbroken")


def replace_spaces(node):
    """Replace the spaces of all text within a node but that of code."""
    for child in list(node.children):
        if isinstance(child, nodes.Text):
            node.replace(child, nodes.Text(UNBROKEN.sub("\u00a0", child)))
        elif not isinstance(child, KEPT):
            replace_spaces(child)


def setup(app):
    app.add_post_transform(LineBreaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
