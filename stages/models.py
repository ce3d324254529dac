"""``mtkd models``: every architecture in all forms, with its cost beside the paper's."""

import json
from itertools import product
from typing import Any

from rich.table import Table

from pipeline.models import ARCHITECTURES, create_model
from pipeline.timing.cost import multiply_adds
from pipeline.timing.forms import Form, forms
from stages.reporting.paper_tables import table as paper_table
from stages.shared.console import console, say

SIZE = (720, 1280)
# Of the weights that a run usually starts from (pretrained: imagenet).
LICENCES = {
    "deeplabv3_efficientnet_b0": "Apache-2.0",
    "deeplabv3_efficientnet_b3": "Apache-2.0",
    "deeplabv3_efficientnet_lite0": "Apache-2.0",
    "deeplabv3_resnet18": "BSD-3-Clause",
    "deeplabv3_resnet50": "BSD-3-Clause",
    "mininetv2": "no weights published",
    "segformer_b0": "NVIDIA, research only",
    "segformer_b3": "NVIDIA, research only",
}


def run(decoders: int, as_json: bool) -> None:
    """Print a row for N networks, one for N decoders, and one for a decoder that all share."""
    rows = [_row(name, form) for name, form in product(ARCHITECTURES, forms(decoders))]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _print(rows, decoders)


def _row(name: str, form: Form) -> dict[str, Any]:
    import torch

    n = form.anatomies
    networks = form.networks
    with torch.device("meta"):
        network = create_model(name, n, shared=form.shared)
    count = sum(p.numel() for p in network.parameters())
    published = paper_table(1).get((name, form.name), {}) if n * networks == 11 else {}
    return {
        "name": name,
        "form": form.name,
        "decoders": n,
        "networks": networks,
        "parameters": count,
        "all_parameters": count * networks,
        "paper_all_parameters": round(published["params_m"] * 1e6) if published else None,
        "multiply_adds": networks * multiply_adds(name, n, SIZE, shared=form.shared),
        "image_size": list(SIZE),
        "output_stride": network.output_stride,
        "weights_licence": LICENCES[name],
    }


def _print(rows: list[dict[str, Any]], decoders: int) -> None:
    height, width = SIZE
    table = Table(
        title=f"Networks for {decoders} anatomies; multiply-adds for one {width}x{height} frame"
    )
    for column in ("network", "form"):
        table.add_column(column)
    for column in ("parameters (M)", "paper (M)", "multiply-adds (G)", "stride"):
        table.add_column(column, justify="right")
    table.add_column("licence of usual weights")
    titles = {form.name: form.title for form in forms(decoders)}
    for row in rows:
        published = row["paper_all_parameters"]
        table.add_row(
            row["name"] if row["form"] == "separate" else "",
            titles[row["form"]],
            f"{row['all_parameters'] / 1e6:.2f}",
            f"{published / 1e6:.1f}" if published else "-",
            f"{row['multiply_adds'] / 1e9:.1f}",
            str(row["output_stride"]),
            row["weights_licence"],
        )
    console.print(table)
    say(
        "The paper published no code of its MiniNetv2 with 11 decoders: "
        "docs/reference/networks.md says what differs."
    )
