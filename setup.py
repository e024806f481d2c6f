"""The lessons travel inside the wheel: `ssl-lessons run 03` works where there is no checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithLessons(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # there the checkout's own are used
            aside = shutil.ignore_patterns("*.py", "__pycache__", ".ipynb_checkpoints", "runs")
            place = Path(self.build_lib, "ssl_lessons", "notebooks")
            shutil.copytree("notebooks", place, ignore=aside, dirs_exist_ok=True)
            shutil.copytree("notebooks/exercises", place / "exercises", dirs_exist_ok=True)
            # the committed records, which lessons 09 and 11 show
            aside = shutil.ignore_patterns("*.jsonl", "*.png", "*.md")
            shutil.copytree("data/results", place.parent / "results", ignore=aside, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithLessons})
