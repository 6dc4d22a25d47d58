"""Steps that learn from the traces they make, e^t, so that e^{t-1} waits for no signal."""

from typing import Any, NamedTuple

import jax

from braintrace_algos._led_rule import factored_places
from braintrace_algos._plan import Plan
from braintrace_compiler import Omission
from braintrace_compiler._following import find_following
from braintrace_compiler._perturbation import goes_around


class Meeting(NamedTuple):
    """How the traces of a step meet its own signals.

    Attributes
    ----------
    plan : Plan
        By which all that drives a group learns from L^t e^t alone. What the carry of this plan has more than that of
        the plan it stands for is of the latest step.
    driving : dict
        Operations that drive traced groups, by ordinal, and these groups as bits.
    wider : bool
        Whether there is more.
    """

    plan: Plan
    driving: dict[int, int]
    wider: bool = False

    @classmethod
    def at_new_states(cls, plan: Plan) -> "Meeting":
        """For a plan whose signals are at new states anyhow."""
        assert plan.signal == "state"
        return cls(plan, _driving(plan))

    @classmethod
    def instead(cls, plan: Plan) -> "Meeting | None":
        """For a plan whose signals are at previous states, and whose D and F are those of the step.

        None where a step has to learn from e^{t-1}, or nothing is gained.
        """
        if plan.memories:
            return None
        beyond_the_step = {Omission.DOWNSTREAM_MEMORY}
        if plan.step is plan.graph.hidden_perturb.strict:
            beyond_the_step.add(Omission.RECURRENT_MIXING)
        met = _with_followers(plan)
        driving, certificates = _driving(met), met.certificates()
        if any(set(certificates[k].omissions) - beyond_the_step for k in driving):
            return None  # D or F is not all of the step's derivative
        for c in met.traced_couplings:
            followed = met.followed.get(c.group)
            apart = len(factored_places(c.rule)) + (len(followed.followers) if followed else 0)
            if met.num_states(c.group) - apart > 1:
                return None  # XLA does not advance a trace of several states in place: nothing is gained
        states = {g: [met.transitions[g].group.path_of_each_state[s] for s in met.live[g]] for g in met.traced}
        return (
            None
            if goes_around(met.graph.hidden_perturb, met.step, states, driving)
            else cls(met, driving, met is not plan)
        )

    def widened(self, carry: Any) -> Any:
        """A carry, with zeros for what that of the plan has more."""
        if not self.wider:
            return carry
        return {
            key: {**zeros, **carry.get(key, {})} if isinstance(zeros, dict) else carry.get(key, zeros)
            for key, zeros in self.plan.carry.begin(self.plan).items()
        }

    def narrowed(self, wide: Any, like: Any) -> Any:
        """What there is of another carry in one of the plan."""
        if not self.wider:
            return wide
        return {
            key: {name: wide[key][name] for name in trace} if isinstance(trace, dict) else wide[key]
            for key, trace in like.items()
        }


def _driving(plan: Plan) -> dict[int, int]:
    driving: dict[int, int] = {}
    for c in plan.traced_couplings:
        driving[c.operation] = driving.get(c.operation, 0) | 1 << c.group
    return driving


def _with_followers(plan: Plan) -> Plan:
    """The plan with the states of traced groups that follow from those with a trace, if there are such.

    Those whose past is read have a signal there, and so a trace, anyhow.
    """
    live = dict(plan.live)
    for index in set(plan.traced) - set(plan.followed):
        states = tuple(range(plan.transitions[index].group.num_state))
        following = find_following(plan.transitions[index], states)
        if following is not None and following.forgotten and set(following.leaders) <= set(live[index]):
            live[index] = states
    if live == plan.live:
        return plan
    assert plan.given is not None  # a carry prepares what it was given
    met = plan.carry.prepare(plan.given._replace(live=live))
    kept, wide = (jax.eval_shape(lambda of=of: of.carry.init(of)) for of in (plan, met))

    def is_part(trace: Any, of: Any) -> bool:
        return all(of.get(name) == v for name, v in trace.items()) if isinstance(trace, dict) else trace == of

    return met if all(key in wide and is_part(trace, wide[key]) for key, trace in kept.items()) else plan
