"""Okabe and Ito's palette: eight colors that stay apart under the common kinds of color blindness."""

from __future__ import annotations

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
BLACK = "#222222"

SEQUENCE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
