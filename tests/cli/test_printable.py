"""Whatever a file calls its tensors, what is shown of it has no control characters, and reads as what it is."""

import csv
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lowrank_core.cli import output
from lowrank_core.cli.app import main
from lowrank_core.cli.printable import in_csv, in_json
from lowrank_core.cli.reports import census_tables, inspection_tables
from lowrank_core.models import census, inspect
from lowrank_core.models.inspection.census_rows import to_table
from lowrank_core.models.inspection.report import to_rows
from lowrank_core.models.printable import in_figure, printable, with_printable_texts, with_texts

# Control characters but newlines, C1, and what overrides the direction of text.
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
ODD = (
    "\x00\x07\x08\t\n\r\x1b[2J\x7f\x85\x9b\u061c\u200b\u200e\u2028\u202e\u2066\ud800\ufeff\U000e0001=+-@$'\"\\,[bold]a"
)
NAMES = st.one_of(st.text(st.characters(exclude_categories=()), max_size=20), st.text(ODD, min_size=1, max_size=20))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of three layers, one of which fails, and its census."""
    folder = tmp_path_factory.mktemp("adapters")
    tensors = {}
    for name, fill in (("a", 1.0), ("b", 2.0), ("c", np.nan)):
        tensors[f"{name}.lora_down.weight"] = np.full((2, 6), fill, np.float32)
        tensors[f"{name}.lora_up.weight"] = np.eye(4, 2, dtype=np.float32)
    save_file(tensors, folder / "one.safetensors")
    return inspect(folder / "one.safetensors"), census(folder)


def renamed(inspection, names):
    """Return an inspection with other names for its layers, other tensors, and all that is said of them."""
    first, second, third = names
    renames = zip(inspection.layers, names[:2], strict=True)
    layers = [replace(layer, name=name, scaling_source=second) for layer, name in renames]
    failures, others = {third: f"{first}: {second}"}, {first: second}
    changes = {
        "layers": tuple(layers),
        "failures": failures,
        "not_low_rank": others,
        "warnings": (third,),
        "path": first,
    }
    return replace(inspection, **changes)


def shown(result, tables):
    stream = io.StringIO()
    with redirect_stdout(stream):
        output.write_report(result, tables)
    return stream.getvalue()


@given(NAMES)
def test_printable_text_has_printable_characters_alone(text):
    assert printable(text).isprintable()
    assert printable(text) == text if text.isprintable() else "\\" in printable(text)
    assert not UNSAFE.search(in_csv(text))
    assert not str(in_csv(text)).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert in_figure(text).count("$") == in_figure(text).count(r"\$") == text.count("$")


@given(st.recursive(NAMES, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)))
def test_json_reads_the_same_and_shows_no_control_characters(value):
    document = in_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(document) == value
    assert not UNSAFE.search(document)
    document.encode()


@given(st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_reports_of_names_of_any_kind_have_no_control_characters(adapter, names):
    inspection = renamed(adapter[0], names)
    table = shown(inspection, lambda report: inspection_tables.inspection(report, full=True))
    document, sheet = output.json_text(inspection), output.csv_text(to_rows(inspection))
    for text in (table, document, sheet):
        assert not UNSAFE.search(text)
        text.encode()
    assert [layer["name"] for layer in json.loads(document)["layers"]] == names[:2]
    rows = list(csv.DictReader(io.StringIO(sheet, newline="")))
    assert [row["name"] for row in rows] == [in_csv(name) for name in names]


# All that a file can name a tensor, and names that read as the escapes of others.
UNICODE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.text("\x00\t\n\r\x1b\x7f\x85\x9b\u061c\u202e\u2066\\x1bnu26", min_size=1, max_size=6),
)


@given(st.lists(UNICODE, min_size=2, max_size=2, unique=True))
@example(["\x1b", r"\x1b"])
@example(["\\\x1b", r"\x1b\x1b"])
def test_an_adapter_with_keys_of_any_characters_is_shown_and_written_without_controls(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("unicode")
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_down.weight"] = np.eye(2, 6, dtype=np.float32)
        tensors[f"{name}.lora_up.weight"] = np.eye(4, 2, dtype=np.float32)
    save_file(tensors, folder / "whole.safetensors")
    sheet, document = folder / "layers.csv", folder / "layers.json"
    table, _ = said_by("inspect", folder / "whole.safetensors", "--csv", sheet, "--json", document)
    # The factors of the first layer disagree, and no other is left.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(names[1] + ".lora")}
    tensors[f"{names[0]}.lora_up.weight"] = np.eye(4, 3, dtype=np.float32)
    save_file(tensors, folder / "broken.safetensors")
    _, message = said_by("inspect", folder / "broken.safetensors")
    assert "disagree" in message
    written = [path.read_text(encoding="utf-8") for path in (sheet, document)]
    for text in (table, message, *written):
        assert not UNSAFE.search(text)
    # Each has a row of its own, whatever the two escape to.
    assert len(re.findall("4 × 6", table)) == 2
    assert sorted(layer["name"] for layer in json.loads(written[1])["layers"]) == sorted(names)


def said_by(*arguments):
    """Return what the command writes to standard output and error."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        main([str(argument) for argument in arguments])
    return out.getvalue(), err.getvalue()


@given(st.lists(NAMES, unique=True))
def test_different_texts_are_shown_differently(texts):
    shown = with_printable_texts(texts)
    assert all(text.isprintable() for text in shown)
    assert len(set(shown)) == len(texts)


@given(NAMES)
def test_a_census_of_paths_of_any_kind_has_no_control_characters(adapter, name):
    rows = [replace(row, path=f"/adapters/{name}", failure=name) for row in adapter[1]]
    folder = with_texts(Path(f"/{name}"), printable)
    for text in (
        shown(rows, lambda rows: census_tables.census(folder, rows, full=True)),
        output.json_text({"adapters": rows}),
        output.csv_text(to_table(rows)),
    ):
        assert not UNSAFE.search(text)
        text.encode()


def test_figures_show_dollars_and_controls_as_they_are(adapter):
    figure = renamed(adapter[0], [r"$\frac{$", "\x1b[31m$a$", "c"]).figure()
    figure.canvas.draw()
    titles = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert any(r"\x1b[31m\$a\$" in title for title in titles)
    assert not any(UNSAFE.search(title) for title in titles)


def test_an_error_is_one_line_whatever_the_path_is(capsys, tmp_path):
    path = tmp_path / "\x1b[2J\u202eadapter\nlowrank: all is well"
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not UNSAFE.search(said)
    assert r"\x1b[2J\u202e" in said


def test_a_file_with_control_characters_in_its_names_is_inspected(capsys, tmp_path):
    name = "\x1b]0;title\x07\u202e=SUM(A1)\nb"
    tensors = {f"{name}.lora_down.weight": np.eye(2, 6), f"{name}.lora_up.weight": np.eye(4, 2)}
    save_file(tensors, tmp_path / "hostile.safetensors")
    sheet, document = tmp_path / "layers.csv", tmp_path / "layers.json"
    arguments = ["inspect", str(tmp_path / "hostile.safetensors"), "--csv", str(sheet), "--json", str(document)]
    assert main([*arguments, "--figure", str(tmp_path / "layers.svg")]) == 0
    texts = capsys.readouterr().out, sheet.read_text(encoding="utf-8"), document.read_text(encoding="utf-8")
    assert not any(UNSAFE.search(text) for text in texts)
    assert json.loads(texts[2])["layers"][0]["name"] == name
