"""`python -m steer2edit`."""

from steer2edit.cli import main

main()
