"""``{run}``: a shell block that is run when the site is built, and shown with its output."""

import tempfile
from contextlib import ExitStack

import shell
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
folders = ExitStack()


class Run(SphinxDirective):
    """Run the block in the page's own folder; a wrong exit code is a warning, and so fails the build."""

    has_content = True
    option_spec = {  # noqa: RUF012 - docutils' own way
        "exit": directives.nonnegative_int,
        "hide-output": directives.flag,
    }

    def run(self):
        """Return the commands and their output."""
        commands = "\n".join(self.content)
        # One folder per page, since its blocks build on each other.
        folder = self.env.temp_data.get("run folder")
        if folder is None:
            folder = self.env.temp_data["run folder"] = folders.enter_context(tempfile.TemporaryDirectory())
            shell.prepare(folder)
        printed, code = shell.run(commands, folder)
        wanted = self.options.get("exit", 0)
        if code != wanted:
            logger.warning(
                "exit code %d, not %d:\n%s\n%s", code, wanted, commands, printed, location=self.get_location()
            )
        shown = nodes.literal_block(commands, commands, language="bash", classes=["commands"])
        if "hide-output" in self.options or not printed.strip():
            return [shown]
        output = nodes.literal_block(printed.rstrip(), printed.strip("\n"), language="text", classes=["output"])
        return [shown, output]


def setup(app):
    app.add_directive("run", Run)
    app.connect("build-finished", lambda *_: folders.close())
    return {"parallel_read_safe": False, "parallel_write_safe": True}
