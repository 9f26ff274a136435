import numpy as np

import styleclip_jax as sc
from avatars.attributes import HIDDEN, NAMES, index, observe, sample
from avatars.train_encoder import ENCODER_CONFIG, visible


def test_covered_attributes_get_their_first_value_and_others_stay():
    attributes = sample(300, seed=0)
    shown, labels = visible(attributes), observe(attributes)
    hair, skin = NAMES.index("hair"), NAMES.index("skin")
    covered = labels[:, hair] == index("hair", HIDDEN)
    assert 0 < covered.mean() < 1
    assert (shown[covered, hair] == 0).all()
    np.testing.assert_array_equal(shown[~covered, hair], attributes[~covered, hair])
    np.testing.assert_array_equal(shown[:, skin], attributes[:, skin])


def test_the_encoder_that_ships_is_the_one_of_the_recipe():
    encoder, generator = sc.load_encoder(), sc.load_generator()
    assert encoder.config == ENCODER_CONFIG
    mean = np.broadcast_to(generator.mean_w[...], encoder.mean_latent.shape)
    np.testing.assert_allclose(encoder.mean_latent[...], mean, atol=1e-3)
