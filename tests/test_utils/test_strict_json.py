"""NaN and infinities become null; everything else is written as by json and MMEngine."""

import io
import json
from unittest import mock

import numpy as np
import pytest
from mmengine.fileio import dump
from mmengine.fileio.handlers import registry_utils

from hcformer_mm.utils.strict_json import dumps, write_strict_logs

NAN, INFINITE = float("nan"), float("inf")


def refuse(constant):
    raise ValueError(constant)


def strict(text):
    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite():
    value = {"a": [NAN, 1.5, {"b": -INFINITE}], "NaN": "Infinity", "c": 1e300}
    assert strict(dumps(value)) == {"a": [None, 1.5, {"b": None}], "NaN": "Infinity", "c": 1e300}


@pytest.mark.parametrize("value", [[1, 2.25, "é"], {"x": {"y": None}}, "NaN", 0.1 + 0.2])
def test_others_are_as_before(value):
    assert dumps(value, indent=1) == json.dumps(value, indent=1)


def test_mmengine_writes_null(tmp_path):
    with mock.patch.dict(registry_utils.file_handlers):
        write_strict_logs()
        scores = dict(PQ=np.float32(NAN), AP=np.array([0.5, INFINITE]), step=3)
        dump(scores, tmp_path / "a.json")
        written = io.StringIO()
        dump(scores, written, file_format="json")
    for text in ((tmp_path / "a.json").read_text(), written.getvalue()):
        assert strict(text) == dict(PQ=None, AP=[0.5, None], step=3)
