"""The import graph of the package, computed from its sources: who may know whom."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wals_gpu"

# From the bottom to the top. A package imports from itself and from those before it.
FLOORS = (
    "system", "errors", "checks", "objective", "data", "text", "backends", "priors", "retrieval", "evaluation",
    "training", "tuning", "model", "publishing", "report", "distributed", "spark", "datasets", "compat", "export",
    "serve", "cli",
)  # fmt: skip
NATIVE = {"wals_gpu._cpu", "wals_gpu._cuda"}  # built from csrc, imported by nobody but backends and cli


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_door(tree):
    """A door re-exports: nothing but a docstring, imports, __all__, and running as a program."""
    plain = (ast.Import, ast.ImportFrom)
    return all(
        isinstance(node, plain)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"])
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")
        for node in tree.body
    )


def imports_of(name, tree):
    """(module, name or None, whether only for type checkers) of each import, wherever it is."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, id(node) in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner in SOURCES or inner in NATIVE
                yield inner if is_module else node.module, None if is_module else alias.name, id(node) in for_types


def own_imports(name, tree):
    return [found for found in imports_of(name, tree) if found[0].split(".")[0] == "wals_gpu"]


TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
DOORS = {name for name, tree in TREES.items() if is_door(tree)}


def floor(module):
    parts = module.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else None


def test_every_module_stands_on_a_floor_or_is_a_door():
    homeless = [name for name in SOURCES if floor(name) is None and name not in DOORS]
    assert homeless == ["wals_gpu", "wals_gpu.__main__"]  # the face


def test_few_files_stand_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 14


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in DOORS and floor(name) is not None])
def test_imports_run_downwards(name):
    """Also those inside of functions and for type checkers: a drawing of the package has no arrow upwards."""
    for target, _, _ in own_imports(name, TREES[name]):
        if target in NATIVE:
            assert name.startswith(("wals_gpu.backends.", "wals_gpu.cli.")), f"{name} imports {target}"
            continue
        assert floor(target) is not None, f"{name} imports {target}, a door"
        assert floor(target) <= floor(name), f"{name} imports {target} from above it"


def test_there_is_no_circle():
    graph = {
        name: {target for target, _, _ in own_imports(name, tree) if target in SOURCES and target != name}
        for name, tree in TREES.items()
        if name not in DOORS
    }
    # An import of a module runs the package's __init__ first, which is a door to what is inside: no arrow of its own.
    list(TopologicalSorter(graph).static_order())  # CycleError names the modules


@pytest.mark.parametrize("name", SOURCES)
def test_no_private_name_of_another_package(name):
    """Neither imported, nor taken as an attribute from a module or a class of another package."""
    tree, own_package = TREES[name], name.split(".")[1:2]
    foreign = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "wals_gpu":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                package = (module if module in SOURCES else node.module).split(".")[1:2]
                if package != own_package:
                    foreign[alias.asname or alias.name] = module
                    private = alias.name.startswith("_") and module not in NATIVE
                    assert not private, f"{name} imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            assert owner not in foreign, f"{name} uses {owner}.{node.attr}"


def private_attributes(tree):
    """(line, object, attribute) of private attributes of anything but the module's own self and cls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if ast.unparse(node.value) not in ("self", "cls"):
                yield node.lineno, ast.unparse(node.value), node.attr


@pytest.mark.parametrize("name", SOURCES)
def test_private_attributes_stay_in_their_package(name):
    """What starts with an underscore is set on self (or declared in a class body) somewhere in the same package."""
    package = ".".join(name.split(".")[:2])
    own = set()
    for other, tree in TREES.items():
        if other == package or other.startswith(f"{package}."):
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    own.add(node.name)
                elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                    own.add(node.attr)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    own.add(node.target.id)
    missing = [
        f"line {line}: {owner}.{attr}" for line, owner, attr in private_attributes(TREES[name]) if attr not in own
    ]
    # Of other libraries: names that are public there and begin with an underscore all the same.
    permitted = FOREIGN + (OF_PYSPARK if package == "wals_gpu.spark" else ())
    assert not [text for text in missing if not text.endswith(permitted)]


FOREIGN = ("sys._getframe", "os._exit", "argparse._ArgumentGroup", "_replace", "_asdict", "_fields")
# What estimators outside of pyspark are written with: it has no other way to parameters and to the JVM.
OF_PYSPARK = (
    "Params._dummy", "_resetUid", "._jdf", "._jvm", "._jsc", "._java_obj", "_empty_java_param_map",
    "_transfer_params_from_java",
)  # fmt: skip


def test_the_rules_can_fail():
    """A planted module breaks each rule."""
    planted = ast.parse("from wals_gpu.model.wals import WALS\nfrom wals_gpu.data import csr\ncsr._x\nmodel._seen\n")
    assert [found[0] for found in own_imports("wals_gpu.objective.new", planted)] == [
        "wals_gpu.model.wals",
        "wals_gpu.data.csr",
    ]
    assert floor("wals_gpu.model.wals") > floor("wals_gpu.objective.new")
    assert [attr for _, _, attr in private_attributes(planted)] == ["_x", "_seen"]
    assert not is_door(planted) and is_door(
        ast.parse('"""Door."""\nfrom wals_gpu.data.ids import Ids\n__all__ = ["Ids"]')
    )
