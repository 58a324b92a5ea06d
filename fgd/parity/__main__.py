"""`python -m fgd.parity FILE.npz FILE.json`."""

from __future__ import annotations

import sys

from fgd.parity import main

sys.exit(main(sys.argv[1:]))
