"""What one runs on this repository; `nox -l` lists it and CONTRIBUTING.md says when to use which."""

import os
import pathlib
import shutil
import tempfile

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["tests"]

ROOT = pathlib.Path(__file__).parent
PACKAGES = ("braintrace-primitives", "braintrace-compiler", "braintrace-nn", "braintrace-algos", "braintrace")
SETTINGS = nox.project.load_toml(ROOT / "pyproject.toml")
TEST_TOOLS, FRAMEWORKS, LINT_TOOLS, DOCS_TOOLS = (
    nox.project.dependency_groups(SETTINGS, group) for group in ("test", "frameworks", "lint", "docs")
)
ENV = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}


def install_packages(session: nox.Session, *options: str) -> None:
    """Install the five packages of the tree with all extras, in one command so that they find each other."""
    words = []
    for name in PACKAGES:
        project = nox.project.load_toml(ROOT / "packages" / name / "pyproject.toml")["project"]
        extras = ",".join(project.get("optional-dependencies", {}))
        words += ["-e", f"packages/{name}[{extras}]" if extras else f"packages/{name}"]
    session.install(*options, *words)


def run_tests(session: nox.Session, *options: str) -> None:
    """Install what the tests need and run pytest on everything, or on the arguments after ``--``."""
    session.install(*TEST_TOOLS, *FRAMEWORKS)
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(session.virtualenv.location) / "jax-cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    session.run("python", "-m", "pytest", "-n", "2", *options, *session.posargs, env=ENV | compiled)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test of every package and of their integration, on the interpreter that runs nox."""
    install_packages(session)
    run_tests(session)


@nox.session(python="3.11")
def floor(session: nox.Session) -> None:
    """The tests on the oldest supported Python with the oldest supported release of every dependency."""
    install_packages(session, "--resolution", "lowest-direct")
    run_tests(session)


@nox.session(python="3.13")
def ceiling(session: nox.Session) -> None:
    """The tests on the newest supported Python with the newest release of every dependency."""
    install_packages(session, "--upgrade")
    run_tests(session)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take long."""
    install_packages(session)
    run_tests(session, "-m", "slow")


@nox.session
def demo(session: nox.Session) -> None:
    """Train a recurrent network online on handwritten digits, beside backpropagation through time."""
    install_packages(session)
    session.run("python", "-m", "braintrace", "demo", *session.posargs, env=ENV)


@nox.session
def seed(session: nox.Session) -> None:
    """Run the founding notebook, unchanged, and hold what it prints to what it recorded."""
    install_packages(session)
    session.run("python", "integration_tests/seed/check_seed.py", env=ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, banned imports, formatting and types."""
    install_packages(session)
    session.install(*LINT_TOOLS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    python = session.run("which", "python", silent=True, external=True).strip()
    found = session.run("pyright", "--stats", "--project", ".", "--pythonpath", python, silent=True)
    session.log(found)
    sources = sum(len(list(ROOT.glob(files))) for files in ("packages/*/src/**/*.py", "benchmarks/*.py"))
    if f"Total files checked: {sources}\n" not in found:  # files that it does not find are no error to it
        session.error(f"pyright did not check all {sources} source files: see `include` in pyproject.toml")


@nox.session
def isolated(session: nox.Session) -> None:
    """Build the wheels; install each alone in an empty environment; run its tests outside the tree."""
    session.install("uv", "hatchling")
    with tempfile.TemporaryDirectory(prefix="braintrace-isolated-") as folder:
        outside = pathlib.Path(folder)
        wheels = outside / "wheels"
        for name in PACKAGES:
            with session.chdir(ROOT / "packages" / name):
                session.run("python", "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels), silent=True)
        fresh = [word for name in PACKAGES for word in ("--refresh-package", name)]
        for name in session.posargs or PACKAGES:
            module = name.replace("-", "_")
            room = outside / name
            shutil.copytree(ROOT / "packages" / name / "tests", room / "tests")
            (wheel,) = wheels.glob(f"{module}-[0-9]*.whl")
            python = str(room / "env" / "bin" / "python")
            with session.chdir(room):
                session.run("uv", "venv", "--quiet", "env")
                installer = ("uv", "pip", "install", "--quiet", "--python", python)
                session.run(*installer, "--find-links", str(wheels), *fresh, str(wheel), *TEST_TOOLS)
                shutil.copy(ROOT / "pyproject.toml", room)
                session.run(python, "-m", "pytest", "tests", "--pyargs", module, env=ENV, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory beside BPTT and the released library, which gets an environment of its own."""
    install_packages(session)
    session.install("uv")
    upstream = pathlib.Path(session.virtualenv.location).with_name("bench-upstream")
    python = str(upstream / "bin" / "python")
    session.run("uv", "venv", "--quiet", "--allow-existing", "--python", "3.12", str(upstream))
    session.run("uv", "pip", "install", "--quiet", "--python", python, "braintrace==0.2.8")
    session.run("python", "-m", "benchmarks", "--upstream", python, *session.posargs, env=ENV)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into docs/_build/html; its pages run, and a warning is an error."""
    install_packages(session)
    session.install(*DOCS_TOOLS, *FRAMEWORKS)
    session.run(
        "sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs, env=ENV
    )
