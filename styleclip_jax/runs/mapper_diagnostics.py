"""Diagnostics of mapper training: shares of the loss, warnings, values that are not finite."""

from collections.abc import Mapping

import jax
import numpy as np

from styleclip_jax.latents import Latents
from styleclip_jax.methods.delta_training import DeltaTrainConfig
from styleclip_jax.methods.mapper_training import MapperTrainConfig
from styleclip_jax.methods.objective import TERMS


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raises FloatingPointError unless all metrics of a step are finite.

    The gradient of a finite loss, and the update from a finite gradient, may not be finite.
    """
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise FloatingPointError(
                f"the {name.replace('_', ' ')} is {value} at step {step}, expected a finite number;"
                " this step was not saved; train with a lower --learning_rate in another --exp_dir"
            )


# The name of a term in messages, and the field of the settings with its weight.
_TERMS = {name: (term.label, term.weight) for name, term in TERMS.items()}
_TERMS["latent_l2"] = ("latent L2", "latent_l2_lambda")
# Of a mapper for any text.
_TERMS["l2_loss"] = ("squared error", "l2_lambda")
_TERMS["cosine_loss"] = ("cosine", "cosine_lambda")


def loss_shares(
    metrics: Mapping[str, float], config: MapperTrainConfig | DeltaTrainConfig
) -> dict[str, float]:
    """The contribution of each term to the loss, relative to the sum of their absolute values.

    The CLIP term of guidance by direction is negative if images changed enough.
    """
    weighted = {
        name: getattr(config, weight) * float(metrics[name])
        for name, (_, weight) in _TERMS.items()
        if name in metrics
    }
    total = sum(map(abs, weighted.values()))
    return {name: value / total if total else 0.0 for name, value in weighted.items()}


def describe_shares(
    metrics: Mapping[str, float], config: MapperTrainConfig | DeltaTrainConfig
) -> str:
    """Describes :func:`loss_shares` in one line."""
    terms = [
        f"{share:.1%} {label} ({getattr(config, weight):g} x {float(metrics[name]):.3g})"
        for name, share in loss_shares(metrics, config).items()
        for label, weight in [_TERMS[name]]
    ]
    return f"loss {float(metrics['loss']):.4f}: {', '.join(terms)}"


def training_warnings(
    first: Mapping[str, float], now: Mapping[str, float], latents: Latents | np.ndarray | tuple
) -> list[str]:
    """Named warnings if the training seems to have no effect.

    Args:
        first: Metrics before the first step.
        now: Current metrics.
        latents: The training latents; their spread tells how small a change is.
    """
    warnings = []
    entries = jax.tree.leaves(latents)
    spread = float(np.mean([np.std(x, axis=0).mean() for x in entries]))
    # In StyleSpace the metric is the sum over its entries.
    change = (float(now["latent_l2"]) / len(entries)) ** 0.5
    if change < 0.01 * spread:
        warnings.append(
            f"residual-near-zero: the mapper changes the latents by {change:.2g} (root mean"
            f" square), while images differ by {spread:.2g}; the edit will be hardly visible. Try a"
            " lower --latent_l2_lambda, a higher --clip_lambda or another --learning_rate"
        )
    gain = float(first["clip_loss"]) - float(now["clip_loss"])
    if gain < 0.005:
        warnings.append(
            f"clip-loss-flat: the CLIP loss went from {float(first['clip_loss']):.4f} to"
            f" {float(now['clip_loss']):.4f}; the images do not move towards the text. Try another"
            " --learning_rate, a higher --clip_lambda, or other words"
        )
    return warnings


def delta_training_warnings(now: Mapping[str, float]) -> list[str]:
    """Named warnings if the training of a mapper for any text seems to have no effect."""
    if now["cosine_loss"] < 0.95:
        return []
    return [
        f"cosine-loss-flat: the cosine loss is {now['cosine_loss']:.4f}, and random changes reach"
        " 1; the mapper has not learned to predict styles from CLIP's features. Try more images"
        " (--train_dataset_size) or another --learning_rate"
    ]
