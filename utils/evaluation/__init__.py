"""From a network to numbers and pictures: windows and counts, scores, localisation, the result folder and its report."""

from utils.evaluation.scores import mae_mse
from utils.evaluation.windows import WINDOW, Result, Window, count, density_map, evaluate, in_threads, predict, tile

__all__ = ["WINDOW", "Result", "Window", "count", "density_map", "evaluate", "in_threads", "mae_mse", "predict", "tile"]
