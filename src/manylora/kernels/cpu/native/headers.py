"""The headers that are made from the tables of Python and compiled with the C++ sources.

`operations.h` declares the function of each operation. A definition with other parameters does not compile, a missing
one does not load, and the graph calls the function by its opcode without further code.
"""

from collections.abc import Mapping, Sequence

from manylora.kernels.cpu.native.arguments import KINDS
from manylora.kernels.cpu.native.layouts import MAX_WORDS, layouts_header
from manylora.kernels.operation import Operation
from manylora.kernels.table_of_operations import Rows


def made_headers(operations: Sequence[Operation]) -> dict[str, str]:
    """Return the text of each header by its file name. Raises: TypeError for a parameter of an unknown kind.

    Native code has no function for a collective.
    """
    native = [operation for operation in operations if not operation.result.is_collective]
    return {"layouts.h": layouts_header(), "operations.h": _operations_header(native)}


def native_parameters(operation: Operation) -> Mapping[str, object]:
    """Return the annotations of the parameters of an operation's C++ function: new rows come last, as `result`."""
    own = {} if operation.result.width is None else {"result": Rows}
    return {**operation.parameters, **own}


def _operations_header(operations: Sequence[Operation]) -> str:
    names = [operation.name for operation in operations]
    checks = {kind.cpp: kind.count for kind in KINDS.values()}
    lines = [
        "// Made from kernels/table_of_operations.py.",
        "#pragma once",
        '#include "arguments.h"',
        "namespace ml {",
        f"enum class Opcode : int64_t {{ {', '.join(names)} }};",
        *map(_declaration, operations),
        f"#define ML_OPERATIONS(X) {' '.join(f'X({name})' for name in names)}",
        *(f"static_assert(Argument<{cpp}>::words == {count});" for cpp, count in checks.items()),
        "}  // namespace ml",
    ]
    return "\n".join(lines) + "\n"


def _declaration(operation: Operation) -> str:
    words = 0
    parameters = ["Pool* pool"]
    for name, annotation in native_parameters(operation).items():
        if annotation not in KINDS:
            raise TypeError(f"operation {operation.name}: {name} has the type {annotation}, which native code lacks")
        words += KINDS[annotation].count
        parameters.append(f"{KINDS[annotation].cpp} {name}")
    if words > MAX_WORDS:
        raise TypeError(f"operation {operation.name}: its arguments take {words} words, more than {MAX_WORDS}")
    kind = "void" if operation.result.refusal is None else "bool"
    return f"{kind} {operation.name}({', '.join(parameters)});"
