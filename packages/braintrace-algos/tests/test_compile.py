import brainstate
import jax
import jax.numpy as jnp
import pytest

from braintrace_algos import (
    BPTT,
    D_RTRL,
    OTTT,
    TBPTT,
    LearnerError,
    LearnerTypeError,
    UnknownAlgorithmError,
    compile,
    pp_prop,
)
from braintrace_compiler import CompilationError, NotSupportedError, compile_etrace_graph
from braintrace_primitives import matmul


@pytest.mark.parametrize("name", ["d_rtrl", "D_RTRL", "D-RTRL", D_RTRL])
def test_an_algorithm_is_a_class_or_a_name(model, name):
    assert type(compile(model, name, jnp.zeros(4))) is D_RTRL
    assert type(compile(model, "bptt", jnp.zeros(4))) is BPTT


def test_an_unknown_name_lists_the_known_ones(model):
    with pytest.raises(UnknownAlgorithmError, match=r"bptt.*d_rtrl.*\n.*did you mean 'd_rtrl'\?"):
        compile(model, "drtrl", jnp.zeros(4))
    with pytest.raises(UnknownAlgorithmError, match="did you mean 'eprop'"):
        compile(model, "e-prop", jnp.zeros(4))
    with pytest.raises(UnknownAlgorithmError) as far:
        compile(model, "xyz", jnp.zeros(4))
    assert "did you mean" not in str(far.value)
    with pytest.raises(LearnerTypeError, match="a class or a name"):
        compile(model, 3, jnp.zeros(4))


def test_options_are_checked(model):
    with pytest.raises(LearnerError, match="vjp_method"):
        compile(model, D_RTRL, jnp.zeros(4), vjp_method="two-step")
    with pytest.raises(LearnerError, match="window"):
        compile(model, D_RTRL, jnp.zeros(4), vjp_method="multi-step", window=0)
    with pytest.raises(LearnerError, match=r"(?s)Single steps have no windows.*window=8"):
        compile(model, D_RTRL, jnp.zeros(4), window=8)
    with pytest.raises(LearnerTypeError, match=r"found: *folds[\s\S]*vjp_method[\s\S]*did you mean fold\?"):
        compile(model, D_RTRL, jnp.zeros(4), folds=3)
    with pytest.raises(LearnerTypeError, match=r"found: *no options[\s\S]*decay_or_rank="):
        compile(model, "pp_prop", jnp.zeros(4))


def test_an_algorithm_of_ones_own_fills_in_what_its_base_needs(model):
    class Smooth(pp_prop):
        def __init__(self, *args, tau=9.0, **options):
            super().__init__(*args, decay_or_rank=1 - 1 / tau, **options)

    assert isinstance(compile(model, Smooth, jnp.zeros(4), tau=4.0), Smooth)


@pytest.mark.parametrize(
    ("dtype", "imaginary"), [(jnp.int32, False), ("float8", False), (bool, False), (jnp.float32, True)]
)
def test_traces_are_kept_in_a_dtype_that_can_hold_them(model, dtype, imaginary):
    class Turning(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((4, 4), jnp.complex64))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros(4, jnp.complex64))

        def update(self, x):
            self.h.value = 1j * self.h.value + matmul(x, self.w.value)
            return self.h.value.real

    with pytest.raises(LearnerTypeError, match="a complex dtype" if imaginary else "a floating dtype"):
        compile(Turning() if imaginary else model, D_RTRL, jnp.zeros(4), trace_dtype=dtype)


@pytest.mark.parametrize(
    ("algorithm", "options"), [("uoro", {"key": "a"}), ("eprop", {"feedback": "random", "random_feedback_key": 0.5})]
)
def test_random_keys_are_keys_or_seeds(model, algorithm, options):
    with pytest.raises(LearnerTypeError, match="must be a random key"):
        compile(model, algorithm, jnp.zeros(4), **options)


def test_a_printed_learner_shows_its_options_and_not_its_programs(model):
    shown = repr(compile(model, D_RTRL, jnp.zeros(4), fold=3))
    assert "fold=3" in shown
    assert "lambda" not in shown


class OneSample(brainstate.nn.Module):
    def init_state(self):
        self.h = brainstate.HiddenState(jnp.zeros(4))

    def update(self, x):
        return self.h.value + x


def test_models_that_cannot_be_called_so_are_refused(model):
    with pytest.raises(LearnerTypeError, match=r"the class Leaky[\s\S]*Leaky\(...\)"):
        compile(type(model), D_RTRL, jnp.zeros(4))
    with pytest.raises(LearnerTypeError, match=r"0 inputs for Leaky.update\(x\): missing .*'x'"):
        compile(model, D_RTRL)
    with pytest.raises(LearnerTypeError, match=r"0 inputs, y for Leaky.update\(x\)"):
        compile(model, D_RTRL, kwargs={"y": 1.0})
    with pytest.raises(LearnerTypeError, match=r"OneSample.init_state[\s\S]*vmap=True"):
        compile(OneSample(), D_RTRL, jnp.zeros((3, 4)), batch_size=3)


def test_arrays_on_explicit_mesh_axes_are_refused(model, data, loss):
    learner = compile(model, D_RTRL, data[0][0], batch_size=3)
    with jax.set_mesh(jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))):
        xs = jax.device_put(data[0], jax.sharding.PartitionSpec(None, "batch"))
        with pytest.raises(NotSupportedError, match=r"AxisType\.Auto"):
            compile(model, D_RTRL, xs[0], batch_size=3)
        with pytest.raises(NotSupportedError, match="explicit mesh axes"):
            learner.etrace_grad(xs, data[1], step_fn=lambda x, y: loss(learner(x), y))


def test_a_model_without_marks_is_told_how_to_mark(model):
    class Plain(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((4, 5)))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros(5))

        def update(self, x):
            self.h.value = 0.5 * self.h.value + x @ self.w.value
            return self.h.value

    for algorithm in (D_RTRL, "rtrl", "uoro"):  # what needs no mark itself needs one somewhere
        told = pytest.warns(UserWarning, match="PLAIN_PARAMETER_TEMPORAL.*Where another operation is marked, rtrl")
        with told, pytest.raises(CompilationError, match="whatever the algorithm") as error:
            compile(Plain(), algorithm, jnp.zeros(4))
        assert "('w',)" in str(error.value)
        assert "braintrace.matmul" in str(error.value)


def test_a_model_without_traces_is_told_why():
    """What came nearest, and where."""

    class Pooled(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((4, 7)))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros(5))

        def update(self, x):
            self.h.value = 0.5 * self.h.value + jax.nn.softmax(matmul(x, self.w.value))[:5]
            return self.h.value

    wanted = r"(?s)etp_mv\(\('w',\)\) gives \(7,\), mixed on its way to the positions \(5,\).*test_compile\.py"
    with pytest.warns(UserWarning, match="SHAPE_MISMATCH"), pytest.raises(CompilationError, match=wanted):
        compile(Pooled(), D_RTRL, jnp.zeros(4))


def test_a_model_without_memory_is_refused():
    class Feedforward(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((4, 5)))

        def update(self, x):
            return matmul(x, self.w.value)

    with pytest.raises(CompilationError, match="no hidden state"):
        compile(Feedforward(), D_RTRL, jnp.zeros(4))


def test_batch_size_and_examples_must_agree(model):
    with pytest.raises(CompilationError, match="batch_size"):
        compile(model, D_RTRL, jnp.zeros((3, 4)))
    with pytest.raises(LearnerTypeError, match="batch_size"):
        compile(model, D_RTRL, jnp.zeros((3, 4)), vmap=True)
    with pytest.raises(LearnerError, match="first axis"):
        compile(model, D_RTRL, jnp.zeros((2, 4)), batch_size=3, vmap=True)


def test_verbose_prints_the_report(model, capsys):
    compile(model, D_RTRL, jnp.zeros(4), verbose=2)
    printed = capsys.readouterr().out
    assert "strict gradient" in printed
    assert "RELATION_INCLUDED" in printed


def test_a_seed_fixes_random_initial_states():
    class Noisy(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((4, 5)))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(brainstate.random.rand(5))

        def update(self, x):
            self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
            return self.h.value

    first, second, third = (compile(Noisy(), D_RTRL, jnp.zeros(4), seed=s) for s in (1, 1, 2))
    assert bool(jnp.all(first.model.h.value == second.model.h.value))
    assert not bool(jnp.all(first.model.h.value == third.model.h.value))


def test_a_learner_without_a_graph_says_how_it_is_made(model):
    with pytest.raises(LearnerTypeError, match=r"no graph[\s\S]*braintrace.compile\(model, braintrace.D_RTRL"):
        D_RTRL(model)
    with pytest.raises(LearnerTypeError, match=r"found: *ArrayImpl"):
        BPTT(model, jnp.zeros(4))
    for cls, needed in ((TBPTT, "window"), (pp_prop, "decay_or_rank"), (OTTT, "decay")):
        how = rf"(?s){needed}.*braintrace.compile\(model, braintrace.{cls.__name__}"
        with pytest.raises(LearnerTypeError, match=how):
            cls(3)


def test_a_learner_may_compile_its_graph_itself(model, data):
    class Own(TBPTT):
        def __init__(self, model, x):
            brainstate.nn.init_all_states(model)
            super().__init__(model, compile_etrace_graph(model, x), window=2)

    assert Own(model, data[0][0, 0])(data[0][0, 0]).shape == data[1].shape[2:]
    with pytest.raises(LearnerTypeError, match="'x'"):
        Own(model)


def test_an_error_of_the_model_is_told_with_what_the_model_was_given():
    class Joined(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((7, 3)))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros(3 if batch_size is None else (batch_size, 3)))

        def update(self, x):
            self.h.value = jnp.tanh(matmul(jnp.concatenate([x, self.h.value], -1), self.w.value))
            return self.h.value

    with pytest.raises(TypeError, match="oncatenate") as told:  # the batch size was forgotten
        compile(Joined(), D_RTRL, jnp.zeros((5, 4)))
    note = told.value.__notes__[-1]
    assert "Joined" in note
    for line in ("inputs:     f32[5,4]", "states:     h f32[3]", "batch_size: None"):
        assert line in note
    with pytest.raises(TypeError) as told:
        compile(Joined(), D_RTRL, jnp.zeros((5, 4)), batch_size="5")
    assert told.value.__notes__[-1] == "(while compile(...) initialised the states of Joined, batch_size=5)"


def test_a_learner_is_no_model(model, data):
    learner = compile(model, "d_rtrl", data[0][0], batch_size=data[0].shape[1])
    with pytest.raises(LearnerTypeError, match="learner already") as error:
        compile(learner, "eprop", data[0][0], batch_size=data[0].shape[1])
    assert "pass learner.model" in str(error.value)
