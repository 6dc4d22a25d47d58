"""Structured descent into long loops: a marked operation of the body becomes one operation on all iterations.

A ``scan`` whose body computes ``y_i = A(x_i, w)`` is written as three programs in a row:

    x = loop(h, ...)                      what the operation reads, for all iterations
    y = A(x, w)                           one marked operation with an axis of iterations
    h' = loop(h, y, ...)                  the body, with y_i given instead of computed

The last loop holds no marked operation, so that D and F are its ordinary derivatives, one F for each iteration. The
first holds those whose outputs find their way back to `x`; there `y_i` is computed once more, with the weight and the
perturbation of the operation itself, so that the derivative at its perturbation counts every path, through later
iterations too. Operations that meet in a loop descend together; those that only feed others descend before them.
What does not change from iteration to iteration is computed before the loop.

Cuts, traces and same-step gradients are those of the unrolled program.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace_primitives import get_primitive_spec, repeated
from braintrace_primitives._jax_compat import scan_arity

from ._flow import influence, is_marked, join_bits
from ._jaxpr import (
    Jaxpr,
    JaxprEqn,
    Literal,
    Opening,
    Var,
    add_equation,
    build_jaxpr,
    eval_jaxpr,
    fresh_var,
    needed,
    reads,
    resolve,
    source_line,
)


class LoopedOperation(NamedTuple):
    """What is known of a marked operation that was taken out of a loop.

    Attributes
    ----------
    echo : Var or None
        Zeros of the shape of its output, which a loop adds where it computes the output once more; or no such loop.
    weights : mapping
        Position of an operand -> the variable that stands for it alone, in the operation and in such loops.
    last, results : tuple of Var
        The results of the loop that the operation reaches from the last iteration, and from any.
    """

    echo: Var | None
    weights: Mapping[int, Var]
    last: tuple[Var, ...]
    results: tuple[Var, ...]


class Refusal(Exception):
    """Why a loop cannot be descended into."""


class Descent:
    """One ``scan`` on its way to several.

    Parameters
    ----------
    opening : Opening
        The program under construction.
    eqn : JaxprEqn
    operands : sequence of atoms
    looped : dict
        Output of an operation that was taken out of a loop -> what is known of it. Grows.
    """

    def __init__(self, opening: Opening, eqn: JaxprEqn, operands: Sequence[Any], looped: dict[Var, LoopedOperation]):
        self.opening, self.eqn, self.looped = opening, eqn, looped
        arity = scan_arity(eqn)
        body, constants = opening.open_body(eqn.params["jaxpr"])
        self.body = body
        fixed = len(constants) + arity.num_consts
        self.carry_in, self.x_in = body.invars[fixed : fixed + arity.num_carry], body.invars[fixed + arity.num_carry :]
        self.carry_out, self.y_out = body.outvars[: arity.num_carry], body.outvars[arity.num_carry :]
        self.init = operands[arity.num_consts : arity.num_consts + arity.num_carry]
        self.xs = operands[arity.num_consts + arity.num_carry :]
        self.outer: dict[Var, Any] = dict(
            zip(body.invars[:fixed], [*constants, *operands[: arity.num_consts]], strict=True)
        )
        self.marked: list[JaxprEqn] = [e for e in body.eqns if is_marked(e)]
        self.varying = influence(body.eqns, dict.fromkeys([*self.carry_in, *self.x_in], 1), derivative=False)

    def run(self) -> tuple[list[Any], list[JaxprEqn], list[JaxprEqn]]:
        """Append the loops and operations.

        Returns
        -------
        list
            The results of the ``scan``.
        list of JaxprEqn, list of JaxprEqn
            The operations that are computed once, before the loop, and those that are computed for all iterations.

        Raises
        ------
        Refusal
            Before anything is appended.
        """
        moving = [e for e in self.marked if any(v in self.varying for v in reads(e))]
        for e in moving:
            self._require_constant_weights(e)
        reach = self._closure(moving, derivative=False)
        components = self._components(moving, reach)
        self._require_common_paths(moving, components)
        self._require_silence()

        hoisted = [e for e in self.marked if e not in moving]
        self._hoist(moving)
        given: dict[Var, Any] = {}
        links: list[tuple[JaxprEqn, Var, Var | None, dict[int, Var]]] = []
        for component in components:
            own = [moving[k] for k in component]
            found = self._take_out(own, given)
            links += found
            given |= {e.outvars[0]: y for e, y, _, _ in found}
        results = self._loop(self.carry_out, self.y_out, given)
        self._remember(links, results)
        return results, hoisted, moving

    def _require_constant_weights(self, e: JaxprEqn) -> None:
        x = _input_index(e)
        if any(v in self.varying for i, v in enumerate(e.invars) if i != x and not isinstance(v, Literal)):
            raise Refusal(f"the weight of `{e.primitive.name}` ({source_line(e)}) changes from iteration to iteration")

    def _require_common_paths(self, moving: Sequence[JaxprEqn], components: Iterable[Sequence[int]]) -> None:
        """Operations that descend together must lead to the same states."""
        tied = [component for component in components if len(component) > 1]
        if not tied:
            return
        reach = self._closure(moving, derivative=True)
        for component in tied:
            for k in component:
                bits = join_bits(reach, reads(moving[k])) | 1 << k
                if any(not bits >> other & 1 for other in component):
                    raise Refusal(
                        f"`{moving[k].primitive.name}` ({source_line(moving[k])}) and another operation of the loop "
                        "exchange values, but no derivatives"
                    )

    def _require_silence(self) -> None:
        if any(e.effects and e.outvars for e in self.body.eqns):
            raise Refusal("its body has side effects that give values")

    def _closure(self, moving: Sequence[JaxprEqn], derivative: bool) -> dict[Var, int]:
        """Which operations reach each variable of the body, from this iteration or an earlier one."""
        seeds = self._seeds(moving)
        while True:
            found = influence(self.body.eqns, seeds, derivative=derivative)
            grown = dict(seeds)
            for before, after in zip(self.carry_in, self.carry_out, strict=True):
                bits = grown.get(before, 0) | join_bits(found, [after])
                if bits:
                    grown[before] = bits
            if grown == seeds:
                return found
            seeds = grown

    def _seeds(self, moving: Sequence[JaxprEqn]) -> dict[Var, int]:
        """A bit for the output of each operation, and for what stands for it in a loop inside this one."""
        seeds = {}
        for k, e in enumerate(moving):
            known = self.looped.get(e.outvars[0])
            seeds |= {v: 1 << k for v in (e.outvars[0], known and known.echo) if v is not None}
        return seeds

    def _components(self, moving: Sequence[JaxprEqn], reach: Mapping[Var, int]) -> list[list[int]]:
        """Operations that reach each other, together; those that reach others first."""
        behind: dict[int, list[int]] = {}
        for k, e in enumerate(moving):
            behind.setdefault(join_bits(reach, reads(e)) | 1 << k, []).append(k)
        return [behind[bits] for bits in sorted(behind, key=int.bit_count)]

    def _hoist(self, moving: Sequence[JaxprEqn]) -> None:
        """Compute before the loop what is marked or a weight, and the same in every iteration."""
        fixed = [e for e in self.body.eqns if not e.effects and not any(v in self.varying for v in reads(e))]
        wanted = [v for e in self.marked if e not in moving for v in e.outvars]
        wanted += [v for e in moving for v in reads(e) if v not in self.varying]
        hoisted = needed(fixed, wanted, self.outer)
        self.opening.emit(hoisted, self.outer)
        gone = set(map(id, hoisted))
        self.body = build_jaxpr(
            self.body.invars, self.body.outvars, [e for e in self.body.eqns if id(e) not in gone], like=self.body
        )
        for e in hoisted:
            known = self.looped.pop(e.outvars[0], None)
            if known is not None:
                self.looped[self.outer[e.outvars[0]]] = LoopedOperation(
                    resolve(self.outer, known.echo) if known.echo is not None else None,
                    {i: resolve(self.outer, v) for i, v in known.weights.items()},
                    tuple(resolve(self.outer, v) for v in known.last),
                    tuple(resolve(self.outer, v) for v in known.results),
                )

    def _take_out(
        self, own: Sequence[JaxprEqn], given: Mapping[Var, Any]
    ) -> list[tuple[JaxprEqn, Var, Var | None, dict[int, Var]]]:
        """Append the operations of one component, and the loop that gives their inputs."""
        inputs = [e.invars[_input_index(e)] for e in own]
        body, _ = self._part(None, inputs, given)
        inside = {v for e in body.eqns for v in (*reads(e), *e.outvars)}
        again = [e for e in own if any(v in inside for v in self._seeds([e]))]
        echoes: dict[Var, Var] = {}
        weights: dict[Var, dict[int, Var]] = {}
        for e in again:
            aval, length = e.outvars[0].aval, self.eqn.params["length"]
            shape, dtype = (length, *aval.shape), aval.dtype
            (echoes[e.outvars[0]],) = self.opening.apply(lambda s=shape, d=dtype: jnp.zeros(s, d))
            x = _input_index(e)
            weights[e.outvars[0]] = {
                i: self.opening.apply(jnp.copy, self.outer[v])[0]
                for i, v in enumerate(e.invars)
                if i != x and not isinstance(v, Literal)
            }
        stacked = self._loop(None, inputs, given, again, echoes, weights)
        found = []
        for e, x in zip(own, stacked, strict=True):
            alone = weights.get(e.outvars[0], {})
            operands = [resolve(self.outer, v) for v in e.invars]
            for i, v in alone.items():
                operands[i] = v
            operands[_input_index(e)] = x
            (y,) = self.opening.apply(lambda *v, e=e: repeated(e.primitive)(*v, **e.params), *operands, source=e)
            self.opening.keep_alive(y)
            found.append((e, y, echoes.get(e.outvars[0]), alone))
        return found

    def _remember(
        self, links: Sequence[tuple[JaxprEqn, Var, Var | None, dict[int, Var]]], results: Sequence[Any]
    ) -> None:
        moving = [e for e, _, _, _ in links]
        anyhow = self._closure(moving, derivative=True)
        at_last = influence(self.body.eqns, self._seeds(moving))

        def reached(found: Mapping[Var, int], k: int) -> tuple[Var, ...]:
            inner = [*self.carry_out, *self.y_out]
            found_at = [join_bits(found, [v]) >> k & 1 for v in inner]
            return tuple(v for v, bit in zip(results, found_at, strict=True) if bit and not isinstance(v, Literal))

        for k, (e, y, echo, weights) in enumerate(links):
            self.looped.pop(e.outvars[0], None)
            self.looped[y] = LoopedOperation(echo, weights, reached(at_last, k), reached(anyhow, k))

    def _part(
        self, carried: Sequence[Any] | None, stacked: Sequence[Any], given: Mapping[Var, Any]
    ) -> tuple[Jaxpr, list[int]]:
        """The equations that some results of the body need, and the numbers of the carries among what they read."""
        eqns = [e for e in self.body.eqns if not e.effects or carried is not None]  # effects once, in the last loop
        carries: set[int] = set(range(len(carried or ())))
        while True:
            targets = [*stacked, *(self.carry_out[i] for i in sorted(carries))]
            kept = needed(eqns, targets, given)
            used = {v for e in kept for v in reads(e)} | {v for v in targets if not isinstance(v, Literal)}
            more = {i for i, v in enumerate(self.carry_in) if v in used} | carries
            if more == carries:
                return build_jaxpr((), targets, kept, like=self.body), sorted(carries)
            carries = more

    def _loop(
        self,
        carried: Sequence[Any] | None,
        stacked: Sequence[Any],
        given: Mapping[Var, Any],
        again: Sequence[JaxprEqn] = (),
        echoes: Mapping[Var, Var] | None = None,
        weights: Mapping[Var, Mapping[int, Var]] | None = None,
    ) -> list[Any]:
        """Append a loop that gives final `carried` and `stacked` results of the body.

        Parameters
        ----------
        given : mapping
            Outputs of operations -> their values in all iterations.
        again : sequence of JaxprEqn
            Operations to compute in the loop, with weights of their own and with their echoes added.
        """
        part, carries = self._part(carried, stacked, given)
        eqns, xs, consts = list(part.eqns), {**dict(zip(self.x_in, self.xs, strict=True)), **given}, dict(self.outer)
        for e in again:
            eqns = self._perturbed(eqns, e, (echoes or {})[e.outvars[0]], (weights or {})[e.outvars[0]], xs, consts)

        used = dict.fromkeys(v for e in eqns for v in reads(e))
        used |= dict.fromkeys(v for v in part.outvars if not isinstance(v, Literal))
        consts = {v: atom for v, atom in consts.items() if v in used}
        xs = {v: atom for v, atom in xs.items() if v in used}
        inner = [*consts, *(self.carry_in[i] for i in carries), *xs]
        program = build_jaxpr(inner, part.outvars, eqns, like=self.body)
        num_consts, num_carry, num_ys = len(consts), len(carries), len(stacked)
        length, reverse, unroll = (self.eqn.params[name] for name in ("length", "reverse", "unroll"))

        def run(*values: Any) -> Any:
            fixed = values[:num_consts]

            def step(carry: Any, x: Any) -> Any:
                out = eval_jaxpr(program, *fixed, *carry, *x)
                return tuple(out[num_ys:]), tuple(out[:num_ys])

            init, scanned = values[num_consts : num_consts + num_carry], values[num_consts + num_carry :]
            carry, ys = jax.lax.scan(step, tuple(init), tuple(scanned), length, reverse=reverse, unroll=unroll)
            return [*carry[: len(carried or ())], *ys]

        operands = [*consts.values(), *(self.init[i] for i in carries), *xs.values()]
        return self.opening.apply(run, *operands, source=self.eqn)

    def _perturbed(
        self,
        eqns: Sequence[JaxprEqn],
        e: JaxprEqn,
        echo: Var,
        weights: Mapping[int, Var],
        xs: dict[Var, Any],
        consts: dict[Var, Any],
    ) -> list[JaxprEqn]:
        """`eqns` with operation `e` on weights of its own, its echo added; what they are enters `xs` and `consts`."""
        y = e.outvars[0]
        alone = {i: fresh_var(v.aval) for i, v in weights.items()}
        consts |= {alone[i]: v for i, v in weights.items()}
        delta, raw = fresh_var(y.aval), fresh_var(y.aval)
        xs[delta] = echo
        known = self.looped.get(y)
        inside: dict[Var, Any] = {} if known is None else {v: alone[i] for i, v in known.weights.items()}
        if known is not None and known.echo is not None:
            inside[known.echo] = delta
        rewritten = []
        for eqn in eqns:
            if y in eqn.outvars:
                invars = [alone.get(i, v) for i, v in enumerate(eqn.invars)]
                rewritten += [eqn.replace(invars=invars, outvars=[raw]), add_equation(raw, delta, y)]
            else:
                rewritten.append(eqn.replace(invars=[resolve(inside, v) for v in eqn.invars]) if inside else eqn)
        return rewritten


def _input_index(e: JaxprEqn) -> int:
    """Position of the input among the operands; what has none is the same in every iteration."""
    index = get_primitive_spec(e.primitive).x_invar_index
    return -1 if index is None else index
