import numpy as np
import pytest
import seeded

from ckpt_convert import lpips
from ckpt_convert.__main__ import main
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import flatten, load_lpips

WHOLE = seeded.load("lpips").weights("lpips")
# Positions of the official slices in torchvision's network, which numbers all layers.
LINEAR = {key: value for key, value in WHOLE.items() if key.startswith("lin")}
VGG16 = {
    f"features.{key.split('.', 2)[2]}": value
    for key, value in WHOLE.items()
    if key.startswith("net")
}
CLASSIFIER = {"classifier.0.weight": np.zeros((2, 2), np.float32)}


def test_both_shapes_of_the_weights_give_the_same_network(source):
    whole = source(
        WHOLE | {"lins.0.model.1.weight": np.zeros(1), "scaling_layer.shift": np.zeros(1)}
    )
    from_whole = flatten(lpips.convert(whole).model)
    from_parts = flatten(lpips.convert(source(VGG16 | CLASSIFIER | LINEAR)).model)
    assert set(from_whole) == set(from_parts)
    for name, array in from_whole.items():
        np.testing.assert_array_equal(array, from_parts[name])


def test_two_files_are_converted_on_the_command_line(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    for name, tensors in {"vgg16.pth": VGG16 | CLASSIFIER, "vgg.pth": LINEAR}.items():
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / name)
    arguments = ["lpips", str(tmp_path / "vgg16.pth"), str(tmp_path / "lpips")]
    assert main(arguments) == 1
    assert "--linear" in capsys.readouterr().err
    assert main([*arguments, "--linear", str(tmp_path / "vgg.pth")]) == 0
    load_lpips(tmp_path / "lpips")


def test_negative_weights_are_refused(source):
    weights = LINEAR | {"lin2.model.1.weight": -LINEAR["lin2.model.1.weight"]}
    with pytest.raises(InputError, match="negative"):
        lpips.convert(source(VGG16 | weights))
