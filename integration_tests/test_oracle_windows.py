"""Folds, windows, calls one after another, and the BPTT learner."""

import jax
import pytest
from online import StepModule, assert_close, learn, loss_of_step, precision, sequence_gradient, stepwise_gradient
from oracle_cases import CASES, I
from oracle_cells import build
from oracles import gradient, make_data, relative_error, strict_gradient

T, B = 9, 3
MODELS = ["three chained states", "two recurrent layers", "recurrent, read before the reset", "marked decay and gain"]


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_folds_of_every_size(name, vmap):
    case = CASES[name]
    with precision("float64"):
        data = make_data(case, I, T, (B,), "float64")
        expected, learner = strict_gradient(case, data), learn(case, data, vmap=vmap)
        for fold in (1, 2, 7, T):
            assert_close(sequence_gradient(case, learner, data, fold=fold), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_window_as_long_as_the_sequence_is_bptt(name):
    case = CASES[name]
    with precision("float64"):
        data = make_data(case, I, T, (B,), "float64")
        learner = learn(case, data, vjp_method="multi-step", window=T)
        assert_close(sequence_gradient(case, learner, data), gradient(case, data, None))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_a_window_as_long_as_the_sequence_is_bptt_for_cells(kind):
    with precision("float64"):
        case, model = build(kind)
        data = make_data(case, I, T, (B,), "float64")
        learner = learn(case, data, model=model, vjp_method="multi-step", window=T, vmap=True)
        assert_close(sequence_gradient(case, learner, data), gradient(case, data, None))


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("three chained states", "d_rtrl"), ("two recurrent layers", "d_rtrl"), ("LSTM", "d_rtrl"), ("LSTM", "tbptt")],
)
def test_windows_folded_several_at_once_are_windows_one_by_one(name, algorithm, window):
    """Gradients, and the traces that a second call goes on from."""
    with precision("float64"):
        case, model = build(name) if name == "LSTM" else (CASES[name], None)
        data = make_data(case, I, T, (B,), "float64")
        method = {"vjp_method": "multi-step"} if algorithm == "d_rtrl" else {}
        learner = learn(case, data, algorithm, model=model, window=window, vmap=name == "LSTM", **method)
        step = loss_of_step(case, learner)

        def twice(fold):
            learner.reset_state()
            parts = [
                learner.etrace_grad(data.xs[at], data.ys[at], step_fn=step, fold=fold)
                for at in (slice(0, 7), slice(7, T))
            ]
            return [{".".join(path): part[path] for path in part} for part in parts]

        expected = twice(window)
        assert learner._fold_length(window, T).steps == window
        for fold in (5, "auto"):
            assert learner._fold_length(fold, T).steps > window
            for found, part in zip(twice(fold), expected, strict=True):
                assert_close(found, part)


def test_short_windows_lie_between():
    """The shorter the window, the further from backpropagation through time."""
    case = CASES["three chained states"]
    with precision("float64"):
        data = make_data(case, I, T, (B,), "float64")
        full = gradient(case, data, None)["w"]
        errors = []
        for window in (2, 5, T):
            learner = learn(case, data, vjp_method="multi-step", window=window)
            errors.append(relative_error(sequence_gradient(case, learner, data)["w"], full))
        assert errors[0] > errors[1] > 1e-3 > errors[2]


@pytest.mark.parametrize("name", ["three chained states", "two recurrent layers", "recurrent, soft reset", "GRU"])
def test_multi_step_with_one_step_is_a_rule_of_its_own(name):
    with precision("float64"):
        case, model = build(name) if name == "GRU" else (CASES[name], None)
        data = make_data(case, I, T, (B,), "float64")
        learner = learn(case, data, model=model, vjp_method="multi-step", vmap=name == "GRU")
        found = sequence_gradient(case, learner, data)
        assert_close(found, stepwise_gradient(case, learner, data))
        for other in (strict_gradient(case, data), gradient(case, data, None)):
            assert max(relative_error(found[k], other[k]) for k in found) > 0.03


@pytest.mark.parametrize("fold", [1, 4, "auto"])
def test_calls_one_after_another_continue(fold):
    case = CASES["two recurrent layers"]
    with precision("float64"):
        data = make_data(case, I, T, (B,), "float64")
        learner = learn(case, data)
        step = loss_of_step(case, learner)
        parts = [
            learner.etrace_grad(data.xs[at], data.ys[at], step_fn=step, reduction="sum", fold=fold)
            for at in (slice(0, 4), slice(4, 5), slice(5, T))
        ]
        total = {".".join(path): sum(part[path] for part in parts) for path in parts[0]}
        assert_close(total, strict_gradient(case, data))


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize(
    "name", ["three chained states", "top-down", "product", "plain decay", "penalty, two recurrent layers"]
)
@pytest.mark.filterwarnings("ignore:PLAIN_PARAMETER_TEMPORAL")
def test_the_bptt_learner(name, vmap):
    case = CASES[name]
    with precision("float64"):
        data = make_data(case, I, T, (B,), "float64")
        assert_close(sequence_gradient(case, learn(case, data, "bptt", vmap=vmap), data), gradient(case, data, None))


def test_the_learner_runs_the_model_unchanged():
    case = CASES["recurrent, soft reset"]
    with precision("float64"):
        data = make_data(case, I, T, (B,), "float64")
        model = StepModule(case, data.xs.dtype)
        learner = learn(case, data, model=model)
        outputs = learner.etrace_evolve(data.xs, return_outputs=True)
        hidden = {name: getattr(model, name).value for name in case.states}
        plain = StepModule(case, data.xs.dtype)
        plain.init_state(B)
        expected = [plain(x) for x in data.xs]
        for found, value in zip(outputs, expected, strict=True):
            assert relative_error(found, value) < 1e-12
        assert relative_error(hidden, {name: getattr(plain, name).value for name in case.states}) < 1e-12
        assert jax.tree.all(jax.tree.map(lambda v: bool((v != 0).any()), hidden))
