"""One import gives every public name."""

import types

import pytest

import braintrace
import braintrace_algos
import braintrace_compiler
import braintrace_nn
import braintrace_primitives
from braintrace._etrace_compiler import hid_param_op
from braintrace._etrace_op import is_etp_primitive


def public(package):
    return {
        name: value
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


@pytest.mark.parametrize("package", [braintrace_primitives, braintrace_compiler, braintrace_algos])
def test_every_public_name_is_here(package):
    names = public(package)
    assert names
    assert {name for name, value in names.items() if getattr(braintrace, name, None) is not value} == set()


def test_nn_has_the_layers():
    assert public(braintrace.nn) == public(braintrace_nn)


@pytest.mark.parametrize(
    "namespace",
    [braintrace, braintrace.nn, braintrace_primitives, braintrace_compiler, braintrace_algos, braintrace_nn],
)
def test_what_the_packages_use_among_themselves_is_not_shown(namespace):
    inner = {"goes_around", "users_level", "live_states", "split_scan", "with_way_back", "hide_frames", "over_states"}
    assert not inner & set(dir(namespace))
    assert all(value.__doc__ for value in public(namespace).values() if isinstance(value, types.FunctionType))


def test_no_name_stands_for_two_things():
    packages = (braintrace_primitives, braintrace_compiler, braintrace_algos)
    for first in packages:
        for second in packages:
            shared = public(first).keys() & public(second).keys()
            assert {name for name in shared if public(first)[name] is not public(second)[name]} == set()


def test_the_paths_of_the_founding_notebook():
    assert is_etp_primitive is braintrace.is_etp_primitive
    assert hid_param_op._build_producer_map is braintrace_compiler.build_producer_map
    assert hid_param_op._trace_var_to_param is braintrace_compiler.trace_var_to_param
