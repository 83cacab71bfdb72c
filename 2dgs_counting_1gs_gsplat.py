"""Fit one 2D Gaussian to the image around every annotated point: images + points -> gs_params/*.h5.

python 2dgs_counting_1gs_gsplat.py --config GS2D/config_qnrf_gsplat.yml [--root-path P]
"""

from GS2D.fit_dataset import main
from utils.cli import run_script

if __name__ == "__main__":
    run_script(main)
