"""BadNets: one fixed white square (Gu et al. 2017).

python -m experiments.badnets --dataset=mnist
python -m experiments.badnets --dataset=mnist --all_to_all
"""

from experiments import common

if __name__ == "__main__":
  common.main("badnets")
