"""The results of Maack et al. (MIDL 2024), Tables 1 and 2, to be shown beside ours and always as the paper's."""

import csv
from importlib.resources import files
from typing import Literal

Form = Literal["separate", "shared", "shared+mtkd"]


def table(number: int) -> dict[tuple[str, str], dict[str, float]]:
    """A table by (architecture, form); form is ``separate`` (11 networks), ``shared`` or ``shared+mtkd``.

    Table 1: params_m (millions), dice (%), time_ms_rtx3090, fps. Table 2: Dice (%) per anatomy.
    """
    text = (files("stages") / "paper" / f"table{number}.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return {
        (row.pop("architecture"), row.pop("form")): {
            column: float(value) for column, value in row.items()
        }
        for row in rows
    }
