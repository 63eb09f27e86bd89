"""The folder list is the data path: a room imports only rooms below it, and nothing goes round in a circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 300  # lines; a longer module says why in a line that begins with this:
REASON = "# Long because"

# From the doors down to the ground. Rooms in one tuple do not import each other.
RUNTIME = (
    ("segment", "serve", "bulk", "hosts"),
    ("page",),
    ("segmenter",),
    ("options",),
    ("stream",),
    ("temporal",),
    ("track",),
    ("attended",),
    ("hierarchy", "tiles"),
    ("stages",),
    ("refine",),
    ("routes",),
    ("merge",),
    ("native",),
    ("engine",),
    ("result",),
    ("outputs",),
    ("words",),
    ("pyramid",),
    ("gpu",),
    ("frames",),
    ("terminal", "files", "labels", "children"),
    ("errors", "starting"),
)
EXPORT = (
    ("__main__",),
    ("commands",),
    ("engine", "quantize", "plan"),
    ("parity",),
    ("heads",),
    ("check",),
    ("graph",),
    ("model",),
    ("progress",),
)
TOOLS = (
    ("soak", "attend", "gpu_check", "pictures", "sanitize"),
    ("benchmark", "fuzz"),
    ("tiny",),
    ("evaluate",),
    ("scenes",),
    ("command",),
)
ORDER = {"runtime": RUNTIME, "export": EXPORT, "tools": TOOLS}
MAY_IMPORT = {"runtime": {"runtime"}, "export": {"export", "runtime"}, "tools": {"tools", "export", "runtime"}}
COMMANDS = "runtime.cli"  # the table of commands: the one place where runtime names export


@cache
def modules():
    """Every module of the three stages: name → path. A package goes by its own name."""
    found = {}
    for top in MAY_IMPORT:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def named_in(name):
    """The modules that a module names: in imports of any kind, also lazy or for types, and in strings."""
    tree = ast.parse(modules()[name].read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: expected absolute imports"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value.partition(":")[0])
    # `from runtime.engine import plan` names runtime.engine.plan, and not what the package re-exports.
    known = {module for module in found & set(modules()) if module != name}
    return {
        module
        for module in known
        if not any(other != module and other.startswith(f"{module}.") for other in known) or not is_package(module)
    }


def is_package(name):
    return modules()[name].name == "__init__.py"


def only_re_exports(tree):
    """Whether the text of a module has a docstring, imports and names like `__all__`, and nothing that does more.

    Names may be imported when they are asked for: `_HOME` says from where, and `__getattr__` does it.
    """

    def allowed(node):
        if isinstance(node, ast.If):
            return ast.unparse(node.test) == "TYPE_CHECKING" and all(map(allowed, node.body)) and not node.orelse
        if isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            plain = (ast.List, ast.Dict, ast.Constant, ast.Load)
            known = names <= {"__all__", "__version__", "_HOME", "TYPE_CHECKING"}
            return known and all(isinstance(part, plain) for part in ast.walk(node.value))
        if isinstance(node, ast.Expr):
            return isinstance(node.value, ast.Constant)
        return isinstance(node, (ast.Import, ast.ImportFrom)) or getattr(node, "name", "") == "__getattr__"

    return all(map(allowed, tree.body))


@cache
def edges():
    """Module → the modules it names. A package's `__init__` that only re-exports names is exempt."""
    return {
        name: set() if is_package(name) and only_re_exports(ast.parse(path.read_text())) else named_in(name)
        for name, path in modules().items()
    }


def test_a_package_that_does_more_than_re_export_is_read():
    assert only_re_exports(ast.parse('"""Text."""\nfrom a.b import c\n__all__ = ["c"]'))
    for more in ("def load(): ...", "class A: ...", "kept = {}", "__all__ = [c()]", "c()", "if c:\n    import d"):
        assert not only_re_exports(ast.parse(f"from a.b import c\n{more}")), more
    packages = {name for name in modules() if is_package(name)}
    assert {"runtime", "runtime.merge", "runtime.native"} <= packages
    assert not [name for name in packages if edges()[name]], "so far every package only re-exports"


def test_no_import_goes_round_in_a_circle():
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        trail.append(name)
        for other in sorted(edges()[name]):
            visit(other)
        trail.pop()
        done.add(name)

    for name in modules():
        visit(name)


@pytest.mark.parametrize("top", MAY_IMPORT)
def test_a_stage_imports_only_those_below_it(top):
    wrong = [
        f"{name} imports {other}"
        for name, others in edges().items()
        for other in sorted(others)
        if name.split(".")[0] == top and other.split(".")[0] not in MAY_IMPORT[top] and name != COMMANDS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("top", ORDER)
def test_a_room_imports_only_rooms_below_it(top):
    rank = {room: number for number, rooms in enumerate(ORDER[top]) for room in rooms}

    def room(name):
        return name.split(".")[1]

    inside = {name for name in modules() if name.startswith(f"{top}.")}
    unknown = {room(name) for name in inside} - set(rank) - {COMMANDS.split(".")[1]}
    assert not unknown, f"which place have {unknown} in the list?"
    wrong = [
        f"{name} imports {other}"
        for name in sorted(inside - {COMMANDS})
        for other in sorted(edges()[name] & inside)
        if room(name) != room(other) and rank[room(other)] <= rank[room(name)]
    ]
    assert not wrong, "\n".join(wrong)


def test_long_modules_say_why():
    wrong = []
    for name, path in modules().items():
        lines = path.read_text().splitlines()
        if len(lines) > LONGEST and not any(line.startswith(REASON) for line in lines):
            wrong.append(f"{name}: {len(lines)} lines")
    assert not wrong, "\n".join(wrong)
