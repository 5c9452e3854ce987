"""The notebooks run from top to bottom, and are kept without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def run(name, folder, **replaced):
    """Run a notebook in a folder, with other values of some variables; return its outputs."""
    notebook = read(name)
    for variable, value in replaced.items():
        found = 0
        for cell in notebook.cells:
            cell.source, n = re.subn(
                rf"^{variable} = .*$", f"{variable} = {value}", cell.source, flags=re.M
            )
            found += n
        assert found == 1, variable
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def texts(outputs):
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def images(outputs):
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_notebooks_are_found():
    assert NOTEBOOKS == ["look_inside.ipynb", "your_own_data.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_they_are_kept_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
        for line in cell.source.splitlines():
            assert len(line) <= 110
        for target in re.findall(r"\]\(([^)#:]+)\)", cell.source):
            assert (FOLDER / target).exists(), target
    assert notebook.metadata.kernelspec.name == "python3"


def test_look_inside(tmp_path):
    outputs = run("look_inside.ipynb", tmp_path)
    assert len(images(outputs)) == 6
    found = texts(outputs)
    assert len(re.findall(r"^level \d: \d+ clusters$", found, re.M)) == 3
    accuracies = [float(one) for one in re.findall(r"(\d+\.\d)% of the pixels", found)]
    assert len(accuracies) == 3 and accuracies == sorted(accuracies, reverse=True)
    assert re.search(r"the pixel ends in cell \(\d, \d\) of the coarsest map", found)


def test_your_own_data(tmp_path):
    outputs = run("your_own_data.ipynb", tmp_path, ITERATIONS=3)
    found = texts(outputs)
    assert "train clean" in found and "val clean" in found
    assert re.search(r"^coco_panoptic/PQ +\d+\.\d$", found, re.M)
    assert len(images(outputs)) == 3
    assert (tmp_path / "work_dirs/coins/iter_3.pth").is_file()
    assert (tmp_path / "work_dirs/coins/results/vis/033.png").is_file()
