"""Stage ``settings``: check params.yaml first.

dvc.yaml makes a file name of an architecture (``pipeline/models/${student.arch}.py``). DVC says of
a misspelt one only that this file is missing. This stage runs before those that need the file, and
says which architectures there are.
"""

from pipeline.files import write_atomically
from stages.shared.project import Project


def run(project: Project) -> None:
    """Write files that are the same whatever the settings are; who has a project has checked them.

    Other stages wait for them. Since they never change, none of these runs again when a setting
    does. The second one is there so that the folder of other data sets is, when there are none.
    """
    write_atomically(project.accepted_settings, b"accepted\n")
    write_atomically(project.other_sets_folder / "settings.txt", b"accepted\n")
