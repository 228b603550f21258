import pytest
import torch

from model import device


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("200000 100000", 2), ("50000 100000", 1), ("150000 50000", 3), ("max 100000", 5), ("", 5), (None, 5)],
)
def test_threads_keep_to_the_quota_of_a_container(tmp_path, monkeypatch, quota, threads):
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(device, "QUOTA", tmp_path / "cpu.max")
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert device.pick("cpu").type == "cpu"
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(ValueError, match="device 'abacus' is not available here"):
        device.pick("abacus")
