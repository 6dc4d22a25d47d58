"""Every stage straight from a model."""

from collections.abc import Callable
from typing import Any

from ._diagnostics import Path
from ._hidden_groups import HiddenGroup, find_hidden_groups_from_minfo
from ._module_info import extract_module_info
from ._perturbation import HiddenPerturbation, add_hidden_perturbation_from_minfo
from ._relations import HiddenParamOpRelation, find_hidden_param_op_relations_from_minfo


def find_hidden_groups_from_module(
    model: Callable[..., Any], *args: Any, **options: Any
) -> tuple[tuple[HiddenGroup, ...], dict[Path, HiddenGroup]]:
    """`find_hidden_groups_from_minfo` of a model; arguments are those of `extract_module_info`."""
    return find_hidden_groups_from_minfo(extract_module_info(model, *args, **options))


def find_hidden_param_op_relations_from_module(
    model: Callable[..., Any], *args: Any, **options: Any
) -> tuple[HiddenParamOpRelation, ...]:
    """`find_hidden_param_op_relations_from_minfo` of a model; arguments are those of `extract_module_info`."""
    minfo = extract_module_info(model, *args, **options)
    return find_hidden_param_op_relations_from_minfo(minfo, find_hidden_groups_from_minfo(minfo)[1])


def add_hidden_perturbation_from_module(model: Callable[..., Any], *args: Any, **options: Any) -> HiddenPerturbation:
    """`add_hidden_perturbation_from_minfo` of a model; arguments are those of `extract_module_info`."""
    return add_hidden_perturbation_from_minfo(extract_module_info(model, *args, **options))
