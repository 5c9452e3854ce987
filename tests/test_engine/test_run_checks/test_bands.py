"""Images of other bands than three do not reach a preprocessor that is made for BGR."""

import pytest
from mmengine.config import Config

from hcformer_mm.engine.run_checks.bands import band_faults

BGR = dict(mean=[1.0, 2.0, 3.0], std=[1.0] * 3, bgr_to_rgb=True)


def faults(preprocessor, **loader):
    config = Config(dict(model=dict(data_preprocessor=preprocessor)))
    pipeline = [dict(type="hcformer_mm.LoadImageFromFile", **loader), dict(type="Resize")]
    return list(band_faults(config, pipeline, "the pipeline"))


@pytest.mark.parametrize(
    ("preprocessor", "wrong"),
    [
        (BGR, "bgr_to_rgb, mean, std"),
        (dict(rgb_to_bgr=True, mean=None), "rgb_to_bgr"),
        (BGR | dict(bgr_to_rgb=False), "mean, std"),
    ],
)
def test_preprocessors_of_bgr(preprocessor, wrong):
    for bands in (1, 4, 5):
        (fault,) = faults(preprocessor, bands=bands)
        assert fault.startswith(f"expected no {wrong} in model.data_preprocessor")
        assert f"because the pipeline loads {bands} bands; set" in fault
    assert not faults(preprocessor)
    assert not faults(preprocessor, bands=3)


@pytest.mark.parametrize("preprocessor", [None, {}, dict(mean=[0.5], std=[2.0], bgr_to_rgb=False)])
def test_preprocessors_of_any_bands(preprocessor):
    assert not faults(preprocessor, bands=5)


def test_pipelines_without_a_loader():
    config = Config(dict(model=dict(data_preprocessor=BGR)))
    assert not list(band_faults(config, None, "the pipeline"))
    assert not list(band_faults(config, [dict(type="LoadEmbeddings", bands=5)], "the pipeline"))
