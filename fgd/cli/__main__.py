"""`python -m fgd.cli` is `fgd`."""

from fgd.cli.main import main

main()
