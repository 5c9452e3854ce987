"""A Shapes set that the tests of the hooks share."""

import pytest

from hcformer_mm.datasets.shapes_writer import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """The folder of two images for training and three for validation."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, num_train=2, num_val=3, size=(72, 96), workers=1)
    return root
