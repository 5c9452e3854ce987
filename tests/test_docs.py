"""What the documents name exists, and what they say of the demo is so."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.helpers.models import SHAPES_CONFIG

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "configs/*/*.md", "docs/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tools_and_configs_exist(document):
    text = (ROOT / document).read_text()
    named = re.findall(r"(?<![\w/.])((?:tools|configs|demo)/[\w./-]+\.(?:py|sh|yml))", text)
    # A file that the document writes begins with its name.
    written = {name for name in named if f"```python\n# {name}\n" in text}
    missing = [name for name in named if name not in written and not (ROOT / name).is_file()]
    assert not missing


def test_documents_are_found():
    expected = {"README.md", "CONTRIBUTING.md", "configs/hcformer/README.md"}
    assert expected | {"docs/custom_dataset.md"} <= set(DOCUMENTS)


def test_readme_loads_the_checkpoint_of_the_demo():
    iterations = Config.fromfile(ROOT / SHAPES_CONFIG).train_cfg.max_iters
    text = (ROOT / "README.md").read_text()
    assert f"/iter_{iterations}.pth" in text
    assert f'HCFormerInferencer("{Path(SHAPES_CONFIG).stem}",' in text


def test_figures_of_shapes_are_filled_in():
    text = (ROOT / "configs/shapes/README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == 10
    assert not [row for row in rows if re.search(r"\| [A-Z]{2,} \|", row)]
