"""Random step programs as data, and their strict and full gradients by explicit Jacobians in plain NumPy.

A program is a list of nodes in evaluation order. The same list is run by a model through marked operations, and
differentiated here node by node: a derivative is a sum over paths of products of local Jacobians, so that every rule of
the semantics is a statement about which edges a path may use. Nothing of braintrace takes part.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Node(NamedTuple):
    """One node: what it is, the nodes it reads, and what else it needs."""

    kind: str
    reads: tuple[int, ...] = ()
    value: Any = None


class Program(NamedTuple):
    """A step ``(hidden, x) -> (hidden, outputs)``.

    Attributes
    ----------
    nodes : tuple of Node
    states : tuple
        Size of each hidden state.
    new : tuple of int
        The node of each new state.
    outputs : tuple of int
        Nodes whose halved squares are the loss of a step.
    weights : tuple
        ``(parameter names, chain, shape of the operand)`` of each marked operation, in the order of their nodes.
    params : dict
        Shape of each parameter.
    batch : tuple
        () or (B,).
    """

    nodes: tuple[Node, ...]
    states: tuple[int, ...]
    new: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[tuple[tuple[str, ...], str, tuple[int, ...]], ...]
    params: dict[str, tuple[int, ...]]
    batch: tuple[int, ...]


MARKED = ("matmul", "element_wise")
ELEMENT_WISE: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda v: 1 - np.tanh(v) ** 2),
    "sigmoid": (lambda v: 1 / (1 + np.exp(-v)), lambda v: np.exp(-v) / (1 + np.exp(-v)) ** 2),
    "keep": (lambda v: 1 - 1 / (1 + np.exp(-v)), lambda v: -np.exp(-v) / (1 + np.exp(-v)) ** 2),
}
LAYOUTS: dict[str, Callable[[Array, Any], Array]] = {
    "roll": lambda v, shift: np.roll(v, shift, -1),
    "flip": lambda v, _: v[..., ::-1],
    "part": lambda v, bounds: v[..., slice(*bounds)],
}
CHAINS: dict[str, Callable[..., Any]] = {
    "itself": lambda w: w,
    "twice": lambda w: 2.0 * w,
    "transposed": lambda w: w.T,
    "sine": lambda w: w + 0.3 * w**3,
    "masked": lambda w: w * (np.arange(w.size).reshape(w.shape) % 3 > 0),
    "product": lambda w, u: w * u,
}


def chain_jacobians(chain: str, params: Sequence[Array]) -> list[Array]:
    """Derivative of the operand with respect to each of its parameters; element-wise but for the transpose."""
    if chain == "transposed":
        w = params[0]
        moved = np.arange(w.size).reshape(w.shape).T.reshape(-1)
        return [np.eye(w.size)[moved]]
    if chain == "product":
        return [np.diag(params[1].reshape(-1)), np.diag(params[0].reshape(-1))]
    (w,) = params
    slope = {
        "itself": np.ones_like(w),
        "twice": 2 * np.ones_like(w),
        "sine": 1 + 0.9 * w**2,
        "masked": 1.0 * (np.arange(w.size).reshape(w.shape) % 3 > 0),
    }[chain]
    return [np.diag(slope.reshape(-1))]


class Evaluation(NamedTuple):
    """One step: the value of every node, and the Jacobian of each with respect to what it reads (flattened)."""

    values: list[Array]
    edges: list[list[Array]]
    by_weight: dict[int, Array]


def evaluate(program: Program, weights: Sequence[Array], hidden: Sequence[Array], x: Array) -> Evaluation:
    """Run one step and differentiate every node."""
    values: list[Array] = []
    edges: list[list[Array]] = []
    by_weight: dict[int, Array] = {}
    operands = iter(weights)
    for k, node in enumerate(program.nodes):
        read = [values[i] for i in node.reads]
        if node.kind == "x":
            value, jacobians = x, []
        elif node.kind == "h":
            value, jacobians = hidden[node.value], []
        elif node.kind == "matmul":
            w = next(operands)
            value = read[0] @ w
            rows = int(np.prod(read[0].shape[:-1], dtype=int))
            jacobians = [np.kron(np.eye(rows), w.T)]
            by_weight[k] = np.kron(read[0].reshape(rows, -1), np.eye(w.shape[1]))
        elif node.kind == "element_wise":
            value, jacobians = next(operands), []
            by_weight[k] = np.eye(value.size)
        elif node.kind in ELEMENT_WISE:
            function, slope = ELEMENT_WISE[node.kind]
            value, jacobians = function(read[0]), [np.diag(slope(read[0]).reshape(-1))]
        elif node.kind in LAYOUTS:
            value = LAYOUTS[node.kind](read[0], node.value)
            jacobians = [np.eye(read[0].size)[LAYOUTS[node.kind](_numbers(read[0].shape), node.value).reshape(-1)]]
        elif node.kind == "scale":
            value, jacobians = node.value * read[0], [node.value * np.eye(read[0].size)]
        elif node.kind == "centre":
            n = read[0].shape[-1]
            value = read[0] - read[0].mean(-1, keepdims=True)
            jacobians = [np.kron(np.eye(read[0].size // n), np.eye(n) - 1 / n)]
        elif node.kind == "cat":
            value = np.concatenate(read, -1)
            numbers, at = _numbers(value.shape), np.cumsum([0, *(r.shape[-1] for r in read)])
            jacobians = [np.eye(value.size)[:, numbers[..., a:b].reshape(-1)] for a, b in itertools.pairwise(at)]
        else:
            a, b = read
            value = a + b if node.kind == "add" else a * b
            da, db = (np.ones_like(value),) * 2 if node.kind == "add" else (b, a)
            jacobians = [_spread(a, value, da), _spread(b, value, db)]
        values.append(value)
        edges.append(jacobians)
    return Evaluation(values, edges, by_weight)


def _numbers(shape: tuple[int, ...]) -> Array:
    return np.arange(int(np.prod(shape, dtype=int))).reshape(shape)


def _spread(operand: Array, value: Array, slope: Array) -> Array:
    """Jacobian of an element-wise function of two operands with respect to one, which is broadcast."""
    source = np.broadcast_to(_numbers(operand.shape), value.shape).reshape(-1)
    return np.broadcast_to(slope, value.shape).reshape(-1)[:, None] * np.eye(operand.size)[source]


def path_sums(
    program: Program, step: Evaluation, seeds: Mapping[int, Array], allowed: Callable[[int, int], bool]
) -> dict[int, Array]:
    """Derivative of every node along the paths whose edges ``(from, to)`` are allowed; `seeds` are the sources."""
    found: dict[int, Array] = dict(seeds)
    for k, node in enumerate(program.nodes):
        for i, jacobian in zip(node.reads, step.edges[k], strict=True):
            if i in found and allowed(i, k):
                found[k] = found.get(k, 0) + jacobian @ found[i]
    return found


class Structure(NamedTuple):
    """Groups of states, and the nodes that each marked node leads to."""

    group_of: list[int]
    leads_to: dict[int, set[int]]

    def members(self, group: int) -> list[int]:
        return [s for s, g in enumerate(self.group_of) if g == group]

    @property
    def groups(self) -> list[int]:
        return list(dict.fromkeys(self.group_of))


def structure_of(program: Program, step: Evaluation) -> Structure:
    """Read groups off the Jacobians: h^{t-1} of one state reaches h^t of another at equal positions, and there only."""
    marked = {k for k, node in enumerate(program.nodes) if node.kind in MARKED}
    previous = {node.value: k for k, node in enumerate(program.nodes) if node.kind == "h"}
    group_of = list(range(len(program.states)))
    for i, k in previous.items():
        eye = np.eye(step.values[k].size)
        local = path_sums(program, step, {k: eye}, lambda a, b: b not in marked)
        for j, node in enumerate(program.new):
            J = local.get(node)
            if J is None or J.shape[0] != J.shape[1] or not J.any():
                continue
            if np.all(J[eye == 0] == 0):
                first, second = sorted((group_of[i], group_of[j]))
                group_of = [first if g == second else g for g in group_of]
    leads_to = {}
    for e in marked:
        reached = {e}
        for k, node in enumerate(program.nodes):
            if reached & set(node.reads):
                reached.add(k)
        leads_to[e] = {group_of[j] for j, node in enumerate(program.new) if node in reached}
    return Structure(group_of, leads_to)


def gradients(
    program: Program, params: Mapping[str, Array], xs: Array
) -> tuple[dict[str, Array], dict[str, Array], Structure]:
    """Strict and full gradients of the summed loss, from rest."""
    weights = [CHAINS[chain](*(params[n] for n in names)) for names, chain, _ in program.weights]
    marked = [k for k, node in enumerate(program.nodes) if node.kind in MARKED]
    hidden = [np.zeros((*program.batch, n)) for n in program.states]
    strict, full = ([np.zeros(w.size) for w in weights] for _ in range(2))
    traces: dict[tuple[int, int], Array] = {}
    influence = [np.zeros((sum(h.size for h in hidden), w.size)) for w in weights]
    structure = structure_of(program, evaluate(program, weights, _generic(hidden), xs[0]))
    for x in xs:
        step = evaluate(program, weights, hidden, x)
        grads, traces, influence = _advance(program, structure, step, marked, traces, influence)
        for k, (direct, past, everything) in enumerate(grads):
            strict[k] += direct + past
            full[k] += direct + everything
        hidden = [step.values[k] for k in program.new]

    def to_params(by_weight: Sequence[Array]) -> dict[str, Array]:
        total = {n: np.zeros(shape) for n, shape in program.params.items()}
        for dw, (names, chain, _) in zip(by_weight, program.weights, strict=True):
            for n, J in zip(names, chain_jacobians(chain, [params[n] for n in names]), strict=True):
                total[n] += (dw @ J).reshape(total[n].shape)
        return total

    return to_params(strict), to_params(full), structure


def _generic(hidden: Sequence[Array]) -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=h.shape) for h in hidden]


def _advance(
    program: Program,
    structure: Structure,
    step: Evaluation,
    marked: Sequence[int],
    traces: dict[tuple[int, int], Array],
    influence: Sequence[Array],
) -> tuple[list[tuple[Array, Array, Array]], dict[tuple[int, int], Array], list[Array]]:
    """Gradients of one step by way of this step, of the traces, and of the full influence; then both carried on."""
    operations = set(marked)
    loss = {k: step.values[k].reshape(-1) for k in program.outputs}
    previous = {node.value: k for k, node in enumerate(program.nodes) if node.kind == "h"}
    new_group = {k: structure.group_of[s] for s, k in enumerate(program.new)}
    sizes = [step.values[k].size for k in program.new]
    at = np.cumsum([0, *sizes])

    def read_out(found: Mapping[int, Array]) -> Array:
        return sum((loss[k] @ found[k] for k in program.outputs if k in found), 0.0)

    def identity(k: int) -> dict[int, Array]:
        return {k: np.eye(step.values[k].size)}

    q: dict[int, list[Array]] = {}
    D: dict[int, list[list[Array]]] = {}
    for g in structure.groups:
        members = structure.members(g)

        def uncut(a: int, b: int, g: int = g) -> bool:
            return not (b in operations and g in structure.leads_to[b])

        def local(a: int, b: int, g: int = g) -> bool:
            return b not in operations and new_group.get(a, g) == g

        q[g], blocks = [], []
        for s in members:
            size = sizes[s]
            if s not in previous:
                q[g].append(np.zeros(size))
                blocks.append([np.zeros(size) for _ in members])
                continue
            seeds = identity(previous[s])
            q[g].append(np.zeros(size) + read_out(path_sums(program, step, seeds, uncut)))
            paths = path_sums(program, step, seeds, local)
            blocks.append(
                [np.diag(paths[program.new[r]]) if program.new[r] in paths else np.zeros(size) for r in members]
            )
        D[g] = [[blocks[s][r] for s in range(len(members))] for r in range(len(members))]

    # Everything, for the full influence of every weight on every state.
    A = np.zeros((at[-1], at[-1]))
    dl = np.zeros(at[-1])
    for s, k in previous.items():
        found = path_sums(program, step, identity(k), lambda a, b: True)
        dl[at[s] : at[s + 1]] = read_out(found)
        for r, new in enumerate(program.new):
            if new in found:
                A[at[r] : at[r + 1], at[s] : at[s + 1]] = found[new]

    grads, carried, influences = [], {}, []
    for n, e in enumerate(marked):
        dy = step.by_weight[e]
        anyhow = path_sums(program, step, {e: dy}, lambda a, b: True)
        direct = np.zeros(dy.shape[1]) + read_out(anyhow)
        past = np.zeros(dy.shape[1])
        for g in structure.groups:
            members = structure.members(g)
            old = traces.get((n, g), np.zeros((len(members), sizes[members[0]], dy.shape[1])))
            past = past + sum(q[g][r] @ old[r] for r in range(len(members)))

            def local(a: int, b: int, g: int = g) -> bool:
                return b not in operations and new_group.get(a, g) == g

            F = _feed(program, step, e, path_sums(program, step, identity(e), local), members)
            carried[n, g] = np.stack(
                [
                    sum(D[g][r][s][:, None] * old[s] for s in range(len(members))) + F[r] @ dy
                    for r in range(len(members))
                ]
            )
        grads.append((direct, past, dl @ influence[n]))
        new = np.concatenate([anyhow.get(k, np.zeros((sizes[r], dy.shape[1]))) for r, k in enumerate(program.new)])
        influences.append(A @ influence[n] + new)
    return grads, carried, influences


def _feed(
    program: Program, step: Evaluation, e: int, paths: Mapping[int, Array], members: Sequence[int]
) -> list[Array]:
    """F of every state of a group: as it is where elements and positions match, its diagonal where they mix."""
    y, shape = step.values[e], step.values[program.new[members[0]]].shape
    size = int(np.prod(shape, dtype=int))
    F = [paths.get(program.new[s], np.zeros((size, y.size))) for s in members]
    pattern = np.any([f != 0 for f in F], axis=0)
    if (pattern.sum(0) <= 1).all() or (pattern.sum(1) <= 1).all():
        return F
    if y.shape != shape:
        return [np.zeros_like(f) for f in F]
    return [np.diag(np.diag(f)) for f in F]
