"""The site tells of everything public: each name has its place in the reference, each error its code."""

import pathlib
import pkgutil
import re
import types

import pytest

import braintrace
import braintrace_algos
import braintrace_compiler
import braintrace_nn
import braintrace_primitives
import braintrace_primitives.testing
from braintrace_primitives import BraintraceError

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = {page.name: page.read_text() for page in DOCS.glob("*.md")}


def of_ours(package):
    """Public names of a package beside those that it hands on from other libraries."""
    return [
        name
        for name, value in vars(package).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", package.__name__).startswith(("braintrace", "typing"))
    ]


@pytest.mark.parametrize("package", [braintrace_primitives, braintrace_compiler, braintrace_algos, braintrace_nn])
def test_every_public_name_has_a_place(package):
    site = "\n".join(PAGES.values())
    described = set(re.findall(r"auto\w+:: braintrace\w*\.([\w.]+)", site))
    described |= set(re.findall(r"`(\w+)`", PAGES["reference.md"]))
    of_nn = "nn." if package is braintrace_nn else ""
    missing = [name for name in of_ours(package) if not {name, of_nn + name} & described]
    assert not missing


def test_what_the_site_describes_is_there():
    named = {name for page in PAGES.values() for name in re.findall(r"auto(?!module)\w+:: (braintrace[\w.]+)", page)}
    assert len(named) > 150
    missing = []
    for name in named:
        try:
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError):
            missing.append(name)
    assert not missing


def errors(cls=BraintraceError):
    return {cls}.union(*map(errors, cls.__subclasses__()))


def test_every_error_has_its_code_on_the_page_of_errors():
    assert issubclass(braintrace.TargetError, BraintraceError)  # those of the umbrella too
    ours = [cls for cls in errors() if cls.__module__.startswith("braintrace")]
    sections = dict(re.findall(r"^## (BT\d+)\n+```\{eval-rst\}\n\.\. autoexception:: (\S+)$", PAGES["errors.md"], re.M))
    assert {code: name.rsplit(".")[-1] for code, name in sections.items()} == {cls.code: cls.__name__ for cls in ours}
    assert len(sections) == len(ours)


def test_every_page_is_in_the_index():
    assert {name for name in PAGES if name != "index.md" and f"\n{name[:-3]}\n" not in PAGES["index.md"]} == set()
