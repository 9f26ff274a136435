import base64
import io
import json
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.app.calls import post

pytestmark = pytest.mark.filterwarnings("default")


def displayed(page, selector):
    """Returns the pixels of an image on the page."""
    uri = page.locator(f"#image img{selector}").first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), np.int16)


def write(page, text):
    page.locator("#text textarea, #text input").fill(text)


def choose_method(page, name):
    page.locator("#method").get_by_role("radio", name=name).check()


def choose_using(page, name):
    """Chooses the method of instant edits and waits until the sliders are adapted."""
    page.locator("#using").get_by_role("radio", name=name).check()
    minimum = {"Directions": "-10", "Mapper for any text": "-3"}[name]
    page.locator(f"#strength input[type=number][min='{minimum}']").wait_for()


def apply(page):
    page.locator("#go").click()
    page.locator("#status").get_by_text("Done:").wait_for()
    page.locator("#image img.after").wait_for()


def save(page, button):
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_bytes()


def set_slider(page, slider, value):
    number = page.locator(f"{slider} input[type=number]")
    number.fill(str(value))
    number.press("Tab")


def test_the_image_follows_the_slider_and_strength_zero_changes_nothing(open_page):
    page = open_page()
    text = "a person with a beard"
    write(page, text)
    apply(page)
    automatic = page.locator("#automatic input")
    for using, channels, strengths in (
        ("Directions", 96, (0, 3, 7, -3)),
        ("Mapper for any text", 1472, (0, 1, 2.5, -1)),
    ):
        choose_using(page, using)
        # The choice edits again and sets the slider to the automatic strength.
        page.locator("#status").get_by_text(f"of {channels} channels").wait_for()
        before = displayed(page, ".before")
        distances = []
        for value in strengths:
            old = page.locator("#image img.after").get_attribute("src")
            set_slider(page, "#strength", value)
            page.wait_for_function(
                "old => document.querySelector('#image img.after')?.src !== old", arg=old
            )
            distances.append(np.abs(displayed(page, ".after") - before).mean())
        assert distances[0] < 0.5 < distances[1] < distances[2]
        assert distances[3] > 0.5
        # Choosing a strength disables the automatic strength.
        assert not automatic.is_checked()
        # Without a text, this does not edit.
        write(page, "")
        automatic.check()
        write(page, text)


def test_the_message_counts_the_channels_above_the_threshold(open_page):
    page = open_page()
    for using, text, high, low, channels in (
        ("Mapper for any text", "a person with closed eyes", 2, 0.5, 1472),
        ("Directions", "a tall person", 0.6, 0.1, 96),
    ):
        choose_using(page, using)
        write(page, text)
        set_slider(page, "#threshold", high)
        page.locator("#status").get_by_text("Nothing passes; lower the threshold to").wait_for()
        assert page.locator("#image img.after").count() == 0
        set_slider(page, "#threshold", low)
        some = re.compile(rf"[1-9]\d* of {channels} channels")
        page.locator("#status").get_by_text(some).wait_for()
        # Without a text, another method does not edit.
        write(page, "")
        page.locator("#undo").click()
        page.locator("#image img.after").wait_for(state="detached")


def test_cancel_stops_the_edit_and_keeps_the_image(open_page, service):
    page = open_page()
    choose_method(page, "Thorough")
    write(page, "a person with a red hat")
    before = displayed(page, "")
    page.locator("#go").click()
    page.locator("#status progress").wait_for()
    assert service.health()["edits"] == 1
    page.locator("#cancel").click()
    page.locator("#status").get_by_text("Cancelled").wait_for()
    page.wait_for_function(
        "async () => (await (await fetch('/health')).json()).edits === 0", polling=200
    )
    assert np.array_equal(displayed(page, ""), before)


def test_edits_change_the_image_and_can_be_compared_chained_and_undone(open_page):
    page = open_page()
    first = displayed(page, "")
    write(page, "a person with sunglasses")
    page.locator("#text textarea, #text input").press("Enter")
    page.locator("#image img.after").wait_for()
    edited = displayed(page, ".after")
    assert np.abs(first - edited).mean() > 2
    assert np.array_equal(displayed(page, ".before"), first)
    # The divider between both can be moved with the keyboard.
    page.get_by_role("slider", name="Divider between before and after").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    style = "getComputedStyle(document.documentElement).getPropertyValue('--divider')"
    assert page.evaluate(style) == "60%"
    page.locator("#keep").click()
    page.locator("#image img.after").wait_for(state="detached")
    assert np.array_equal(displayed(page, ""), edited)
    assert page.locator("#history button").count() == 2
    page.locator("#undo").click()
    page.wait_for_function(
        "() => document.querySelectorAll('#history button')[0].hasAttribute('aria-current')"
    )
    assert np.array_equal(displayed(page, ""), first)


@pytest.mark.parametrize("method", ["Instant", "Directions", "Trained", "Thorough"])
def test_the_saved_settings_reproduce_the_image_bit_for_bit(
    open_page, method, run_script, tmp_path
):
    page = open_page()
    if method == "Directions":
        choose_using(page, method)
    else:
        choose_method(page, method)
    if method != "Trained":
        write(page, "a person with sunglasses")
    if method == "Thorough":
        set_slider(page, "#steps", 8)
    if method in ("Instant", "Directions"):
        set_slider(page, "#threshold", 0.1)
        page.locator("#status").get_by_text("Done:").wait_for()
    else:
        apply(page)
    archive = zipfile.ZipFile(io.BytesIO(save(page, "#download_all")))
    archive.extractall(tmp_path)
    assert (tmp_path / "image.png").read_bytes() == save(page, "#download_image")
    script = json.loads((tmp_path / "settings.json").read_text())["script"]
    # The service does not have the tests' precision of products, and shares compiled programs.
    with jax.default_matmul_precision("default"):
        outcome = run_script(
            script,
            f"--settings={tmp_path / 'settings.json'}",
            f"--results_dir={tmp_path / 'results'}",
        )
    assert outcome.code == 0, outcome.err
    (made,) = (p for p in (tmp_path / "results").glob("*/000.png") if p.parent.name != "before")
    assert Image.open(made).tobytes() == Image.open(tmp_path / "image.png").tobytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_width_and_is_accessible(open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(color_scheme=scheme)
    write(page, "a person with sunglasses")
    apply(page)
    # Gradio fades results in.
    page.locator("#status .pending").wait_for(state="detached")
    page.evaluate(
        "Promise.all(document.querySelector('#status').getAnimations({subtree: true})"
        ".map(animation => animation.finished))"
    )
    for width in (375, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Beside the language switch, the heading would be one word wide.
        heading = page.get_by_role("heading", level=1).bounding_box()
        assert heading and heading["width"] > 200
        violations = [
            f"{violation['id']}: {violation['nodes'][0]['html']}"
            for violation in axe.Axe().run(page).response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        # docs/page.png is 1440-light.png.
        if directory := os.environ.get("STYLECLIP_SCREENSHOTS"):
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=f"{directory}/{width}-{scheme}.png", full_page=True)
        assert not violations, width


def test_on_a_phone_the_image_stays_visible_while_a_slider_is_dragged(open_page):
    page = open_page()
    page.set_viewport_size({"width": 375, "height": 800})
    page.locator("#threshold").scroll_into_view_if_needed()
    box = page.locator("#image .compare").bounding_box()
    assert box and box["y"] >= 0 and box["y"] + box["height"] < 500
    # No part of the form covers it.
    visible = page.evaluate(
        "([x, y]) => Boolean(document.elementFromPoint(x, y).closest('#image'))",
        [box["x"] + 20, box["y"] + box["height"] - 60],
    )
    assert visible


def test_a_ukrainian_browser_gets_ukrainian_and_can_switch_to_english(open_page):
    page = open_page(locale="uk-UA")
    page.get_by_role("heading", name="Змінюйте обличчя словами").wait_for()
    page.wait_for_function("document.documentElement.lang === 'uk'")
    assert page.get_by_role("button", name="Змінити обличчя").is_visible()
    page.locator("#language").get_by_role("radio", name="English").check()
    page.get_by_role("heading", name="Edit faces with text").wait_for()
    page.wait_for_function("document.documentElement.lang === 'en'")


def test_the_filmstrip_and_its_animation_show_several_strengths(open_page):
    page = open_page()
    write(page, "a person with a beard")
    apply(page)
    page.get_by_role("button", name=re.compile("^Filmstrip")).click()
    page.locator("#show_filmstrip").click()
    page.locator("#filmstrip figure").first.wait_for()
    assert page.locator("#filmstrip figure").count() >= 5
    animation = Image.open(io.BytesIO(save(page, "#animation")))
    assert animation.format == "GIF" and getattr(animation, "n_frames", 1) >= 5


def upload(page, name, content):
    page.locator("#align input").set_checked(False)
    with page.expect_file_chooser() as chooser:
        page.locator("#upload").click()
    chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})


def test_an_upload_is_reconstructed_and_can_be_edited(open_page):
    page = open_page()
    # An image that the generator can reconstruct, because it is one of its own.
    known = save(page, "#download_image")
    page.locator("#gallery button").nth(3).click()
    page.wait_for_function("() => document.querySelectorAll('#history button').length === 2")
    upload(page, "me.png", known)
    page.locator("#photo figure").nth(2).wait_for()
    captions = page.locator("#photo figcaption").all_inner_texts()
    assert captions == ["original", "aligned", "reconstructed"]
    original = np.asarray(Image.open(io.BytesIO(known)).convert("RGB"), np.int16)
    assert np.abs(displayed(page, "") - original).mean() < 30
    write(page, "a person with sunglasses")
    apply(page)
    assert np.abs(displayed(page, ".before") - displayed(page, ".after")).mean() > 2


def expect_error(page, message):
    """Waits for a message and closes it."""
    page.get_by_text(message).wait_for()
    page.get_by_test_id("toast-close").click()
    page.get_by_text(message).wait_for(state="detached")


def decompression_bomb():
    """Returns a PNG file of a few bytes whose header claims 900 million pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(100)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def test_an_empty_text_or_an_invalid_or_too_large_upload_gets_a_message(open_page):
    page = open_page()
    before = displayed(page, "")
    page.locator("#go").click()
    expect_error(page, "Describe what the image should show")
    for content, message in (
        (b"not an image", "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n and nothing else", "cannot be read as an image"),
        (decompression_bomb(), "pixels"),
    ):
        upload(page, "me.png", content)
        expect_error(page, message)
        assert np.array_equal(displayed(page, ""), before)


def test_a_waiting_user_sees_the_position_in_the_queue(open_page, service):
    page = open_page()
    choose_method(page, "Thorough")
    write(page, "a person with a red hat")
    # Two run at a time, and the others wait, long enough for the page to show it.
    for seed in range(4):
        edit = ("a person with a hat", seed, 20, 0.35, "a person", [], "")
        post(service.url, "optimize", edit)
    page.locator("#go").click()
    page.get_by_text(re.compile(r"queue: \d+/\d+")).first.wait_for()
    page.locator("#cancel").click()
    page.locator("#status").get_by_text("Cancelled").wait_for()
