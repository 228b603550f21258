import pytest
import torch

from model import weights
from training.defaults import main


def test_the_defaults_change_and_nothing_else(small_weights):
    (small_weights / "samples.png").write_bytes(b"kept")
    before, tensors = weights.load(str(small_weights)), (small_weights / "model.safetensors").read_bytes()
    assert main([str(small_weights), "--guidance", "1.25", "--time-shift", "2"]) == 0
    after = weights.load(str(small_weights))
    assert (after.network.default_guidance, after.network.time_shift) == (1.25, 2.0)
    assert (small_weights / "model.safetensors").read_bytes() == tensors
    assert (small_weights / "samples.png").read_bytes() == b"kept"
    assert {**after.metrics, "sha256": 0} == {**before.metrics, "sha256": 0}
    assert torch.equal(after.network.embed_patch.weight, before.network.embed_patch.weight)


@pytest.mark.parametrize(("options", "words"), [(["--guidance", "9"], "guidance"), (["--time-shift", "0"], "time_shift")])
def test_a_bad_value_is_a_sentence_and_the_weights_stay(small_weights, capsys, options, words):
    before = {path.name: path.read_bytes() for path in small_weights.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main([str(small_weights), *options])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in small_weights.iterdir()} == before
    assert [path.name for path in small_weights.parent.iterdir()] == [small_weights.name]


def test_a_folder_without_weights_is_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--guidance", "1"])
    assert "there are no weights" in capsys.readouterr().err
