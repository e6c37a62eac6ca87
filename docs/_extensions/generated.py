"""Run the scripts of ``_generate`` when a build begins; and ``{drawn}``, a figure for light and for dark pages."""

from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


def make_all(app):
    """Run every script of ``_generate``."""
    import encoder_figures
    import encoder_tables
    import figures
    import formats
    import model_tables
    import performance_tables
    import reference
    import study_figures
    import study_tables
    import tables

    studies = (study_figures, study_tables, encoder_figures, encoder_tables)
    scripts = (figures, formats, tables, performance_tables, model_tables, *studies)
    for script, folder in (*((script, "_generated") for script in scripts), (reference, "reference/generated")):
        target = Path(app.srcdir, folder)
        target.mkdir(parents=True, exist_ok=True)
        script.write_all(target)


class Drawn(SphinxDirective):
    """A figure by ``_generate``, in two versions for light and for dark pages, with a caption."""

    required_arguments = 1
    has_content = True
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012 - docutils' own way

    def run(self):
        """Return a figure with both pictures, of which the theme shows one."""
        figure = nodes.figure("", classes=["drawn"])
        for theme in ("light", "dark"):
            uri = f"/_generated/{self.arguments[0]}-{theme}.svg"
            figure += nodes.image("", uri=uri, alt=self.options["alt"], classes=[f"only-{theme}"])
            self.env.note_dependency(f"_generated/{self.arguments[0]}-{theme}.svg")
        text, messages = self.parse_inline(" ".join(self.content))
        figure += nodes.caption("", "", *text)
        return [figure, *messages]


def setup(app):
    app.connect("builder-inited", make_all)
    app.add_directive("drawn", Drawn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
