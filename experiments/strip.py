"""STRIP: rejects inputs whose label survives overlays (Gao et al. 2019).

python -m experiments.strip --run=runs/ban-mnist
"""

from . import cli

if __name__ == "__main__":
  cli.main_defense("strip")
