"""The step program as text, with the compiler's decisions where they were taken."""

from collections.abc import Iterable
from typing import Any

from ._diagnostics import CompilationRecord
from ._flow import is_marked
from ._jaxpr import JaxprEqn, Literal, Var, source_line
from ._module_info import ModuleInfo


def list_program(minfo: ModuleInfo, records: Iterable[CompilationRecord] = ()) -> str:
    """List the equations of a step.

    Parameters
    ----------
    minfo : ModuleInfo
    records : iterable of CompilationRecord
        Those about a marked operation are printed below it, the others at the end.

    Returns
    -------
    str
        One line for each equation; marked operations carry ``**``.
    """
    names = _input_names(minfo)
    new = {v: ".".join(map(str, s.path)) for s in minfo.hidden for v in s.outvars}
    records = list(records)
    lines = [f"step of {len(minfo.jaxpr.eqns)} equations"]
    for k, eqn in enumerate(minfo.jaxpr.eqns):
        for v in eqn.outvars:
            names.setdefault(v, f"%{len(names)}")
        results = ", ".join(_named(v, names) + (f" (new {new[v]})" if v in new else "") for v in eqn.outvars)
        operands = ", ".join(_named(v, names) for v in eqn.invars)
        mark = "**" if is_marked(eqn) else "  "
        lines.append(f"{k:5d} {mark} {results} = {eqn.primitive.name}({operands})")
        here = [r for r in records if _is_about(r, eqn)]
        records = [r for r in records if r not in here]
        lines += [_inline(r) for r in here]
    return "\n".join([*lines, *(_inline(r) for r in records)])


def _input_names(minfo: ModuleInfo) -> dict[Var, str]:
    names = {v: f"const{k}" for k, v in enumerate(minfo.const_invars)}
    names |= {v: f"arg{k}" for k, v in enumerate(minfo.arg_invars)}
    for state in minfo.states:
        path = ".".join(map(str, state.path))
        one = len(state.invars) == 1
        names |= {v: path if one else f"{path}[{k}]" for k, v in enumerate(state.invars)}
    return names


def _named(atom: Any, names: dict[Var, str]) -> str:
    if isinstance(atom, Literal):
        return str(atom.val)
    return f"{names.get(atom, '_')}:{atom.aval.str_short(short_dtypes=True)}"


def _is_about(record: CompilationRecord, eqn: JaxprEqn) -> bool:
    return record.primitive is eqn.primitive and record.context.get("source") == source_line(eqn)


def _inline(record: CompilationRecord) -> str:
    return f"         # {record.level.name} {record.kind.name}: {record.message}"
