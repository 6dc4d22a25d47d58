"""A bias beside a weight that varies in time does not vary with it: it gets an operation of its own."""

from collections.abc import Container, Iterable

import braintrace_primitives as bp

from ._flow import influence
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Var, build_jaxpr, splice

_ADDING = (bp.etp_mv_p, bp.etp_mm_p, bp.etp_gmv_p, bp.etp_gmm_p, bp.etp_sp_mv_p, bp.etp_sp_mm_p)
_ADDING += (bp.etp_lora_mv_p, bp.etp_lora_mm_p)
"""Operations that add their bias along the last axes; a convolution may have its channels elsewhere."""


def split_steady_biases(jaxpr: Jaxpr, varying: Iterable[Var], kept: Container[Var]) -> Jaxpr:
    """`jaxpr`, with ``A(x, w) + element_wise(b)`` for ``A(x, w, b)`` where w depends on `varying` and b does not.

    Not for what gives `kept`.
    """
    marked = [e for e in jaxpr.eqns if e.primitive in _ADDING and e.params["has_bias"] and e.outvars[0] not in kept]
    if not marked:
        return jaxpr
    in_time = influence(jaxpr.eqns, dict.fromkeys(varying, 1), derivative=False)
    chosen = {eqn.outvars[0] for eqn in marked if _has_steady_bias(eqn, in_time)}
    if not chosen:
        return jaxpr
    eqns: list[JaxprEqn] = []
    for eqn in jaxpr.eqns:
        eqns += _split(eqn) if eqn.outvars and eqn.outvars[0] in chosen else [eqn]
    return build_jaxpr(jaxpr.invars, jaxpr.outvars, eqns, like=jaxpr)


def _has_steady_bias(eqn: JaxprEqn, in_time: Container[Var]) -> bool:
    *weights, bias = [not isinstance(v, Literal) and v in in_time for v in eqn.invars[1:]]
    return any(weights) and not bias


def _split(eqn: JaxprEqn) -> list[JaxprEqn]:
    def apart(*operands):
        *rest, bias = operands
        return eqn.primitive.bind(*rest, **{**eqn.params, "has_bias": False}) + bp.etp_elemwise_p.bind(bias)

    eqns, _ = splice(apart, *eqn.invars)
    eqns = [e.replace(source_info=eqn.source_info) for e in eqns]
    return [*eqns[:-1], eqns[-1].replace(outvars=list(eqn.outvars))]
