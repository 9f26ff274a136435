import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ckpt_convert import formats, latents
from styleclip_jax.errors import InputError


@pytest.fixture
def convert(tmp_path):
    def run(content, destination):
        torch.save(content, tmp_path / "faces.pt")
        path = tmp_path / "out" / destination
        latents.save(path, latents.convert(formats.read(tmp_path / "faces.pt")))
        assert list(path.parent.iterdir()) == [path]
        return np.load(path)

    return run


def test_a_tensor_becomes_npy(convert):
    tensor = torch.randn(5, 10, 7).transpose(1, 2)
    np.testing.assert_array_equal(convert(tensor, "faces.npy"), tensor.numpy())


def test_half_precision_becomes_float32(convert):
    assert convert(torch.ones(1, 2, 3, dtype=torch.half), "faces.npy").dtype == np.float32


@pytest.mark.parametrize("axes", [(slice(None),), (slice(None), None, slice(None), None, None)])
def test_stylespace_tensors_become_npz_with_one_array_per_layer(axes, convert):
    styles = [torch.randn(4, width) for width in (8, 8, 6, 4)]
    archive = convert([style[axes] for style in styles], "faces.npz")
    assert sorted(archive) == ["layer_00", "layer_01", "layer_02", "layer_03"]
    for i, style in enumerate(styles):
        np.testing.assert_array_equal(archive[f"layer_0{i}"], style.numpy())


def test_more_than_ten_layers_keep_their_order(convert):
    archive = convert([torch.full((1, 2), float(i)) for i in range(26)], "faces.npz")
    assert [archive[f"layer_{i:02}"][0, 0] for i in range(26)] == list(range(26))


@pytest.mark.parametrize(
    ("content", "destination", "message"),
    [
        (torch.ones(18, 512), "a.npy", r"\(18, 512\), expected \(N, layers, w_dim\)"),
        (torch.ones(0, 18, 512), "a.npy", r"\(0, 18, 512\)"),
        (torch.full((1, 2, 3), torch.nan), "a.npy", "NaN"),
        ([torch.ones(2, 3), torch.ones(2, 3, 4)], "a.npz", "tensor 1 has .*2, 3, 4"),
        ([torch.ones(2, 3), torch.ones(4, 3)], "a.npz", "latents per layer"),
        ([torch.ones(2, 3), torch.full((2, 3), torch.inf)], "a.npz", "tensor 1 has .*infinite"),
        ({"w": torch.ones(1, 2, 3)}, "a.npy", "neither"),
        ([], "a.npz", "neither"),
        (torch.ones(1, 2, 3), "a.npz", r"expected \.npy for W\+ latents"),
        ([torch.ones(2, 3)], "a.npy", r"expected \.npz for StyleSpace latents"),
    ],
)
def test_invalid_latents_are_refused(content, destination, message, convert, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(content, destination)
    assert not (tmp_path / "out").exists()


def test_an_existing_file_is_kept(convert, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.npy").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        convert(torch.ones(1, 2, 3), "a.npy")
    assert (tmp_path / "out" / "a.npy").read_text() == "mine"


def test_latents_are_not_written_to_a_directory_named_after_a_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected a local path"):
        latents.save("gs://bucket/a.npy", jnp.ones((1, 2, 3)))
    assert not list(tmp_path.iterdir())
