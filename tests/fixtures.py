"""Small random models, and scripts run as from the command line."""

import dataclasses
import gc
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jaxtyping
import numpy as np
import optax
import pytest
from absl import app, flags

ROOT = Path(__file__).parents[1]

# Checks the shapes in the package's signatures at run time; ints count as floats. Scripts are
# imported again for every test that runs them, and would be compiled again for the checks.
jaxtyping.install_import_hook(
    [
        f"styleclip_jax.{path.stem}"
        for path in (ROOT / "styleclip_jax").iterdir()
        if path.stem != "scripts"
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

from styleclip_jax.io.checkpoints import build, save_model  # noqa: E402
from styleclip_jax.latents import sample_latents  # noqa: E402
from styleclip_jax.models import CLIP, CLIPConfig, Generator, GeneratorConfig  # noqa: E402

# Tracing makes many objects that are rarely garbage; collecting it took 7 % of the time.
gc.set_threshold(100_000, 20, 20)
# Several test processes share an accelerator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# XLA takes longer to optimize most programs of the tests than they run. `XLA_FLAGS= pytest` tests
# with the code that it generates for users.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    # With the fixture `optimized`; without it, JAX sets the level to 0.
    " --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true",
)
# Also for the scripts that tests start.
for _option, _value in {
    # Reading a program that was not optimized takes as long as compiling it.
    "jax_enable_compilation_cache": False,
    # See also `optimized`.
    "jax_disable_most_optimizations": os.environ["XLA_FLAGS"] != "",
}.items():
    jax.config.update(_option, _value)
    os.environ[_option.upper()] = str(_value)
# Parity needs float32 products; accelerators use shorter formats by default.
jax.config.update("jax_default_matmul_precision", "highest")

GENERATOR = GeneratorConfig(
    resolution=16, z_dim=12, w_dim=16, mapping_layers=2, channel_base=256, channel_max=8
)
CLIP_CONFIG = CLIPConfig(
    image_size=32,
    patch_size=16,
    vision_width=32,
    vision_layers=1,
    vision_heads=2,
    text_width=24,
    text_layers=1,
    text_heads=2,
    embed_dim=16,
    context_length=20,
    vocab_size=190,
)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Frees compiled programs of a module, because Linux allows 65,530 mappings per process."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimized():
    """Lets XLA optimize programs, for a test that runs for longer than that takes."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def strict_dtypes(monkeypatch):
    """Makes implicit type promotion an error, but for optax's Adam; flax needs it in bfloat16."""
    correct = jax.numpy_dtype_promotion("standard")(optax.tree.bias_correction)
    monkeypatch.setattr(optax.tree, "bias_correction", correct)
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def without_type_checks(monkeypatch):
    """Disables the run-time checks of shapes, which users do not have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def tokenizer_files() -> dict[str, bytes]:
    """A tokenizer of single ASCII characters."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return {"vocab.json": json.dumps(vocab).encode(), "merges.txt": b"#version: 0.2\n"}


def make_random_model(model_class, config, seed: int):
    """A model whose every parameter matters, made without compiling initializers."""
    rng = np.random.default_rng(seed)

    def fill(abstract):
        arrays = {}
        for name, array in abstract.items():
            values = rng.normal(size=array.shape)
            if name.endswith("kernel") and model_class is CLIP:
                values /= np.sqrt(np.prod(array.shape[:-1]))
            elif name.endswith("var"):
                values = values**2
            elif name.startswith("mapping."):
                values *= 100 if name.endswith("kernel") else 10
            elif name.endswith(("bias", "scale", "strength")):
                values = 0.1 * values + name.endswith(("affine.bias", "scale"))
            arrays[name] = values.astype(np.float32)
        return arrays

    return build(model_class, config, fill)


@pytest.fixture(scope="session")
def random_model():
    """See :func:`make_random_model`."""
    return make_random_model


@pytest.fixture(scope="session")
def generator() -> Generator:
    """A random generator of 16 pixels."""
    return make_random_model(Generator, GENERATOR, seed=1)


@pytest.fixture(scope="module")
def w_plus(generator):
    """W+ latents of three images of the generator."""
    return sample_latents(generator, 3, seed=0)


@pytest.fixture(scope="module")
def styles(generator, w_plus):
    """Their StyleSpace coordinates."""
    return jax.jit(Generator.styles)(generator, w_plus)


@pytest.fixture(scope="session")
def clip() -> CLIP:
    """A random CLIP of 32 pixels."""
    return make_random_model(CLIP, CLIP_CONFIG, seed=2)


@pytest.fixture(scope="session")
def generator_path(generator, tmp_path_factory) -> Path:
    """The generator's checkpoint."""
    path = tmp_path_factory.mktemp("checkpoints") / "generator"
    save_model(path, generator)
    return path


@pytest.fixture(scope="session")
def clip_path(clip, tmp_path_factory) -> Path:
    """The CLIP's checkpoint, with a tokenizer of single characters."""
    path = tmp_path_factory.mktemp("checkpoints") / "clip"
    save_model(path, clip, tokenizer_files())
    return path


@pytest.fixture(scope="session")
def long_text_clip_path(tmp_path_factory) -> Path:
    """As `clip_path`, but of a CLIP that reads texts of 75 characters."""
    path = tmp_path_factory.mktemp("checkpoints") / "clip"
    config = dataclasses.replace(CLIP_CONFIG, context_length=77)
    save_model(path, make_random_model(CLIP, config, seed=3), tokenizer_files())
    return path


@pytest.fixture
def full_disk():
    """A disk on which no file can exceed 64 KB."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


class Outcome(NamedTuple):
    """How a script ended."""

    code: int | str
    out: str
    err: str


@pytest.fixture(scope="session")
def run_main():
    """Runs a script of the repository in this process as ``python SCRIPT ARGUMENTS`` does.

    Returns its exit code; see also `run_script`.
    """

    def run(script: str, *arguments: str) -> int | str:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        app.define_help_flags()
        before = set(flags.FLAGS)
        try:
            with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as stopped:
                patched.setattr(sys, "argv", [script, *arguments])
                patched.setattr(sys, "unraisablehook", sys.unraisablehook)
                runpy.run_path(str(ROOT / script), run_name="__main__")
        finally:
            # Scripts define their flags on import, and several share names.
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            for name in [name for name in sys.modules if name.startswith("styleclip_jax.scripts.")]:
                del sys.modules[name]
            flags.FLAGS.unparse_flags()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return stopped.value.code or 0

    return run


@pytest.fixture
def run_script(run_main, capsys):
    """As `run_main`, but also returns what the script prints."""

    def run(script: str, *arguments: str) -> Outcome:
        code = run_main(script, *arguments)
        return Outcome(code, *capsys.readouterr())

    return run
