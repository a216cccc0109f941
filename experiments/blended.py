"""Blended: a pattern blended into the whole image (Chen et al. 2017).

python -m experiments.blended --dataset=mnist
python -m experiments.blended --dataset=mnist --trigger=logo.png
"""

from . import cli

if __name__ == "__main__":
  cli.main_attack("blended")
