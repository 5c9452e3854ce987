import pytest


@pytest.fixture(params=["bands of a row", "at once"])
def bands(request, monkeypatch):
    """Whether maps are worked on in many bands or in a single one."""
    if request.param == "bands of a row":
        monkeypatch.setattr("hcformer_mm.ops.bands.CACHED", 1)
