"""Stage ``settings``: check params.yaml first.

dvc.yaml makes a file name of an architecture (``pipeline/models/${student.arch}.py``). DVC says of
a misspelt one only that this file is missing. This stage runs before those that need the file, and
says which architectures there are.
"""

from pipeline.files import write_atomically
from stages.shared.project import Project


def run(project: Project) -> None:
    """Write a file that is the same whatever the settings are; who has a project has checked them.

    Other stages wait for that file. Since it never changes, none of them runs again when a setting
    does.
    """
    write_atomically(project.accepted_settings, b"accepted\n")
