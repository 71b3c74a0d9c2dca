"""A network taken away: what onnxruntime computes is what torch computes."""

from __future__ import annotations

import pytest
import torch

import model
import utils

extra = "needs the packages of requirements-extra.txt"


@pytest.mark.parametrize("network", [model.Net, model.Nano, model.Attempt2])
def test_onnxruntime_gives_the_same_logits_for_any_number_of_images(network, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason=extra)
    onnxruntime = pytest.importorskip("onnxruntime", reason=extra)
    torch.manual_seed(0)
    net = network()
    for layer in net.modules():
        if isinstance(layer, model.ChannelAttention):
            torch.nn.init.normal_(layer.weight)  # which is 0 at the start
    net(torch.randn(64, 1, 28, 28))  # BatchNorm statistics that are not the initial ones
    monkeypatch.setenv("HOME", str(tmp_path))
    utils.export_onnx(net, "~/net.onnx")
    assert net.training
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    net.eval()
    for count in (1, 2, 7):
        images = torch.randn(count, 1, 28, 28)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(logits), net(images).detach(), atol=1e-4)


def test_a_network_in_double_precision_is_exported(tmp_path):
    pytest.importorskip("onnxscript", reason=extra)
    utils.export_onnx(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).double(), tmp_path / "net.onnx", (1, 2, 2)
    )
    assert (tmp_path / "net.onnx").exists()


def test_a_size_that_the_network_does_not_read_is_named(tmp_path):
    pytest.importorskip("onnxscript", reason=extra)
    with pytest.raises(ValueError, match=r"does not read images of input_size \(1, 28, 28\).*3 channels"):
        utils.export_onnx(model.Net(in_channels=3), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="input_size is -1; expected a whole number of at least 1"):
        utils.export_onnx(model.Net(), tmp_path / "net.onnx", (1, -1, 28))


def test_without_the_extra_packages_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"requirements-extra\.txt"):
        utils.export_onnx(model.Net(), tmp_path / "net.onnx")
