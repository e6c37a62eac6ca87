"""Write the tables of what whole models take as Markdown, from recorded figures.

python docs/_generate/model_tables.py FOLDER
"""

import re
import sys

from tables import recorded, table, write_tables

POWER = re.compile(r"i\^(-[\d.]+)")


def write_all(folder):
    """Write every table into a folder."""
    tables = {
        "models": whole_models(),
        "models-machine": machine_of_models(),
        "whole-model": whole_model(),
        "whole-model-projections": projections(),
        "model-memory": model_memory(),
        "census": adapter_census(),
    }
    write_tables(folder, tables)


def whole_models():
    """Return a table of the time of extraction and resizing, beside peers."""
    results = recorded("models")
    rows = []
    for part in ("extract", "resize"):
        for line in results[part]["lines"]:
            ours = line["ours"]
            for peer in line["peers"]:
                per_layer = [f"{1000 * timed['seconds'] / line['timed_layers']:.0f} ms" for timed in (ours, peer)]
                case = POWER.sub(r"$i^{\1}$", f"{line['case']}, {line['model']}")
                rows.append([case, peer["name"], *per_layer, f"{peer['ratio']:.1f}", f"{max(ours['error'], 0):.0e}"])
    heads = ["", "peer", "ours, per layer", "the peer's", "ratio", "our error above the best"]
    return table(heads, rows)


def whole_model():
    """Return a table of the ratios measured on the layers of a model of 1.24 billion parameters."""
    whole = recorded("models")["whole"]
    rows = [
        [line["what"], f"{line['ratio']:.3g}", "–" if line["at_most"] is None else f"{line['at_most']:g}"]
        for line in whole["lines"]
    ]
    found = whole["found"]
    measured = f"{found['layers']} layers of {found['model']}"
    return table([measured, "measured", "aim: at most"], rows)


def projections():
    """Return a table of the processor time that whole models would take, by entries and by operations."""
    found = recorded("models")["whole"]["found"]
    rows = [
        [
            f"linear layers of {name}",
            f"{projected['parameters'] / 1e9:.1f}",
            f"{projected['extract_processor'] / 60:.1f}",
            f"{projected['inspect_processor'] / 60:.0f}",
        ]
        for name, projected in found["projections"].items()
    ]
    return table(["", "billion parameters", "`extract`, core minutes", "`inspect`, core minutes"], rows)


def machine_of_models():
    """Return a line on the machine that whole models were timed on."""
    found = recorded("models")["extract"]["machine"]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("numpy", "torch"))
    cores = "one core" if found["cores"] == 1 else f"{found['cores']} cores"
    return f"{found['processor']}, {cores}, at a load average of {found['load']:.0f} from other work, {versions}\n"


def model_memory():
    """Return a table of the peak memory of extraction, for few layers and many."""
    lines = recorded("models")["memory"]["lines"]
    return table(
        ["layers", "peak, over the largest layer in float32"], [[x["layers"], f"{x['peak']:.1f}"] for x in lines]
    )


def adapter_census():
    """Return a table of the throughput of a census, and what it projects."""
    census = recorded("models")["census"]
    m, n = census["shape"]
    rows = [
        ["adapters", f"{census['adapters']:,} of {census['layers_each']} layers {m} × {n} at rank {census['rank']}"],
        ["their size", f"{census['megabytes']:,} MB"],
        ["workers", census["workers"]],
        ["time", f"{census['seconds']:.1f} s"],
        ["adapters per second", f"{census['per_second']:.0f}"],
        [f"projected for {census['projected']:,}", f"{census['projected_minutes']:.0f} minutes"],
    ]
    return table(["", "measured"], rows)


if __name__ == "__main__":
    write_all(sys.argv[1])
