"""The house rules: which package may import which, what it must declare, and what all packages share."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import sys
import tomllib
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
MAY_IMPORT = {
    "braintrace_primitives": set(),
    "braintrace_compiler": {"braintrace_primitives"},
    "braintrace_nn": {"braintrace_primitives"},
    "braintrace_algos": {"braintrace_primitives", "braintrace_compiler"},
    "braintrace": {"braintrace_primitives", "braintrace_compiler", "braintrace_nn", "braintrace_algos"},
}
PACKAGES = tuple(MAY_IMPORT)
IMPORT_NAMES = {"orbax-checkpoint": "orbax", "scikit-learn": "sklearn"}
MOVED_BY_JAX = ("jax.extend", "jax.interpreters", "jax._src")


class Import(NamedTuple):
    module: str
    at_import_time: bool
    line: int


def folder(package):
    return ROOT / "packages" / package.replace("_", "-")


def sources(package):
    return sorted((folder(package) / "src" / package).rglob("*.py"))


@functools.cache
def project(package):
    return tomllib.loads((folder(package) / "pyproject.toml").read_text())["project"]


def imports_of(text):
    """Absolute imports of a module, each with whether importing the module executes it."""
    found = []

    def visit(node, at_import_time):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, at_import_time, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.extend(Import(f"{node.module}.{alias.name}", at_import_time, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, at_import_time and not can_do_without(node))

    visit(ast.parse(text), True)
    return found


def can_do_without(node):
    """Whether a package imports well where the imports inside `node` are not installed."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Try(handlers=[ast.ExceptHandler(type=ast.Name(id="ImportError"))]):
            return True
    return False


def import_names(requirements):
    names = (Requirement(text).name for text in requirements)
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def undeclared_imports(text, package, dependencies, extras=()):
    """Imports of `text` that `package` does not declare; an extra serves where one can do without."""
    always = {package, *sys.stdlib_module_names, *import_names(dependencies)}
    within_functions = always | import_names(extras)
    return [
        f"line {line}: {module}"
        for module, at_import_time, line in imports_of(text)
        if module.partition(".")[0] not in (always if at_import_time else within_functions)
    ]


def declared(package):
    extras = project(package).get("optional-dependencies", {}).values()
    return project(package)["dependencies"], [text for extra in extras for text in extra]


def version(package):
    return re.search(r'__version__ = "(.+)"', (folder(package) / "src" / package / "_version.py").read_text())[1]


MODELS_OF_USERS = {"braintrace_nn": {"brainpy", "braintools"}}
"""Extras for models that stand beside ours; no code of the package needs them."""


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_declared(package):
    assert sources(package)
    found = {path.name: undeclared_imports(path.read_text(), package, *declared(package)) for path in sources(package)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_declared_dependency_is_imported(package):
    imported = {found.module.partition(".")[0] for path in sources(package) for found in imports_of(path.read_text())}
    dependencies, extras = declared(package)
    assert import_names([*dependencies, *extras]) - imported == MODELS_OF_USERS.get(package, set())


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package):
    siblings = set(PACKAGES) - MAY_IMPORT[package] - {package}
    crossed = [
        f"{path.name}:{found.line}: {found.module}"
        for path in sources(package)
        for found in imports_of(path.read_text())
        if found.module.partition(".")[0] in siblings
    ]
    assert crossed == []
    assert import_names(project(package)["dependencies"]) & set(PACKAGES) <= MAY_IMPORT[package]


def test_only_the_compatibility_module_imports_what_jax_moves():
    found = {
        f"{path.relative_to(ROOT)}:{found.line}"
        for package in PACKAGES
        for path in sources(package)
        if path.name != "_jax_compat.py"
        for found in imports_of(path.read_text())
        if f"{found.module}.".startswith(tuple(f"{name}." for name in MOVED_BY_JAX))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("import numpy", ["line 1: numpy"]),
        ("import os\n\nfrom saiunit.math import sin", ["line 3: saiunit.math.sin"]),
        ("class A:\n    import scipy.sparse as sparse", ["line 2: scipy.sparse"]),
        ("def f():\n    import torch", ["line 2: torch"]),
        ("import rich", ["line 1: rich"]),
        ("def f():\n    from rich.table import Table", []),
        ("if TYPE_CHECKING:\n    from rich.table import Table", []),
        ("if TYPE_CHECKING:\n    import torch", ["line 2: torch"]),
        ("try:\n    import rich\nexcept ImportError:\n    rich = None", []),
        ("from . import _errors\nimport jax.numpy as jnp\nfrom braintrace_nn import Linear", []),
    ],
)
def test_a_planted_import_is_caught(tmp_path, text, caught):
    planted = tmp_path / "planted.py"
    planted.write_text(text)
    assert undeclared_imports(planted.read_text(), "braintrace_nn", ["jax>=0.10.2"], ["rich>=13"]) == caught


@pytest.mark.parametrize("package", PACKAGES)
def test_the_licence_is_the_same_everywhere(package):
    assert (folder(package) / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_is_typed_and_has_its_papers(package):
    assert (folder(package) / "src" / package / "py.typed").is_file()
    assert (folder(package) / "README.md").read_text().startswith(f"# {package.replace('_', '-')}\n")
    assert f"\n## {version(package)}" in (folder(package) / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_siblings_are_required_in_a_range_that_holds_their_version(package):
    for requirement in map(Requirement, project(package)["dependencies"]):
        sibling = requirement.name.replace("-", "_")
        if sibling in PACKAGES:
            assert requirement.specifier.contains(version(sibling))
            major, minor, _ = map(int, version(sibling).split("."))
            assert not requirement.specifier.contains(f"{major}.{minor + 1}.0")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_installed_version_is_the_one_in_the_tree(package):
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the source tree")
    assert installed == version(package)


def test_test_folders_are_no_packages():
    assert list(ROOT.glob("packages/*/tests/**/__init__.py")) == []
