"""``{run}``: a block that is run when the site is built, with its output and figure; ``{thumbnails}`` of these."""

import re
from pathlib import Path

import shell
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

FOLDER = "_generated/runs"
# Select Graphic Rendition: weights, and the eight colours.
WEIGHTS = {"1": "bold", "2": "dim", "3": "italic", "4": "underline"}
# In points, as matplotlib writes it.
SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"')
COLORS = dict(enumerate(("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"), start=30))


class Run(SphinxDirective):
    """Show the result of the page's next block; a wrong exit code is a warning, and so fails the build."""

    optional_arguments = 1
    has_content = True
    option_spec = {  # noqa: RUF012 - docutils' own way
        "exit": directives.nonnegative_int,
        "hide-output": directives.flag,
        "figure": directives.unchanged_required,
        "alt": directives.unchanged_required,
    }

    def run(self):
        """Return the commands, their output and their figure."""
        if "results" not in self.env.temp_data:
            self.env.temp_data["results"] = iter(results_of(self.env))
        result = next(self.env.temp_data["results"])
        if result.code != result.expected:
            self.warn(f"exit code {result.code}, not {result.expected}:\n{result.commands}\n{result.printed}")
        commands = result.commands.rstrip("\n")
        shown = nodes.literal_block(commands, commands, language=result.language, classes=["commands", result.language])
        parts = [shown]
        if "hide-output" not in self.options and result.printed.strip():
            parts.append(output(result.printed.strip("\n"), is_message=bool(result.expected)))
        block = nodes.container("", *parts, classes=["terminal"])
        return [block, *self.figure(result)]

    def figure(self, result):
        """Return the figure that the block wrote, in a list."""
        if "figure" not in self.options:
            return []
        if result.figure is None:
            self.warn(f"no file {self.options['figure']} was written")
            return []
        name = Path(self.options["figure"]).stem
        width, height = map(float, SIZE.search(result.figure).groups())
        # An image with a width is made a link to its file by Sphinx, where small labels can be read.
        image = nodes.image(
            "",
            uri=saved(self.env, name, result.figure),
            alt=self.options["alt"],
            width=f"{width:g}pt",
            classes=[*(["wide"] if width > 2 * height else []), *heat_map(result.figure)],
        )
        return [nodes.figure("", image, classes=["plotted"], ids=[name])]

    def warn(self, message):
        """Warn with the block's place."""
        logger.warning(message, location=self.get_location())


class Thumbnails(SphinxDirective):
    """The figures of the page's blocks, small, each a link to its place."""

    def run(self):
        """Return a list of the figures."""
        text = source(self.env)
        names = [block.figure for block in shell.blocks(text)]
        links = []
        for result, name in zip(results_of(self.env), names, strict=True):
            if name and result.figure:
                stem = Path(name).stem
                uri = saved(self.env, stem, result.figure)
                image = nodes.image("", uri=uri, alt="", classes=heat_map(result.figure))
                links.append(nodes.reference("", "", image, nodes.Text(stem.replace("-", " ")), refuri=f"#{stem}"))
        return [nodes.container("", nodes.paragraph("", "", *links), classes=["thumbnails"])]


def source(env):
    """Return the text of the page."""
    return Path(env.doc2path(env.docname)).read_text(encoding="utf-8")


def results_of(env):
    """Return the results of the page's blocks, which run once."""
    if "all-results" not in env.temp_data:
        env.temp_data["all-results"] = shell.results(source(env))
    return env.temp_data["all-results"]


def saved(env, name, figure):
    """Write a figure beside the page's other ones, and return its place."""
    uri = f"{FOLDER}/{env.docname.replace('/', '-')}-{name}.svg"
    path = Path(env.srcdir, uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(figure, encoding="utf-8")
    return f"/{uri}"


def heat_map(figure):
    """Return the class of a figure with an array drawn as an image, in a list; of another figure none."""
    return ["heat-map"] if "<image " in figure else []


def output(printed, *, is_message):
    """Return what a block printed, with its colours and weights; a message of one line is broken where it is long."""
    pieces = shell.STYLE.split(printed)
    # Sphinx would highlight as code what is equal to its source, and none is taken to be equal.
    classes = ["output", "message"] if is_message and "\n" not in printed else ["output"]
    block = nodes.literal_block(f"{printed}\n", "", classes=classes)
    styles = frozenset()
    for text, codes in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        if text:
            classes = sorted(f"ansi-{style}" for style in styles)
            block += nodes.inline(text, text, classes=classes) if classes else nodes.Text(text)
        styles = styled(styles, codes)
    return block


def styled(styles, codes):
    """Return the styles after a sequence of codes."""
    for code in codes.split(";"):
        if code in WEIGHTS:
            styles |= {WEIGHTS[code]}
        elif code in {"", "0"}:
            styles = frozenset()
        elif code.isdigit() and int(code) % 60 in COLORS:
            styles = frozenset(style for style in styles if style not in COLORS.values()) | {COLORS[int(code) % 60]}
    return styles


def setup(app):
    app.add_directive("run", Run)
    app.add_directive("thumbnails", Thumbnails)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
