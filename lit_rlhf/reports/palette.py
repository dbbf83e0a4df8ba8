"""The colors of every page and picture; plotly, matplotlib and the style sheet take theirs from here.

The series are Okabe and Ito's palette, which stays apart under the common kinds of color blindness.
"""

from __future__ import annotations

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
BLACK = "#222222"

DIM = "#555555"  # what stands beside: notes, labels, whiskers
LINE = "#999999"  # axes
GRID = "#E3E3E3"  # grids, rules and borders
SOFT = "#F5F6F8"  # behind quoted text

SEQUENCE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
DASHES = ("solid", "8px,5px", "2px,4px", "8px,4px,2px,4px", "14px,5px", "14px,4px,2px,4px", "4px,2px")
"""Plotly's and SVG's dashes: a second cue beside color, for print and for color blindness."""

PAGE = {
    "blue": BLUE,
    "vermilion": VERMILION,
    "orange": ORANGE,
    "sky": SKY,
    "ink": BLACK,
    "dim": DIM,
    "grid": GRID,
    "soft": SOFT,
}
"""The style sheet's variables: ``var(--blue)`` and so on."""
