"""The rooms know only what is below them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def imports(folder: str) -> dict[str, set[str]]:
    """The modules that each file of a folder imports anywhere, by file name."""
    found = {}
    for path in sorted((ROOT / folder).glob("*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        found[path.name] = names
    assert found
    return found


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_arrows_run_one_way():
    for name, names in imports("model").items():
        assert not rooms(names) & {"app", "training", "tests", "gradio"}, name
    for name, names in imports("training").items():
        assert not rooms(names) & {"app", "tests", "gradio"}, name
    assert not rooms(imports(".")["app.py"]) & {"training", "tests"}


def test_the_flow_knows_no_network():
    assert not {name for name in imports("model")["flow.py"] if name.startswith("model")} - {
        "model.images",
        "model.images.SIZE",
    }


def test_weights_hold_no_python():
    assert not list((ROOT / "weights").rglob("*.py"))
