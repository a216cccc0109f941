"""The list of packages; everything else is in pyproject.toml.

There is one top-level package: in a checkout the scripts are experiments.NAME,
once installed bdjax.experiments.NAME.
"""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["bdjax", "bdjax.*"]), "bdjax.experiments"],
  package_dir={"bdjax.experiments": "experiments"},
)
