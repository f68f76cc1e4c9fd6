"""``python -m speechlab``: the command line."""

from speechlab.cli import main

main()
