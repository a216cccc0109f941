"""BadNets: one fixed trigger (Gu, Dolan-Gavitt and Garg 2017).

python -m experiments.badnets --dataset=mnist
python -m experiments.badnets --dataset=mnist --all_to_all
python -m experiments.badnets --dataset=mnist --poison=batch
"""

from . import cli

if __name__ == "__main__":
  cli.main_attack("badnets")
