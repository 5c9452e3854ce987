"""Keep debug messages of OpenMMLab's libraries off the terminal."""

import logging
from functools import wraps
from typing import Any


def drop_debug_prints() -> None:
    """Let MMEngine's ``print_log`` drop debug messages that name no logger.

    It prints them at every level: mmdet, mmseg and mmpretrain say so, four times in all, that an
    optional package for other datasets is missing. Without MMEngine this does nothing.
    """
    try:
        from mmengine import logging as mmengine_logging
    except ImportError:
        return
    plain = mmengine_logging.print_log

    @wraps(plain)
    def print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            plain(msg, logger, level)

    mmengine_logging.print_log = print_log
