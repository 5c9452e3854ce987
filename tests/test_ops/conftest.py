import pytest


@pytest.fixture(params=["bands of a row", "at once"])
def bands(request, monkeypatch):
    """Whether maps are worked on in many bands or in a single one."""
    if request.param == "bands of a row":
        for name in (
            "bands.BAND_NUMEL",
            "bands.BACKWARD_BAND_NUMEL",
            "neighborhood_products.INDEX_NUMEL",
        ):
            monkeypatch.setattr(f"hcformer_mm.ops.{name}", 1)


@pytest.fixture(params=["kernel of CPUs", "shifted maps"])
def form(request, monkeypatch):
    """Which of their two forms the local products take."""
    if request.param == "shifted maps":
        monkeypatch.setattr("hcformer_mm.ops.neighborhood_products._by_rows", lambda _: False)
