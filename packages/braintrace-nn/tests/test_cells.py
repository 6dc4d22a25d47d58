"""Every rate cell against an independent NumPy transcription of its equation, and what all cells share."""

import copy

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn
from braintrace_primitives import is_etp_primitive

IN, OUT, UNITS = 4, 3, 5  # features, units of a cell, complex units of the LRU


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def affine(params, gate, *parts):
    p = params[f"{gate}.weight"]
    return np.concatenate(parts, axis=-1) @ p["weight"] + p.get("bias", 0)


def vanilla(p, x, s):
    h = np.maximum(affine(p, "W", x, s["h"]), 0)
    return h, {"h": h}


def gru(p, x, s):
    z, r = sigmoid(affine(p, "Wz", x, s["h"])), sigmoid(affine(p, "Wr", x, s["h"]))
    h = (1 - z) * s["h"] + z * np.tanh(affine(p, "Wh", x, r * s["h"]))
    return h, {"h": h}


def cfn(p, x, s):
    f, i = sigmoid(affine(p, "Wf", x, s["h"])), sigmoid(affine(p, "Wi", x, s["h"]))
    h = f * np.tanh(s["h"]) + i * np.tanh(affine(p, "Wh", x))
    return h, {"h": h}


def mgu(p, x, s):
    f = sigmoid(affine(p, "Wf", x, s["h"]))
    h = (1 - f) * s["h"] + f * np.tanh(affine(p, "Wh", x, f * s["h"]))
    return h, {"h": h}


def lstm(p, x, s):
    i, g, f, o = (affine(p, gate, x, s["h"]) for gate in ("Wi", "Wg", "Wf", "Wo"))
    c = sigmoid(f + 1) * s["c"] + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, {"c": c, "h": h}


def urlstm(p, x, s):
    f, r = sigmoid(affine(p, "Wf", x, s["h"]) + p["bias"]), sigmoid(affine(p, "Wr", x, s["h"]) - p["bias"])
    g = r * (1 - (1 - f) ** 2) + (1 - r) * f**2
    c = g * s["c"] + (1 - g) * np.tanh(affine(p, "Wu", x, s["h"]))
    h = sigmoid(affine(p, "Wo", x, s["h"])) * np.tanh(c)
    return h, {"c": c, "h": h}


def minimal_rnn(p, x, s):
    z = affine(p, "phi", x)
    f = sigmoid(affine(p, "W_u", z, s["h"]))
    h = f * s["h"] + (1 - f) * z
    return h, {"h": h}


def mini_gru(p, x, s):
    z = sigmoid(affine(p, "W_z", x, s["h"]))
    h = s["h"] + z * (affine(p, "W_x", x) - s["h"])
    return h, {"h": h}


def mini_lstm(p, x, s):
    f, i = sigmoid(affine(p, "W_f", x, s["h"])), sigmoid(affine(p, "W_i", x, s["h"]))
    h = f * s["h"] + i * affine(p, "W_x", x)
    return h, {"h": h}


def lru(p, x, s):
    lam = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    b = p["B_re.weight"]["weight"] + 1j * p["B_im.weight"]["weight"]
    c = p["C_re.weight"]["weight"] + 1j * p["C_im.weight"]["weight"]
    h = lam * (s["h_re"] + 1j * s["h_im"]) + np.exp(p["gamma_log"]) * (x @ b)
    return (h @ c).real + p["D"] * x, {"h_re": h.real, "h_im": h.imag}


GATE = {"weight": (IN + OUT, OUT), "bias": (OUT,)}
INPUT = {"weight": (IN, OUT), "bias": (OUT,)}
UNBIASED = {"weight": (IN + OUT, OUT)}
CELLS = {
    "vanilla": (nn.ValinaRNNCell, vanilla, {"W.weight": GATE}),
    "gru": (nn.GRUCell, gru, {"Wz.weight": GATE, "Wr.weight": GATE, "Wh.weight": GATE}),
    "cfn": (nn.CFNCell, cfn, {"Wf.weight": GATE, "Wi.weight": GATE, "Wh.weight": INPUT}),
    "mgu": (nn.MGUCell, mgu, {"Wf.weight": GATE, "Wh.weight": GATE}),
    "lstm": (nn.LSTMCell, lstm, {f"W{k}.weight": GATE for k in "igfo"}),
    "urlstm": (nn.URLSTMCell, urlstm, {f"W{k}.weight": UNBIASED for k in "ufro"} | {"bias": (OUT,)}),
    "minimal_rnn": (
        nn.MinimalRNNCell,
        minimal_rnn,
        {"phi.weight": INPUT, "W_u.weight": {"weight": (2 * OUT, OUT), "bias": (OUT,)}},
    ),
    "mini_gru": (nn.MiniGRU, mini_gru, {"W_x.weight": INPUT, "W_z.weight": GATE}),
    "mini_lstm": (nn.MiniLSTM, mini_lstm, {"W_x.weight": INPUT, "W_f.weight": GATE, "W_i.weight": GATE}),
    "lru": (
        lambda *sizes, **options: nn.LRUCell(IN, UNITS, **options),
        lru,
        {
            **dict.fromkeys(("nu_log", "theta_log", "gamma_log"), (UNITS,)),
            **{name: {"weight": (IN, UNITS)} for name in ("B_re.weight", "B_im.weight")},
            **{name: {"weight": (UNITS, IN)} for name in ("C_re.weight", "C_im.weight")},
            "D": (IN,),
        },
    ),
}
cells = pytest.mark.parametrize("kind", CELLS)
batches = pytest.mark.parametrize("batch", [None, 2])


def build(kind, batch=None, seed=0, **options):
    """A cell with random parameters and states, and both as NumPy values."""
    cell = CELLS[kind][0](IN, OUT, **options)
    cell.init_state(batch)
    rng = np.random.default_rng(seed)
    for state in cell.states().values():
        state.value = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), state.value)
    return cell, values(cell, brainstate.ParamState), values(cell, brainstate.HiddenState)


def values(cell, kind):
    return {".".join(path): jax.tree.map(np.asarray, s.value) for path, s in cell.states(kind).items()}


def inputs(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def test_no_rate_cell_is_missing():
    """Every test below runs over `CELLS`: a public cell that is not there is tested by none."""
    bases = {nn.RecurrentCell, nn.GatedCell, nn.LinearCandidateCell}
    public = {kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.RecurrentCell)}
    assert {type(make(IN, OUT)) for make, *_ in CELLS.values()} == public - bases


@cells
def test_one_step_is_the_equation(kind):
    cell, params, states = build(kind)
    x = inputs(IN)
    want, want_states = CELLS[kind][1](params, x, states)
    np.testing.assert_allclose(brainstate.transform.jit(cell)(x), want, rtol=2e-5, atol=2e-6)
    for name, value in values(cell, brainstate.HiddenState).items():
        np.testing.assert_allclose(value, want_states[name], rtol=2e-5, atol=2e-6)


@cells
def test_a_batch_of_sequences_in_double_precision(kind):
    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        cell, params, states = build(kind, 2)
        xs = inputs(5, 2, IN).astype("float64")
        ys = brainstate.transform.for_loop(cell, jnp.asarray(xs))
        assert ys.dtype == jnp.float64
        for x, y in zip(xs, ys, strict=True):
            want, states = CELLS[kind][1](params, x, states)
            np.testing.assert_allclose(y, want, rtol=1e-12, atol=1e-13)


@cells
@batches
def test_paths_and_shapes(kind, batch):
    cell = CELLS[kind][0](IN, OUT)
    cell.init_state(batch)
    shapes = {path: jax.tree.map(np.shape, v) for path, v in values(cell, brainstate.ParamState).items()}
    assert shapes == CELLS[kind][2]
    units = UNITS if kind == "lru" else OUT
    lead = () if batch is None else (batch,)
    for state in cell.states(brainstate.HiddenState).values():
        assert state.value.shape == (*lead, units)
    assert cell.in_size == (IN,)
    assert cell.out_size == cell(jnp.zeros((*lead, IN))).shape[-1:]


@cells
def test_every_parameter_enters_one_marked_operation(kind):
    """Nothing but ETP operations lies between a parameter and the states, up to what makes the operand."""
    cell, params, _ = build(kind, 2)
    program, states = brainstate.transform.make_jaxpr(cell)(inputs(2, IN))
    leaves = [state for state in states for _ in jax.tree.leaves(state.value)]
    learnt = zip(program.jaxpr.invars[1:], leaves, strict=True)
    frontier, marked = {var for var, state in learnt if isinstance(state, brainstate.ParamState)}, set()
    assert len(frontier) == len(jax.tree.leaves(params))
    num_leaves = len(frontier)
    for eqn in program.jaxpr.eqns:
        read = frontier.intersection(v for v in eqn.invars if not hasattr(v, "val"))
        if is_etp_primitive(eqn.primitive):
            assert not marked & read
            marked |= read
        elif read:
            assert eqn.primitive.name in ("exp", "neg", "broadcast_in_dim")
            frontier |= set(eqn.outvars)
    assert len(marked) == num_leaves


@cells
def test_every_parameter_gets_a_gradient(kind):
    cell, _, _ = build(kind, 2)
    params = cell.states(brainstate.ParamState)
    x = inputs(2, IN)
    grads = brainstate.transform.jit(brainstate.transform.grad(lambda: (cell(x) ** 2).sum(), params))()
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@cells
@pytest.mark.parametrize("precision", ["bf16", 32])
def test_a_step_keeps_the_precision(kind, precision):
    with brainstate.environ.context(precision=precision):
        dtype = brainstate.environ.dftype()
        cell = CELLS[kind][0](IN, OUT)
        cell.init_state(2)
    assert {leaf.dtype for s in cell.states().values() for leaf in jax.tree.leaves(s.value)} == {jnp.dtype(dtype)}
    y = brainstate.transform.jit(cell)(inputs(2, IN))
    assert y.dtype == dtype
    assert jnp.isfinite(y).all()
    assert {s.value.dtype for s in cell.states(brainstate.HiddenState).values()} == {jnp.dtype(dtype)}


@cells
def test_inputs_with_a_unit_need_none(kind):
    """Dimensionless quantities are numbers; anything else is refused, whatever the cell."""
    cell, other = build(kind)[0], build(kind)[0]
    x = inputs(IN)
    np.testing.assert_allclose(cell(x * u.meter / (1000 * u.mmeter)), other(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(nn.InputTypeError, match="mV"):
        cell(x * u.mV)


@cells
def test_mapped_over_a_batch_equals_batched(kind):
    batched, _, _ = build(kind, 2)
    single = CELLS[kind][0](IN, OUT)
    single.init_state()
    for path, state in batched.states(brainstate.ParamState).items():
        single.states()[path].value = state.value
    x = inputs(2, IN)
    states = single.states(brainstate.HiddenState)
    for path, state in batched.states(brainstate.HiddenState).items():
        states[path].value = state.value
    mapped = brainstate.transform.vmap(single, in_states=states, out_states=states)
    np.testing.assert_allclose(mapped(x), batched(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "urlstm", "minimal_rnn"])
def test_leading_axes_of_the_feature_size(kind):
    _, params, _ = build(kind)
    wide = CELLS[kind][0]((2, IN), (2, OUT))
    wide.init_state(3)
    for path, state in wide.states(brainstate.ParamState).items():
        state.value = params[".".join(path)]
    x = inputs(3, 2, IN)
    y = wide(x)
    zeros = {name: np.zeros((3, 2, OUT), "float32") for name in wide.state_names}
    np.testing.assert_allclose(y, CELLS[kind][1](params, x, zeros)[0], rtol=2e-5, atol=2e-6)


@cells
def test_reset_restores_the_initial_state(kind):
    cell = CELLS[kind][0](IN, OUT, state_init=0.25)
    cell.init_state(2)
    states = cell.states(brainstate.HiddenState)
    for state in states.values():
        state.value = state.value + 1
    cell.reset_state(5)
    for path, state in states.items():
        assert cell.states()[path] is state
        np.testing.assert_array_equal(state.value, np.full((5, *cell.state_size), 0.25))


@cells
def test_init_all_states_and_copies(kind):
    model = brainstate.nn.Sequential(CELLS[kind][0](IN, OUT), nn.Linear(IN if kind == "lru" else OUT, 2))
    brainstate.nn.init_all_states(model, batch_size=2)
    clone = copy.deepcopy(model)
    x = inputs(2, IN)
    np.testing.assert_array_equal(clone(x), model(x))
    model(x)
    assert not np.array_equal(clone(x), model(x))


@cells
def test_repr_tells_sizes_and_no_numbers(kind):
    text = repr(CELLS[kind][0](IN, OUT, name="memory"))
    assert f"({IN},)" in text
    assert "memory" in text
    assert "Init" not in text
    assert "Array" not in text.replace("ShapedArray", "")


@pytest.mark.parametrize("cell", [nn.ValinaRNNCell(10, 32), nn.GRUCell(10, 32), nn.LSTMCell(10, 32)])
def test_programs_stay_lean(cell):
    cell.init_state()
    eqns = brainstate.transform.make_jaxpr(cell)(jnp.zeros(10))[0].jaxpr.eqns
    count = {"ValinaRNNCell": 3, "GRUCell": 13, "LSTMCell": 15}
    assert len(eqns) == count[type(cell).__name__]


def test_the_established_spelling_and_its_alias():
    assert nn.VanillaRNNCell is nn.ValinaRNNCell


def test_activations_by_name_and_by_function():
    cells = [nn.ValinaRNNCell(IN, OUT, w_init=0.3, activation=a) for a in ("tanh", jnp.tanh, "relu")]
    for cell in cells:
        cell.init_state()
    by_name, by_function, default = (cell(-jnp.ones(IN)) for cell in cells)
    np.testing.assert_array_equal(by_name, by_function)
    assert not np.array_equal(by_name, default)
    assert "activation=tanh" in repr(cells[0])


def test_minimal_rnn_takes_any_phi():
    cell = nn.MinimalRNNCell(IN, OUT, phi=lambda x: jnp.tanh(x[..., :OUT]), w_init=0.0)
    assert set(values(cell, brainstate.ParamState)) == {"W_u.weight"}
    cell.init_state()
    x = inputs(IN)
    np.testing.assert_allclose(cell(x), 0.5 * np.tanh(x[:OUT]), rtol=1e-6)


def test_bias_can_be_left_out():
    cell = nn.GRUCell(IN, OUT, b_init=None)
    assert all(set(p) == {"weight"} for p in values(cell, brainstate.ParamState).values())
    cell.init_state()
    np.testing.assert_array_equal(cell(jnp.zeros(IN)), np.zeros(OUT))


@pytest.mark.parametrize("kind", ["gru", "cfn", "mgu", "minimal_rnn", "mini_gru", "mini_lstm"])
def test_orthogonal_by_default(kind):
    for path, p in values(CELLS[kind][0](IN, OUT), brainstate.ParamState).items():
        np.testing.assert_allclose(p["weight"].T @ p["weight"], np.eye(OUT), atol=1e-5, err_msg=path)
        np.testing.assert_array_equal(p["bias"], np.zeros(OUT))


@pytest.mark.parametrize("cell", [nn.ValinaRNNCell, nn.LSTMCell, nn.URLSTMCell])
def test_xavier_by_default(cell):
    for p in values(cell(120, 80), brainstate.ParamState).values():
        if isinstance(p, dict):
            np.testing.assert_allclose(p["weight"].std(), np.sqrt(2 / (200 + 80)), rtol=0.05)
            np.testing.assert_array_equal(p.get("bias", 0.0), 0)


def test_urlstm_gates_start_uniform():
    gates = sigmoid(values(nn.URLSTMCell(2, 4000, w_init=0.0), brainstate.ParamState)["bias"])
    np.testing.assert_allclose(np.quantile(gates, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert gates.min() >= 1 / 4001
    assert np.isfinite(values(nn.URLSTMCell(2, 1), brainstate.ParamState)["bias"]).all()


def test_lru_eigenvalues_start_on_their_ring():
    p = values(nn.LRUCell(3, 4000, r_min=0.5, r_max=0.9, max_phase=1.5), brainstate.ParamState)
    modulus, phase = np.exp(-np.exp(p["nu_log"])), np.exp(p["theta_log"])
    assert 0.5 - 1e-5 < modulus.min() < modulus.max() < 0.9 + 1e-5
    np.testing.assert_allclose(np.median(modulus), np.sqrt((0.25 + 0.81) / 2), atol=0.02)
    assert 0 < phase.min() < phase.max() < 1.5
    np.testing.assert_allclose(np.median(phase), 0.75, atol=0.04)
    np.testing.assert_allclose(np.exp(p["gamma_log"]), np.sqrt(1 - modulus**2), rtol=1e-4)


def test_lru_projections_keep_the_variance():
    p = values(nn.LRUCell(200, 300), brainstate.ParamState)
    for name, variance in {"B_re": 1 / 400, "B_im": 1 / 400, "C_re": 1 / 300, "C_im": 1 / 300}.items():
        np.testing.assert_allclose(p[f"{name}.weight"]["weight"].var(), variance, rtol=0.05)
    np.testing.assert_allclose(p["D"].std(), 1, atol=0.2)


@pytest.mark.parametrize("ring", [(0.0, 1.0), (0.999, 1.0), (0.9999999, 1.0)])
def test_lru_starts_finite_on_extreme_rings(ring):
    p = values(nn.LRUCell(2, 20000, *ring), brainstate.ParamState)
    assert all(np.isfinite(p[name]).all() for name in ("nu_log", "theta_log", "gamma_log"))


def test_lru_positions_do_not_mix():
    cell, _, states = build("lru")

    def after(nudge):
        cell.h_re.value, cell.h_im.value = states["h_re"] + nudge, states["h_im"]
        cell(jnp.zeros(IN))
        return np.stack([cell.h_re.value, cell.h_im.value])

    for position in np.eye(UNITS, dtype="float32"):
        moved = (after(position) != after(0)).any(0)
        np.testing.assert_array_equal(moved, position > 0)


def test_lru_sizes_are_those_of_the_model():
    cell = nn.LRUCell(IN, UNITS)
    assert (cell.in_size, cell.out_size, cell.state_size) == ((IN,), (IN,), (UNITS,))
