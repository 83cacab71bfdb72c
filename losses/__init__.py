"""Losses between a predicted density and point annotations."""
