"""Rules for imports between modules."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = [ROOT / "app.py", *sorted((ROOT / "model").rglob("*.py")), *sorted((ROOT / "training").rglob("*.py"))]


def module(path: Path) -> str:
    """The name under which Python imports a file: `training.measure.plots`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str) -> set[str]:
    """All modules imported anywhere in a source; for `from a import b`, both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


IMPORTS = {module(path): imported(path.read_text(encoding="utf-8")) for path in FILES}
# Commands are the app and the modules with a main block directly in model/ and training/; subfolders hold libraries.
COMMANDS = {
    module(path)
    for path in FILES
    if module(path).count(".") <= 1 and '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
}


def outside(name: str, *allowed: str) -> set[str]:
    """The project's packages that a module imports, except the `allowed` ones."""
    packages = {imported.split(".")[0] for imported in IMPORTS[name]}
    return packages & {"app", "model", "training", "tests"} - set(allowed)


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\ndef f():\n    from c import d\n    if True:\n        import e as f\n"
    assert imported(source) == {"a.b", "c", "c.d", "e"}


@pytest.mark.parametrize("name", IMPORTS)
def test_the_app_and_training_import_model_and_nothing_imports_them(name):
    assert not outside(name, "model", *(["training"] if name.startswith("training") else []))
    if not name.startswith("app"):
        assert not {imported for imported in IMPORTS[name] if imported.split(".")[0] == "gradio"}


def test_the_flow_only_knows_the_size_of_an_image():
    project = {imported for imported in IMPORTS["model.flow"] if imported.split(".")[0] in ("model", "training", "app")}
    assert project == {"model.images", "model.images.SIZE"}


def test_a_command_is_imported_by_nobody():
    assert {"app", "model.generate", "training.train", "training.evaluate"} <= COMMANDS
    importers = {name: found for name, names in IMPORTS.items() if (found := names & COMMANDS)}
    assert not importers


def test_weights_hold_no_python():
    assert not list((ROOT / "weights").rglob("*.py"))
