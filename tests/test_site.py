"""The documentation as a site: its formulas, links and references, by a build of a few pages."""

import re
from pathlib import Path

import pytest

build = pytest.importorskip("sphinx.cmd.build", reason="needs requirements/docs.txt")

ROOT = Path(__file__).parents[1]
PAGES = ["docs/equations.md", "docs/api/hcformer_mm.ops*.rst"]
REMOTE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//[^"]*"
    |<link\b(?![^>]*rel="canonical")[^>]*\bhref="(?:https?:)?//[^"]*"
    |(?:url\(|@import)\s*["']?(?:https?:)?//[^)"']*""",
    re.VERBOSE,
)


def run(source, output, *options):
    return build.main(["-q", "-c", str(ROOT / "docs"), *options, str(source), str(output)])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    output = tmp_path_factory.mktemp("site")
    options = {"root_doc": "docs/equations", "include_patterns": ",".join(PAGES)}
    assert run(ROOT, output, *(f"-D{name}={value}" for name, value in options.items())) == 0
    return output


def page(site, name):
    return (site / f"docs/{name}.html").read_text()


def test_formulas_are_drawn_beside_their_functions(site):
    text = page(site, "api/hcformer_mm.ops.assignment")
    function = text.split('id="hcformer_mm.ops.assignment.soft_assign"')[1].split("<dl ")[0]
    assert re.search(r'<math [^>]*display="block">.*<mi>Softmax</mi>', function, flags=re.DOTALL)


def test_links_to_the_package_lead_to_its_pages(site):
    assert 'href="api/hcformer_mm.ops.assignment.html"' in page(site, "equations")


def test_packages_link_what_they_export(site):
    link = 'href="hcformer_mm.ops.decoding.html#hcformer_mm.ops.decoding.decode"'
    assert link in page(site, "api/hcformer_mm.ops")


def test_pages_load_nothing_from_elsewhere(site):
    files = [path for suffix in ("html", "css") for path in site.rglob(f"*.{suffix}")]
    assert len(files) > len(PAGES)
    assert not {path: found for path in files if (found := REMOTE.findall(path.read_text()))}


@pytest.mark.parametrize(
    "text",
    [
        "[A page](missing.md)",
        "[A section](#missing)",
        "{py:func}`hcformer_mm.ops.missing`",
        r"$\missing{x}$",
    ],
)
def test_what_leads_nowhere_is_an_error(text, tmp_path, capsys):
    (tmp_path / "index.md").write_text(f"# Title\n\n{text}\n")
    options = "-W", "--keep-going", "-Droot_doc=index", "-Dinclude_patterns=index.md"
    assert run(tmp_path, tmp_path / "site", *options) != 0
    assert "missing" in capsys.readouterr().err
