"""Input-Aware: a trigger made for each image (Nguyen and Tran 2020).

python -m experiments.input_aware --dataset=mnist
"""

from . import cli

if __name__ == "__main__":
  cli.main_attack("input_aware")
