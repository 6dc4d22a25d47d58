"""Options: none is taken and then ignored; numbers of NumPy, seeds and keywords are what they look like."""

import jax
import numpy as np
import pytest

from braintrace_algos import ETraceConfig, FixedRandomFeedback, LearnerError, LearnerTypeError, compile
from braintrace_compiler import CompilationError, CompilationWarning, ControlFlowPolicy

KEY = jax.random.key(0)


def make(model, data, algorithm="d_rtrl", **options):
    return compile(model, algorithm, data[0][0], batch_size=data[0].shape[1], **options)


def gradient(learner, data, loss):
    return learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y))


@pytest.mark.parametrize(
    ("algorithm", "options", "text"),
    [
        ("bptt", {"window": 3}, "window=3"),
        ("bptt", {"vjp_method": "single-step"}, "single-step"),
        ("tbptt", {"window": 3, "vjp_method": "single-step"}, "single-step"),
        ("rtrl", {"vjp_method": "single-step"}, "single-step"),
        ("uoro", {"vjp_method": "single-step"}, "single-step"),
        ("dni", {"vjp_method": "single-step"}, "single-step"),
        ("snap", {"vjp_method": "single-step"}, "single-step"),
        ("snap", {"window": 3}, "window=3"),
        (ETraceConfig(), {"vjp_method": "multi-step"}, "multi-step"),
        (ETraceConfig(), {"window": 3}, "window=3"),
        (ETraceConfig(schedule="window", window=2), {"window": 3}, "window=3"),
        (ETraceConfig(schedule="window", window=2), {"vjp_method": "single-step"}, "single-step"),
    ],
)
def test_what_an_algorithm_fixes_itself_is_refused_where_it_differs(algorithm, options, text, model, data):
    with pytest.raises(LearnerError, match=f"(?s)fixes this option.*{text}"):
        make(model, data, algorithm, **options)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("bptt", {"vjp_method": "multi-step", "window": None}),
        ("rtrl", {"vjp_method": "multi-step", "window": 2}),
        ("snap", {"vjp_method": "multi-step", "window": 1}),
        (ETraceConfig(schedule="window", window=2), {"vjp_method": "multi-step", "window": 2}),
        (ETraceConfig(), {"vjp_method": "single-step", "window": 1}),
    ],
)
def test_and_taken_where_it_does_not(algorithm, options, model, data):
    learner = make(model, data, algorithm, **options)
    assert (learner.vjp_method, learner.window) == tuple(options.values())


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"kappa": 0.5}, 'filter="kappa"'),
        ({"decay": 0.5}, 'factorisation="input_output"'),
        ({"order": 2}, 'scope="neighbourhood"'),
        ({"window": 2}, 'schedule="window"'),
        ({"factorisation": "input_output", "signal": "symmetric", "decay": (0.5, 0.5, 0.5)}, "a pair"),
        ({"factorisation": "input_output", "signal": "symmetric", "decay": 1.5}, "must be a decay"),
        (
            {"factorisation": "influence", "scope": "neighbourhood", "schedule": "window", "window": 1, "order": 0},
            "`order` must be",
        ),
        ({"signal": "random_feedback", "key": 0.5}, "`key` must be"),
        ({"signal": "random_feedback"}, "need `key`"),
        ({"key": 0}, 'signal="random_feedback", or factorisation="rank_one"'),
    ],
)
def test_numbers_of_a_config_are_used_or_refused(numbers, text):
    with pytest.raises((LearnerError, LearnerTypeError), match=text):
        ETraceConfig(**numbers)


@pytest.mark.parametrize(
    "config",
    [
        {"signal": "random_feedback"},
        {"factorisation": "rank_one", "scope": "full", "schedule": "window", "window": 1},
    ],
)
def test_a_seed_is_a_key(config, recurrent_model, data, loss, distance):
    first, second = (
        gradient(make(recurrent_model, data, ETraceConfig(**config, key=key)), data, loss) for key in (0, KEY)
    )
    assert distance(first, second) == 0
    assert hash(ETraceConfig(**config, key=0)) == hash(ETraceConfig(**config, key=0))
    assert bool((FixedRandomFeedback(2, 3, 0).B == FixedRandomFeedback(2, 3, KEY).B).all())


def test_a_key_without_random_feedback_is_refused(recurrent_model, data):
    with pytest.raises(LearnerError, match=r'(?s)random_feedback_key=0.*feedback="random"'):
        make(recurrent_model, data, "eprop", random_feedback_key=0)


def test_a_modulator_of_a_config(model, data, loss, distance):
    """It stands, or comes with a call, as that of `ThreeFactor`; other signals have none."""
    with pytest.raises(LearnerError, match="modulatory"):
        make(model, data, ETraceConfig(), modulator=2.0)
    config = ETraceConfig(signal="modulatory")
    standing = gradient(make(model, data, config, modulator=2.0), data, loss)
    learner = make(model, data, config)
    given = learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x, modulator=2.0), y))
    assert distance(given, standing) == 0
    assert distance(gradient(make(model, data, "three_factor", modulator=2.0), data, loss), standing) == 0
    assert distance(gradient(make(model, data, config), data, loss), standing) > 0.1


@pytest.mark.parametrize(
    ("algorithm", "plain", "of_numpy"),
    [
        ("pp_prop", {"decay_or_rank": 5}, {"decay_or_rank": np.int64(5)}),
        ("pp_prop", {"decay_or_rank": 0.5}, {"decay_or_rank": np.float32(0.5)}),
        ("ottt", {"decay": 0.5}, {"decay": np.float32(0.5)}),
        ("snap", {"n": 2}, {"n": np.int64(2)}),
        ("tbptt", {"window": 2}, {"window": np.int64(2)}),
        ("d_rtrl", {"vjp_method": "multi-step", "window": 2}, {"vjp_method": "multi-step", "window": np.int32(2)}),
        ("d_rtrl", {"fold": 3}, {"fold": np.int64(3)}),
    ],
)
def test_numbers_of_numpy_are_numbers(algorithm, plain, of_numpy, recurrent_model, data, loss, distance):
    first, second = (
        gradient(make(recurrent_model, data, algorithm, **options), data, loss) for options in (plain, of_numpy)
    )
    assert distance(first, second) == 0


@pytest.mark.parametrize("fold", ["aut", 0, 2.5, True])
def test_a_fold_is_checked_when_it_is_given(fold, model, data):
    with pytest.raises(LearnerError, match="`fold` must be"):
        make(model, data, fold=fold)


def test_what_is_no_policy_and_what_is_no_model(model, data):
    with pytest.raises(CompilationError, match=r"(?s)no policy.*'unroll'"):
        make(model, data, control_flow="unroll")
    make(model, data, control_flow=ControlFlowPolicy(unroll_limit=4))
    with pytest.raises(LearnerTypeError, match=r"(?s)no model.*NoneType"):
        make(None, data)


@pytest.mark.parametrize("algorithm", ["d_rtrl", "eprop", "ostl_feedforward"])
def test_traces_do_not_follow_mixed_positions_exactly(algorithm, model, data):
    """Asked for exact treatment, they took the diagonal."""

    class Mixed(type(model)):
        def update(self, x):
            out = super().update(x)
            self.v.value = jax.nn.softmax(self.v.value)
            return out

    with pytest.warns(CompilationWarning), pytest.raises(LearnerError, match=r"(?s)diagonal.*rtrl"):
        make(Mixed(), data, algorithm, on_mixing="exact")
    for other in ("rtrl", "bptt", "uoro"):
        with pytest.warns(CompilationWarning):
            make(Mixed(), data, other, on_mixing="exact")
    make(model, data, algorithm, on_mixing="exact")  # where nothing is mixed there is nothing to refuse


def test_absorb_is_a_truth_value(model, data):
    with pytest.raises(LearnerTypeError, match="'no'"):
        make(model, data, absorb="no")
