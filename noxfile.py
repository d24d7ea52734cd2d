"""Checks in fresh environments: `nox`, or one of them, `nox -s lint`."""

import nox

nox.options.sessions = ["lint", "types", "tests", "examples", "docs", "wheel"]
PYTHONS = ["3.11", "3.12", "3.13"]


def install(session: nox.Session) -> None:
    """Install both distributions with the pinned versions of `constraints.txt`."""
    session.install("-c", "constraints.txt", "-e", ".[test]", "-e", "lab")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite; arguments after `--` go to pytest."""
    install(session)
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session)
    session.run("mypy")


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples and every code block of the documentation."""
    install(session)
    session.run("pytest", "tests/test_examples.py", "tests/test_docs.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; every warning is an error."""
    session.install("-c", "constraints.txt", "-e", ".[hf,docs]", "-e", "lab")
    session.run("mkdocs", "build")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build both wheels and use them without the source tree."""
    out = session.create_tmp()
    session.run("pip", "wheel", "--no-deps", "-w", f"{out}/wheels", ".", "./lab")
    session.install(
        "-c", "constraints.txt", "diffsteer[hf]", "diffsteer-lab", "--find-links", f"{out}/wheels"
    )
    with session.chdir(out):
        session.run("diffsteer", "plan", "CFG(6)")
