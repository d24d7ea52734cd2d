"""`python -m diffsteer.cli`."""

from diffsteer.cli.main import main

main()
