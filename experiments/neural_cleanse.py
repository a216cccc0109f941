"""Neural Cleanse: the smallest trigger of each class (Wang et al. 2019).

python -m experiments.neural_cleanse --run=runs/badnets-mnist
python -m experiments.neural_cleanse --run=runs/badnets-mnist \
  --null_runs=runs/clean-mnist-seeds
"""

from . import cli

if __name__ == "__main__":
  cli.main_defense("neural_cleanse")
