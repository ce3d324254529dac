"""Getting files to the disk, and what it means when a disk refuses."""

import errno
import os
from typing import IO, Any

# No room: on the disk, for this user, or for a file of this size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# This file system has no fsync: what was written is as safe as it gets.
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def sync(file: IO[Any]) -> None:
    """Wait until a file is on the disk.

    Raises:
        OSError: it could not be written; network file systems and quotas often say so no earlier.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
