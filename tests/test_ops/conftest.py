import pytest


@pytest.fixture(params=["bands of a row", "one band"])
def bands(request, monkeypatch):
    """Whether a map is split into many bands."""
    if request.param == "bands of a row":
        for name in (
            "bands.BAND_NUMEL",
            "bands.BACKWARD_BAND_NUMEL",
            "neighborhood_products.INDEX_NUMEL",
            "neighborhood_products.GPU_INDEX_NUMEL",
        ):
            monkeypatch.setattr(f"hcformer_mm.ops.{name}", 1)


@pytest.fixture(params=["embedding_bag", "shifted maps"])
def form(request, monkeypatch):
    """Which of their two forms the neighborhood products take."""
    if request.param == "shifted maps":
        monkeypatch.setattr("hcformer_mm.ops.neighborhood_products._by_rows", lambda _: False)
