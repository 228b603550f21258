"""The notebook runs from top to bottom, and its stored outputs are readable."""

import ast
import base64
import io
import re

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.server import ROOT

PATH = ROOT / "training/walkthrough.ipynb"
SHORT = {"STEPS": 5, "DIGITS": 20}  # replaces the notebook's values, to save time
LARGEST = 400_000  # maximum file size in bytes


def read() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shortened(notebook):
    """The notebook with the values of `SHORT`; each is set exactly once."""
    for name, value in SHORT.items():
        changes = 0
        for cell in code(notebook):
            cell.source, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", cell.source, flags=re.M)
            changes += count
        assert changes == 1, name
    return notebook


def printed(notebook) -> str:
    """Everything printed by the cells."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(notebook) -> list[Image.Image]:
    outputs = [output for cell in code(notebook) for output in cell.outputs if "data" in output]
    found = [output.data["image/png"] for output in outputs if "image/png" in output.data]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found]


def check_facts(text: str) -> None:
    """Check the printed facts that hold on every machine."""
    assert "images [60000, 28, 28] torch.uint8 · labels [60000]" in text
    assert float(re.search(r"found this way: (\S+)", text)[1]) < 1e-5
    by_hand, projects = re.search(r"by hand (\S+), the project's loss (\S+)", text).groups()
    assert by_hand == projects
    assert abs(float(by_hand) - 3.44) < 0.1  # E[noise²] + E[image²] = 1 + 2.44: the network predicts zero
    assert float(re.search(r"average image: (\S+)", text)[1]) > 0.95
    for who, least in (("real test digits", 95), ("released weights", 95), ("your network", 0)):
        assert float(re.search(rf"{who} +accuracy +([\d.]+)%", text)[1]) >= least, who


def test_what_is_stored_is_fit_to_be_read():
    notebook, source = read(), PATH.read_text(encoding="utf-8")
    assert len(source.encode()) < LARGEST
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|Users|content|kaggle)/", source)
    check_facts(printed(notebook))
    own = re.search(r"your network +accuracy +([\d.]+)%", printed(notebook))
    assert float(own[1]) > 50, "the small network has learned the classes"
    assert all(picture.width <= 800 for picture in pictures(notebook))


def test_the_notebook_computes_with_the_projects_own_functions():
    cells = [cell.source for cell in code(read())]
    trees = [ast.parse(re.sub(r"^( *)[!%].*", r"\1pass", source, flags=re.M)) for source in cells]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {"model", "model.dit", "training", "training.config", "training.objective"} <= imported
    assert {node.name for node in nodes if isinstance(node, ast.FunctionDef)} == {"train_step", "draw"}
    assert not [node for node in nodes if isinstance(node, ast.ClassDef)]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(mnist_root):
    notebook = shortened(read())
    for cell in code(notebook):
        cell.outputs = []
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(PATH.parent)}}).execute()
    check_facts(printed(notebook))
    assert len(pictures(notebook)) == len(pictures(read()))
