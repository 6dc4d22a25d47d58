import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import BPTT, D_RTRL, LearnerError, LearnerTypeError, compile


@pytest.fixture
def learner(recurrent_model, data):
    return compile(recurrent_model, D_RTRL, data[0][0], batch_size=data[0].shape[1])


@pytest.fixture
def run(learner, data, loss):
    def step(x, y):
        return loss(learner(x), y)

    def run(**options):
        learner.reset_state()
        return learner.etrace_grad(*data, step_fn=options.pop("step_fn", step), **options)

    return run


def test_the_fold_changes_no_number(run, learner, distance):
    reference = run(fold=1)
    traces = learner.etraces.value
    for fold in (2, 7, 100, "auto"):
        assert distance(run(fold=fold), reference) < 1e-5
        assert distance(learner.etraces.value, traces) < 1e-5


def test_a_sequence_may_be_given_in_parts(run, learner, data, loss, distance):
    xs, ys = data
    whole = run(reduction="sum")
    learner.reset_state()

    def step(x, y):
        return loss(learner(x), y)

    first = learner.etrace_grad(xs[:3], ys[:3], step_fn=step, reduction="sum", fold=2)
    second = learner.etrace_grad(xs[3:], ys[3:], step_fn=step, reduction="sum", fold=3)
    assert distance(jax.tree.map(jnp.add, first, second), whole) < 1e-5


def test_windows_of_the_whole_sequence_are_bptt(recurrent_model, data, loss, bptt, distance):
    xs, ys = data
    expected = bptt(recurrent_model, xs, ys)
    for algorithm, options in ((D_RTRL, {"vjp_method": "multi-step", "window": len(xs)}), (BPTT, {})):
        learner = compile(recurrent_model, algorithm, xs[0], batch_size=xs.shape[1], **options)
        grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y, f=learner: loss(f(x), y), reduction="sum")
        assert distance(grads, expected) < 1e-5


def test_shorter_windows_come_closer_the_longer_they_are(recurrent_model, data, loss, bptt, distance):
    xs, ys = data
    expected, errors = bptt(recurrent_model, xs, ys), []
    for window in (1, 3, 6):
        learner = compile(
            recurrent_model, D_RTRL, xs[0], batch_size=xs.shape[1], vjp_method="multi-step", window=window
        )
        grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y, f=learner: loss(f(x), y), reduction="sum")
        errors.append(distance(grads, expected))
    assert errors[0] > errors[1] > errors[2] > 1e-4


def test_multi_step_windows_are_exact_where_the_trace_is(model, data, loss, bptt, distance):
    xs, ys = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1], vjp_method="multi-step", window=3)
    grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")
    assert distance(grads, bptt(model, xs, ys)) < 1e-5


def test_a_mapped_model_has_the_gradient_of_the_batched_one(recurrent_model, data, loss, run, distance):
    xs, ys = data
    expected = run()
    learner = compile(recurrent_model, D_RTRL, xs[0], batch_size=xs.shape[1], vmap=True)
    grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y), fold=3)
    assert distance(grads, expected) < 1e-5


def test_mask_reduction_and_values(run, data):
    T = len(data[0])
    mask = jnp.arange(T) % 2
    summed, losses = run(reduction="sum", return_value=True)
    assert losses.shape == (T,)
    mean, scalar = run(mask=mask, return_value=True, loss_output="scalar")
    masked, masked_losses = run(mask=mask, reduction="sum", return_value=True, loss_output="masked")
    np.testing.assert_allclose(masked_losses, losses * mask, rtol=1e-6)
    np.testing.assert_allclose(scalar, (losses * mask).sum() / mask.sum(), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / mask.sum(), rtol=1e-5, atol=1e-7), mean, masked)
    assert any(bool(jnp.abs(a - b).max() > 1e-3) for a, b in zip(*map(jax.tree.leaves, (summed, masked)), strict=True))


def test_aux_and_chosen_weights(run, learner, data, loss, recurrent_model):
    def step(x, y):
        out = learner(x)
        return loss(out, y), {"out": out}

    weights = {("gain",): recurrent_model.gain}
    grads, losses, aux = run(step_fn=step, has_aux=True, return_value=True, weights=weights, fold=3)
    assert list(grads) == [("gain",)]
    assert aux["out"].shape == (*data[1].shape,)
    np.testing.assert_allclose(losses, jnp.mean((aux["out"] - data[1]) ** 2, axis=(1, 2)), rtol=1e-5)


def test_losses_may_read_parameters_and_states(run, learner, recurrent_model, loss):
    def step(x, y):
        penalty = jnp.sum(recurrent_model.w.value["bias"] ** 2)
        return loss(learner(x), y) + 0.1 * penalty + 0.1 * jnp.mean(recurrent_model.v.value**2)

    plain, penalised = run(), run(step_fn=step)
    assert float(jnp.abs(plain[("out",)] - penalised[("out",)]).max()) < 1e-6
    assert float(jnp.abs(plain[("gain",)] - penalised[("gain",)]).max()) > 1e-4
    assert float(jnp.abs(plain[("w",)]["bias"] - penalised[("w",)]["bias"]).max()) > 1e-3


def test_evolve_gives_outputs_and_the_same_traces(run, learner, data):
    run()
    traces = learner.etraces.value
    learner.reset_state()
    outputs = learner.etrace_evolve(data[0], return_outputs=True)
    assert outputs.shape == data[1].shape
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), learner.etraces.value, traces)
    assert learner.etrace_evolve(data[0]) is None


def test_progress_reports_every_step(run, capsys):
    run(progress=True, fold=3)
    jax.effects_barrier()
    err = capsys.readouterr().err
    assert "D_RTRL" in err
    assert "100" in err


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reduction": "median"}, LearnerError, "reduction"),
        ({"loss_output": "all"}, LearnerError, "loss_output"),
        ({"fold": 0}, LearnerError, "fold"),
        ({"fold": 2.0}, LearnerError, "fold"),
        ({"mask": jnp.ones(3)}, LearnerError, "mask"),
        ({"weights": [("nope",)]}, LearnerError, r"found: *\('nope',\)[\s\S]*\('gain',\)"),
        ({"step_fn": lambda x, y: jnp.sum(y)}, LearnerError, "exactly once"),
        ({"step_fn": lambda x: jnp.sum(x)}, LearnerTypeError, r"2 inputs for .*\(x\)[\s\S]*2 arguments"),
        ({"step_fn": 1.0}, LearnerTypeError, "float"),
    ],
)
def test_unfit_options_are_refused(run, options, error, words):
    with pytest.raises(error, match=words):
        run(**options)


def test_unfit_losses_are_refused_and_nothing_changes(run, learner, data):
    learner(data[0][0])
    before = jax.tree.leaves([s.value for s in learner.states().values()])

    def attempt(step):
        return learner.etrace_grad(*data, step_fn=step)

    with pytest.raises(LearnerError, match="scalar loss"):
        attempt(lambda x, y: learner(x) - y)
    with pytest.raises(LearnerTypeError, match="has_aux"):
        attempt(lambda x, y: (learner(x).sum(), y))
    with pytest.raises(LearnerTypeError, match=r"found: *float[\s\S]*learner\(x\)"):
        attempt(lambda x, y: 0.0 if learner(x) is None else 1.0)
    with pytest.raises(LearnerError, match="2 calls"):
        attempt(lambda x, y: (learner(x) + learner(x)).sum())
    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        attempt(lambda x, y: float(learner(x).sum()))
    assert "return the loss as it is" in caught.value.__notes__[-1]
    with pytest.raises(ZeroDivisionError):
        attempt(lambda x, y: learner(x).sum() * (1 / 0))
    after = jax.tree.leaves([s.value for s in learner.states().values()])
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sequences_that_are_none_are_refused(learner, data):
    xs, ys = data
    with pytest.raises(LearnerTypeError, match="no sequence"):
        learner.etrace_grad(step_fn=lambda: 0.0)
    with pytest.raises(LearnerError, match="time axis"):
        learner.etrace_grad(xs, 1.0, step_fn=lambda x, y: 0.0)
    with pytest.raises(LearnerError, match="one length"):
        learner.etrace_grad(xs, ys[:-1], step_fn=lambda x, y: 0.0)
    with pytest.raises(LearnerError, match="one length"):
        learner.etrace_evolve(xs[:0])
