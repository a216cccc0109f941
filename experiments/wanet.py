"""WaNet: a smooth warp of the image (Nguyen and Tran 2021).

python -m experiments.wanet --dataset=mnist
python -m experiments.wanet --dataset=mnist --all_to_all
"""

from . import cli

if __name__ == "__main__":
  cli.main_attack("wanet")
