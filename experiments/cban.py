"""cBaN: a trigger network conditioned on the target label (Salem et al. 2022).

python -m experiments.cban --dataset=mnist
"""

from experiments import common

if __name__ == "__main__":
  common.main("cban")
