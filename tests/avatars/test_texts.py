from collections import Counter

import numpy as np
import pytest

from avatars.attributes import NAMES, SLOTS
from avatars.captions import about
from avatars.texts import EDITS, select
from avatars.texts_uk import UKRAINIAN_EDITS
from styleclip_jax.errors import InputError
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.measures import HELD_OUT_TEMPLATES

WRITTEN = {"en": EDITS, "uk": UKRAINIAN_EDITS}


@pytest.mark.parametrize("edits", WRITTEN.values(), ids=WRITTEN)
def test_the_texts_cover_every_attribute_in_at_least_three_wordings(edits):
    assert len(edits) >= 24
    assert {edit.slot for edit in edits} == set(NAMES)
    for edit in edits:
        assert edit.value in SLOTS[edit.slot]
        assert len(edit.wordings) >= 3
    assert [edit.name for edit in edits] == [edit.name for edit in EDITS]
    assert len({edit.name for edit in edits}) == len(edits)


@pytest.mark.parametrize("edits", WRITTEN.values(), ids=WRITTEN)
def test_no_two_edits_have_a_wording_in_common(edits):
    counts = Counter(text for edit in edits for text in edit.wordings)
    assert counts.most_common(1)[0][1] == 1


@pytest.mark.parametrize("language", WRITTEN)
def test_no_wording_is_a_caption_that_clip_is_trained_with(language):
    rng = np.random.default_rng(0)
    for edit in WRITTEN[language]:
        sampled = (about(edit.slot, edit.value, rng, language)[0] for _ in range(500))
        captions = {caption.strip(" .!").lower() for caption in sampled}
        assert not captions & {text.lower() for text in edit.wordings}


@pytest.mark.parametrize("edits", WRITTEN.values(), ids=WRITTEN)
def test_the_tokenizer_of_the_avatars_has_room_for_every_wording_in_every_template(edits):
    tokenizer = load_tokenizer()
    for template in HELD_OUT_TEMPLATES:
        tokenizer([template.format(text) for edit in edits for text in edit.wordings])


def test_edits_are_selected_by_name_or_wording_in_the_order_given():
    wink = next(edit for edit in EDITS if edit.name == "eyes=wink")
    beard = next(edit for edit in EDITS if edit.name == "facial_hair=beard")
    assert select(["eyes=wink", beard.wordings[2]]) == (wink, beard)
    assert select([]) == EDITS
    assert select(["eyes=wink"], UKRAINIAN_EDITS)[0].wordings[0].startswith("він")
    with pytest.raises(InputError, match=r"'eyes=green'.*eyes=wink"):
        select(["eyes=green"])
