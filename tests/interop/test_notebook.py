"""The notebook of the documentation: its numbers are the command line's, of the same data in files, to the last."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lowrank_core.cli.app import main
from lowrank_core.models import to_json
from tests.models.test_in_memory import figures

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "notebook.md"
CELL = re.compile(r"^```\{code-cell\} ipython3\n(?::[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The values that the cells of the page leave."""
    pytest.importorskip("pandas")
    values = {"__name__": "notebook"}
    for cell in CELL.findall(PAGE.read_text(encoding="utf-8")):
        exec(compile(cell, str(PAGE), "exec"), values)
    folder = tmp_path_factory.mktemp("files")
    values["lora"].save_pretrained(folder / "lora")
    for name in ("base", "tuned"):
        save_file(values[name].state_dict(), folder / f"{name}.safetensors")
    return values, folder


VERBS = {
    "inspected": "inspect lora --base base.safetensors",
    "difference": "inspect tuned.safetensors --base base.safetensors",
    "compared": "compare lora tuned.safetensors --base base.safetensors",
    "extracted": "extract base.safetensors tuned.safetensors adapter --variance 0.9",
}


@pytest.mark.parametrize("name", VERBS)
def test_reports_have_the_numbers_of_the_command_line(page, monkeypatch, name):
    values, folder = page
    monkeypatch.chdir(folder)
    assert main([*VERBS[name].split(), "--json", f"{name}.json"]) == 0
    report = json.loads(json.dumps(figures(to_json(values[name]))))
    expected = figures(json.loads((folder / f"{name}.json").read_text()))
    for each in (report, expected):
        (each.get("config") or {}).pop("base_model_name_or_path", None)
    assert report == expected


@pytest.mark.parametrize("name", VERBS)
def test_figures_are_drawn_from_memory(page, name):
    values, _ = page
    assert values[name].figure().axes
