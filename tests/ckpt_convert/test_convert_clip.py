import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
import torch
import transformers
from torch import nn

from ckpt_convert import clip, formats, tables
from ckpt_convert.tokenizers import has_tokenizer, read_tokenizer
from styleclip_jax.errors import InputError
from styleclip_jax.models.clip import CLIP, CLIPConfig

WIDTH, EMBED, LAYERS, CONTEXT, VOCAB, SIZE, PATCH = 64, 24, 2, 12, 560, 32, 16

encode_image = jax.jit(CLIP.encode_image)
encode_text = jax.jit(CLIP.encode_text)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A transformer block with OpenAI's names."""

    def __init__(self, causal):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))
        self.causal = causal

    def forward(self, x):
        length = x.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1) if self.causal else None
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(causal) for _ in range(LAYERS)))

    def forward(self, x):
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Transformer(causal=False)
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED))

    def forward(self, images):
        x = self.conv1(images).flatten(2).mT
        first = self.class_embedding.expand(len(x), 1, WIDTH)
        x = torch.cat([first, x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAI(nn.Module):
    """A small CLIP with OpenAI's names and one attention head in 64 channels."""

    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.transformer = Transformer(causal=True)
        self.token_embedding = nn.Embedding(VOCAB, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, WIDTH))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBED))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        for name, value in (
            ("input_resolution", SIZE),
            ("context_length", CONTEXT),
            ("vocab_size", VOCAB),
        ):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x))
        ends = x[torch.arange(len(x)), tokens.argmax(-1)]
        return self.visual(images), ends @ self.text_projection


@pytest.fixture
def openai():
    torch.manual_seed(0)
    model = OpenAI()
    # As in OpenAI's files; random, because initial biases are zero and would not matter.
    for parameter in model.parameters():
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).half().float()
    return model.eval()


@pytest.fixture
def hugging_face(tmp_path):
    torch.manual_seed(0)
    towers = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    }
    text = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "eos_token_id": VOCAB - 1}
    text |= {"bos_token_id": VOCAB - 2}
    vision = {"image_size": SIZE, "patch_size": PATCH}
    # transformers imports its models when they are used, which takes a second.
    config = transformers.CLIPConfig(
        text_config=towers | text, vision_config=towers | vision, projection_dim=EMBED
    )
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip", model


IMAGES = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
TOKENS = np.zeros((2, CONTEXT), np.int32)
TOKENS[0, :4] = VOCAB - 2, 7, 300, VOCAB - 1
TOKENS[1, :3] = VOCAB - 2, 8, VOCAB - 1


def assert_same_features(model, image_features, text_features):
    for found, expected in (
        (encode_image(model, jnp.asarray(IMAGES)), image_features),
        (encode_text(model, jnp.asarray(TOKENS)), text_features),
    ):
        expected = expected.detach().numpy()
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openais_archive_gives_the_same_features(openai, tmp_path):
    images = torch.from_numpy(IMAGES).movedim(3, 1)
    tokens = torch.from_numpy(TOKENS).long()
    expected = openai(images, tokens)
    traced = torch.jit.trace(openai, (images, tokens))
    assert isinstance(traced, torch.jit.ScriptModule)
    torch.jit.save(traced.half(), tmp_path / "ViT.pt")
    source = formats.read(tmp_path / "ViT.pt")
    assert source.kind == "torchscript"
    assert source.tensors["visual.conv1.weight"].dtype == np.float16
    model = clip.convert(source).model
    assert_same_features(model, *expected)
    assert model.config == CLIPConfig(
        image_size=SIZE,
        patch_size=PATCH,
        vision_width=WIDTH,
        vision_layers=LAYERS,
        vision_heads=1,
        text_width=WIDTH,
        text_layers=LAYERS,
        text_heads=1,
        embed_dim=EMBED,
        context_length=CONTEXT,
        vocab_size=VOCAB,
    )
    assert model.logit_scale[...] == openai.logit_scale.item()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))


def test_openais_plain_state_dict_is_the_same_model(openai, tmp_path):
    torch.save(openai.half().state_dict(), tmp_path / "ViT.pt")
    images = torch.from_numpy(IMAGES).movedim(3, 1)
    expected = openai.float()(images, torch.from_numpy(TOKENS).long())
    assert_same_features(clip.convert(formats.read(tmp_path / "ViT.pt")).model, *expected)


def test_hugging_faces_directory_gives_the_same_features(hugging_face):
    path, reference = hugging_face
    model = clip.convert(formats.read(path)).model
    assert model.config.vision_heads == model.config.text_heads == 4
    images = torch.from_numpy(IMAGES).movedim(3, 1)
    tokens = torch.from_numpy(TOKENS).long()
    output = reference(input_ids=tokens, pixel_values=images)
    # Unlike the embeddings of the output, these are not of unit length.
    features = output.vision_model_output.pooler_output, output.text_model_output.pooler_output
    assert_same_features(model, *features)


def test_older_hugging_face_files_convert_to_the_same_model(hugging_face, tmp_path):
    path, reference = hugging_face
    state = reference.state_dict()
    state["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "config.json").write_bytes((path / "config.json").read_bytes())
    new, old = (clip.convert(formats.read(p)).model for p in (path, tmp_path / "old"))
    assert new.config == old.config
    for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bare_safetensors_have_as_many_heads_as_official_models(hugging_face):
    path, _ = hugging_face
    config = clip.convert(formats.read(path / "model.safetensors")).model.config
    assert config.vision_heads == config.text_heads == 1


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("clip_openai_ViT-B-32", CLIPConfig.vit_b32()),
        ("clip_openai_ViT-B-16", CLIPConfig.vit_b16()),
        ("clip_openai_ViT-L-14", CLIPConfig.vit_l14()),
        ("clip_huggingface_ViT-B-32", CLIPConfig.vit_b32()),
    ],
)
def test_every_key_of_the_official_files_is_converted(name, config, manifest):
    source = manifest(name)
    layout = clip.OPENAI if "openai" in name else clip.HUGGING_FACE
    table = clip.make_table(source, layout)
    assert clip.infer_config(source, layout, table) == config
    # A shallow model has all shapes of blocks and takes a tenth of the time.
    shallow = dataclasses.replace(config, vision_layers=1, text_layers=1)
    shapes = seeded.parameter_shapes(CLIP, shallow)
    for tower, layers in (("vision", config.vision_layers), ("text", config.text_layers)):
        block = {key: shape for key, shape in shapes.items() if key.startswith(f"{tower}.blocks.0")}
        for i in range(1, layers):
            shapes |= {key.replace(".0.", f".{i}."): shape for key, shape in block.items()}
    assert set(tables.apply_table(source, table, layout.ignored, shapes)) == set(shapes)


def test_a_larger_input_makes_the_336_pixel_preset(manifest):
    source = manifest("clip_openai_ViT-L-14")
    source.tensors["visual.positional_embedding"] = np.zeros((577, 1024))
    table = clip.make_table(source, clip.OPENAI)
    assert clip.infer_config(source, clip.OPENAI, table) == CLIPConfig.vit_l14_336()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act.*'gelu'"),
        ({"vision_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps"),
        ({"vision_config": {"num_attention_heads": 7}}, "7 heads"),
        ({"text_config": 3}, "text_config is 3"),
    ],
)
def test_other_architectures_are_refused(config, message, manifest):
    with pytest.raises(InputError, match=message) as error:
        clip.convert(manifest("clip_huggingface_ViT-B-32", config=config))
    assert str(error.value).count("clip_huggingface_ViT-B-32") == 1


def test_resnets_and_foreign_files_are_refused(source):
    with pytest.raises(InputError, match="ResNet"):
        clip.convert(source({"visual.layer1.0.conv1.weight": np.zeros(1)}))
    with pytest.raises(InputError, match=r"not a CLIP.*'g_ema\.style"):
        clip.convert(source({"g_ema.style.1.weight": np.zeros(1)}))


def test_a_patch_of_no_pixels_is_refused(openai, source):
    tensors = {key: value.numpy() for key, value in openai.state_dict().items()}
    tensors["visual.conv1.weight"] = tensors["visual.conv1.weight"][..., :0]
    with pytest.raises(InputError, match="is 0, expected at least 1"):
        clip.convert(source(tensors))


def test_an_image_without_positions_is_refused(openai, source):
    tensors = {key: value.numpy() for key, value in openai.state_dict().items()}
    tensors["visual.positional_embedding"] = tensors["visual.positional_embedding"][:0]
    with pytest.raises(InputError, match="image_size is 0, expected at least 1"):
        clip.convert(source(tensors))


def test_missing_parts_are_listed(openai, source):
    tensors = {key: value.numpy() for key, value in openai.state_dict().items()}
    del tensors["visual.proj"], tensors["transformer.resblocks.0.ln_1.bias"]
    with pytest.raises(InputError, match="2 keys missing") as error:
        clip.convert(source(tensors))
    assert "visual.proj" in str(error.value)
    assert "transformer.resblocks.0.ln_1.bias" in str(error.value)


MERGES = ["a b</w>", "a b", "ab ab</w>", "c d", "cd ab</w>", "e f</w>"]
NUM_TOKENS = 512 + len(MERGES) + 2


def write_openai_merges(path, merges=MERGES):
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, "x y", "xy z", ""]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_openais_merges_give_openais_vocabulary(tmp_path):
    path = write_openai_merges(tmp_path / "bpe.txt.gz")
    files = read_tokenizer(path, NUM_TOKENS)
    vocab = json.loads(files["vocab.json"])
    assert sorted(vocab.values()) == list(range(NUM_TOKENS))
    # Spot checks in the official vocabulary: printable bytes come first.
    assert [vocab[t] for t in ("!", "a", "~", "¡", "ÿ", "Ā", "!</w>")] == [
        0,
        64,
        93,
        94,
        187,
        188,
        256,
    ]
    assert [vocab[t] for t in ("ab</w>", "ef</w>")] == [512, 517]
    assert vocab["<|startoftext|>"] == NUM_TOKENS - 2
    assert vocab["<|endoftext|>"] == NUM_TOKENS - 1
    assert files["merges.txt"].decode().split("\n") == ["#version: 0.2", *MERGES, ""]


def test_a_hugging_face_tokenizer_is_read_from_old_and_new_files(tmp_path):
    files = read_tokenizer(write_openai_merges(tmp_path / "bpe.txt.gz"), NUM_TOKENS)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    assert not has_tokenizer(old)
    for name, content in files.items():
        (old / name).write_bytes(content)
    pairs = [merge.split() for merge in MERGES]
    model = {"vocab": json.loads(files["vocab.json"]), "merges": pairs}
    (new / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert has_tokenizer(old)
    assert has_tokenizer(new)
    assert read_tokenizer(old, NUM_TOKENS) == files
    assert read_tokenizer(new, NUM_TOKENS) == files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "is not a tokenizer"),
        (gzip.compress(b"#version\na b\n"), "merges, expected"),
        (gzip.compress("\n".join(["#version", *["a b c"] * 20]).encode()), "merges, expected"),
        (gzip.compress(b"\xff\xfe" * 9), "is not a tokenizer"),
        (gzip.compress(b"#version")[:-9], "is not a tokenizer"),
    ],
    ids=["no gzip", "few", "not pairs", "not utf-8", "truncated"],
)
def test_a_damaged_merges_file_is_refused(content, message, tmp_path):
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tokenizer(path, NUM_TOKENS)


def test_a_tokenizer_of_another_clip_is_refused(tmp_path):
    files = read_tokenizer(write_openai_merges(tmp_path / "bpe.txt.gz"), NUM_TOKENS)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{NUM_TOKENS} tokens.*expected 100"):
        read_tokenizer(tmp_path, 100)
    (tmp_path / "vocab.json").write_text('{"a": 1, "<|endoftext|>": 0}')
    with pytest.raises(InputError, match="ending in 'a'"):
        read_tokenizer(tmp_path, 100)
    without_start = {"a": 0, "<|endoftext|>": 1}
    merges_of_others = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for vocab in (without_start, merges_of_others):
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
        with pytest.raises(InputError, match="damaged"):
            read_tokenizer(tmp_path, 100)
    for content in ("[]", "[" * 100_000):
        (tmp_path / "vocab.json").write_text(content)
        with pytest.raises(InputError, match="damaged"):
            read_tokenizer(tmp_path, 100)


@pytest.mark.parametrize(
    ("tokens", "merges"),
    [
        # A line break within a merge, half a character, a merge of three, and another checksum.
        (["a", "b", "ab"], ["a\nb"]),
        (["a", "b", "ab", "\ud800"], ["a b"]),
        (["a", "b", "ab"], ["a b c"]),
        (["a", "b"], ["a b"]),
    ],
)
def test_a_tokenizer_that_could_not_be_loaded_is_not_written(tokens, merges, tmp_path):
    vocab = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    model = {"vocab": vocab, "merges": merges}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(InputError, match="damaged"):
        read_tokenizer(tmp_path, 100)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_tokenizer(tmp_path / "missing", NUM_TOKENS)
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt"):
        read_tokenizer(tmp_path, NUM_TOKENS)
