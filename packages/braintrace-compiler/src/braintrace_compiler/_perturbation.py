"""Stage 4: rewrite the step so that one reverse pass yields every learning signal.

The perturbed step has three kinds of additional inputs, all zero in use (semantics, section 2):

* the previous state h^{t-1} of every hidden state gets a perturbation whose derivative is q = dl^t/dh^{t-1};
* the output y of every marked operation gets one whose derivative is b = dl^t/dy;
* every new state h^t gets one that is seen only by readers outside its group's own transition; its derivative is the
  learning signal L = dl^t/dh^t of algorithms of the form sum L e.

In the *strict* program h^{t-1} of a group is unperturbed where it enters an ETP operation whose output leads back to
that group's new states (recurrent mixing). The cone above such an operand is evaluated once more, unperturbed; with
zero perturbations both evaluations are one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import brainstate

from braintrace_primitives._jax_compat import DropVar

from ._absorption import LinearMemory, find_linear_memories
from ._diagnostics import Path
from ._feeds import LocalTransition
from ._flow import influence, join_bits
from ._hidden_groups import HiddenGroup, find_hidden_groups_from_minfo, recurrent_operations
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Var, add_equation, build_jaxpr, fresh_var, reads
from ._module_info import ModuleInfo
from ._operations import MarkedOperation, make_weight_program
from ._relations import Relations, find_relations
from ._requirements import require_even_cuts


class PerturbedStep(NamedTuple):
    """A step program with perturbations.

    Inputs: constants, arguments and states of the step, then `weights` (the operands of the marked operations),
    `previous`, `new` (one for each hidden state) and `deltas` (one for each marked operation).
    Outputs: those of the step, then the values of `observed`.

    Attributes
    ----------
    jaxpr : Jaxpr
    observed : tuple of Var
        Variables of the original step whose values the program gives besides its outputs.
    recalls : frozenset of int
        Indices of the groups whose perturbed h^{t-1} is used at all; for the others q = 0.
    """

    jaxpr: Jaxpr
    observed: tuple[Any, ...]
    recalls: frozenset[int]


class HiddenPerturbation(NamedTuple):
    """The perturbed step of a model.

    Attributes
    ----------
    perturb_vars : tuple of Var
        Perturbation of each new hidden state.
    perturb_hidden_paths : tuple of paths
    perturb_hidden_states : tuple of brainstate.HiddenState
    previous_vars : tuple of Var
        Perturbation of each previous hidden state, in the same order.
    operation_vars : tuple of Var
        Perturbation of the output of each operation.
    operations : tuple of MarkedOperation
    strict, full : PerturbedStep
        The program that cuts recurrent mixing, and the one that does not.
    transitions : tuple of LocalTransition
        One for each group.
    weight_program : Jaxpr
        ``(constants, parameter leaves) -> weight operands of all operations``.
    memories : tuple of LinearMemory
        Memory behind operations that groups before them can take in.
    """

    perturb_vars: tuple[Var, ...]
    perturb_hidden_paths: tuple[Path, ...]
    perturb_hidden_states: tuple[brainstate.State, ...]
    previous_vars: tuple[Var, ...]
    operation_vars: tuple[Var, ...]
    operations: tuple[MarkedOperation, ...]
    strict: PerturbedStep
    full: PerturbedStep
    transitions: tuple[LocalTransition, ...]
    weight_program: Jaxpr
    memories: tuple[LinearMemory, ...] = ()


def add_hidden_perturbation_from_minfo(minfo: ModuleInfo) -> HiddenPerturbation:
    """Perturb the step of a model; see the module's description.

    Parameters
    ----------
    minfo : ModuleInfo

    Returns
    -------
    HiddenPerturbation
    """
    groups, _ = find_hidden_groups_from_minfo(minfo)
    found = find_relations(minfo, groups)
    return perturb(minfo, groups, found)


def perturb(minfo: ModuleInfo, groups: Sequence[HiddenGroup], found: Relations) -> HiddenPerturbation:
    """Perturb the step, and let it give what the trace rules and the local transitions need to know."""
    hidden, operations, transitions = minfo.hidden, found.operations, found.transitions
    memories = find_linear_memories(minfo, groups, found.relations, transitions)
    cuts = recurrent_operations(minfo, groups)
    require_even_cuts(minfo, groups, operations, cuts)
    rewriter = _Rewriter(minfo, groups, operations)
    inputs = [op.x_var for op in operations if op.x_var is not None]
    whole = [v for t in transitions for v in (*t.group.hidden_invars, *t.group.transition_jaxpr_constvars)]
    wanted = [*inputs, *whole, *(v for t in transitions for v in (*t.y_vars, *t.constvars))]
    wanted += [v for m in memories for v in m.constvars]
    observed = tuple(dict.fromkeys(v for v in wanted if not isinstance(v, Literal)))
    return HiddenPerturbation(
        tuple(rewriter.new),
        tuple(s.path for s in hidden),
        tuple(s.state for s in hidden),
        tuple(rewriter.previous),
        tuple(rewriter.deltas),
        tuple(operations),
        rewriter.rewrite(cuts, observed),
        rewriter.rewrite({}, observed),
        tuple(transitions),
        make_weight_program(minfo, operations),
        memories,
    )


def goes_around(
    perturb: HiddenPerturbation, step: PerturbedStep, states: Mapping[int, Iterable[Path]], driving: Mapping[int, int]
) -> bool:
    """Whether the past of a group, or what drives it, reaches what `step` gives by a way around its new states.

    Where nothing does, q^t e^{t-1} + b^t ∂y/∂w = L^t e^t: the derivative of the step is that of its new states.

    Parameters
    ----------
    perturb : HiddenPerturbation
    step : PerturbedStep
        One of its programs.
    states : mapping
        Group -> paths of the states that are looked at, whose derivatives are known.
    driving : mapping
        Ordinal of a marked operation -> bits of the groups that it drives.
    """
    at = {path: i for i, path in enumerate(perturb.perturb_hidden_paths)}
    groups = [t.group for t in perturb.transitions if t.group.index in states]
    sources = {perturb.previous_vars[at[path]]: 1 << g.index for g in groups for path in g.hidden_paths}
    sources |= {perturb.operation_vars[k]: bits for k, bits in driving.items()}
    ends = {perturb.perturb_vars[at[path]]: 1 << g.index for g in groups for path in states[g.index]}
    closed = {eqn.outvars[0]: ends[v] for eqn in step.jaxpr.eqns for v in eqn.invars if _is_variable(v) and v in ends}
    found = influence(step.jaxpr.eqns, sources, closed=closed)
    return bool(join_bits(found, step.jaxpr.outvars[: -len(step.observed) or None]))


class _View(NamedTuple):
    """How a reader sees a variable: the groups, as bits, whose perturbations are hidden from it.

    Attributes
    ----------
    cut : int
        Groups whose h^{t-1} is unperturbed.
    inside : int
        Groups whose transition the reader belongs to, so that their new states are unperturbed.
    """

    cut: int = 0
    inside: int = 0


class _Rewriter:
    """Evaluates each variable once for each view that some reader has of it."""

    def __init__(self, minfo: ModuleInfo, groups: Sequence[HiddenGroup], operations: Sequence[MarkedOperation]):
        self.minfo = minfo
        hidden = minfo.hidden
        self.previous = [fresh_var(s.invars[0].aval) for s in hidden]
        self.new = [fresh_var(s.outvars[0].aval) for s in hidden]
        self.deltas = [fresh_var(op.y_var.aval) for op in operations]
        self.weights = [fresh_var(v.aval) for op in operations for v in op.weight_vars.values()]
        weights = iter(self.weights)
        self.operands = {op.y_var: {op.index_of(name): next(weights) for name in op.weight_vars} for op in operations}
        self.stands_for: dict[Any, Var] = {}
        for op, delta in zip(operations, self.deltas, strict=True):
            if op.loop is not None:
                self.stands_for |= {v: self.operands[op.y_var][i] for i, v in op.loop.weights.items()}
                self.stands_for |= {} if op.loop.echo is None else {op.loop.echo: delta}
        self.delta_of = {op.y_var: delta for op, delta in zip(operations, self.deltas, strict=True)}

        group_of = {path: g.index for g in groups for path in g.hidden_paths}
        self.enters = {s.invars[0]: (group_of[s.path], d) for s, d in zip(hidden, self.previous, strict=True)}
        inputs = set(minfo.jaxpr.invars)
        eqns = minfo.jaxpr.eqns
        read = {v for eqn in eqns for v in reads(eqn)}
        # States that hold one value share one perturbation: a reader would count once for each of them otherwise. It is
        # that of a state whose past is read, if there is one, as others may carry no trace. A new value can be the old
        # one of another state, as in a delay line: who reads that reads both.
        self.leaves: dict[Var, tuple[int, Var]] = {}
        for state, delta in sorted(zip(hidden, self.new, strict=True), key=lambda own: own[0].invars[0] not in read):
            new = state.outvars[0]
            if new not in inputs or (new in self.enters and new is not state.invars[0]):
                bits, shared = self.leaves.get(new, (0, delta))
                self.leaves[new] = bits | 1 << group_of[state.path], shared
        self.behind_previous = influence(eqns, {v: 1 << g for v, (g, _) in self.enters.items()}, derivative=False)
        new = {v: groups for v, (groups, _) in self.leaves.items()}
        self.behind_new = influence(eqns, new, derivative=False)

    def _view(self, v: Var, view: _View) -> _View:
        return _View(view.cut & self.behind_previous.get(v, 0), view.inside & self.behind_new.get(v, 0))

    def _below(self, v: Var, view: _View) -> _View:
        """The view that the computation of `v` itself takes of its operands."""
        return _View(view.cut, view.inside | (self.leaves[v][0] if v in self.leaves else 0))

    def rewrite(self, cuts: Mapping[Var, int], observed: tuple[Var, ...]) -> PerturbedStep:
        program = self.minfo.jaxpr
        views = self._demand(cuts, observed)
        self._env: dict[tuple[Var, _View], Var] = {}
        self._eqns: list[JaxprEqn] = []
        for v in program.invars:
            for view in views.get(v, ()):
                self._env[v, view] = self._enter(v, view)
        for eqn in program.eqns:
            self._emit(eqn, views, _cut_at(eqn, cuts))

        outputs = [self._read(v, _View()) for v in self.minfo.out_outvars]
        delta_of = dict(zip((s.path for s in self.minfo.hidden), self.new, strict=True))
        for state in self.minfo.states:
            values = [self._read(v, _View()) for v in state.outvars]
            if state.path in delta_of and state.outvars[0] not in self.leaves:  # left as it was
                values = [self._add(values[0], delta_of[state.path])]
            outputs += values
        observations = [self._env[v, min(views[v], key=_by_size)] for v in observed]
        recalls = frozenset(g for v, (g, _) in self.enters.items() if any(not w.cut >> g & 1 for w in views.get(v, ())))
        inputs = [*program.invars, *self.weights, *self.previous, *self.new, *self.deltas]
        return PerturbedStep(
            build_jaxpr(inputs, [*outputs, *observations], self._eqns, like=program), observed, recalls
        )

    def _demand(self, cuts: Mapping[Var, int], observed: tuple[Var, ...]) -> dict[Var, dict[_View, None]]:
        """Which views of each variable its readers ask for."""
        views: dict[Var, dict[_View, None]] = {}
        wanted = set(observed)

        def ask(v: Any, view: _View) -> None:
            if not isinstance(v, Literal):
                views.setdefault(v, {}).setdefault(self._view(v, view))

        for v in self.minfo.jaxpr.outvars:
            ask(v, _View())
        for eqn in reversed(self.minfo.jaxpr.eqns):
            for v in eqn.outvars:
                if v in wanted and v not in views:
                    ask(v, _View())
            swapped = self._swapped(eqn)
            for view in self._computed(eqn, views):
                below = _View(view.cut | _cut_at(eqn, cuts), view.inside)
                for i, v in enumerate(eqn.invars):
                    if i not in swapped:
                        ask(v, below)
        for v in self.minfo.jaxpr.invars:
            if v in wanted and v not in views:
                ask(v, _View())
        return views

    def _computed(self, eqn: JaxprEqn, views: dict[Var, dict[_View, None]]) -> dict[_View, None]:
        """The views in which `eqn` is evaluated."""
        wanted = {self._below(v, view): None for v in eqn.outvars for view in views.get(v, ())}
        return wanted or ({_View(): None} if eqn.effects else {})

    def _swapped(self, eqn: JaxprEqn) -> dict[int, Var]:
        """Operands of `eqn` that become inputs: weights, and what stands for an operation inside a loop."""
        elsewhere = {
            i: self.stands_for[v] for i, v in enumerate(eqn.invars) if _is_variable(v) and v in self.stands_for
        }
        return elsewhere | (self.operands.get(eqn.outvars[0], {}) if eqn.outvars else {})

    def _enter(self, v: Var, view: _View) -> Var:
        entering = v if v not in self.enters or view.cut >> self.enters[v][0] & 1 else self._add(v, self.enters[v][1])
        return self._stored(v, entering, view)

    def _stored(self, v: Var, value: Var, view: _View) -> Var:
        """The `value` of `v`, with the perturbation of the states that hold it, unless it is hidden."""
        if v not in self.leaves or view.inside & self.leaves[v][0]:
            return value
        return self._add(value, self.leaves[v][1])

    def _emit(self, eqn: JaxprEqn, views: dict[Var, dict[_View, None]], cut: int) -> None:
        swapped = self._swapped(eqn)
        raw: dict[_View, list[Var]] = {}
        for view in self._computed(eqn, views):
            below = _View(view.cut | cut, view.inside)
            invars = [swapped.get(i) or self._read(v, below) for i, v in enumerate(eqn.invars)]
            outvars = [v if isinstance(v, DropVar) else fresh_var(v.aval) for v in eqn.outvars]
            self._eqns.append(eqn.replace(invars=invars, outvars=outvars))
            raw[view] = [
                self._add(out, self.delta_of[v]) if v in self.delta_of else out
                for v, out in zip(eqn.outvars, outvars, strict=True)
            ]
        for i, v in enumerate(eqn.outvars):
            for view in views.get(v, ()):
                self._env[v, view] = self._stored(v, raw[self._below(v, view)][i], view)

    def _read(self, v: Any, view: _View) -> Any:
        return v if isinstance(v, Literal) else self._env[v, self._view(v, view)]

    def _add(self, value: Var, delta: Var) -> Var:
        out = fresh_var(value.aval)
        self._eqns.append(add_equation(value, delta, out))
        return out


def _cut_at(eqn: JaxprEqn, cuts: Mapping[Var, int]) -> int:
    """The groups that are cut at an equation; those that only have an effect, such as a check, have no output."""
    return cuts.get(eqn.outvars[0], 0) if eqn.outvars else 0


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, Literal)


def _by_size(view: _View) -> int:
    return view.cut.bit_count() + view.inside.bit_count()
