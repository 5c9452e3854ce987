"""Imports point one way: every room of the package imports only rooms above it in ROOMS."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hcformer_mm"
ROOMS = (
    "version",
    "registry",
    "ops",
    "utils",
    "structures",
    "models",
    "evaluation",
    "visualization",
    "acceleration",
    "checkpoints",
    "deployment",
    "datasets",
    "engine",
    "apis",
    "doctor",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """Absolute names of the modules that a module imports, at any depth of its code."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(up if node.level else []), *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES else base)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_module_has_a_room():
    assert {room(module) for module in MODULES} - {""} == set(ROOMS)


def test_rooms_import_only_rooms_above_them():
    upwards = [
        f"{module} imports {target}"
        for module in MODULES
        for target in sorted(imports(module) & MODULES.keys())
        if room(module)
        and room(target) != room(module)
        and (not room(target) or ROOMS.index(room(target)) > ROOMS.index(room(module)))
        and not (module.endswith(".doctor") or target == "hcformer_mm.version")
    ]
    assert not upwards, "\n".join(upwards)


def test_no_circle_of_modules():
    graph = {module: imports(module) & MODULES.keys() - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_installed_code_knows_nothing_of_tests_tools_and_benchmarks():
    outside = {"tests", "tools", "demo", "benchmarks"}
    assert not [m for m in MODULES if outside & {name.split(".")[0] for name in imports(m)}]


def test_ops_import_torch_alone():
    allowed = {"torch", "hcformer_mm", "__future__", *sys.stdlib_module_names}
    for module in MODULES:
        if room(module) == "ops":
            assert {name.split(".")[0] for name in imports(module)} <= allowed, module
