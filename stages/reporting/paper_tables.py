"""The results of Maack et al. (MIDL 2024), Tables 1 and 2, shown beside ours as the paper's."""

import csv
from importlib.resources import files


def table(number: int) -> dict[tuple[str, str], dict[str, float]]:
    """A table by (architecture, form).

    A form is ``separate`` (11 networks), ``shared`` or ``shared+mtkd``.
    Table 1: params_m (millions), dice (%), time_ms_rtx3090, fps. Table 2: Dice (%) per anatomy.
    """
    text = (files("stages") / "paper" / f"table{number}.csv").read_text()
    figures = {}
    for row in csv.DictReader(text.splitlines()):
        key = (row.pop("architecture"), row.pop("form"))
        figures[key] = {column: float(value) for column, value in row.items()}
    return figures
