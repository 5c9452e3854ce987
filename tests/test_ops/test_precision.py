import pytest
import torch

from hcformer_mm.ops.precision import autocast_off


@pytest.mark.parametrize("enabled", [False, True])
def test_products_keep_their_dtype(enabled):
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        with autocast_off("cpu"):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == (torch.bfloat16 if enabled else torch.float32)


def test_devices_without_autocast():
    x = torch.randn(3, 3, device="meta")
    with autocast_off(x.device.type):
        assert (x @ x).device.type == "meta"
