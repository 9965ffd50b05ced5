"""The part of the build that setup.cfg cannot say: presets and default models go into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = ("configs", "checkpoints")  # at the top of the repository, inside the package in a wheel
NOT_DATA = shutil.ignore_patterns("*.png")


class BuildWithData(build_py):
    """Copies ``DATA`` into the built package; an editable installation reads the originals."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for name in DATA:
            target = Path(self.build_lib) / "dr2pipe" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=NOT_DATA)


setup(cmdclass={"build_py": BuildWithData})
