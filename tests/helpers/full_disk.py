"""A disk that is full for one file."""

import os


def full_disk(path):
    """Let the next atomic write of a file in this process find the disk full."""
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")
