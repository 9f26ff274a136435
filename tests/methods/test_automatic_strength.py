"""The resolution at which candidates are compared."""

import dataclasses

import pytest

from styleclip_jax.methods.automatic_strength import comparison_resolution
from styleclip_jax.models import CLIP


@pytest.mark.parametrize(("image_size", "resolution"), [(8, 8), (12, 16), (24, 16)])
def test_candidates_are_compared_at_the_lowest_resolution_with_all_that_clip_sees(
    generator, clip, random_model, image_size, resolution
):
    config = dataclasses.replace(clip.config, image_size=image_size, patch_size=4)
    assert comparison_resolution(generator, random_model(CLIP, config, 1)) == resolution
