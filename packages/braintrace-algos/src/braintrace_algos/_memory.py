"""Where a learner's memory goes."""

from typing import NamedTuple

import brainstate

from braintrace_compiler import StateKind, Table
from braintrace_compiler._tables import readable_bytes

from ._checks import check_steps
from ._sizes import tape_bytes, tree_bytes
from ._train import Training


class MemoryReport(NamedTuple):
    """Bytes by purpose; prints as text, and as a table in a notebook.

    Attributes
    ----------
    parameters, hidden, others : dict
        Name of a state -> bytes.
    traces : dict
        Key of a trace -> bytes.
    optimizer : int
        Bytes of the optimiser's state; 0 before the first training.
    tape_per_step : int
        Bytes that one time step leaves until its window is folded.
    fold : int
        Steps folded at once, one multi-step window or several.
    reason : str
        Why so many.
    """

    parameters: dict[str, int]
    hidden: dict[str, int]
    others: dict[str, int]
    traces: dict[str, int]
    optimizer: int
    tape_per_step: int
    fold: int
    reason: str

    @property
    def tape(self) -> int:
        """Bytes of the tape of so many steps."""
        return self.fold * self.tape_per_step

    @property
    def total(self) -> int:
        """All of it, gradients and the temporaries of a step excepted."""
        groups = (self.parameters, self.hidden, self.others, self.traces)
        return sum(sum(group.values()) for group in groups) + self.optimizer + self.tape

    @property
    def table(self) -> Table:
        """The table to show."""
        groups = {"parameter": self.parameters, "hidden state": self.hidden, "other state": self.others}
        rows = [(what, name, size) for what, group in groups.items() for name, size in group.items()]
        rows += [("trace", key, size) for key, size in self.traces.items()]
        rows += [("optimiser", "", self.optimizer)] if self.optimizer else []
        rows += [("tape", f"{self.fold} steps: {self.reason}", self.tape), ("total", "", self.total)]
        return Table(("purpose", "name", "memory"), [(*cells, readable_bytes(size)) for *cells, size in rows])

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


class MemoryUse(Training):
    """The method of a learner that says what it stores."""

    etraces: brainstate.State

    def memory_report(self, steps: int = 256) -> MemoryReport:
        """What `etrace_grad` holds in memory for a sequence, by purpose.

        Sizes follow from shapes; nothing is run. In multi-step windows the intermediate values that reverse mode keeps
        come on top.

        Parameters
        ----------
        steps : int
            Length T of the sequence.

        Returns
        -------
        MemoryReport

        Examples
        --------
        >>> import brainstate, jax.numpy as jnp
        >>> from braintrace_algos import compile
        >>> from braintrace_primitives import matmul
        >>> class Leaky(brainstate.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = brainstate.ParamState(jnp.ones((20, 30)))
        ...     def init_state(self, batch_size=None):
        ...         self.h = brainstate.HiddenState(jnp.zeros(30))
        ...     def update(self, x):
        ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
        ...         return self.h.value
        >>> learner = compile(Leaky(), "d_rtrl", jnp.zeros(20), fold=8)
        >>> learner.memory_report().fold
        8
        """
        check_steps("steps", steps)
        sizes: dict[StateKind, dict[str, int]] = {kind: {} for kind in StateKind}
        for info in self.plan.states:
            sizes[info.kind][".".join(map(str, info.path))] = tree_bytes(info.state.value)
        hidden = sizes.pop(StateKind.HIDDEN)
        parameters = sizes.pop(StateKind.PARAMETER)
        others = {name: size for group in sizes.values() for name, size in group.items()}
        traces = self.etraces.value
        named = traces if isinstance(traces, dict) else {"carry": traces}
        length = self._fold_length(None, steps)
        return MemoryReport(
            parameters,
            hidden,
            others,
            {key: tree_bytes(trace) for key, trace in named.items()},
            tree_bytes([state.value for state in self.optimizer_states]),
            tape_bytes(self.plan),
            length.steps,
            length.reason,
        )
