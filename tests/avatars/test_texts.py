from collections import Counter

import numpy as np
import pytest

from avatars.attributes import NAMES, SLOTS
from avatars.captions import about
from avatars.texts import EDITS, select
from styleclip_jax.errors import InputError
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.measures import HELD_OUT_TEMPLATES


def test_the_texts_cover_every_attribute_in_at_least_three_wordings():
    assert len(EDITS) >= 24
    assert {edit.slot for edit in EDITS} == set(NAMES)
    for edit in EDITS:
        assert edit.value in SLOTS[edit.slot]
        assert len(edit.wordings) >= 3
    assert len({edit.name for edit in EDITS}) == len(EDITS)


def test_no_two_edits_have_a_wording_in_common():
    counts = Counter(text for edit in EDITS for text in edit.wordings)
    assert counts.most_common(1)[0][1] == 1


def test_no_wording_is_a_caption_that_clip_is_trained_with():
    rng = np.random.default_rng(0)
    for edit in EDITS:
        captions = {about(edit.slot, edit.value, rng)[0].strip(" .!").lower() for _ in range(500)}
        assert not captions & {text.lower() for text in edit.wordings}


def test_the_tokenizer_of_the_avatars_has_room_for_every_wording_in_every_template():
    tokenizer = load_tokenizer()
    for template in HELD_OUT_TEMPLATES:
        tokenizer([template.format(text) for edit in EDITS for text in edit.wordings])


def test_edits_are_selected_by_name_or_wording_in_the_order_given():
    wink = next(edit for edit in EDITS if edit.name == "eyes=wink")
    beard = next(edit for edit in EDITS if edit.name == "facial_hair=beard")
    assert select(["eyes=wink", beard.wordings[2]]) == (wink, beard)
    assert select([]) == EDITS
    with pytest.raises(InputError, match=r"'eyes=green'.*eyes=wink"):
        select(["eyes=green"])
