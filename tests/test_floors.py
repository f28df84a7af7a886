"""The architecture: a room imports only from floors strictly below its own; within a folder freely, without circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import plait

PACKAGE = Path(plait.__file__).parent
FLOORS = [
    {"errors", "events"},
    {"spec"},
    {"guard"},
    {"store"},
    {"model", "data", "plan"},
    {"replica", "ledger"},
    {"sync"},
    {"train"},
    {"cluster", "watch"},
    {"tasks"},
    {"proof"},
    {"dashboard"},
    {"cli", "__init__", "testing"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE_FACTS = {"__version__"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Modules of plait that a file imports, dotted without "plait."; imports for type checkers alone do not count."""
    found = set()
    for node in ast.walk(without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names} - PACKAGE_FACTS
            found |= {f"{node.module}.{name}" if is_module(f"{node.module}.{name}") else node.module for name in names}
    return {name.removeprefix("plait.") for name in found if name.startswith("plait.")}


def without_type_checking(tree: ast.Module) -> ast.Module:
    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST:
            return ast.Pass() if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    return Strip().visit(tree)


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in modules()} <= set(FLOOR)


def test_rooms_import_from_lower_floors_alone() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports plait.{name}"
        for path in modules()
        for name in imports(path)
        if (other := name.split(".")[0]) != room_of(path) and FLOOR[other] >= FLOOR[room_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circles_within_a_room() -> None:
    graph = {dotted(path): imports(path) for path in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def test_models_know_no_distribution() -> None:
    told = [path for path in (PACKAGE / "model").rglob("*.py") if "torch.distributed" in path.read_text()]
    assert not told


def test_the_launching_parent_starts_without_torch() -> None:
    """Importing torch is most of a start: the parent leaves it to the process that forks workers."""
    import subprocess
    import sys

    code = "import sys, plait.cli, plait.tasks.pretrain, plait.watch.console, plait.cluster.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
