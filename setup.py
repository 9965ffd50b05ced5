"""The part of the build that setup.cfg cannot say: presets and default models go into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# At the top of the repository; inside the package in a wheel. Models are named, so that others that
# lie in checkpoints/ stay out.
DATA = (
    "configs",
    "checkpoints/auto_portrait128.json",
    "checkpoints/degradation_encoder_64",
    "checkpoints/enhancer256",
    "checkpoints/exegan_64",
    "checkpoints/portrait128",
    "checkpoints/portrait128_student",
)
NOT_DATA = shutil.ignore_patterns("*.png")


class BuildWithData(build_py):
    """Copies ``DATA`` into the built package; an editable installation reads the originals."""

    def run(self):
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "dr2pipe"
        shutil.rmtree(package, ignore_errors=True)  # modules of an earlier build
        super().run()
        for name in DATA:
            if Path(name).is_dir():
                shutil.copytree(name, package / name, ignore=NOT_DATA)
            else:
                (package / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, package / name)


setup(cmdclass={"build_py": BuildWithData})
