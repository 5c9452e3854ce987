"""Images and models for all tests of inferencers, written once."""

from functools import cache

import mmcv
import pytest

from tests.helpers.models import SHAPES_CONFIG
from tests.helpers.predictions import scene, write_model


@pytest.fixture(scope="session")
def images():
    """Three images with regions, ``(96, 128, 3)`` about, BGR."""
    return [scene(i) for i in range(3)]


@pytest.fixture(scope="session")
def folder(images, tmp_path_factory):
    """The images as ``scene0.png`` to ``scene2.png``."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(images):
        mmcv.imwrite(image, str(folder / f"scene{i}.png"))
    return folder


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """Function from the path of a config to the files of a config and a checkpoint."""

    @cache
    def write(path=SHAPES_CONFIG):
        return write_model(tmp_path_factory.mktemp("model"), path)

    return write
