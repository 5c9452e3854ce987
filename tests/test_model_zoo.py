"""The model zoo: metafiles in OpenMMLab's schema, and a README whose options and figures hold."""

import re
from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import DictAction

from hcformer_mm.checkpoints.io import load_checkpoint, sha256
from tests.test_configs import CONFIGS, build, read
from tools.analysis_tools.get_flops import count_multiply_adds, count_parameters

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs/hcformer"
README = (FOLDER / "README.md").read_text()
LEAVES = [config for config in CONFIGS if config.startswith("configs/hcformer/")]

COLLECTION = {"Name": str, "Metadata": dict, "Paper": dict, "README": str}
MODEL = {"Name": str, "In Collection": str, "Config": str, "Metadata": dict, "Results": list}
METADATA = {"Training Data": str, "Iterations": int, "Parameters": int}
RESULT = {"Task": str, "Dataset": str, "Metrics": dict}

# What the rows of the paper's tables vary; one README section each.
TABLES = {
    "Table 5": 4,
    "Table 6": 5,
    "Table IV (a)": 4,
    "Table IV (b)": 4,
    "Table V": 2,
    "Table VI: queries, COCO": 5,
    "Table VI: queries, ADE20K": 5,
    "Table VI: queries, Cityscapes": 5,
    "Table VII": 4,
    "Table VIII": 4,
    "Table IX": 5,
}


def metafiles():
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    assert set(index) == {"Import"}
    return {name: yaml.safe_load((ROOT / name).read_text()) for name in index["Import"]}


def rows(section):
    """The tables of a section, as dicts by column."""
    header = None
    for line in section.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if header is None:
            header = cells
        elif not set(line) <= set("|-"):
            yield dict(zip(header, cells, strict=True))


def shape(text):
    """Parse a size such as 800×1088 in a text."""
    height, width = re.search(r"(\d+)×(\d+)", text).groups()
    return int(height), int(width)


def ablations():
    """Section, config, options and row of every ablation of the README."""
    text = README.split("\n## Ablations\n")[1].split("\n### Not in the paper's tables\n")[0]
    for section in text.split("\n### ")[1:]:
        title, _, body = section.partition("\n")
        (config,) = set(re.findall(r"^Config: \[[^]]*\]\(([^)]*)\)", body, re.MULTILINE))
        for row in rows(body):
            options = row.pop("`--cfg-options`").strip("`").split()
            yield title, f"configs/hcformer/{config}", options, row, body


ABLATIONS = list(ablations())


def zoo():
    """Config, section and row of every model of the README."""
    for section in README.split("\n## Ablations\n")[0].split("\n## ")[1:]:
        for row in rows(section):
            (config,) = re.findall(r"\]\(([^)]*)\)", row["Config"])
            yield f"configs/hcformer/{config}", section, row


ZOO = list(zoo())


def as_user(config, options):
    """The config with options parsed as on the command line."""
    pairs = (option.split("=", 1) for option in options)
    return read(config, {key: DictAction._parse_iterable(value) for key, value in pairs})


@lru_cache
def parameters_of(config, options):
    return count_parameters(build(as_user(config, options)))


def measured(row, what):
    return row[f"{what}, *measured here*"]


def test_metafiles_follow_the_schema():
    assert set(metafiles()) == {
        str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*/metafile.yml")
    }
    for name, metafile in metafiles().items():
        collections = {c["Name"] for c in metafile["Collections"]}
        for collection in metafile["Collections"]:
            assert_has(collection, COLLECTION)
            assert set(collection["Paper"]) == {"URL", "Title"}
            assert (ROOT / collection["README"]).is_file()
        for model in metafile["Models"]:
            assert_has(model, MODEL)
            assert_has(model["Metadata"], METADATA)
            assert model["In Collection"] in collections
            assert Path(model["Config"]).stem == model["Name"]
            assert Path(model["Config"]).parent == Path(name).parent
            for result in model["Results"]:
                assert_has(result, RESULT)
            # Results belong to weights that come with the package, named by their hash.
            assert bool(model["Results"]) == ("Weights" in model)
            if "Weights" in model:
                path = ROOT / model["Weights"]
                assert path.stem == f"{model['Name']}-{sha256(path)[:8]}"
                assert path.parent == (ROOT / name).parent
                assert model["Alias"]


def assert_has(entry, schema):
    for key, kind in schema.items():
        assert isinstance(entry.get(key), kind), (key, entry)


def test_every_config_of_a_zoo_is_listed_once():
    """Of the Shapes set, only what comes with weights; its other models are made to be trained."""
    for name, metafile in metafiles().items():
        listed = sorted(model["Config"] for model in metafile["Models"])
        folder = f"{Path(name).parent}/"
        if folder == "configs/shapes/":
            assert listed == ["configs/shapes/hcformer_tiny_shapes-panoptic.py"]
        else:
            assert listed == [config for config in CONFIGS if config.startswith(folder)]


def test_iterations_are_those_of_the_config():
    for metafile in metafiles().values():
        for model in metafile["Models"]:
            config = read(model["Config"])
            iterations = config.train_cfg.max_iters
            if "Weights" in model:  # which may be of an earlier schedule
                iterations = load_checkpoint(ROOT / model["Weights"])["meta"]["iter"]
            assert model["Metadata"]["Iterations"] == iterations
            if "Batch Size" in model["Metadata"]:
                gpus = int(re.search(r"_(\d+)xb", model["Config"]).group(1))
                batch = gpus * config.train_dataloader.batch_size
                assert model["Metadata"]["Batch Size"] == batch
            if "Epochs" in model["Metadata"]:
                assert f"-{model['Metadata']['Epochs']}e_" in model["Config"]


def test_the_readme_lists_every_config_with_its_parameters():
    assert sorted(config for config, *_ in ZOO) == LEAVES
    (metafile,) = (m for name, m in metafiles().items() if "/hcformer/" in name)
    parameters = {m["Config"]: m["Metadata"]["Parameters"] for m in metafile["Models"]}
    for config, _, row in ZOO:
        assert measured(row, "Parameters") == f"{parameters[config] / 1e6:.1f} M", config
        assert re.fullmatch(r"\d+\.\d G", measured(row, "Multiply-adds")), config


def test_the_readme_lists_every_row_of_the_paper():
    titles = [title for title, *_ in ABLATIONS]
    for table, count in TABLES.items():
        found = [title for title in titles if title == table or title.startswith(f"{table}:")]
        assert len(found) == count, table
    assert len(titles) == sum(TABLES.values())


@pytest.mark.parametrize(
    ("config", "options", "row"),
    [pytest.param(c, o, row, id=f"{t} {o[-1]}") for t, c, o, row, _ in ABLATIONS],
)
def test_ablations_build(config, options, row):
    """The options in the README give a model with the number of parameters beside them."""
    for option in options:
        node = read(config)
        for name in option.split("=", 1)[0].split("."):
            # A misspelled key would be added silently.
            assert name in node, option
            node = node[name]
    parameters = parameters_of(config, tuple(options))
    if "Parameters, *measured here*" in row:
        assert measured(row, "Parameters") == f"{parameters / 1e6:.1f} M"


@pytest.mark.slow
@pytest.mark.parametrize(("config", "section", "row"), [pytest.param(*z, id=z[0]) for z in ZOO])
def test_multiply_adds_of_the_readme(config, section, row):
    size = shape(row["Crop"] if "of the crop" in section else section)
    count = count_multiply_adds(build(read(config)), *size).total()
    assert measured(row, "Multiply-adds") == f"{count / 1e9:.1f} G"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options", "row", "body"),
    [
        pytest.param(c, o, row, body, id=f"{t} {o[-1]}")
        for t, c, o, row, body in ABLATIONS
        if "Multiply-adds, *measured here*" in row
    ],
)
def test_multiply_adds_of_the_ablations(config, options, row, body):
    count = count_multiply_adds(build(as_user(config, options)), *shape(body)).total()
    assert measured(row, "Multiply-adds") == f"{count / 1e9:.1f} G"
