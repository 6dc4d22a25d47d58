"""Bytes of what a learner holds."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler import StateKind

from ._fold_types import Window
from ._plan import Plan
from ._step import run_step


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays of a pytree."""
    leaves = [leaf if hasattr(leaf, "shape") else np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def tape_bytes(plan: Plan) -> int:
    """Bytes of what one step leaves on the tape."""

    def struct(var: Any, mapped: bool) -> jax.ShapeDtypeStruct:
        lead = (plan.batch,) if mapped and plan.batch is not None else ()
        return jax.ShapeDtypeStruct((*lead, *var.aval.shape), var.aval.dtype)

    def step(args: Any, states: Any, parameters: Any) -> Window:
        perturbations, weights = plan.zero_perturbations(), plan.weights(parameters)
        tape = plan.carry.observe(plan, run_step(plan, args, states, weights, perturbations))
        signals = plan.carry.signals(plan, plan.signals(perturbations.previous, weights))
        return Window(tape, perturbations.deltas, signals, jnp.ones(()))

    args = [struct(v, True) for v in plan.graph.module_info.arg_invars]
    states = [[struct(v, s.kind is not StateKind.PARAMETER) for v in s.invars] for s in plan.states]
    return tree_bytes(jax.eval_shape(step, args, states, plan.parameter_avals()))
