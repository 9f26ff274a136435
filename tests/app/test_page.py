import base64
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.app.calls import post

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("default")


def picture(page, which):
    """The pixels that the page shows."""
    uri = page.locator(f"#picture img{which}").first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), np.int16)


def write(page, text):
    page.locator("#text textarea, #text input").fill(text)


def choose_method(page, name):
    page.locator("#method").get_by_role("radio", name=name).check()


def choose_using(page, name):
    """Chooses what computes instant edits; its sliders follow."""
    page.locator("#using").get_by_role("radio", name=name).check()
    least = {"Directions": "-10", "Mapper for any text": "-3"}[name]
    page.locator(f"#strength input[type=number][min='{least}']").wait_for()


def change(page):
    page.locator("#go").click()
    page.locator("#status").get_by_text("Done:").wait_for()
    page.locator("#picture img.after").wait_for()


def save(page, button):
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_bytes()


def set_slider(page, slider, value):
    number = page.locator(f"{slider} input[type=number]")
    number.fill(str(value))
    number.press("Tab")


def test_a_text_changes_the_picture(open_page):
    page = open_page()
    write(page, "a person with sunglasses")
    change(page)
    before, after = picture(page, ".before"), picture(page, ".after")
    assert np.abs(before - after).mean() > 2


@pytest.mark.parametrize(
    ("using", "channels", "strengths"),
    [("Mapper for any text", 1472, (0, 1, 2.5, -1)), ("Directions", 96, (0, 3, 7, -3))],
)
def test_the_picture_follows_the_slider_and_zero_changes_nothing(
    open_page, using, channels, strengths
):
    page = open_page()
    write(page, "a person with a beard")
    change(page)
    choose_using(page, using)
    # The choice edits once more, and sets the slider to the automatic strength.
    page.locator("#status").get_by_text(f"of {channels} channels").wait_for()
    before = picture(page, ".before")
    distances = []
    for value in strengths:
        old = page.locator("#picture img.after").get_attribute("src")
        set_slider(page, "#strength", value)
        page.wait_for_function(
            "old => document.querySelector('#picture img.after')?.src !== old", arg=old
        )
        distances.append(np.abs(picture(page, ".after") - before).mean())
    assert distances[0] < 0.5 < distances[1] < distances[2]
    assert distances[3] > 0.5
    # Choosing a strength disables the automatic strength.
    assert not page.locator("#automatic input").is_checked()


@pytest.mark.parametrize(
    ("using", "text", "high", "low", "channels"),
    [
        ("Mapper for any text", "a person with closed eyes", 2, 0.5, 1472),
        ("Directions", "a tall person", 0.6, 0.1, 96),
    ],
)
def test_a_threshold_that_nothing_passes_says_so_and_a_lower_one_how_many_channels(
    open_page, using, text, high, low, channels
):
    page = open_page()
    if using == "Directions":
        choose_using(page, using)
    write(page, text)
    set_slider(page, "#threshold", high)
    page.locator("#status").get_by_text("Nothing passes; lower the threshold to").wait_for()
    assert page.locator("#picture img.after").count() == 0
    set_slider(page, "#threshold", low)
    some = re.compile(rf"[1-9]\d* of {channels} channels")
    page.locator("#status").get_by_text(some).wait_for()


def test_an_empty_text_gets_a_message(open_page):
    page = open_page()
    page.locator("#go").click()
    page.get_by_text("Write what the picture should show").wait_for()


def test_cancel_stops_the_work_and_the_picture_stays(open_page, service):
    page = open_page()
    choose_method(page, "Thorough")
    write(page, "a person with a red hat")
    before = picture(page, "")
    page.locator("#go").click()
    page.locator("#status progress").wait_for()
    assert service.health()["edits"] == 1
    page.locator("#cancel").click()
    page.locator("#status").get_by_text("Cancelled").wait_for()
    page.wait_for_function(
        "async () => (await (await fetch('/health')).json()).edits === 0", polling=200
    )
    assert np.array_equal(picture(page, ""), before)


def test_edits_chain_and_undo_takes_them_back(open_page):
    page = open_page()
    first = picture(page, "")
    write(page, "a person with sunglasses")
    change(page)
    edited = picture(page, ".after")
    page.locator("#keep").click()
    page.locator("#picture img.after").wait_for(state="detached")
    assert np.array_equal(picture(page, ""), edited)
    assert page.locator("#history button").count() == 2
    page.locator("#undo").click()
    page.wait_for_function(
        "() => document.querySelectorAll('#history button')[0].hasAttribute('aria-current')"
    )
    assert np.array_equal(picture(page, ""), first)


@pytest.mark.parametrize("method", ["Instant", "Directions", "Trained", "Thorough"])
def test_the_saved_settings_make_the_same_picture_bit_for_bit(open_page, method, tmp_path):
    page = open_page()
    if method == "Directions":
        choose_using(page, method)
    else:
        choose_method(page, method)
    if method != "Trained":
        write(page, "a person with sunglasses")
    if method in ("Instant", "Directions"):
        set_slider(page, "#threshold", 0.1)
        page.locator("#status").get_by_text("Done:").wait_for()
    else:
        change(page)
    archive = zipfile.ZipFile(io.BytesIO(save(page, "#download_all")))
    archive.extractall(tmp_path)
    assert (tmp_path / "image.png").read_bytes() == save(page, "#download_image")
    script = json.loads((tmp_path / "settings.json").read_text())["script"]
    subprocess.run(
        [
            sys.executable,
            script,
            f"--settings={tmp_path / 'settings.json'}",
            f"--results_dir={tmp_path / 'results'}",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        check=True,
    )
    (made,) = (p for p in (tmp_path / "results").glob("*/000.png") if p.parent.name != "before")
    assert Image.open(made).tobytes() == Image.open(tmp_path / "image.png").tobytes()


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_everybody_can_use_it(open_page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Beside the language switch, the heading would be one word wide.
    heading = page.get_by_role("heading", level=1).bounding_box()
    assert heading and heading["width"] > 200
    write(page, "a person with sunglasses")
    change(page)
    # Gradio fades results in.
    page.locator("#status .pending").wait_for(state="detached")
    page.evaluate(
        "Promise.all(document.querySelector('#status').getAnimations({subtree: true})"
        ".map(animation => animation.finished))"
    )
    faults = [
        f"{fault['id']}: {fault['nodes'][0]['html']}"
        for fault in axe.Axe().run(page).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    # docs/page.png is one of these.
    if directory := os.environ.get("STYLECLIP_SCREENSHOTS"):
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=f"{directory}/{width}-{scheme}.png", full_page=True)
    assert not faults


def test_on_a_phone_the_picture_stays_in_sight_while_a_slider_is_dragged(open_page):
    page = open_page(viewport={"width": 375, "height": 800})
    page.locator("#threshold").scroll_into_view_if_needed()
    box = page.locator("#picture .compare").bounding_box()
    assert box and box["y"] >= 0 and box["y"] + box["height"] < 500
    # Nothing of the form lies above it.
    top = page.evaluate(
        "([x, y]) => Boolean(document.elementFromPoint(x, y).closest('#picture'))",
        [box["x"] + 20, box["y"] + box["height"] - 60],
    )
    assert top


def test_the_keyboard_alone_moves_the_divider(open_page):
    page = open_page()
    write(page, "a person with sunglasses")
    page.locator("#text textarea, #text input").press("Enter")
    page.locator("#picture img.after").wait_for()
    divider = page.get_by_role("slider", name="Divider between before and after")
    divider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    style = "getComputedStyle(document.documentElement).getPropertyValue('--divider')"
    assert page.evaluate(style) == "60%"


def test_a_ukrainian_browser_gets_ukrainian_and_the_switch_english(open_page):
    page = open_page(locale="uk-UA")
    page.get_by_role("heading", name="Змінюйте обличчя словами").wait_for()
    page.wait_for_function("document.documentElement.lang === 'uk'")
    assert page.get_by_role("button", name="Змінити обличчя").is_visible()
    page.locator("#language").get_by_role("radio", name="English").check()
    page.get_by_role("heading", name="Edit faces by text").wait_for()
    page.wait_for_function("document.documentElement.lang === 'en'")


def test_a_filmstrip_and_its_animation_show_the_edit_in_several_strengths(open_page):
    page = open_page()
    write(page, "a person with a beard")
    change(page)
    page.get_by_role("button", name=re.compile("^Filmstrip")).click()
    page.locator("#show_film").click()
    page.locator("#film figure").first.wait_for()
    assert page.locator("#film figure").count() >= 5
    animation = Image.open(io.BytesIO(save(page, "#animation")))
    assert animation.format == "GIF" and getattr(animation, "n_frames", 1) >= 5


def upload(page, name, content):
    page.locator("#align input").set_checked(False)
    with page.expect_file_chooser() as chooser:
        page.locator("#upload").click()
    chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})


def test_an_upload_shows_what_the_generator_makes_of_it_and_can_be_edited(open_page):
    page = open_page()
    # An image of the generator, which it can reconstruct.
    known = save(page, "#download_image")
    page.locator("#gallery button").nth(3).click()
    page.wait_for_function("() => document.querySelectorAll('#history button').length === 2")
    upload(page, "me.png", known)
    page.locator("#photo figure").nth(2).wait_for()
    captions = page.locator("#photo figcaption").all_inner_texts()
    assert captions == ["original", "aligned", "reconstructed"]
    original = np.asarray(Image.open(io.BytesIO(known)).convert("RGB"), np.int16)
    assert np.abs(picture(page, "") - original).mean() < 30
    write(page, "a person with sunglasses")
    change(page)
    assert np.abs(picture(page, ".before") - picture(page, ".after")).mean() > 2


def bomb():
    """A PNG file of a few bytes that claims to have 900 million pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(100)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n and no more", "cannot be read as an image"),
        (bomb(), "pixels"),
    ],
)
def test_an_upload_that_is_no_image_or_too_large_gets_a_message(open_page, content, message):
    page = open_page()
    before = picture(page, "")
    upload(page, "me.png", content)
    page.get_by_text(message).wait_for()
    assert np.array_equal(picture(page, ""), before)


def test_a_user_who_waits_sees_the_place_in_the_queue(open_page, service):
    page = open_page()
    choose_method(page, "Thorough")
    write(page, "a person with a red hat")
    # As many as run at once, and one that waits.
    for seed in range(3):
        post(service.url, "optimize", ("a person with a hat", seed, 100, 0.35, "a person", [], ""))
    page.locator("#go").click()
    page.get_by_text(re.compile(r"queue: \d+/\d+")).first.wait_for()
    page.locator("#cancel").click()
    page.locator("#status").get_by_text("Cancelled").wait_for()
