"""The documentation: every block of code in a page and every example in a docstring is run."""

import doctest
import importlib
import json
import pkgutil
import re
import sys
import tomllib
from pathlib import Path

import pytest

import lowrank_core

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path[:0] = [str(DOCS / "_generate")]

import shell  # noqa: E402 - the folder above comes first

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    if not any(part.startswith("_") for part in path.relative_to(ROOT).parts)
}
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
# Directives of Sphinx without code, and those of this site; cells of the notebook are run in tests/interop.
MARKUP = {"{code-cell}", "{drawn}", "{include}", "{literalinclude}", "{run}", "{thumbnails}", "{toctree}"}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lowrank_core.__path__, "lowrank_core.")
    if "__main__" not in module.name
)


def fences(text):
    """Yield (kind, code, line) for every fenced block, without its indentation."""
    for match in FENCE.finditer(text):
        code = "\n".join(line.removeprefix(match["indent"]) for line in match["code"].splitlines())
        yield match["kind"], code, text.count("\n", 0, match.start("code"))


def run_examples(test):
    wrong = []
    doctest.DocTestRunner(verbose=False).run(test, out=wrong.append)
    if wrong:
        pytest.fail("".join(wrong), pytrace=False)


# Those that need PyTorch are marked as the tests of peers are.
PYTHON_PAGES = [
    pytest.param(page, marks=[pytest.mark.interop] if ">>> import torch" in text else [])
    for page, text in PAGES.items()
    if "```python" in text
]


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_blocks_of_a_page_run_in_order(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Blank lines in place of the text, so that a failure names the page's own line.
    lines = [""] * (PAGES[page].count("\n") + 1)
    for kind, code, start in fences(PAGES[page]):
        if kind == "python":
            lines[start : start + code.count("\n") + 1] = code.splitlines()
    examples = doctest.DocTestParser().get_doctest("\n".join(lines), {"__name__": "page"}, page, page, 0)
    assert examples.examples
    run_examples(examples)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```{run}" in text])
def test_shell_blocks_of_a_page_run_in_order(page):
    for result in shell.results(PAGES[page]):
        assert result.code == result.expected, f"{result.commands}\n{result.printed}"
        assert "Traceback" not in result.printed


def test_a_page_whose_results_are_kept_runs_once(tmp_path, monkeypatch):
    counting = "```{run}\n:exit: 3\n\necho again >> FILE; wc -l < FILE; exit 3\n```\n".replace(
        "FILE", f"{tmp_path}/count"
    )
    (results_folder := tmp_path / "results").mkdir()
    shell.results(counting)
    monkeypatch.setenv("LOWRANK_PAGE_RESULTS", str(results_folder))
    first = shell.results(counting)
    assert [(result.printed.strip(), result.code, result.expected) for result in first] == [("2", 3, 3)]
    assert shell.results(counting) == first
    assert shell.results(counting + "\n")[0].printed.strip() == "3"


def test_a_block_prints_to_a_terminal_without_bars_of_progress_and_its_figure_is_kept():
    code = "import sys\nopen('x.svg', 'w').write('<svg/>')\nprint(sys.stdout.isatty(), sys.stderr.isatty())"
    (result,) = shell.results(f"```{{run}} python\n:figure: x.svg\n\n{code}\n```\n")
    assert (result.language, result.printed, result.code, result.figure) == ("python", "True False\n", 0, "<svg/>")


def test_every_block_of_code_is_of_a_kind_that_is_run():
    kinds = {(page, kind) for page, text in PAGES.items() for kind, _, _ in fences(text)}
    assert {(page, kind) for page, kind in kinds if kind.partition(" ")[0] not in MARKUP | {"python", "sh"}} == set()
    for page, text in PAGES.items():
        for kind, code, _ in fences(text):
            assert kind != "python" or all(">>> " in block for block in code.split("\n\n")), f"{page}:\n{code}"


def test_the_worked_changes_of_the_architecture_are_run():
    """A rule, a kernel, a format with what follows from it, a verb: each from its first step to a result."""
    page = PAGES["docs/architecture.md"]
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    examples = {
        section.partition("\n")[0].removeprefix("A worked change: add a "): [code for _, code, _ in fences(section)]
        for section in sections
        if section.startswith("A worked change: add a ")
    }
    calls = {
        "scaling rule": ["constant(2, [0, 8, 64])"],
        "kernel": ["nuclear_error(spectrum(", "test_nuclear_error()"],
        "file format": ["inspect(", "resize(", "merge(", "plan(", "census("],
        "verb": ["main(["],
    }
    assert examples.keys() == calls.keys()
    for change, called in calls.items():
        assert all(call in "\n".join(examples[change]) for call in called), change


def test_the_figures_of_the_readme_are_those_of_the_study():
    lines = (DOCS / "encoder" / "results" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    runs = {tuple(run["job"][:3]): run for run in map(json.loads, lines)}
    full, written = runs["full", "movies", 0], runs["written", "movies", 0]["written"]
    untouched = next(part["accuracy"] for part in full["parts"] if part["way"] == "nothing")
    first, *_, last = written
    for text in (
        f"accuracy {full['accuracy']:.3f}; its head on the untouched encoder: {untouched:.3f}",
        f"90 % of the variance takes rank {full['update']['all_together']['variance 0.9']}",
        f"--rank {','.join(str(each['rank']) for each in written)}`",
        f"that of rank {first['rank']}, with {first['bytes'] / 1e6:.1f} MB and {first['variance']:.0%}".replace(
            "%", " %"
        ),
        f"an accuracy of {first['accuracy']:.3f} when PEFT loads it (rank {last['rank']}: {last['accuracy']:.3f})",
    ):
        assert text in PAGES["README.md"].replace("\n", " ")


def test_lines_that_install_or_need_the_checkout_are_run_by_continuous_integration():
    """Each line of an ``sh`` block, which no test can run, is a line of the README or of .ci/run, which runs both."""
    readme = PAGES["README.md"]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    known = {line.strip().removesuffix(" >/dev/null") for line in [*readme.splitlines(), *script.splitlines()]}
    for page, text in PAGES.items():
        for kind, code, _ in fences(text):
            for line in code.splitlines() if kind == "sh" else ():
                assert line in known | SHELL_LINES or is_pytest_line(line), f"{page}: {line}"


SHELL_LINES = {
    ". .venv/bin/activate",
    # The README's install lines, with other extras or none, which the next test looks up in pyproject.toml.
    "python3 -m venv .venv && .venv/bin/pip install -q .",
    "pip install -q -e '.[all]' --group dev",
    "pip install -q -e '.[testing]'",
    "python3 -m venv .venv && .venv/bin/pip install -q '.[cli,gguf]'",
    # What one page alone needs.
    "pip install -q scikit-learn==1.9.1 torch==2.13.0",
    "pip install -q -e '.[cli,transformers]' pandas torch==2.13.0",
}


def is_pytest_line(line):
    """Whether a line runs pytest on files that exist."""
    program, *arguments = line.split()
    paths = [argument for argument in arguments if not argument.startswith("-")]
    return program == "pytest" and all((ROOT / path).exists() for path in paths)


def test_extras_and_groups_that_the_pages_install_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    for page, text in PAGES.items():
        for named in re.findall(r"pip install [^\n`]*\.\[([\w,]+)\]", text):
            assert set(named.split(",")) <= set(extras), page
        assert set(re.findall(r"--group ([\w-]+)", text)) <= set(groups), page


# What the first page of the documentation installs.
START = {"cli"}


def distributions_of(extras):
    """Return the names of what the core and extras need, as imports: those of an extra within an extra too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            inner = re.match(r"lowrank_core\[([\w,]+)\]", line)
            needed += distributions_of(inner[1].split(",")) if inner else [line]
    return {re.match(r"[\w-]+", line)[0] for line in needed}


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("README", "docs/g", "docs/start"))])
def test_a_page_installs_what_its_blocks_import(page):
    text = PAGES[page]
    code = "\n".join(
        code for kind, code, _ in fences(text) if kind in {"python", "{run} python", "{code-cell} ipython3"}
    )
    imported = set(re.findall(r"^(?:>>> |\.\.\. )? *(?:import|from) (\w+)", code, re.MULTILINE))
    extras = {name for named in re.findall(r"\.\[([\w,]+)\]|lowrank_core\[(\w+)\]", text) for name in named}
    extras = {each for name in extras if name for each in name.split(",")}
    installed = distributions_of(START | extras)
    for line in re.findall(r"^ *pip install (.*)$", text, re.MULTILINE):
        installed |= set(re.findall(r"(?<= )[\w-]+(?===| |$)", f" {line}"))
    # The examples' own folder, and the package.
    known = sys.stdlib_module_names | {"lowrank_core", "tiny_model"} | {name.replace("-", "_") for name in installed}
    assert {"scikit_learn" if name == "sklearn" else name for name in imported} <= known


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_module_run(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = importlib.import_module(module)
    for test in doctest.DocTestFinder(exclude_empty=True).find(loaded, module):
        run_examples(test)


def test_every_public_name_has_an_example():
    without = [
        name
        for name in lowrank_core.__all__
        if name != "__version__" and ">>> " not in (getattr(lowrank_core, name).__doc__ or "")
    ]
    # Results, which are made by the functions that return them.
    assert without == ["ErrorSweep", "LearningSweep"]
