"""The page with a flow map and its teacher: a real browser, a small network."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import app
from model import weights
from model.page import studio
from model.sampling import draw
from tests.page.conftest import Visit
from tests.server import close


@pytest.fixture
def loaded(map_weights) -> weights.Weights:
    return weights.load(str(map_weights))


@pytest.fixture
def served(loaded):
    """The address of the flow map's page, served in this process."""
    page = app.build(studio.Studio(loaded, listened=app.listened))
    _, url, _ = app.serve(page, prevent_thread_lock=True, quiet=True)
    yield url.rstrip("/")
    page.close()


def test_a_visit_to_a_flow_map(chromium, served, loaded):
    """An old link with an unsupported guidance, its film, and the comparison with the teacher."""
    one = Visit(chromium.new_context(viewport={"width": 1100, "height": 900}), f"{served}/?seed=5&steps=2&guidance=0.5")

    def drawn(of: weights.Weights, steps: int) -> np.ndarray:
        return next(draw(of.network, torch.tensor([7]), 5, replace(of.sampling, steps=steps, guidance=1.0)))[0].numpy()

    assert close(one.shows(7, 5, 2), drawn(loaded, 2))
    note = one.page.locator("#panel [data-field=guidance] .problem")
    assert note.inner_text() == "Drawn at guidance 1: this network does not support values between 0 and 1."
    assert note.is_visible()
    assert (one.field("guidance").input_value(), one.field("guidance").get_attribute("aria-invalid")) == ("1", None)
    assert one.page.url.endswith("seed=5&steps=2&guidance=1")
    assert "xₜ − t·u(xₜ, t, 0)" in one.page.locator("#film .digits-strip").inner_text()

    one.open("Why it works")
    assert "one step jumps" in one.page.locator("digit-arrows").inner_text()
    one.page.locator("digit-steps").scroll_into_view_if_needed()
    one.until("$$('digit-steps canvas').length === 12")
    assert one.page.locator("digit-steps tbody th").all_inner_texts() == ["flow", "map"]
    for row, of in enumerate((loaded.teacher, loaded), 1):
        cell = f"digit-steps tbody tr:nth-child({row}) td:nth-of-type(3)"
        assert close(one.pixels(f"{cell} canvas"), drawn(of, 4))
        assert re.fullmatch(r"4 calls\s[\d.]+ m?s", one.page.locator(cell).inner_text().strip())
    assert "The flow map was distilled from it" in one.page.locator(".tabitem:visible").inner_text()
    one.page.locator("digit-paths svg").wait_for()
    assert "where the arrows led" in one.page.locator("digit-paths").inner_text()
    one.page.get_by_role("button", name="1 jump").click()
    assert "In one jump." in one.page.locator("digit-paths").inner_text()

    one.page.locator("#panel input[name=guidance]").fill("2")
    one.until("document.querySelector('#film').film.guidance === 2")
    assert note.inner_text() == ""
    assert not one.errors
