"""``mtkd summary``: the table of results of the last run."""

from stages.reporting.results_table import print_results
from stages.shared.project import Places


def run(places: Places) -> None:
    """Print the table, and where the report of the run is.

    Raises:
        MtkdError: a file that an earlier stage writes is missing or damaged.
    """
    print_results(places)
