"""The one place that imports what JAX moves between releases.

Everything here works on every supported JAX (0.10.2 and newer) and is decided by looking for a feature, never by
comparing versions. The sibling packages import these names from here and never from ``jax.extend`` or
``jax.interpreters`` themselves.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.core import ShapedArray as ShapedArray
from jax.core import Tracer as Tracer
from jax.core import eval_jaxpr as _eval_jaxpr
from jax.extend import core as _core
from jax.extend import source_info_util as _source_info
from jax.extend.core import ClosedJaxpr as ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]  # JAX >= 0.11
from jax.extend.core import DropVar as DropVar
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import Primitive as Primitive
from jax.extend.core.primitives import add_jaxvals_p as add_jaxvals_p
from jax.extend.core.primitives import closed_call_p as closed_call_p
from jax.extend.core.primitives import concatenate_p as concatenate_p
from jax.extend.core.primitives import cond_p as cond_p
from jax.extend.core.primitives import custom_jvp_call_p as custom_jvp_call_p
from jax.extend.core.primitives import custom_vjp_call_p as custom_vjp_call_p
from jax.extend.core.primitives import jit_p as jit_p
from jax.extend.core.primitives import name_p as name_p
from jax.extend.core.primitives import remat_p as remat_p
from jax.extend.core.primitives import scan_p as scan_p
from jax.extend.core.primitives import stop_gradient_p as stop_gradient_p
from jax.extend.core.primitives import while_p as while_p
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from jax.interpreters import mlir as mlir

if TYPE_CHECKING:  # JAX annotates these by abstract classes that lack what every instance has, such as an aval's shape
    JaxprEqn: TypeAlias = Any
    Literal: TypeAlias = Any
    Var: TypeAlias = Any
else:
    from jax.extend.core import JaxprEqn as JaxprEqn
    from jax.extend.core import Literal as Literal
    from jax.extend.core import Var as Var

_ONE_JAXPR_CLASS: bool = ClosedJaxpr is Jaxpr  # from JAX 0.11 on


def is_jaxpr(value: Any) -> bool:
    """Whether `value` is a jaxpr, open or closed."""
    return isinstance(value, (Jaxpr, ClosedJaxpr))


def sub_jaxprs(eqn: JaxprEqn) -> Iterator[tuple[str, Any]]:
    """Yield ``(parameter name, jaxpr)`` for every jaxpr among the parameters of `eqn`."""
    for name, value in eqn.params.items():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if is_jaxpr(item):
                yield name, item


def make_jaxpr_without_consts(jaxpr: Any, consts: Sequence[Any] = ()) -> tuple[Jaxpr, list[Any]]:
    """Lift the constants of `jaxpr` to leading inputs.

    Parameters
    ----------
    jaxpr : Jaxpr or ClosedJaxpr
    consts : sequence, optional
        Values of the constants where `jaxpr` is open (JAX < 0.11).

    Returns
    -------
    Jaxpr
        A jaxpr without constants: its inputs are the constants, then the inputs of `jaxpr`.
    list
        The values of the lifted constants.
    """
    inner = jaxpr if _ONE_JAXPR_CLASS else getattr(jaxpr, "jaxpr", jaxpr)
    values = list(getattr(jaxpr, "consts", None) or consts)
    constvars = list(inner.constvars)
    if len(constvars) != len(values):  # JAX >= 0.11 reports valueless constvars as leading invars
        constvars = constvars[: len(values)]
    invars = list(inner.invars)
    if not constvars:
        return build_jaxpr(invars, inner.outvars, inner.eqns, like=inner), values
    return build_jaxpr([*constvars, *invars], inner.outvars, inner.eqns, like=inner), values


def build_jaxpr(invars: Sequence[Var], outvars: Sequence[Any], eqns: Sequence[JaxprEqn], *, like: Any) -> Jaxpr:
    """Build an open jaxpr without constants; `like` lends its debug information."""
    source = like if _ONE_JAXPR_CLASS else getattr(like, "jaxpr", like)
    return Jaxpr(
        (),
        list(invars),
        list(outvars),
        list(eqns),
        debug_info=source.debug_info.with_unknown_names(),
    )


def eval_jaxpr(jaxpr: Jaxpr, *args: Any) -> list[Any]:
    """Evaluate a jaxpr that has no constants; source information and custom derivative rules survive."""
    return _eval_jaxpr(jaxpr, (), *args)


def fresh_var(aval: Any) -> Var:
    """A new variable of abstract value `aval`."""
    return _core.Var(aval)


class ScanArity(NamedTuple):
    """How the inputs and outputs of a ``scan`` equation divide."""

    num_consts: int
    num_carry: int
    num_xs: int
    num_ys: int


def scan_arity(eqn: JaxprEqn) -> ScanArity:
    """Numbers of constants, carries, scanned inputs and stacked outputs of a ``scan`` equation."""
    params = eqn.params
    if "num_consts" in params:
        consts, carry = params["num_consts"], params["num_carry"]
    else:  # JAX >= 0.11: a triple (constants, carry, scanned inputs) of flat trees
        consts, carry = (len(tree) for tree in params["ft_in"].unpack()[:2])
    return ScanArity(consts, carry, len(eqn.invars) - consts - carry, len(eqn.outvars) - carry)


def source_line(eqn: JaxprEqn) -> str:
    """``file:line:column (function)`` of the user code that made `eqn`."""
    return _source_info.summarize(eqn.source_info)


def hide_frames(file: str) -> None:
    """Leave the folder of `file` out of source lines: a diagnostic names the user's line, not that of a library."""
    _source_info.register_exclusion(str(pathlib.Path(file).parent))


hide_frames(__file__)


def is_traced(value: Any) -> bool:
    """Whether any leaf of `value` is a tracer."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def is_mapped(value: Any) -> bool:
    """Whether any leaf of `value` is mapped by `jax.vmap`, where that is the innermost trace around the caller."""
    return is_traced(value) and any(isinstance(leaf, _mapped_type()) for leaf in jax.tree.leaves(value))


@functools.cache
def _mapped_type() -> type:
    """What `jax.vmap` gives to functions; JAX does not name it."""
    found = []
    jax.vmap(lambda x: found.append(type(x)))(np.zeros(1))
    return found[0]


with ThreadPoolExecutor(1) as _thread:  # this module may be imported inside a trace, but a new thread is in none
    _NO_TRACE = _thread.submit(_core.get_opaque_trace_state).result()


def trace_state() -> Any:
    """The JAX trace that the caller runs in, to compare with others."""
    return _core.get_opaque_trace_state()


def under_trace() -> bool:
    """Whether the caller runs inside a JAX trace (``jit``, ``scan``, ``vmap``, ``grad``, ...)."""
    return trace_state() != _NO_TRACE
