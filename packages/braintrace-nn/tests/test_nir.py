"""Import from and export to NIR: round trips, the dynamics of the nodes, loops, and what is refused."""

import itertools

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn

nir = pytest.importorskip("nir")
DT, T = 1.0 * u.ms, 8


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def times(*shape, seed=0):
    return np.random.default_rng(seed).uniform(2e-3, 9e-3, shape).astype("float32")


def run(model, xs, dt=DT):
    with brainstate.environ.context(dt=dt):
        brainstate.nn.init_all_states(model, batch_size=xs.shape[1])
        return np.asarray(brainstate.transform.for_loop(model, jnp.asarray(xs)))


def li(n, seed=0):
    return nir.LI(tau=times(n, seed=seed), r=normal(n, seed=seed), v_leak=normal(n, seed=seed + 1))


def lif(*n):
    return nir.LIF(times(*n), 3 + normal(*n), 0.1 * normal(*n), 1 + abs(normal(*n)), -abs(normal(*n, seed=4)))


def cuba_li(n):
    return nir.CubaLI(times(n), times(n, seed=1), normal(n), normal(n, seed=2), w_in=normal(n, seed=3))


def cuba_lif(n):
    level = abs(normal(n, seed=5))
    return nir.CubaLIF(times(n), times(n, seed=1), 5 + normal(n), 0.1 * level, 0.3 + level, -level, 1 + level)


def recurrent():
    nodes = {
        "in": nir.Input(np.array([4])),
        "first": nir.Affine(normal(3, 4), normal(3)),
        "one": cuba_lif(3),
        "one.back": nir.Linear(normal(3, 3, seed=1)),
        "second": nir.Linear(normal(2, 3, seed=2)),
        "two": lif(2),
        "two.back": nir.Linear(normal(2, 2, seed=3)),
        "down": nir.Linear(normal(3, 2, seed=4)),
        "out": nir.Output(np.array([2])),
    }
    chain = ["in", "first", "one", "second", "two", "out"]
    loops = [("one", "one.back"), ("one.back", "one"), ("two", "two.back"), ("two.back", "two")]
    loops += [("two", "down"), ("down", "one")]
    return nir.NIRGraph(nodes, [*itertools.pairwise(chain), *loops], metadata={"made": "by hand"})


def nested():
    inner = nir.NIRGraph(
        {
            "input": nir.Input(np.array([3])),
            "lif": lif(3),
            "w_rec": nir.Linear(normal(3, 3)),
            "output": nir.Output(np.array([3])),
        },
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
    )
    nodes = {"input": nir.Input(np.array([4])), "w": nir.Linear(normal(3, 4)), "block": inner, "li": li(3)}
    nodes["output"] = nir.Output(np.array([3]))
    return nir.NIRGraph(nodes, list(itertools.pairwise(nodes)))


def convolutional():
    layers = [
        nir.Conv2d((5, 5), normal(4, 2, 3, 3), (2, 2), (1, 1), (1, 1), 1, normal(4)),
        nir.Flatten({"input": np.array([4, 3, 3])}, 0, -1),
        nir.Affine(normal(2, 36), normal(2)),
        li(2),
    ]
    return nir.NIRGraph.from_list(*layers)


def convolution_in_one_axis():
    return nir.NIRGraph.from_list(nir.Conv1d(6, normal(3, 2, 3), 1, "same", 1, 1, normal(3)), lif(3, 6))


def integrators():
    layers = [
        nir.Linear(normal(3, 4)),
        nir.Scale(normal(3, seed=3)),
        nir.IF(300 + abs(normal(3)), 0.5 + abs(normal(3)), -abs(normal(3, seed=4))),
        nir.Delay(np.array([0.0, 1e-3, 3e-3])),
        li(3),
    ]
    return nir.NIRGraph.from_list(*layers)


def pooling():
    nodes = {
        "input": nir.Input(np.array([1, 4, 4])),
        "conv": nir.Conv2d((4, 4), normal(2, 1, 3, 3), 1, 1, 1, 1, normal(2)),
        "mean": nir.AvgPool2d(np.array([2, 2]), np.array([1, 2]), np.array([0, 0])),
        "sum": nir.SumPool2d(np.array([2, 1]), np.array([1, 1]), np.array([1, 0])),
        "flat": nir.Flatten({"input": np.array([2, 4, 2])}, 0, -1),
        "w": nir.Linear(normal(3, 16)),
        "output": nir.Output(np.array([3])),
    }
    return nir.NIRGraph(nodes, list(itertools.pairwise(nodes)))


GRAPHS = {
    "integrators": integrators,
    "dense": lambda: nir.NIRGraph.from_list(
        nir.Affine(normal(3, 4), normal(3)), cuba_lif(3), nir.Linear(normal(2, 3)), li(2)
    ),
    "currents": lambda: nir.NIRGraph.from_list(nir.Linear(normal(3, 4)), cuba_li(3)),
    "recurrent": recurrent,
    "nested": nested,
    "conv2d": convolutional,
    "pooling": pooling,
    "conv1d": convolution_in_one_axis,
}


def assert_same(first, second):
    assert set(first.nodes) == set(second.nodes)
    assert sorted(first.edges) == sorted(second.edges)
    assert first.metadata == second.metadata
    for name, node in first.nodes.items():
        other = second.nodes[name]
        assert type(node) is type(other)
        if isinstance(node, nir.NIRGraph):
            assert_same(node, other)
            continue
        found, expected = other.to_dict(), node.to_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{name}.{key}")
            assert np.asarray(found[key]).dtype == np.asarray(value).dtype


@pytest.mark.parametrize("name", GRAPHS)
def test_round_trip(name, tmp_path):
    graph = GRAPHS[name]()
    model = nn.from_nir(graph)
    assert_same(graph, nn.to_nir(model))
    nir.write(tmp_path / "graph.nir", nn.to_nir(model))
    again = nn.from_nir(nir.read(tmp_path / "graph.nir"))
    xs = normal(T, 2, *model.in_size, seed=7)
    ys = run(model, xs)
    np.testing.assert_array_equal(run(again, xs), ys)
    assert ys.shape == (T, 2, *model.out_size)
    assert np.ptp(ys) > 0


def test_leaky_integrators_solve_their_equation():
    node = cuba_li(3)
    model = nn.CubaLI(3, node.tau_syn, node.tau_mem, node.r, node.v_leak, node.w_in)
    xs = normal(T, 1, 3)
    ys = run(model, xs)[:, 0]
    I, V, fine = np.zeros(3), np.zeros(3), 200
    for x, y in zip(xs[:, 0], ys, strict=True):
        I = node.w_in * x + (I - node.w_in * x) * np.exp(-1e-3 / node.tau_syn)
        for _ in range(fine):
            V = V + 1e-3 / fine / node.tau_mem * (node.v_leak - V + node.r * I)
        np.testing.assert_allclose(y, V, rtol=2e-2, atol=2e-3)


def test_a_loop_brings_back_the_spikes_of_the_last_step():
    graph = recurrent()
    nodes, xs = graph.nodes, normal(T, 1, 4, seed=7)
    one, two = nodes["one"], nodes["two"]
    I, V, U, s, z = np.zeros(3), np.zeros(3), np.zeros(2), np.zeros(3), np.zeros(2)
    ys = run(nn.from_nir(graph), xs)[:, 0]
    for x, y in zip(xs[:, 0], ys, strict=True):
        drive = (
            nodes["first"].weight @ x + nodes["first"].bias + nodes["one.back"].weight @ s + nodes["down"].weight @ z
        )
        I = one.w_in * drive + (I - one.w_in * drive) * np.exp(-1e-3 / one.tau_syn)
        limit = one.v_leak + one.r * I
        V = limit + (np.where(s, one.v_reset, V) - limit) * np.exp(-1e-3 / one.tau_mem)
        s = one.v_threshold < V
        limit = two.v_leak + two.r * (nodes["second"].weight @ s + nodes["two.back"].weight @ z)
        U = limit + (np.where(z, two.v_reset, U) - limit) * np.exp(-1e-3 / two.tau)
        z = two.v_threshold < U
        np.testing.assert_array_equal(y, z)
    assert 0 < ys.mean() < 1


def test_integrators_scales_and_delays_are_their_equations():
    graph, xs = integrators(), normal(T, 1, 4, seed=7)
    weight, scale, spiking, _, leaky = (node for name, node in graph.nodes.items() if "put" not in name)
    V, s, ys = np.zeros(3), np.zeros(3), []
    for x in xs[:, 0]:
        V = np.where(s, spiking.v_reset, V) + 1e-3 * spiking.r * scale.scale * (weight.weight @ x)
        s = spiking.v_threshold < V
        ys.append(s)
    assert 0 < np.mean(ys) < 1
    late = [np.concatenate([np.zeros(n), np.array(ys)[: T - n, i]]) for i, n in enumerate((0, 1, 3))]
    model = nn.LI(3, leaky.tau, leaky.r, leaky.v_leak)
    np.testing.assert_allclose(
        run(nn.from_nir(graph), xs), run(model, np.stack(late, -1)[:, None].astype("float32")), rtol=1e-5
    )


def test_pooling_is_the_mean_and_the_sum_of_windows():
    model, xs = nn.from_nir(pooling()), normal(1, 2, 4, 4)
    mean, total = model.parts["mean"], model.parts["sum"]
    blocks = [[xs[..., i : i + 2, j : j + 2].mean((-1, -2)) for j in (0, 2)] for i in (0, 1, 2)]
    want = np.moveaxis(np.array(blocks), (0, 1), (-2, -1))
    np.testing.assert_allclose(mean(jnp.asarray(xs)), want, rtol=1e-5)
    padded = np.pad(want, ((0, 0), (0, 0), (1, 1), (0, 0)))
    np.testing.assert_allclose(total(jnp.asarray(want)), padded[..., 1:, :] + padded[..., :-1, :], rtol=1e-5)


@pytest.mark.parametrize("synapse", [nn.Expon(), nn.Delta()])
@pytest.mark.parametrize("recurrent", [True, False])
def test_our_layers_go_out_and_come_back(synapse, recurrent):
    model = nn.Sequential(
        nn.Linear(4, 3),
        nn.LIFCell(3, 5, synapse=synapse, spk_reset="hard", recurrent=recurrent, b_init=0.1),
        nn.LeakyRateReadout(5, 2),
    )
    with brainstate.environ.context(dt=DT):
        graph = nn.to_nir(model)
    xs = 2 * normal(T, 2, 4)
    expected = run(model, xs)
    np.testing.assert_allclose(run(nn.from_nir(graph), xs), expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.1
    assert ("1_recurrent" in graph.nodes) == recurrent


def test_imported_weights_are_learnt():
    model = nn.from_nir(recurrent(), spk_fun=nn.arctan_spike)
    brainstate.nn.init_all_states(model, batch_size=2)
    params = model.states(brainstate.ParamState)
    assert len(params) == 5

    def loss():
        with brainstate.environ.context(dt=DT):
            return brainstate.transform.for_loop(model, jnp.asarray(normal(T, 2, 4))).sum()

    grads = brainstate.transform.grad(loss, params)()
    assert all(abs(g["weight"]).max() > 0 for g in grads.values())


REFUSED = [
    (nir.Threshold(np.ones(3)), r"'odd' has no counterpart[\s\S]*nir\.Threshold"),
    (nir.I(np.ones(3)), r"nir\.I"),
]


@pytest.mark.parametrize(("node", "message"), REFUSED)
def test_unknown_nodes_are_refused_by_name(node, message):
    nodes = {"input": nir.Input(np.array([3])), "odd": node, "output": nir.Output(np.array([3]))}
    with pytest.raises(nn.ConfigurationError, match=message):
        nn.from_nir(nir.NIRGraph(nodes, [("input", "odd"), ("odd", "output")]))


@pytest.mark.parametrize(
    "layer",
    [
        nn.GRUCell(2, 3),
        nn.LIFCell(2, 3),
        nn.LIFCell(2, 3, synapse=nn.Alpha(), spk_reset="hard"),
        nn.LIFCell(2, 3, spk_reset="hard", tau_ref=2.0 * u.ms),
        nn.LIFCell(2, 3, spk_reset="hard", delay=2.0 * u.ms),
        nn.ALIFCell(2, 3),
        nn.OneToOne(2, b_init=0.0),
    ],
)
def test_layers_without_a_node_are_refused_by_name(layer):
    with brainstate.environ.context(dt=DT), pytest.raises(nn.ConfigurationError, match=type(layer).__name__):
        nn.to_nir(nn.Sequential(nn.Linear(2, 2), layer))


def test_graphs_that_cannot_run():
    ends = {"a": nir.Input(np.array([2])), "z": nir.Output(np.array([2]))}
    loop = nir.NIRGraph({**ends, "w": nir.Linear(normal(2, 2))}, [("a", "w"), ("w", "w"), ("w", "z")])
    with pytest.raises(nn.ConfigurationError, match="loop without memory"):
        nn.from_nir(loop)
    with pytest.raises(nn.ConfigurationError, match="2 nodes of kind Input"):
        nn.from_nir(nir.NIRGraph({**ends, "b": nir.Input(np.array([2]))}, [("a", "z"), ("b", "z")]))
    with pytest.raises(nn.ConfigurationError, match="ends at no node"):
        nn.NIRModel({}, [("in", "nowhere")], "in", "out", ((1,), (1,)))
    layer = nn.LI(2)
    layer.init_state()
    with pytest.raises(nn.ConfigurationError, match="time step"):
        layer(jnp.ones(2))
    with pytest.raises(nn.ConfigurationError, match="in seconds"), brainstate.environ.context(dt=1.0):
        nn.to_nir(nn.LeakyRateReadout(2, 1))
