"""Names of classes in a config, and their numbers in the model."""

import re

import pytest

from hcformer_mm.engine.run_checks.classes import metainfo_faults
from tests.helpers.panoptic_sets import metainfo
from tests.helpers.run_configs import (
    faults,
    maskformer,
    panoptic_config,
    warnings,
    write_sets,
)


@pytest.mark.parametrize(
    ("meta", "sentence"),
    [
        ("cat", r"expected a dict as m, such as dict\(classes=\('cat',\)\), got 'cat'"),
        (dict(classes="cat"), r"expected a tuple of names as m.classes, got 'cat'; write \('cat',"),
        (dict(stuff_classes="sky"), "expected a tuple of names as m.stuff_classes, got 'sky'"),
        (dict(classes=("cat", 1)), "expected a tuple of names as m.classes"),
        (dict(classes=7), "expected a tuple of names as m.classes, got 7"),
        (dict(classes=("cat", "dog", "cat")), "expected each name once in m.classes, got cat"),
        (dict(classes=tuple("tree")), "expected each name once in m.classes, got e repeatedly"),
        (dict(CLASSES=("cat",)), "expected m.classes in lower case, got CLASSES"),
        (
            dict(classes=("cat", "dog"), palette=[(1, 2, 3)]),
            "expected a color for each of the 2 classes in m.palette, got 1 colors",
        ),
        (dict(classes=("cat",), palette=[(1, 2)]), r"expected red, green and blue .* got \(1, 2\)"),
    ],
)
def test_metainfo_is_refused(meta, sentence):
    (found,) = metainfo_faults(meta, "m")
    assert re.search(sentence, found)


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {},
        dict(classes=("cat",), palette=[(1, 2, 3)]),
        dict(classes=["cat", "dog"], palette=None),
        dict(classes=("cat",), palette="random"),
        dict(task_name="anything"),
    ],
)
def test_metainfo_passes(meta):
    assert list(metainfo_faults(meta, "m")) == []


def test_names_in_a_file_pass(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert list(metainfo_faults(dict(classes=str(tmp_path / "names.txt")), "m")) == []


def test_names_that_differ_between_training_and_validation(tmp_path):
    write_sets(tmp_path)
    config = panoptic_config(tmp_path)
    config.val_dataloader.dataset.metainfo = dict(
        classes=("Box", "ground", "sky"),
        thing_classes=("Box",),
        stuff_classes=("ground", "sky"),
    )
    (warning,) = warnings(config)
    assert "val_dataloader.dataset and of train_dataloader.dataset to be the same" in warning


def test_faults_are_listed_together(tmp_path):
    """A metainfo that is wrong in itself is not compared with anything."""
    write_sets(tmp_path)
    config = panoptic_config(tmp_path, dict(metainfo(), palette=[(1, 2, 3)]))
    assert faults(config, maskformer(9, 9)) == [
        f"expected a color for each of the 3 classes in {split}_dataloader.dataset.metainfo."
        "palette, got 1 colors"
        for split in ("train", "val")
    ]
