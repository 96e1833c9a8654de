"""Demonstrations: the small experiment of a system, over seeds, held against what its card claimed beforehand."""
