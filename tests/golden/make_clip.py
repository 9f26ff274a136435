"""Makes clip.npz and tokens.json: OpenAI's CLIP and tokenizer, and StyleCLIP's loss on it.

Usage, with checkouts of orpatashnik/StyleCLIP and openai/CLIP, and the package ftfy installed:

    python tests/golden/make_clip.py --styleclip=PATH --clip=PATH
"""

import importlib
import json
from argparse import Namespace
from unittest import mock

import numpy as np
import official
import seeded
import torch
from absl import app, flags

_STYLECLIP = flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)
_CLIP = flags.DEFINE_string("clip", None, "Checkout of openai/CLIP.", required=True)

SEED = 3
# Image sizes whose loss is recorded; the gradient for the images is recorded at the second.
LOSS_SIZES = (32, 64, 256, 1024)
CONFIGURATIONS = {
    "patch_32": official.SMALL_CLIP,
    "patch_16": {
        "image_size": 96,
        "patch_size": 16,
        "vision_width": 64,
        "vision_layers": 3,
        "vision_heads": 1,
        "text_width": 64,
        "text_layers": 1,
        "text_heads": 1,
        "embed_dim": 32,
        "context_length": 16,
        "vocab_size": 1000,
    },
}
TEXTS = (
    "a person with sunglasses",
    "A photo of a PERSON with Purple Hair!",
    "",
    " ",
    "a",
    "  leading,   inner \t and\ntrailing whitespace  ",
    "it's, they're, I've, we'll, I'd, don't, I'm",
    "IT'S THEY'RE I'VE WE'LL I'D DON'T",
    "rock'n'roll o'clock 'quoted' \"double\" `tick`",
    "12345 3.14159 1,000,000 2nd 90s 50% $9.99",
    "h2o mp3 x86_64 c++ c# .net",
    "e-mail: someone@example.com, https://example.com/a?b=c&d=e#f",
    "!!! ??? ... --- *** ((())) [x] {y} <z>",
    "semi;colon:dash-underscore_slash/backslash\\pipe|",
    "a&b a &amp; b &lt;tag&gt; &quot;q&quot; &#39;",
    "&amp;lt;twice escaped&amp;gt; &amp;amp;",
    "&nbsp;non&nbsp;breaking &eacute; &euro; &#x1F600;",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00fcber \u00c5ngstr\u00f6m",
    "CAF\u00c9 \u00dcBER STRASSE stra\u00dfe \u0130stanbul",
    "cafe\u0301 decomposed",
    "\u201ccurly\u201d \u2018quotes\u2019 and \u2014 dashes \u2013 \u2026",
    "\u7d2b\u8272\u306e\u9aea\u306e\u4eba",
    "\u4e00\u4e2a\u6234\u58a8\u955c\u7684\u4eba",
    "\u0447\u0435\u043b\u043e\u0432\u0435\u043a \u0441 \u0431\u043e\u0440\u043e\u0434\u043e\u0439",
    "\u0391\u03bd\u03b8\u03c1\u03c9\u03c0\u03bf\u03c2",
    "\u0634\u062e\u0635 \u0628\u0644\u062d\u064a\u0629",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\ud55c\uad6d\uc5b4 \uc0ac\ub78c",
    "emoji \U0001f600\U0001f60e\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "\uff21\uff22\uff23\uff11\uff12\uff13 full width",
    "\ufb01ne \ufb02our ligatures",
    "mojibake: caf\u00c3\u00a9 \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d",
    "zero\u200bwidth soft\u00adhyphen",
    "control\x00\x07characters\x1b[31m",
    "x\u00b2 + y\u00b2 = \u00bd \u2163 \u0661\u0662\u0663",
    "a <|startoftext|> and <|endoftext|> inside",
    "Mohawk Hairstyle, Taylor Swift, Beyonce, Hilary Clinton",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the quick brown fox jumps over the lazy dog " * 7,
    "word " * 75,
    "word " * 76,
)


def tokens() -> list[dict[str, object]]:
    """Returns every text with its token ids, without start and end, as OpenAI encodes it."""
    if not hasattr(importlib.import_module("ftfy"), "bad_codecs"):
        raise ModuleNotFoundError("the tokenizer's golden needs the real package ftfy")
    encode = importlib.import_module("clip.simple_tokenizer").SimpleTokenizer().encode
    return [{"text": text, "ids": encode(text)} for text in TEXTS]


def main(_: list[str]) -> None:
    """Writes both files."""
    official.prepare(_STYLECLIP.value, _CLIP.value)
    encoded = tokens()
    lines = ",\n".join(json.dumps(text) for text in encoded)
    (seeded.DIRECTORY / "tokens.json").write_text(f"[\n{lines}\n]\n")

    weights, inputs, outputs, batches = {}, {}, {}, {}
    for name, configuration in CONFIGURATIONS.items():
        model = official.clip_model(configuration)
        weights[name] = official.fill(model, SEED)
        size, context = configuration["image_size"], configuration["context_length"]
        inputs[f"images.{name}"] = (2, 3, size, size)
        images = torch.from_numpy(
            seeded.seeded_tensor(f"images.{name}", inputs[f"images.{name}"], SEED)
        )
        # Start, some words, end, padding with zeros; the end has the highest number.
        last = configuration["vocab_size"] - 1
        batch = [[last - 1, *range(7, 7 + 5 * i), last] for i in range(3)]
        batches[name] = [row + [0] * (context - len(row)) for row in batch]
        text = torch.tensor(batches[name])
        with torch.no_grad():
            outputs[f"{name}.image_features"] = model.encode_image(images)
            outputs[f"{name}.text_features"] = model.encode_text(text)
            outputs[f"{name}.logits_per_image"] = model(images, text)[0]
        if name == "patch_32":
            loss_model, loss_text = model, text[-1:]

    loss_class = importlib.import_module("criteria.clip_loss").CLIPLoss
    for size in LOSS_SIZES:
        inputs[f"images.{size}"] = (2, 3, size, size)
        images = seeded.seeded_tensor(f"images.{size}", inputs[f"images.{size}"], SEED)
        images = torch.from_numpy(images).requires_grad_(size == LOSS_SIZES[1])
        with mock.patch("clip.load", lambda *_, **__: (loss_model, None)):
            criterion = loss_class(Namespace(stylegan_size=size))
        loss = criterion(images, loss_text)
        resized = criterion.avg_pool(criterion.upsample(images.detach()))
        outputs[f"resized.{size}"] = resized[:, :, ::13, ::13]
        outputs[f"clip_loss.{size}"] = loss.detach()[:, 0]
        if images.requires_grad:
            (outputs[f"clip_loss.{size}.gradient"],) = torch.autograd.grad(loss.sum(), images)

    settings = {
        "seed": SEED,
        "weights": weights,
        "inputs": inputs,
        "configs": CONFIGURATIONS,
        "tokens": batches,
        "versions": official.VERSIONS,
    }
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    seeded.save("clip", settings, arrays)


if __name__ == "__main__":
    app.run(main)
