"""The contract of HCBackbone with every hierarchical family of timm and OpenMMLab."""

from pathlib import Path

import pytest

from tests.helpers.hierarchical import FAMILIES, describe, row, train_and_predict

PAGE = Path(__file__).parents[3] / "docs" / "backbones.md"
QUICK = {
    "timm.convnext_atto",
    "timm.edgenext_xx_small",
    "timm.efficientnet_lite0",
    "timm.efficientvit_m0",  # a stem of stride 16
    "timm.hrnet_w18_small",  # branches side by side
    "timm.inception_v3",  # does not work
    "timm.mambaout_femto",  # (B, H, W, C)
    "timm.mobilenetv4_conv_small",
    "timm.repghostnet_050",
    "timm.starnet_s050",
    "mmpretrain.MobileNetV3",
    "mmseg.MSCAN",
}


def rows():
    """The rows of the table in docs/backbones.md, by family."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {
        line.split("|")[1].strip(): line
        for line in lines
        if line.startswith(("| timm.", "| mmpretrain.", "| mmdet.", "| mmseg."))
    }


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_contract(name):
    outcome = describe(name)
    assert rows()[name] == row(name, outcome)
    if not outcome.error:
        train_and_predict(name)


def test_nearly_all_work():
    table = rows()
    assert set(table) == set(FAMILIES)
    works = [name for name, line in table.items() if "| none: " not in line]
    assert len(works) >= 0.95 * len(table)
    assert f"{len(works)} of {len(table)} work" in PAGE.read_text(encoding="utf-8")
