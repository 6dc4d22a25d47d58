"""HiddenGroupState and HiddenTreeState: several states per position in one array."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, graph
from test_perturbation import Perturbed

from braintrace_compiler import FeedKind
from braintrace_compiler._jaxpr import eval_jaxpr
from braintrace_primitives import matmul


def wide(state, names):
    """A synapse and a membrane in one state, beside an adaptation of its own."""
    first, second = names

    def step(m, x):
        g = 0.8 * m.h.get_value(first) + matmul(x, m.w.value)
        v = 0.9 * m.h.get_value(second) + g - m.a.value
        m.h.set_value({first: g, second: v})
        m.a.value = 0.95 * m.a.value + 0.1 * v
        return m.h.get_value(second)

    return Model(step, {"w": array(I, H)}, {"h": state, "a": array(H, seed=4)})


STATES = {
    "group": (lambda: brainstate.HiddenGroupState(array(H, 2)), (0, 1)),
    "tree": (lambda: brainstate.HiddenTreeState({"g": array(H, seed=2), "v": array(H, seed=3)}), ("g", "v")),
}


@pytest.mark.parametrize("name", STATES)
def test_states_along_the_last_axis_share_positions(name):
    make, names = STATES[name]
    compiled = graph(wide(make(), names))
    (group,) = compiled.hidden_groups
    assert group.hidden_paths == (("h",), ("a",))
    assert (group.num_state, group.varshape, group.widths) == (3, (H,), (2, None))
    (relation,) = compiled.hidden_param_op_relations
    assert relation.feeds[0].kind is FeedKind.SAME


def test_the_local_transition_has_every_state_on_its_own():
    make, names = STATES["group"]
    compiled = graph(wide(make(), names))
    (transition,) = compiled.hidden_perturb.transitions
    assert (transition.remembers, transition.mixes) == (True, False)
    perturbed = Perturbed(wide(make(), names))
    values = perturbed.run(*perturbed.zeros())
    (transition,) = perturbed.perturbation.transitions
    seen = dict(zip(perturbed.step.observed, values[-len(perturbed.step.observed) :], strict=True))
    inputs = [seen.get(v, jnp.zeros(v.aval.shape, v.aval.dtype)) for v in transition.program.invars]
    assert [v.shape for v in inputs[:4]] == [(H,)] * 4
    jacobian = jax.jacobian(lambda h: eval_jaxpr(transition.program, *h, *inputs[3:]))(inputs[:3])
    D = [[float(jacobian[s][r][0, 0]) for r in range(3)] for s in range(3)]
    np.testing.assert_allclose(D, [[0.8, 0, 0], [0.8, 0.9, -1.0], [0.08, 0.09, 0.85]], atol=1e-6)


def test_splitting_values():
    make, names = STATES["group"]
    (group,) = graph(wide(make(), names)).hidden_groups
    wide_value, plain = jnp.arange(4 * H * 2.0).reshape(4, H, 2), jnp.ones((4, H))
    parts = group.split([wide_value, plain])
    assert [p.shape for p in parts] == [(4, H)] * 3
    np.testing.assert_array_equal(parts[1], wide_value[..., 1])


def test_states_that_move_along_the_last_axis_of_a_plain_state_mix():
    """The same program on a plain state of shape (H, 2) is no exchange at equal positions."""

    def step(m, x):
        m.h.value = 0.5 * m.h.value[:, ::-1] + matmul(x, m.w.value)[:, None]
        return m.h.value

    model = Model(step, {"w": array(I, H)}, {"h": brainstate.HiddenGroupState(array(H, 2))})
    assert not graph(model).hidden_perturb.transitions[0].mixes
    with pytest.warns(UserWarning, match="POSITION_MIXING"):
        compiled = graph(Model(step, {"w": array(I, H)}, {"h": array(H, 2)}))
    assert compiled.hidden_perturb.transitions[0].mixes
