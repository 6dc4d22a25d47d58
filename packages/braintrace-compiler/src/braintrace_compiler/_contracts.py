"""What the stages guarantee to each other; that groups are those of the program, `require_groups_of` checks."""

from collections.abc import Sequence
from typing import Any

from ._errors import CompilationError
from ._hidden_groups import HiddenGroup
from ._jaxpr import Jaxpr, Literal, reads
from ._module_info import ModuleInfo
from ._perturbation import HiddenPerturbation
from ._relations import Relations


def ensure_program(minfo: ModuleInfo) -> None:
    """Stage 1: a program in which everything is computed before it is read, and every output is named."""
    _require_closed(minfo.jaxpr, "the step")
    named = (*minfo.arg_invars, *(v for s in minfo.states for v in s.invars))
    _require(minfo.jaxpr.invars == [*minfo.const_invars, *named], "the step's inputs are all named")
    results = (*minfo.out_outvars, *(v for s in minfo.states for v in s.outvars))
    _require(minfo.jaxpr.outvars == [*results], "the step's outputs are all named")
    _require(not any(isinstance(v, Literal) for v in results), "every output of the step is a variable")


def ensure_relations(minfo: ModuleInfo, groups: Sequence[HiddenGroup], found: Relations) -> None:
    """Stage 3: one transition for each group, and a match of elements and positions for each way into it."""
    _require([t.group.index for t in found.transitions] == [g.index for g in groups], "one transition for each group")
    computed = {v for eqn in minfo.jaxpr.eqns for v in eqn.outvars}
    _require(all(op.y_var in computed for op in found.operations), "operations are those of the step")
    for transition in found.transitions:
        _require_closed(transition.program, f"the transition of group {transition.group.index}")
    for relation in found.relations:
        for group, feed in zip(relation.hidden_groups, relation.feeds, strict=True):
            fed = found.transitions[group.index].y_vars
            _require(all(use.y_var in fed for use in relation.uses), "a relation feeds its group's transition")
            shapes = (None, group.varshape, tuple(relation.y_var.aval.shape))
            _require(
                (None if feed.index is None else feed.index.shape) in shapes, "a feed matches elements to positions"
            )


def ensure_perturbation(minfo: ModuleInfo, perturbation: HiddenPerturbation) -> None:
    """Stage 4: perturbed steps that give what the step gives, then what is observed."""
    for name, step in (("strict", perturbation.strict), ("full", perturbation.full)):
        _require_closed(step.jaxpr, f"the {name} step")
        given = [v.aval for v in step.jaxpr.outvars]
        wanted = [v.aval for v in (*minfo.jaxpr.outvars, *step.observed)]
        _require(list(map(str, given)) == list(map(str, wanted)), f"the {name} step gives what the step gives")
    _require_closed(perturbation.weight_program, "the weights' program")


def _require_closed(program: Jaxpr, what: str) -> None:
    known = set(program.invars)
    for eqn in program.eqns:
        unknown = [v for v in reads(eqn) if v not in known]
        _require(
            not unknown, f"everything that {what} reads is computed before", f"{eqn.primitive.name} reads {unknown}"
        )
        known.update(eqn.outvars)
    _require(all(isinstance(v, Literal) or v in known for v in program.outvars), f"{what} computes all that it gives")


def _require(holds: bool, expected: str, found: Any = None) -> None:
    if not holds:
        raise CompilationError(
            "A stage of the compiler did not keep its contract; this is a defect of braintrace.",
            found=None if found is None else str(found),
            expected=expected,
            fix="report it with the output of BRAINTRACE_DEBUG=1",
        )
