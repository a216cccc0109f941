"""cBaN: BaN with the target label as input (Salem et al. 2022).

python -m experiments.cban --dataset=mnist
"""

from . import cli

if __name__ == "__main__":
  cli.main_attack("cban")
