"""What the package imports at its top level is declared in setup.cfg."""

import ast
import configparser
import re
import sys

from conftest import ROOT

# Packages whose name on the package index is not that of their module.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}


def imported_at_top_level(text):
    """First names of modules that a file imports outside functions and ``if TYPE_CHECKING``."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_imports_are_declared():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    declared = {re.match(r"[\w-]+", line)[0] for line in lines}
    files = sorted((ROOT / "dr2pipe").rglob("*.py"))
    imported = {name for path in files for name in imported_at_top_level(path.read_text())}
    others = imported - sys.stdlib_module_names - {"dr2pipe"}
    assert {"torch", "yaml", "PIL"} <= others
    assert {DISTRIBUTIONS.get(name, name) for name in others} - declared == set()
