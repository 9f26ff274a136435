import json
import shutil

import jaxtyping
import numpy as np
import pytest
import seeded
from etils import epath
from transformers.convert_slow_tokenizer import bytes_to_unicode

from styleclip_jax.errors import InputError
from styleclip_jax.io.checksums import write_checksums
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import Tokenizer, encode_texts, load_tokenizer, words_of

START, END = 49406, 49407
OFFICIAL = json.loads((seeded.DIRECTORY / "tokens.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    """The part of OpenAI's tokenizer that the official examples need."""
    symbols = list(bytes_to_unicode().values())
    merges = json.loads((seeded.DIRECTORY / "vocabulary.json").read_text())
    vocab = {symbol: i for i, symbol in enumerate([*symbols, *(f"{s}</w>" for s in symbols)])}
    vocab |= {merge.replace(" ", ""): i for merge, i in merges}
    vocab |= {"<|startoftext|>": START, "<|endoftext|>": END}
    return Tokenizer(vocab, [merge for merge, _ in merges], context_length=77)


@pytest.mark.parametrize(
    "example",
    [e for e in OFFICIAL if e["text"].strip() and len(e["ids"]) <= 75],
    ids=lambda example: ascii(example["text"][:40]),
)
def test_tokens_are_the_official_ones(tokenizer, example):
    (tokens,) = tokenizer([example["text"]])
    expected = [START, *example["ids"], END]
    assert tokens.tolist() == expected + [0] * (77 - len(expected))


def test_one_text_may_be_given_alone(tokenizer):
    assert (tokenizer("a hat") == tokenizer(["a hat"])).all()


def test_a_text_longer_than_the_context_is_refused(tokenizer):
    texts = [e["text"] for e in OFFICIAL if len(e["ids"]) > 75]
    assert texts
    for text in texts:
        with pytest.raises(InputError, match="at most 75;"):
            tokenizer([text])


@pytest.mark.parametrize("text", ["", "  \n", "&nbsp;", "\ufeff"])
def test_an_empty_text_is_refused(tokenizer, text):
    with pytest.raises(InputError, match="empty"):
        tokenizer([text])


def test_texts_are_encoded_the_same_alone_and_in_a_batch(clip, clip_path):
    tokenizer = load_tokenizer(clip_path)
    together = encode_texts(clip, tokenizer, ["a hat", "glasses"])
    assert together.shape == (2, 16)
    (alone,) = encode_texts(clip, tokenizer, ["glasses"])
    np.testing.assert_allclose(alone, together[1], atol=1e-5)


def test_a_checkpoint_without_tokenizer_is_refused(clip_path, tmp_path):
    shutil.copytree(clip_path, tmp_path / "clip")
    shutil.rmtree(tmp_path / "clip" / "tokenizer")
    write_checksums(epath.Path(tmp_path) / "clip")
    with pytest.raises(InputError, match="--tokenizer"):
        load_tokenizer(tmp_path / "clip")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"a": "b"}', '{"a": 0}', '[["a", 0]]', b"\xff", '{"\\ud800": 0}']
)
def test_a_damaged_vocabulary_is_refused(clip_path, tmp_path, content):
    shutil.copytree(clip_path, tmp_path / "clip")
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "clip" / "tokenizer" / "vocab.json").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_tokenizer(tmp_path / "clip")


@pytest.mark.parametrize(
    "change", [{"b": -1}, {"b": 190}, {"b": 0.5}, {"<|endoftext|>": 3}, {"\ud800": 4}]
)
def test_a_vocabulary_of_another_clip_is_refused(clip_path, tmp_path, change):
    shutil.copytree(clip_path, tmp_path / "clip")
    file = tmp_path / "clip" / "tokenizer" / "vocab.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    write_checksums(epath.Path(tmp_path) / "clip")
    with pytest.raises(InputError, match="does not match the CLIP"):
        load_tokenizer(tmp_path / "clip")


@pytest.mark.parametrize("size", [{"vocab_size": "many"}, {"vocab_size": None}, {"colour": 3}])
def test_a_damaged_configuration_is_refused(clip_path, tmp_path, monkeypatch, size):
    # Users have no run-time type checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    shutil.copytree(clip_path, tmp_path / "clip")
    file = tmp_path / "clip" / "config.json"
    described = json.loads(file.read_text())
    described["config"] |= size
    file.write_text(json.dumps(described))
    with pytest.raises(InputError, match="damaged"):
        load_tokenizer(tmp_path / "clip")


@pytest.mark.parametrize("merges", ["a", "a b c", "a b", "zz a"])
def test_merges_of_unknown_tokens_are_refused(clip_path, tmp_path, merges):
    shutil.copytree(clip_path, tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer" / "merges.txt").write_text(merges)
    with pytest.raises(InputError, match="damaged"):
        load_tokenizer(tmp_path / "clip")


def test_features_are_averaged_over_templates_without_the_texts_article(clip, clip_path):
    tokenizer = load_tokenizer(clip_path)
    texts = ["a hat", "An owl", "the bow", "theme"]
    features = np.asarray(encode_texts(clip, tokenizer, texts, ["my {}.", "one {}"]))
    for row, noun in zip(features, ["hat", "owl", "bow", "theme"], strict=True):
        each = np.asarray(encode_texts(clip, tokenizer, [f"my {noun}.", f"one {noun}"]))
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_the_templates_are_those_of_the_official_global_directions():
    assert len(set(IMAGENET_TEMPLATES)) == 79
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)
    assert "a photo of many {}." not in IMAGENET_TEMPLATES


def test_words_are_found_without_case_and_punctuation():
    assert words_of("A red-headed Person, (it's) \U0001f600!") == [
        "a",
        "red-headed",
        "person",
        "it's",
        "\U0001f600",
    ]


def test_the_avatars_tokenizer_knows_the_words_of_its_captions():
    tokenizer = load_tokenizer()
    assert tokenizer.unknown_words("A person with sunglasses and a red hat") == []
    texts = ["a person holding a banana", "банан", "a 😀"]
    assert tokenizer.unknown_words(texts) == ["holding", "banana", "банан", "😀"]
    assert "words.txt" in tokenizer.files


def test_a_tokenizer_without_a_list_of_words_knows_them_all(clip_path):
    tokenizer = load_tokenizer(clip_path)
    assert tokenizer.unknown_words("banana") == []
    assert "words.txt" not in tokenizer.files
