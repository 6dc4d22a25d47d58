"""Learners of single-sample models, mapped over a batch."""

import copy
from typing import Any

from ._compile import copy_states, refuse_shared_states
from ._errors import LearnerError
from ._learner import ETraceState, OnlineLearner


class _MappedLearners(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, OnlineLearner) and instance.plan.batch is not None


class ETraceVmap(metaclass=_MappedLearners):
    """Mapped learners: those of ``compile(..., vmap=True)``, and single-sample learners mapped afterwards.

    ``ETraceVmap(learner, batch_size)`` gives each copy of the model its own states and traces; the parameters are
    shared. Inputs then carry the batch as their first axis. ``isinstance(learner, ETraceVmap)`` tells whether a
    learner is mapped.

    Parameters
    ----------
    learner : OnlineLearner
        Compiled without a batch. Use the mapped one from then on: the model's states get the batch axis.
    batch_size : int

    Raises
    ------
    LearnerError
        If the learner has a batch already.
    NotSupportedError
        If the model draws from the global random state.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintrace_algos import compile
    >>> from braintrace_primitives import matmul
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = brainstate.ParamState(jnp.ones((2, 3)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
    ...         return self.h.value
    >>> learner = ETraceVmap(compile(Leaky(), "d_rtrl", jnp.zeros(2)), 5)
    >>> learner(jnp.ones((5, 2))).shape, isinstance(learner, ETraceVmap)
    ((5, 3), True)
    """

    def __new__(cls, learner: OnlineLearner, batch_size: int) -> Any:
        if learner.batch_size is not None:
            raise LearnerError(
                "The learner has a batch already.",
                where="ETraceVmap(learner, batch_size)",
                found=f"batch_size={learner.batch_size}",
                expected="a learner compiled for a single sample",
            )
        refuse_shared_states(learner.graph)
        learner.reset_state()
        copy_states(learner.graph, batch_size)
        mapped = copy.copy(learner)
        mapped.batch_size = batch_size
        mapped.plan = learner.plan._replace(batch=batch_size)
        mapped._initial = [(state, state.value) for state, _ in learner._initial]
        mapped._drivers = type(learner._drivers)()
        mapped.etraces = ETraceState(mapped._zero_traces())
        mapped.running_index = copy.copy(learner.running_index)
        return mapped
