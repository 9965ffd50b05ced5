"""Imports go downwards only: which part of the package may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dr2pipe"

# part: the parts it may import
ALLOWED = {
    "config": set(),
    "files": set(),
    "images": {"files"},
    "processes": set(),
    "sheets": {"images"},
    "diffusion": {"images", "config"},
    "stylegan2": set(),
    "features": set(),
    "degradations": {"images", "config"},
    "enhancers": {"stylegan2", "images", "config"},
    "losses": {"features"},
    "data": {"degradations", "diffusion", "images", "config"},
    "models": {"diffusion", "config"},
    "degradation_features": set(),
    "auto_setting": {"degradation_features", "files", "config"},
    "remover": {"auto_setting", "models", "diffusion", "files", "config"},
    "restore": {"remover", "models", "enhancers", "images", "files", "config"},
    "samples": {"restore", "config"},
    "convert": {"enhancers", "features", "stylegan2", "diffusion", "files", "config"},
    "training": {
        "stylegan2",
        "enhancers",
        "losses",
        "data",
        "features",
        "degradations",
        "diffusion",
        "images",
        "files",
        "processes",
        "config",
    },
    "probe": {"degradations", "images", "config"},
    "compare_auto": {
        "embed_folder",
        "evaluation",
        "auto_setting",
        "images",
        "config",
    },
    "embed_folder": {"enhancers", "models", "images", "files"},
    "run_records": {"files", "config"},
    "jobs": {"images", "config"},
    "runs": {"jobs", "run_records", "images", "processes", "config"},
    "inpaint": {"models", "enhancers", "features", "images", "files"},
    "measure_inpainting": {"inpaint", "degradations", "images", "config"},
    "inpaint_folder": {
        "inpaint",
        "enhancers",
        "jobs",
        "runs",
        "remover",
        "sheets",
        "images",
        "processes",
        "config",
    },
    "restore_folder": {
        "sheets",
        "samples",
        "runs",
        "restore",
        "inpaint",
        "jobs",
        "remover",
        "images",
        "processes",
        "config",
    },
    "make_coarse": {
        "runs",
        "restore",
        "data",
        "degradations",
        "images",
        "files",
        "processes",
        "config",
    },
    "degrade_folder": {"sheets", "runs", "degradations", "images", "files", "processes", "config"},
    "metrics": {"features", "images", "files"},
    "evaluation": {
        "sheets",
        "samples",
        "restore_folder",
        "restore",
        "remover",
        "data",
        "degradation_features",
        "degradations",
        "diffusion",
        "metrics",
        "images",
        "files",
        "processes",
        "config",
    },
    "model_card": {
        "inpaint",
        "restore_folder",
        "restore",
        "degradations",
        "sheets",
        "remover",
        "diffusion",
        "images",
        "files",
        "config",
    },
    "doctor": {"models", "processes"},
    "fetch": {"files", "config"},
    "cli": {"commands"},
    "commands": {
        "config",
        "fetch",
        "runs",
        "processes",
        "restore_folder",
        "make_coarse",
        "degrade_folder",
        "evaluation",
        "training",
        "convert",
        "inpaint",
        "inpaint_folder",
        "doctor",
        "metrics",
        "images",
        "files",
        "embed_folder",
    },
    "benchmark": {"restore_folder", "restore", "images", "processes", "config"},
    "demo": {"sheets", "restore_folder", "degradations", "metrics", "images", "config"},
    "__init__": set(),
}


def imports_of(path):
    """Parts of the package that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
            if node.module == "dr2pipe":
                names = [f"dr2pipe.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "dr2pipe" and len(parts) > 1 and not parts[1].startswith("__"):
                yield parts[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_downwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in ALLOWED, f"{part} has no place in the layers yet"
    for imported in imports_of(path):
        assert imported == part or imported in ALLOWED[part], f"{part} imports {imported}"


def test_a_forbidden_import_is_seen(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from dr2pipe.cli import main\n    import dr2pipe.runs\n")
    assert set(imports_of(file)) == {"cli", "runs"}
