"""Trains a classifier without a backdoor: the benchmark of the attacks.

python -m experiments.clean --dataset=cifar10 --width=16
"""

from experiments import common

if __name__ == "__main__":
  common.main("clean")
