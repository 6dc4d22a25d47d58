"""Stage 4: one reverse pass through the perturbed step gives q, b and L."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, gains, gated, info, leaky, recurrent, two_layers

from braintrace_compiler import add_hidden_perturbation_from_minfo
from braintrace_compiler._jaxpr import eval_jaxpr
from braintrace_primitives import matmul

X = jnp.array([0.3, -0.2])


class Perturbed:
    """The perturbed step of a model as a function of its perturbations."""

    def __init__(self, model, x=X, *, strict=True, **options):
        self.minfo = info(model, x, **options)
        self.perturbation = add_hidden_perturbation_from_minfo(self.minfo)
        self.x = x
        self.step = self.perturbation.strict if strict else self.perturbation.full
        states = [s.state.value for s in self.minfo.states]
        leaves = jax.tree.leaves([s.state.value for s in self.minfo.parameters])
        self.weights = eval_jaxpr(self.perturbation.weight_program, *self.minfo.consts, *leaves)
        self.fixed = [*self.minfo.consts, x, *jax.tree.leaves(states)]

    def zeros(self):
        p = self.perturbation
        return [[jnp.zeros(v.aval.shape) for v in vs] for vs in (p.previous_vars, p.perturb_vars, p.operation_vars)]

    def run(self, previous, new, deltas):
        return eval_jaxpr(self.step.jaxpr, *self.fixed, *self.weights, *previous, *new, *deltas)

    def signals(self, loss=lambda out: jnp.sum(jnp.sin(out))):
        """q and L by hidden path, b by weight path."""
        q, L, b = jax.grad(lambda p: loss(self.run(*p)[0]))(self.zeros())
        paths = self.perturbation.perturb_hidden_paths
        operations = self.perturbation.operations
        return (
            dict(zip((p[0] for p in paths), q, strict=True)),
            dict(zip((p[0] for p in paths), L, strict=True)),
            dict(zip((op.weight_path[0] for op in operations), b, strict=True)),
        )


MODELS = [leaky, recurrent, two_layers, gated]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", MODELS)
def test_zero_perturbations_change_nothing(make, strict):
    model = make()
    perturbed = Perturbed(model, strict=strict)
    values = perturbed.run(*perturbed.zeros())
    out = model(X)
    np.testing.assert_allclose(values[0], out, rtol=1e-6)
    for state, value in zip(perturbed.minfo.states, values[1:], strict=False):
        np.testing.assert_allclose(value, state.state.value, rtol=1e-6)


def test_observed_values_are_those_of_the_step():
    model = recurrent()
    perturbed = Perturbed(model)
    values = perturbed.run(*perturbed.zeros())
    seen = dict(zip(perturbed.step.observed, values[-len(perturbed.step.observed) :], strict=True))
    (operation, _) = perturbed.perturbation.operations
    expected = jnp.concatenate([X, jnp.tanh(model.v.value)])
    np.testing.assert_allclose(seen[operation.x_var], expected, rtol=1e-6)
    np.testing.assert_allclose(seen[operation.y_var], expected @ model.w.value, rtol=1e-5)


def recurrent_by_hand(model, local, mixing, y, readout_y, new=(0.0, 0.0)):
    """The step of `recurrent` with h^{t-1} split into what is read by position and what the operation reads."""
    (g0, v0), (dg, dv) = local, new
    g = 0.8 * g0 + jnp.concatenate([X, jnp.tanh(mixing[1])]) @ model.w.value + y
    v = 0.9 * v0 + g
    return jnp.sum(jnp.sin((v + dv) @ model.out.value + readout_y)) + 0.0 * jnp.sum(dg)


def test_q_and_b_of_the_strict_step():
    model = recurrent()
    h = (model.g.value, model.v.value)
    q, _, b = Perturbed(model).signals()
    by_hand = jax.grad(lambda local, y, o: recurrent_by_hand(model, local, h, y, o), (0, 1, 2))
    (qg, qv), by, bo = by_hand(h, jnp.zeros(H), jnp.zeros(2))
    np.testing.assert_allclose(q["g"], qg, rtol=1e-5)
    np.testing.assert_allclose(q["v"], qv, rtol=1e-5)
    np.testing.assert_allclose(b["w"], by, rtol=1e-5)
    np.testing.assert_allclose(b["out"], bo, rtol=1e-5)


def test_q_of_the_full_step_follows_recurrent_mixing():
    model = recurrent()
    h = (model.g.value, model.v.value)
    q, _, _ = Perturbed(model, strict=False).signals()
    full = jax.grad(lambda h: recurrent_by_hand(model, h, h, 0.0, 0.0))(h)
    np.testing.assert_allclose(q["v"], full[1], rtol=1e-5)
    strict, _, _ = Perturbed(model).signals()
    assert np.abs(strict["v"] - q["v"]).max() > 1e-3


def test_the_learning_signal_is_not_seen_inside_the_transition():
    """g is read by v of its own group only: its L is zero although it drives the loss; v's L is the readout's."""
    model = recurrent()
    h = (model.g.value, model.v.value)
    _, L, _ = Perturbed(model).signals()
    by_hand = jax.grad(lambda new: recurrent_by_hand(model, h, h, 0.0, 0.0, new))((jnp.zeros(H), jnp.zeros(H)))
    np.testing.assert_allclose(L["g"], np.zeros(H), atol=1e-7)
    np.testing.assert_allclose(L["v"], by_hand[1], rtol=1e-5)
    assert np.abs(L["v"]).max() > 1e-3


def test_another_group_sees_the_perturbation_of_a_new_state():
    """Layer b reads a^t: L of a comes through b's operation."""
    model = two_layers()
    x, a0, b0 = X, model.a.value, model.b.value

    def by_hand(da):
        a = 0.9 * a0 + jnp.concatenate([x, a0]) @ model.w1.value + da
        return jnp.sum(jnp.sin(0.7 * b0 + jnp.concatenate([a, b0]) @ model.w2.value))

    _, L, _ = Perturbed(model).signals()
    np.testing.assert_allclose(L["a"], jax.grad(by_hand)(jnp.zeros(H)), rtol=1e-5)


def test_a_layer_is_cut_only_on_the_way_to_itself():
    """a^{t-1} enters w1 cut; b's own operation sees a^t with the memory of a in it."""
    model = two_layers()
    a0, b0 = model.a.value, model.b.value

    def by_hand(a_local, b_local):
        a = 0.9 * a_local + jnp.concatenate([X, a0]) @ model.w1.value
        return jnp.sum(jnp.sin(0.7 * b_local + jnp.concatenate([a, b0]) @ model.w2.value))

    q, _, _ = Perturbed(model).signals()
    qa, qb = jax.grad(by_hand, (0, 1))(a0, b0)
    np.testing.assert_allclose(q["a"], qa, rtol=1e-5)
    np.testing.assert_allclose(q["b"], qb, rtol=1e-5)


def test_b_follows_an_operation_through_another():
    """The reset gate's b is the exact same-step derivative."""
    model = gated()
    h = model.h.value

    def by_hand(dr):
        r = jax.nn.sigmoid(jnp.concatenate([X, h]) @ model.wr.value + dr)
        return jnp.sum(jnp.sin(0.5 * h + jnp.concatenate([X, r * h]) @ model.wh.value))

    _, _, b = Perturbed(model).signals()
    np.testing.assert_allclose(b["wr"], jax.grad(by_hand)(jnp.zeros(H)), rtol=1e-5)


def test_a_readout_of_the_past_is_not_cut():
    def step(m, x):
        past = m.v.value
        m.v.value = 0.9 * past + matmul(jnp.concatenate([x, past]), m.w.value)
        return matmul(past, m.out.value)

    model = Model(step, {"w": array(I + H, H), "out": array(H, 2)}, {"v": array(H, seed=1)})
    q, _, _ = Perturbed(model).signals()
    by_hand = jax.grad(lambda past: jnp.sum(jnp.sin(past @ model.out.value)))(model.v.value)
    np.testing.assert_allclose(q["v"], by_hand, rtol=1e-5)


def test_groups_whose_past_is_read_only_by_recurrent_mixing_recall_nothing():
    def step(m, x):
        m.v.value = jnp.tanh(matmul(jnp.concatenate([x, m.v.value]), m.w.value))
        return m.v.value

    perturbed = Perturbed(Model(step, {"w": array(I + H, H)}, {"v": array(H)}))
    assert perturbed.perturbation.strict.recalls == frozenset()
    assert perturbed.perturbation.full.recalls == {0}


def test_weights_are_inputs_of_their_own():
    """The parameter itself has no derivative left: all of it goes by the operand."""
    model = leaky()
    perturbed = Perturbed(model)

    def loss(w):
        fixed = [w if v is model.w.value else v for v in perturbed.fixed]
        zeros = [v for kind in perturbed.zeros() for v in kind]
        values = eval_jaxpr(perturbed.step.jaxpr, *fixed, *perturbed.weights, *zeros)
        return values[0].sum()

    assert np.abs(jax.grad(loss)(model.w.value)).max() == 0.0


def test_element_wise_operations_have_a_delta():
    perturbed = Perturbed(gains(), jnp.ones(H))
    assert [v.aval.shape for v in perturbed.perturbation.operation_vars] == [(H,), (1,)]


def test_an_unchanged_state_has_a_perturbation_of_its_new_value():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value) + m.bias.value
        return m.v.value

    model = Model(step, {"w": array(I, H)}, {"v": array(H), "bias": array(H)})
    perturbed = Perturbed(model)
    previous, new, deltas = perturbed.zeros()
    at = [p[0] for p in perturbed.perturbation.perturb_hidden_paths].index("bias")
    new[at] = new[at] + 1.0
    values = perturbed.run(previous, new, deltas)
    after = {s.path[0]: v for s, v in zip(perturbed.minfo.states, values[1:], strict=False)}
    np.testing.assert_allclose(after["bias"], model.bias.value + 1.0, rtol=1e-6)


def test_states_that_hold_one_value_have_one_signal():
    """It is that of the state whose past is read: two would count the readers of the value twice."""

    def step(m, x):
        m.a.value = m.b.value = 0.9 * m.b.value + matmul(x, m.w.value)
        return matmul(m.a.value, m.out.value)

    params = {"w": array(I, H), "out": array(H, 2)}
    model = Model(step, params, {"a": array(H, seed=1), "b": array(H, seed=2)})
    _, L, _ = Perturbed(model).signals()
    b = 0.9 * model.b.value + X @ model.w.value
    np.testing.assert_allclose(L["b"], jax.grad(lambda b: jnp.sum(jnp.sin(b @ model.out.value)))(b), rtol=1e-5)
    np.testing.assert_array_equal(L["a"], np.zeros(H))


def test_a_state_that_holds_the_old_value_of_another_has_its_signal():
    """Who reads the old value reads the new state; what makes new states of the group does not."""

    def step(m, x):
        old = m.b.value
        m.b.value = 0.9 * old + matmul(x, m.w.value)
        m.a.value = old
        return matmul(m.a.value, m.out.value)

    params = {"w": array(I, H), "out": array(H, 2)}
    model = Model(step, params, {"a": array(H, seed=1), "b": array(H, seed=2)})
    _, L, _ = Perturbed(model).signals()
    expected = jax.grad(lambda a: jnp.sum(jnp.sin(a @ model.out.value)))(model.b.value)
    np.testing.assert_allclose(L["a"], expected, rtol=1e-5)
    np.testing.assert_array_equal(L["b"], np.zeros(H))
