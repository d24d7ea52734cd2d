"""The command line: each module parses, calls the library and prints; importable without torch."""

from diffsteer.cli.main import main as main
