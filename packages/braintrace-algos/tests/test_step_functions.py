"""Step functions that are made anew: one program for those that do the same, another for all that might not."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, compile
from braintrace_algos._step_functions import key_of
from braintrace_compiler import CompilationWarning


class Learner:
    """Stands for a learner where only identity and the names of attributes matter."""

    def __init__(self):
        self.model = self

    def __call__(self, x):
        return x


LEARNER, WEIGHT, GLOBAL = Learner(), jnp.ones(3), 1.0


def scaled(value):
    return lambda x: (value * LEARNER(x)).sum()


def by_a_helper(value):
    helper = scaled(value)
    return lambda x, k=2: helper(x) * k


def a_part(value):
    return functools.partial(lambda x, scale: jnp.tanh(scale * LEARNER(x)).sum(), scale=value)


def from_libraries(value):
    return lambda x: sum(jax.nn.relu(LEARNER(v)) * math.exp(value) for v in x)


@pytest.mark.parametrize("make", [scaled, by_a_helper, a_part, from_libraries])
@pytest.mark.parametrize("values", [(0.5, -0.5), (0.0, -0.0), (1, 1.0), (True, 1), ((1, 2), (1, 3)), ("a", "b")])
def test_functions_are_one_where_all_that_they_read_is_the_same(make, values):
    one, other = values
    assert key_of(make(one), LEARNER) == key_of(make(one), LEARNER) != key_of(make(other), LEARNER)
    assert hash(key_of(make(one), LEARNER)) == hash(key_of(make(one), LEARNER))


def test_arrays_are_the_same_by_identity_and_globals_by_value(monkeypatch):
    assert key_of(scaled(WEIGHT), LEARNER) == key_of(scaled(WEIGHT), LEARNER) != key_of(scaled(WEIGHT + 0), LEARNER)

    def make():
        return lambda x: LEARNER(x) * GLOBAL

    before = key_of(make(), LEARNER)
    assert key_of(make(), LEARNER) == before
    monkeypatch.setitem(globals(), "GLOBAL", 2.0)
    assert key_of(make(), LEARNER) != before


def reads_an_attribute():
    return lambda x: LEARNER.model(x)


def reads_an_attribute_in_a_helper():
    def helper(learner):
        return learner.model

    return lambda x: helper(LEARNER)(x)


def reads_by_name():
    return lambda x: getattr(LEARNER, "model")(x)  # noqa: B009


def reads_numpy():
    return lambda x: LEARNER(x) + np.random.default_rng().normal()


def imports():
    def step(x):
        import random

        return LEARNER(x) * random.random()

    return step


def counts():
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return LEARNER(x) * count

    return step


@pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(scaled, v) for v in ([1.0], np.ones(3), {"a": 1}, Learner(), np)),
        *(reads_an_attribute, reads_an_attribute_in_a_helper, reads_by_name, reads_numpy, imports, counts),
    ],
)
def test_nothing_is_concluded_of_what_may_change_unseen(make):
    step = make()
    assert key_of(step, LEARNER) is step


def test_a_function_made_anew_is_compiled_once_and_what_changes_is_seen(model, data, loss):
    xs, ys = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])

    def total(make):
        learner.reset_state()
        return float(learner.etrace_grad(xs, ys, step_fn=make, return_value=True, loss_output="scalar")[1])

    values = [total(lambda x, y, scale=scale: scale * loss(learner(x), y)) for scale in (1.0, 1.0, 2.0, 2.0)]
    assert values == pytest.approx([values[0], values[0], 2 * values[0], 2 * values[0]], rel=1e-5)
    assert len(learner._drivers._kept) == 2

    scales, told = [1.0], []
    for k in range(1, 6):
        scales[0] = float(k)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert total(lambda x, y: scales[0] * loss(learner(x), y)) == pytest.approx(k * values[0], rel=1e-5)
        told += [(k, w) for w in caught if w.category is CompilationWarning]
    ((k, warning),) = told
    assert (k, warning.filename) == (4, __file__)
    assert "Define it once" in str(warning.message)
