"""Marked operations: the vocabulary of eligibility-trace learning for any JAX program.

Concept
-------
Online learning of a recurrent network needs to know *which* operations of a program hold trainable weights, and how
the output of such an operation depends on them. An **ETP op** (eligibility-trace primitive) is an ordinary
operation, ``y = A(x, w)``, linear in its weights, that stays visible as one equation when JAX traces the program. A
compiler finds it by the identity of its primitive, and its **trace rule** says how credit for its weights is kept
through time. Without a compiler it is just the operation: same numbers, same program after compilation, same
gradients.

>>> import jax, jax.numpy as jnp
>>> jaxpr = jax.make_jaxpr(lambda x, w: jnp.tanh(matmul(x, w)))(jnp.ones(3), jnp.ones((3, 2)))
>>> [is_etp_primitive(eqn.primitive) for eqn in jaxpr.eqns]
[True, False]

Operations
----------
================  =====================================================  ===========================
call              computes                                               primitive (batch / sample)
================  =====================================================  ===========================
`matmul`          ``x @ weight + bias``                                  ``etp_mm``, ``etp_mv``
`element_wise`    ``weight``                                             ``etp_elemwise``
`conv`            convolution over 1 to 3 axes, plus bias                ``etp_conv``
`sparse_matmul`   ``x @ W + bias``, W with a static `SparsityPattern`    ``etp_sp_mm``, ``etp_sp_mv``
`lora_matmul`     ``alpha · x @ B @ A + bias``                           ``etp_lora_mm``, ``etp_lora_mv``
`grouped_matmul`  ``x[g] @ weight[g] + bias[g]``                         ``etp_gmm``, ``etp_gmv``
`einsum`          ``jnp.einsum(equation, x, weight)``                    ``etp_einsum``
`embedding`       ``weight[indices]``                                    ``etp_emb``, ``etp_emb_v``
================  =====================================================  ===========================

All take arrays or quantities (anything with a ``mantissa`` and a ``unit``), in half to double precision and, where
linear algebra allows, complex. They work under every JAX transformation and raise `OperandError` or
`OperandTypeError` before JAX would complain.

Rules
-----
* **Identity.** An op is recognised by its primitive object, never by a name. It survives `jax.jit`, `jax.lax.scan`,
  `jax.checkpoint`, differentiation (the forward pass), and `jax.vmap`. Where only the input is mapped the sample form
  becomes the batch form and the batch form gains a leading axis; copies of a weight become one wider op.
* **Operands.** ``x, weights...`` in fixed places, described by `get_primitive_spec`. What happens to a weight
  before the op is ordinary JAX and none of the op's business.
* **Linearity.** An op is linear in its weights taken together (`lora_matmul`, bilinear, says what that means for
  it).
* **Traces.** `TraceRule.pullback` is the gradient within a window of time steps; `init`, `accumulate`, `decay` and
  `contract` carry credit across windows. The states axis leads, then the axes of the output.

Your own operation
------------------
A function is enough. Its first operand is the input, the others are weights, keyword-only parameters are static:

>>> gate = register_primitive("doc_gate", lambda x, gain, shift: x * gain + shift)
>>> jax.grad(lambda gain: gate(jnp.arange(3.0), gain, jnp.zeros(3)).sum())(jnp.ones(3)).tolist()
[0.0, 1.0, 2.0]

It is traceable, batchable and trainable online by the generic rule, which keeps the full Jacobian, here 3 × 3
numbers per weight and state. Where most of that is zero, a rule of your own keeps the rest:

>>> class GateRule(TraceRule):
...     def init(self, x, weights, y, num_states, params, dtype):
...         return {name: jnp.zeros((num_states, *y.shape), dtype) for name in weights}
...
...     def accumulate(self, xs, factors, weights, params):
...         return {"gain": (factors * xs[:, None]).sum(0), "shift": factors.sum(0)}
...
...     def decay(self, trace, blocks, params):
...         return {name: jnp.einsum("sr...,r...->s...", blocks, old) for name, old in trace.items()}
...
...     def contract(self, trace, signal, weights, params):
...         total = {name: signal * kept for name, kept in trace.items()}
...         return {name: total[name].reshape(-1, *w.shape).sum(0) for name, w in weights.items()}

`braintrace_primitives.testing.check_primitive` holds the operation and its rule, samples and batches, against
automatic differentiation:

>>> from braintrace_primitives.testing import check_primitive
>>> lean = register_primitive("doc_lean_gate", lambda x, gain, shift: x * gain + shift, trace_rule=GateRule)
>>> deviations = check_primitive(lean, jnp.arange(3.0), jnp.ones(3), jnp.zeros(3))
>>> max(deviations.values()) < 1e-5
True

Sharp edges
-----------
* `jax.vmap` over a *weight* gives plain JAX: right numbers, no marked op. Map the input, or mark inside.
* `jax.checkpoint` policies that select by primitive (``dots_saveable``) do not see the product inside a marked op.
* `lora_matmul` carries a trace as large as a dense layer's for B across windows; ``carry_b=False`` does without.
* `conv` carries one input patch per output position, `embedding` a table per sample. Within a window neither
  exists.
* The pattern of `sparse_matmul` is static: a new pattern is a new compilation.
* Operations and trace rules work on meshes with automatic and with explicit axes and in ``shard_map``; gradients have
  the sharding of their weight and are summed where it is replicated.
"""

from ._errors import BraintraceError as BraintraceError
from ._errors import OperandError as OperandError
from ._errors import OperandTypeError as OperandTypeError
from ._errors import RegistrationError as RegistrationError
from ._primitive import ETP_PRIMITIVES as ETP_PRIMITIVES
from ._primitive import ETPPrimitive as ETPPrimitive
from ._primitive import ETPPrimitiveSpec as ETPPrimitiveSpec
from ._primitive import get_primitive_spec as get_primitive_spec
from ._primitive import is_etp_primitive as is_etp_primitive
from ._primitive import register_primitive as register_primitive
from ._repeated import RepeatedTraceRule as RepeatedTraceRule
from ._repeated import repeated as repeated
from ._sparsity import SparsityPattern as SparsityPattern
from ._trace_rule import GenericTraceRule as GenericTraceRule
from ._trace_rule import TraceRule as TraceRule
from ._version import __version__ as __version__
from .ops._conv import conv as conv
from .ops._conv import etp_conv_p as etp_conv_p
from .ops._dense import etp_mm_p as etp_mm_p
from .ops._dense import etp_mv_p as etp_mv_p
from .ops._dense import matmul as matmul
from .ops._einsum import einsum as einsum
from .ops._einsum import etp_einsum_p as etp_einsum_p
from .ops._elementwise import element_wise as element_wise
from .ops._elementwise import etp_elemwise_p as etp_elemwise_p
from .ops._embedding import embedding as embedding
from .ops._embedding import etp_emb_p as etp_emb_p
from .ops._embedding import etp_emb_v_p as etp_emb_v_p
from .ops._grouped import etp_gmm_p as etp_gmm_p
from .ops._grouped import etp_gmv_p as etp_gmv_p
from .ops._grouped import grouped_matmul as grouped_matmul
from .ops._lora import etp_lora_mm_p as etp_lora_mm_p
from .ops._lora import etp_lora_mv_p as etp_lora_mv_p
from .ops._lora import lora_matmul as lora_matmul
from .ops._sparse import etp_sp_mm_p as etp_sp_mm_p
from .ops._sparse import etp_sp_mv_p as etp_sp_mv_p
from .ops._sparse import sparse_matmul as sparse_matmul
