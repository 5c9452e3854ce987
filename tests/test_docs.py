"""What the documents name exists, and what they say about the demos is true."""

import pkgutil
import re
from pathlib import Path

import pytest
from shapes import IMAGES

from hcformer_mm import registry
from hcformer_mm.utils.config import find_weights, read_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "configs/*/*.md", "docs/*.md")
    for path in ROOT.glob(pattern)
)
PRESENT = [name for name in DOCUMENTS if name != "CHANGELOG.md"]  # it tells what was
FOLDERS = "benchmarks|configs|demo|docs|hcformer_mm|requirements|tests|tools"
PATHS = re.compile(
    rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w(?:\.(?:py|sh|yml|txt|md)|/)(?![\w*<]))"
    r"|`([\w-]+/[\w/-]+\.(?:py|sh))`"
)
NAMES = re.compile(r"(?<![\w/])hcformer_mm(?:\.\w+)+(?![\w/])")
IMPORTS = re.compile(r"from (hcformer_mm[\w.]*) import \(?([\w,\s]+?)(?:\)|\n(?! )|$)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("document", PRESENT)
def test_paths_exist(document):
    text = (ROOT / document).read_text()
    named = {path or short for path, short in PATHS.findall(text)}
    # A file that the document tells the reader to write begins with its name.
    written = {name for name in named if f"```python\n# {name}\n" in text}
    places = [ROOT, ROOT / "hcformer_mm"]
    missing = [n for n in named - written if not any((place / n).exists() for place in places)]
    assert not missing


def resolves(name):
    """Whether a dotted name is a module, an attribute of one, or a registered component."""
    component = name.partition(".")[2]
    if any(component in getattr(registry, each) for each in registry.__all__):
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("document", PRESENT)
def test_names_resolve(document):
    text = (ROOT / document).read_text()
    named = set(NAMES.findall(text))
    for module, imported in IMPORTS.findall(text):
        named |= {f"{module}.{name.split()[0]}" for name in imported.split(",") if name.strip()}
    assert not [name for name in sorted(named) if not resolves(name)]


def test_documents_are_found():
    expected = {"README.md", "CONTRIBUTING.md", "configs/hcformer/README.md"}
    assert expected | {"docs/custom_dataset.md"} <= set(DOCUMENTS)


def test_readme_predicts_with_weights_of_the_package():
    text = (ROOT / "README.md").read_text()
    (name,) = re.findall(r'HCFormerInferencer\("([\w-]+)"\)', text)
    assert find_weights(read_config(name)).exists()
    (image,) = re.findall(r'"work_dirs/quick/images/(\w+)\.png"', text)
    assert image in {path.stem for path in IMAGES}


def test_figures_of_shapes_are_filled_in():
    text = (ROOT / "configs/shapes/README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == 3
    assert not [row for row in rows if re.search(r"\| [A-Z]{2,} \|", row)]


def test_tables_of_shapes_name_configs():
    folder = ROOT / "configs/shapes"
    text = (folder / "README.md").read_text()
    tables = re.findall(r"<!-- tables of [^>]+-->(.+?)<!-- end of tables -->", text, re.DOTALL)
    for table in tables:
        names = set(re.findall(r"^\| ([\w-]+_shapes-\w+)", table, re.MULTILINE))
        assert names and not [name for name in names if not (folder / f"{name}.py").exists()]
    assert len(tables) == 2
