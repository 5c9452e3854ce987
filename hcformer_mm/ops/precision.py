"""Precision of computations that half precision would spoil."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_off(device_type: str) -> AbstractContextManager[None]:
    """Return a context without autocast; some types of devices, such as meta, have none anyway."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
