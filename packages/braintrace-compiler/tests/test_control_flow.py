"""Marked operations inside branches and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, graph, kinds
from test_perturbation import Perturbed

from braintrace_compiler import CompilationError, CompilationWarning, ControlFlowPolicy, NotSupportedError
from braintrace_primitives import matmul


def model(step, **states):
    return Model(step, {"w": array(I, H), "u": array(I, H, seed=7)}, states or {"v": array(H, seed=1)})


def branching(pick):
    def step(m, x):
        m.v.value = 0.9 * m.v.value + pick(m, x)
        return m.v.value

    return model(step)


BRANCHES = {
    "cond": lambda m, x: jax.lax.cond(x[0] > 0, lambda: matmul(x, m.w.value), lambda: matmul(x, m.u.value)),
    "one side": lambda m, x: jax.lax.cond(x[0] > 0, lambda x: matmul(x, m.w.value), lambda x: jnp.ones(H), x),
    "switch": lambda m, x: jax.lax.switch(
        x.astype(int)[1], [lambda: matmul(x, m.w.value), lambda: matmul(2 * x, m.u.value), lambda: jnp.ones(H)]
    ),
    "nested": lambda m, x: jax.lax.cond(
        x[0] > 0,
        lambda: jax.lax.cond(x[1] > 0, lambda: matmul(x, m.w.value), lambda: jnp.zeros(H)),
        lambda: jax.jit(matmul)(x, m.u.value),
    ),
}


@pytest.mark.parametrize("x", [(0.3, -0.2), (-0.4, 1.5), (0.1, 2.5), (0.2, 7.0)])
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_become_a_choice(name, x):
    m = branching(BRANCHES[name])
    perturbed = Perturbed(m, jnp.array(x))
    values = perturbed.run(*perturbed.zeros())
    np.testing.assert_allclose(values[0], m(jnp.array(x)), rtol=1e-6)


def test_operations_of_all_branches_are_related():
    compiled = graph(branching(BRANCHES["switch"]))
    assert [r.weight_path for r in compiled.hidden_param_op_relations] == [("w",), ("u",)]
    assert kinds(compiled).count("COND_IF_CONVERTED") == 1


def test_b_of_a_branch_that_is_not_taken_is_zero():
    _, _, b = Perturbed(branching(BRANCHES["cond"]), jnp.array([0.3, -0.2])).signals()
    assert np.abs(b["w"]).min() > 0
    assert np.abs(b["u"]).max() == 0


def looping(length=3, reverse=False):
    """The state is carried through a loop that feeds it in each iteration, and the loop gives a sum of its own."""

    def step(m, x):
        def body(v, k):
            v = 0.9 * v + k * matmul(x, m.w.value)
            return v, v.sum()

        m.v.value, sums = jax.lax.scan(body, m.v.value, jnp.arange(1.0, length + 1), reverse=reverse)
        return sums

    return model(step)


@pytest.mark.parametrize("reverse", [False, True])
def test_short_loops_are_unrolled(reverse):
    m, x = looping(reverse=reverse), jnp.array([0.3, -0.2])
    perturbed = Perturbed(m, x)
    values = perturbed.run(*perturbed.zeros())
    np.testing.assert_allclose(values[0], m(x), rtol=1e-6)
    compiled = graph(m)
    assert kinds(compiled).count("SCAN_UNROLLED") == 1
    assert {r.weight_path for r in compiled.hidden_param_op_relations} == {("w",)}


def test_fori_loops_and_loops_in_loops():
    def step(m, x):
        def inner(k, v):
            return 0.9 * v + matmul(x, m.w.value)

        def outer(v, _):
            return jax.lax.fori_loop(0, 2, inner, v), None

        m.v.value, _ = jax.lax.scan(outer, m.v.value, None, length=2)
        return m.v.value

    m, x = model(step), jnp.array([0.3, -0.2])
    compiled = graph(m, x)
    assert len(compiled.hidden_perturb.operations) == 4
    perturbed = Perturbed(m, x)
    np.testing.assert_allclose(perturbed.run(*perturbed.zeros())[0], m(x), rtol=1e-6)


def test_a_loop_without_iterations():
    m = looping(0)
    perturbed = Perturbed(m)
    assert perturbed.run(*perturbed.zeros())[0].shape == (0,)


def test_long_loops_are_refused_with_the_option_that_opens_them():
    m, closed = looping(40), ControlFlowPolicy(long_scan="close")
    wanted = r"(?s)test_control_flow\.py.*40 iterations.*unroll_limit=40.*long_scan=\"descend\""
    with pytest.raises(NotSupportedError, match=wanted):
        graph(m, control_flow=closed)
    assert len(graph(m, control_flow=ControlFlowPolicy(unroll_limit=40)).hidden_perturb.operations) == 40


def test_long_loops_may_be_left_to_the_same_step():
    with (
        pytest.warns(CompilationWarning, match=r"WEIGHT_IN_CONTROL_FLOW.*test_control_flow\.py"),
        pytest.warns(CompilationWarning, match="PLAIN_PARAMETER_TEMPORAL"),
    ):
        compiled = graph(looping(40), control_flow=ControlFlowPolicy(long_scan="close", closed="exclude"))
    assert compiled.hidden_param_op_relations == ()


def test_branches_may_be_refused():
    with pytest.raises(NotSupportedError, match=r'(?s)cond.*cond="select"'):
        graph(branching(BRANCHES["cond"]), control_flow=ControlFlowPolicy(cond="error"))


@pytest.mark.parametrize(
    "options",
    [{"cond": "both"}, {"closed": "open"}, {"long_scan": "leave"}, {"unroll_limit": -1}, {"unroll_limit": 2.0}],
)
def test_a_policy_checks_its_choices(options):
    with pytest.raises(CompilationError, match="expected"):
        ControlFlowPolicy(**options)


def test_states_may_change_in_loops_without_marked_operations():
    """A loop that keeps positions is followed; its transition has the exact derivative."""

    def step(m, x):
        y = matmul(x, m.w.value)
        m.v.value = jax.lax.fori_loop(0, 50, lambda k, v: 0.9 * v + 0.1 * jnp.tanh(y), m.v.value)
        return m.v.value

    compiled = graph(model(step))
    (transition,) = compiled.hidden_perturb.transitions
    assert (transition.remembers, transition.mixes) == (True, False)
    assert compiled.hidden_param_op_relations[0].feeds[0].kind.value == "same"
    assert all(c.exact for c in compiled.certificates())


def counted(between=lambda v: v):
    """A ``while`` loop over the state with a counter, constants and a drive."""

    def step(m, x):
        y = matmul(x, m.w.value)

        def body(carry):
            k, v = carry
            return k + 1, between(0.9 * v * jnp.cos(y)) + 0.1 * y

        m.v.value = jax.lax.while_loop(lambda c: c[0] < 3 + (x[0] > 0), body, (0, m.v.value))[1]
        return m.v.value

    return model(step)


def test_while_loops_that_keep_positions_have_a_reverse_derivative():
    m, x = counted(), jnp.array([0.3, -0.2])
    compiled = graph(m, x)
    assert not compiled.hidden_perturb.transitions[0].mixes
    assert all(c.exact for c in compiled.certificates())

    def by_hand(v, dy):
        y = x @ m.w.value + dy
        for _ in range(4):
            v = 0.9 * v * jnp.cos(y) + 0.1 * y
        return jnp.sum(jnp.sin(v))

    q, _, b = Perturbed(m, x).signals()
    qv, by = jax.grad(by_hand, (0, 1))(m.v.value, jnp.zeros(H))
    np.testing.assert_allclose(q["v"], qv, rtol=1e-5)
    np.testing.assert_allclose(b["w"], by, rtol=1e-5)


def test_while_loops_that_mix_are_refused_on_the_way_of_a_gradient():
    with pytest.raises(NotSupportedError, match=r"(?s)`while` loop mixes positions.*test_control_flow\.py"):
        graph(counted(lambda v: jnp.roll(v, 1)))


def in_a_loop(advance):
    return lambda v: jax.lax.fori_loop(0, 2, lambda k, v: advance(v), v)


def in_a_branch(advance):
    return lambda v: jax.lax.cond(v.sum() > 0, advance, lambda v: 0.5 * v, v)


def until_large(between):
    return lambda v: 0.3 * jax.lax.while_loop(lambda v: jnp.abs(v).max() < 2, lambda v: 1.3 * between(v) + 0.1, v)


@pytest.mark.parametrize("around", [in_a_loop, in_a_branch, lambda advance: in_a_loop(in_a_branch(advance))])
def test_while_loops_inside_others(around):
    """Opened where they keep positions, refused where they mix them."""

    def step(between):
        def run(m, x):
            m.v.value = around(until_large(between))(m.v.value) + matmul(x, m.w.value)
            return m.v.value

        return model(run)

    m, x = step(lambda v: v), jnp.array([0.3, -0.2])
    assert not graph(m, x).hidden_perturb.transitions[0].mixes
    perturbed = Perturbed(m, x)
    np.testing.assert_allclose(perturbed.run(*perturbed.zeros())[0], m(x), rtol=1e-6)
    with pytest.raises(NotSupportedError, match=r"(?s)`while` loop mixes positions.*test_control_flow\.py"):
        graph(step(lambda v: jnp.roll(v, 1)))


def test_marked_operations_in_while_loops_are_refused():
    def step(m, x):
        m.v.value = jax.lax.while_loop(lambda v: v.sum() < 3, lambda v: v + matmul(x, m.w.value), m.v.value)
        return m.v.value

    with pytest.raises(NotSupportedError, match=r"(?s)inside `while`.*test_control_flow\.py.*closed=\"exclude\""):
        graph(model(step))


def test_while_loops_over_data_alone_are_left_alone():
    def step(m, x):
        x = jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: jnp.roll(x, 1) + 1, x)
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value)
        return m.v.value

    names = [eqn.primitive.name for eqn in graph(model(step)).module_info.jaxpr.eqns]
    assert "while" in names


def test_iterations_of_a_loop_are_uses_of_one_relation():
    compiled = graph(looping())
    (relation,) = compiled.hidden_param_op_relations
    assert len(relation.uses) == len(compiled.hidden_perturb.operations) == 3
    assert kinds(compiled).count("RELATION_INCLUDED") == 1
    (row,) = compiled.report().operations
    assert (row["uses"], row["trace_bytes"], row["kept_as"]) == (3, 4 * I, "filtered inputs")
    assert "etp_mv, 3 uses" in str(compiled.report())


SECOND_USE = {
    "as the first": (lambda m, x: matmul(2 * x, m.w.value), True),
    "another function of it": (lambda m, x: matmul(2 * x, m.w.value * 1.5), False),
    "other positions": (lambda m, x: jnp.roll(matmul(2 * x, m.w.value), 1), False),
    "other weight": (lambda m, x: matmul(2 * x, m.u.value), False),
    "with a bias": (lambda m, x: matmul(2 * x, m.w.value, jnp.ones(H)), False),
}


@pytest.mark.parametrize("name", SECOND_USE)
def test_uses_share_a_trace_where_it_has_the_same_layout(name):
    second, shared = SECOND_USE[name]

    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value) + second(m, x)
        return m.v.value

    relations = graph(model(step)).hidden_param_op_relations
    assert (len(relations[0].uses) == 2) == shared


def test_weights_computed_in_each_iteration_are_one():
    def step(m, x):
        def body(k, v):
            return 0.9 * v + matmul((k + 1) * x, jnp.where(jnp.arange(H) > 0, jnp.tanh(m.w.value), 0.0))

        m.v.value = jax.lax.fori_loop(0, 3, body, m.v.value)
        return m.v.value

    (relation,) = graph(model(step)).hidden_param_op_relations
    assert len(relation.uses) == 3
