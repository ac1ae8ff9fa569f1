"""`python -m crosstill`: the command line."""

from crosstill.cli.main import main

main()
