"""``python -m reelign``."""

from reelign.cli.main import main

main()
