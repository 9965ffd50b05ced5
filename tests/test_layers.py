"""Imports go strictly down from room to room, and no two modules import each other in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dr2pipe"
LEVELS = [
    {"core"},
    {"stylegan2", "features", "degradations"},
    {"diffusion", "enhancers", "losses", "metrics", "data", "faces"},
    {"restoration", "convert", "training"},
    {"runs"},
    {"evaluation", "web"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def module_name(path, root):
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, modules):
    """Modules of the package that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else node.module


def edges_of(root):
    """{module: the modules it imports} of the package at ``root``."""
    paths = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    return {name: set(imports_of(path, paths)) - {name} for name, path in paths.items()}


def room_of(module):
    return (*module.split("."), "")[1]


def upward_imports(edges):
    for module, imported in edges.items():
        for other in imported:
            room, other_room = room_of(module), room_of(other)
            both_have_levels = room in LEVEL and other_room in LEVEL
            if both_have_levels and room != other_room and LEVEL[other_room] >= LEVEL[room]:
                yield f"{module} imports {other}"


EDGES = edges_of(PACKAGE)


def test_every_folder_is_a_room_with_a_level():
    folders = {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert folders <= set(LEVEL)
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_imports_go_strictly_down():
    assert list(upward_imports(EDGES)) == []


def test_no_circles_between_modules():
    TopologicalSorter(EDGES).prepare()


def test_faults_are_seen(tmp_path):
    root = tmp_path / "dr2pipe"
    for room, text in {
        "core": "def f():\n    from dr2pipe.cli import main\n",
        "runs": "import dr2pipe.runs.b\n",
        "cli": "",
    }.items():
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text(text)
    (root / "runs" / "b.py").write_text("from dr2pipe import runs\n")
    edges = edges_of(root)
    assert list(upward_imports(edges)) == ["dr2pipe.core imports dr2pipe.cli"]
    with pytest.raises(CycleError):
        TopologicalSorter(edges).prepare()
