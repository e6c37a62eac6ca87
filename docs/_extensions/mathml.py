"""Convert formulas to MathML at build time, by docutils: the pages need no script, font or network."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

# TeX reads \frac12 as \frac{1}{2} and \hat\sigma_i as \hat{\sigma}_i; docutils requires the braces.
BRACES = ((re.compile(r"\\frac(\d)(\d)"), r"\\frac{\1}{\2}"), (re.compile(r"\\hat(\\[A-Za-z]+)"), r"\\hat{\1}"))

# In characters of TeX: half of a phone's line and more.
LONG = 40

logger = logging.getLogger(__name__)


def _converted(node, *, as_block):
    tex = node.astext()
    for bare, braced in BRACES:
        tex = bare.sub(braced, tex)
    try:
        return tex2mathml(tex, as_block=as_block)
    except MathError as error:
        logger.warning("formula %r: %s", tex, error, location=node)
        return node.astext()


def _inline(self, node):
    formula = _converted(node, as_block=False)
    # On a phone such a formula scrolls by itself, since no browser breaks it.
    long = len(node.astext()) > LONG
    self.body.append(f'<span class="long-formula">{formula}</span>' if long else formula)
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(_converted(node, as_block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
