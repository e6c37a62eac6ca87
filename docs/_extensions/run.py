"""``{run}``: a shell block that is run when the site is built, and shown with its output."""

from pathlib import Path

import shell
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


class Run(SphinxDirective):
    """Show the result of the page's next block; a wrong exit code is a warning, and so fails the build."""

    has_content = True
    option_spec = {  # noqa: RUF012 - docutils' own way
        "exit": directives.nonnegative_int,
        "hide-output": directives.flag,
    }

    def run(self):
        """Return the commands and their output."""
        if "results" not in self.env.temp_data:
            text = Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8")
            self.env.temp_data["results"] = iter(shell.results(text))
        commands, printed, code, expected = next(self.env.temp_data["results"])
        commands = commands.rstrip("\n")
        if code != expected:
            logger.warning(
                "exit code %d, not %d:\n%s\n%s", code, expected, commands, printed, location=self.get_location()
            )
        shown = nodes.literal_block(commands, commands, language="bash", classes=["commands"])
        if "hide-output" in self.options or not printed.strip():
            return [shown]
        output = nodes.literal_block(printed.rstrip(), printed.strip("\n"), language="text", classes=["output"])
        return [shown, output]


def setup(app):
    app.add_directive("run", Run)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
