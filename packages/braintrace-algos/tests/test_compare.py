import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import BPTT, D_RTRL, UORO, LearnerError, LearnerTypeError, compare_gradients, compile
from braintrace_compiler import Table
from braintrace_compiler._tables import readable_bytes
from braintrace_primitives import lora_matmul
from braintrace_primitives.testing import draw


def compiled(model, data, algorithm=D_RTRL, **options):
    return compile(model, algorithm, data[0][0], batch_size=data[0].shape[1], **options)


@pytest.mark.parametrize("against", ["bptt", "rtrl"])
def test_exact_learners_agree_with_exact_methods(model, data, loss, against):
    learner = compiled(model, data)
    table = compare_gradients(learner, *data, step_fn=lambda x, y: loss(learner(x), y), against=against)
    assert [row.path for row in table.parameters] == list(learner.param_states)
    assert all(row.relative_error < 1e-5 and row.cosine > 0.9999 for row in table.parameters)
    assert all(row.certificate == "nothing" for row in table.parameters)


def test_one_learner_is_compared_at_a_time(model, data):
    learner = compiled(model, data)
    with pytest.raises(LearnerTypeError, match="one learner at a time"):
        compare_gradients([learner, learner], *data, step_fn=lambda x, y: 0.0)


def test_the_table_shows_what_the_strict_rule_loses(recurrent_model, data, loss, bptt, distance):
    learner = compiled(recurrent_model, data)

    def step(x, y):
        return loss(learner(x), y)

    table = compare_gradients(learner, *data, step_fn=step)
    grads = learner.etrace_grad(*data, step_fn=step, reduction="sum")
    exact = bptt(recurrent_model, *data)
    g, r = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(tree["w",])]) for tree in (grads, exact))
    assert table["w"].relative_error == pytest.approx(np.linalg.norm(g - r) / np.linalg.norm(r), rel=1e-3)
    assert table["w"].cosine == pytest.approx(g @ r / np.linalg.norm(g) / np.linalg.norm(r), rel=1e-4)
    assert "recurrent mixing" in table["w"].certificate
    assert table["out"].relative_error < 1e-5
    assert 1e-3 < table.total.relative_error < 1


class LowRank(brainstate.nn.Module):
    """A leaky layer behind a product of low rank."""

    def __init__(self, carry_b):
        super().__init__()
        self.carry_b = carry_b
        self.b = brainstate.ParamState(0.5 * draw((4, 2), jnp.float32))
        self.a = brainstate.ParamState(0.5 * draw((2, 2), jnp.float32))

    def init_state(self, batch_size=None):
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, 2)))

    def update(self, x):
        self.v.value = jnp.tanh(self.v.value) + lora_matmul(x, self.b.value, self.a.value, carry_b=self.carry_b)
        return self.v.value


def test_only_the_weight_that_is_told_to_go_without_a_trace_loses_credit(data, loss):
    for carry_b in (True, False):
        learner = compiled(LowRank(carry_b), data, fold=1)
        table = compare_gradients(learner, *data, step_fn=lambda x, y, learner=learner: loss(learner(x), y))
        assert table["a"].relative_error < 1e-5
        assert (table["b"].relative_error < 1e-5) == carry_b
        assert carry_b or table["b"].relative_error > 0.05
        assert ("not carried" in table["b"].certificate) == (not carry_b)


def test_a_learner_is_untouched_and_its_past_ignored(recurrent_model, data, loss):
    learner = compiled(recurrent_model, data, BPTT)
    fresh = compare_gradients(learner, *data, step_fn=lambda x, y: loss(learner(x), y))
    assert fresh.total.relative_error < 1e-5
    learner = compiled(recurrent_model, data, UORO, vmap=True)
    learner.etrace_evolve(data[0])
    before = {path: s.value for path, s in learner.states().items()}

    def step(x, y):
        return loss(learner(x), y)

    table = compare_gradients(learner, *data, step_fn=step)
    for path, state in learner.states().items():
        jax.tree.map(np.testing.assert_array_equal, state.value, before[path])
    assert table.total.cosine == compare_gradients(learner, *data, step_fn=step).total.cosine
    assert table.total.relative_error > 1e-2


def test_masks_weigh_both_sides(recurrent_model, data, loss):
    learner = compiled(recurrent_model, data)
    first = jnp.arange(len(data[0])) < 1
    table = compare_gradients(learner, *data, step_fn=lambda x, y: loss(learner(x), y), mask=first)
    assert table.total.relative_error < 1e-5


def test_the_table_reads_as_text_and_as_html(model, data, loss):
    learner = compiled(model, data)
    table = compare_gradients(learner, *data, step_fn=lambda x, y: loss(learner(x), y))
    lines = str(table).splitlines()
    assert lines[0].split()[:4] == ["parameter", "error", "to", "bptt"]
    assert len(lines) == 2 + len(learner.param_states) + 1
    assert table._repr_html_().count("<tr>") == 1 + len(learner.param_states) + 1
    with pytest.raises(KeyError, match="gain"):
        table["nothing"]
    with pytest.raises(LearnerError, match="against"):
        compare_gradients(learner, *data, step_fn=lambda x, y: loss(learner(x), y), against="truth")


@pytest.mark.parametrize("algorithm", ["bptt", "rtrl", "pp_prop", "eprop", "d_rtrl"])
def test_only_strict_gradients_are_shown_with_what_these_leave_out(recurrent_model, data, loss, algorithm):
    learner = compiled(recurrent_model, data, algorithm, **({"decay_or_rank": 0.9} if algorithm == "pp_prop" else {}))
    table = compare_gradients(learner, *data, step_fn=lambda x, y: loss(learner(x), y))
    shown = "leaves out" in str(table)
    assert shown == ("mixing" in table["w"].certificate) == (algorithm == "d_rtrl")
    assert shown or all(row.certificate == "" for row in table.parameters)
    assert len(table.table.rows[0]) == len(table.table.header) == 3 + shown


def test_windows_are_not_shown_with_what_single_steps_leave_out(recurrent_model, data, loss):
    learner = compiled(recurrent_model, data, vjp_method="multi-step", window=4)
    assert "leaves out" not in str(compare_gradients(learner, *data, step_fn=lambda x, y: loss(learner(x), y)))


def test_quality_is_measured_now_and_then(recurrent_model, data, loss):
    learner = compiled(recurrent_model, data)

    def step(x, y):
        return loss(learner(x), y)

    quality = learner.gradient_quality(step, every=2, steps=4)
    values = [quality(*data) for _ in range(3)]
    part = compare_gradients(learner, data[0][:4], data[1][:4], step_fn=step)
    assert values == [part.total.cosine] * 3
    assert [call for call, _ in quality.history] == [0, 2]
    assert 0 < part.total.cosine < 0.99999
    with pytest.raises(LearnerError, match="every"):
        learner.gradient_quality(step, every=0)


def test_tables_escape_and_align():
    table = Table(("a", "long header"), [("x<y", 1), ("longer cell", 2.5)])
    assert str(table).splitlines()[1] == "-----------  -----------"
    assert "x&lt;y" in table._repr_html_()
    assert [readable_bytes(n) for n in (0, 1023, 1536, 3 * 2**20, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 TiB",
    ]
