"""The report of an inspection: readable at 80 columns and with many layers, and true to the figures."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from lowrank_core.cli.reports.inspection_tables import inspection
from lowrank_core.cli.tables import FEW_ROWS
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.inspection.report import Inspection

from .conftest import MODULES, write_adapter


def printed(report: Inspection, width: int = 80, *, full: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in inspection(report, full=full):
        console.print(part)
    return console.file.getvalue()


@pytest.fixture
def deep(tmp_path: Path) -> Inspection:
    """A hundred blocks of two layers."""
    return inspect(write_adapter(tmp_path / "deep", layers=100))


def test_a_layer_is_reported_in_full(adapter: Path) -> None:
    report = inspect(adapter, ranks=[1, 2], rules=["standard", "rslora"])
    text = printed(report)
    layer = report.layers[0]
    assert layer.name == "model.layers.0.mlp.down_proj"
    assert "names begin with model.layers." in text
    line = next(line for line in text.splitlines() if "mlp.down_proj" in line).split()
    needed = [str(rank) for rank in layer.rank_for_variance.values()]
    assert line == [
        *("mlp.down_proj", "8", "×", "20", "3", "2"),
        *(f"{layer.norm:.3g}", f"{layer.effective_rank:.1f}", f"{layer.stable_rank:.1f}", *needed),
    ]
    assert "alpha 6 (lora_alpha) / rank 3" in text
    for rule, label in (("standard", "α/r"), ("rslora", "α/√r")):
        assert [label, *(f"{error:.4f}" for error in layer.errors[rule])] in [
            line.split() for line in text.splitlines()
        ]


def test_totals_are_those_of_the_inspection(adapter: Path) -> None:
    report = inspect(adapter, ranks=[1, 2])
    text = printed(report).partition("All layers together")[2]
    assert ["best", "error", *(f"{error:.4f}" for error in report.totals.best_error)] in [
        line.split() for line in text.splitlines()
    ]
    for fraction, rank in report.totals.rank_for_variance.items():
        error = report.totals.error_for_variance[fraction]
        assert f"{fraction:.0%} takes rank {rank} (error {error:.4f})" in " ".join(text.split())


@pytest.mark.parametrize(
    ("base", "command"), [(False, "resize ADAPTER"), (True, "extract BASE ADAPTER"), (None, "extract BASE TUNED")]
)
def test_the_summary_names_the_command_that_tries_ranks(
    tuning: tuple[Path, Path], adapter: Path, base: bool | None, command: str
) -> None:
    """Of the requested ranks, those of which an adapter is smaller than the update: 1 and 2 of 3, and all of 8."""
    path = tuning[1] if base is None else adapter
    report = inspect(path, None if base is False else tuning[0], ranks=[0, 1, 2, 3, 8])
    ranks = "1,2,3" if base is None else "1,2"
    assert f"lowrank {command} OUT --rank {ranks} writes an adapter of each rank" in " ".join(printed(report).split())


def test_an_adapter_of_rank_1_has_no_smaller_one_to_try(tmp_path: Path) -> None:
    text = printed(inspect(write_adapter(tmp_path / "one", rank=1)))
    assert "To copy the update" in text
    assert "--rank" not in text


def test_an_adapter_on_its_base_has_its_own_columns(adapter: Path, tuning: tuple[Path, Path]) -> None:
    alone, beside = (printed(inspect(adapter, base, ranks=[1])) for base in (None, tuning[0]))
    # A path that is longer than a line is cut, wherever temporary files are.
    assert f"{adapter}(peftadapter)on{tuning[0]}" in "".join(beside.split())
    tables = [text.partition("\nLayers\n")[2].partition("Best relative")[0] for text in (alone, beside)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_many_layers_fit_the_width_and_each_kind_has_a_line(deep: Inspection, width: int) -> None:
    text = printed(deep, width)
    assert max(len(line) for line in text.splitlines()) <= width
    layers, _, errors = text.partition("\nBest relative error at rank r\n")
    for part in (layers, errors):
        for module in ("self_attn.q_proj", "mlp.down_proj"):
            lines = [line.split() for line in part.splitlines() if module in line]
            assert lines[0][:2] == [module, "100"]
            assert width < 80 or len(lines) == 1
    assert text.count("\n") < (90 if width == 60 else 60)


def test_full_prints_every_layer_in_every_table(deep: Inspection) -> None:
    text = printed(deep, full=True)
    assert "median" not in text
    for part in text.split("\nBest relative error at rank r\n"):
        assert sum("self_attn.q_proj" in line or "mlp.down_proj" in line for line in part.splitlines()) == 200
        blocks = [line.strip() for line in part.splitlines() if line.strip().isdecimal()]
        assert blocks == [str(block) for block in range(100)]


def test_a_kind_has_the_median_error_and_the_worst(deep: Inspection) -> None:
    lines = printed(deep).partition("Best relative error")[2].splitlines()
    place = next(place for place, line in enumerate(lines) if line.strip().startswith("mlp.down_proj"))
    errors = sorted(layer.best_error[0] for layer in deep.layers if "down_proj" in layer.name)
    assert errors[49] - 5e-5 <= float(lines[place].split()[2]) <= errors[50] + 5e-5
    assert lines[place + 1].split()[:2] == ["worst", f"{errors[-1]:.4f}"]


def test_few_layers_have_their_own_errors(tmp_path: Path) -> None:
    report = inspect(write_adapter(tmp_path / "few", layers=FEW_ROWS // 2))
    assert "median" not in printed(report)
    report = inspect(write_adapter(tmp_path / "more", layers=FEW_ROWS // 2 + 1))
    assert "median" in printed(report)


def test_where_each_scale_came_from(tmp_path: Path) -> None:
    report = inspect(write_adapter(tmp_path / "patterns", layers=3, alpha_pattern={"q_proj": 12}))
    text = printed(report)
    sources = {layer.scaling_source for layer in report.layers}
    assert len(sources) == 2
    marks = {line.split(":")[0].strip()[-1]: line for line in text.splitlines() if line.strip().startswith("γ ")}
    assert sorted(marks) == ["a", "b"]
    mark = next(mark for mark, line in marks.items() if "alpha_pattern" in line)
    queries = [line for line in text.splitlines() if "self_attn.q_proj" in line and "×" in line]
    assert len(queries) == 3
    assert all(f" 4 {mark} " in line for line in queries)


def test_warnings_are_printed(tmp_path: Path) -> None:
    report = inspect(write_adapter(tmp_path / "patterns", alpha_pattern={"q_proj": 12}))
    assert report.warnings
    section = " ".join(printed(report).partition("\nWarnings\n")[2].split())
    assert all(warning in section for warning in report.warnings)


def test_clamped_ranks_are_noted(adapter: Path) -> None:
    assert "in 4 layers, to 8 in the smallest" in " ".join(printed(inspect(adapter, ranks=[2, 30])).split())
    assert "Ranks are clamped" not in printed(inspect(adapter, ranks=[2, 8]))


def test_checkpoints_have_no_scale_and_their_failures_are_printed(checkpoints: tuple[Path, Path]) -> None:
    base, tuned = checkpoints
    report = inspect(tuned, base, rules=["standard"])
    text = printed(report)
    assert "γ a" not in text
    assert " r " not in text.partition("Relative error")[0].partition("Layers")[2]
    assert "with α = 16" in text
    assert f"h.1.proj: {report.failures['h.1.proj']}"[:40] in " ".join(text.partition("\nFailed\n")[2].split())
    assert "h.0.proj.bias" in text.partition("Not low-rank")[2]


def test_many_ranks_make_several_tables(adapter: Path) -> None:
    text = printed(inspect(adapter, ranks=range(9)))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert all(f"r = {rank}" in text for rank in range(9))


@pytest.mark.parametrize("width", [80, 120])
def test_figures_beside_the_base_are_printed(adapter: Path, tmp_path: Path, width: int) -> None:
    rng = np.random.default_rng(3)
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in MODULES.items()}
    shapes.pop("model.layers.1.mlp.down_proj.weight")
    base = tmp_path / "base.safetensors"
    save_file({name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}, base)
    report = inspect(adapter, base, ranks=[1], intruders=2)
    text = printed(report, width).partition("\nBeside the base\n")[2]
    assert max(len(line) for line in text.splitlines()) <= width
    lines = [line.split() for line in text.splitlines() if line.strip().startswith(("self_attn", "mlp"))]
    for layer, line in zip(report.layers, lines, strict=True):
        assert layer.name.endswith(line[0])
        figures = layer.base
        assert line[1:] == (
            ["–"] * 5
            if figures is None
            else [
                *(f"{figures.relative_norm:.3g}", f"{figures.relative_spectral_norm:.3g}"),
                *(f"{figures.merge_error:.3g}", f"{figures.merge_unchanged:.1%}", str(figures.intruders)),
            ]
        )
    assert sum(layer.base is None for layer in report.layers) == 1
    text = " ".join(text.split())
    assert "the base has no readable weight of the name and shape of 1 layer, as 'model.layers.1.mlp.down_proj'" in text
    assert "Not complete: some figures are missing, as the warnings say." in text
    totals = report.totals
    assert f"‖Δ‖ is {100 * totals.relative_norm:.2f} % of ‖W‖; intruders: {totals.intruders}." in text


def test_checkpoints_have_no_columns_of_a_merge(tuning: tuple[Path, Path]) -> None:
    base, tuned = tuning
    text = printed(inspect(tuned, base, ranks=[1])).partition("\nBeside the base\n")[2]
    assert "σ₁(Δ)/σ₁(W)" in text
    assert "merge" not in text
    assert "intruders" not in text
