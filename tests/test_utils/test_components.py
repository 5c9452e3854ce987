"""Sentences about classes that a config names."""

import functools

import pytest
from mmengine.registry import METRICS, MODELS

from hcformer_mm.utils.components import build_fault, entries, setting_faults, type_fault


def test_names_of_other_packages_are_proposed():
    assert "did you mean mmseg.IoUMetric" in type_fault("IoUMetric", METRICS, "val_evaluator")
    assert "did you mean" not in type_fault("Nothing", METRICS, "val_evaluator")


class Parent:
    def __init__(self, scale):
        self.scale = scale


class Child(Parent):
    def __init__(self, size, **options):
        super().__init__(**options)


def renaming(function):
    @functools.wraps(function)
    def renamed(self, old=None, **options):
        return function(self, old, **options)

    return renamed


class Decorated:
    @renaming
    def __init__(self, new):
        self.new = new


def test_only_what_a_signature_shows_is_refused():
    assert list(setting_faults(Parent, {"scale"}, (), "x")) == []
    assert list(setting_faults(Parent, {"scales"}, (), "x")) == [
        "expected settings of Parent in x, got 'scales' (did you mean scale?); correct or "
        "remove it",
        "expected x.scale, which Parent needs, got none; set it",
    ]
    assert list(setting_faults(Parent, (), ("scale",), "x")) == []
    for kind in (Child, Decorated, dict):
        assert list(setting_faults(kind, {"anything"}, (), "x")) == []


def test_entries_have_their_keys():
    found = dict(entries(dict(a=[1, dict(b=2)]), "c"))
    assert found["c.a[1].b"] == 2 and list(found) == ["c", "c.a", "c.a[0]", "c.a[1]", "c.a[1].b"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            dict(type="mmdet.ResNett", depth=18),
            "registered model as model.type, got 'mmdet.ResNett'",
        ),
        (
            dict(type="mmdet.ResNet", deep=18),
            "settings of model.deep that can be built, got TypeErr",
        ),
        (dict(type="mmdet.ResNet", depth=7), "settings of model that can be built, got KeyError: "),
        (dict(), "settings of model that can be built, got KeyError: `cfg` or"),
    ],
)
def test_errors_of_registries_and_constructors(model, expected):
    with pytest.raises((KeyError, TypeError)) as raised:
        MODELS.build(model)
    assert expected in build_fault(raised.value, model, "model")
