"""Clean training: the network that attacks are compared with.

python -m experiments.clean --dataset=cifar10 --width=16
"""

from . import cli

if __name__ == "__main__":
  cli.main_clean()
