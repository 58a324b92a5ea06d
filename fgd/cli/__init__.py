"""The command `fgd`: main.py, and what its sub-commands draw and start. Loads no torch."""
