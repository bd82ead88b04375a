"""``python -m laion_assets`` is the command line."""

from laion_assets.cli import main

main()
