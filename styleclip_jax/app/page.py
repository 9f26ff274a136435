"""Builds the page and connects its components with the actions."""

import random
from typing import Any

import gradio as gr

from styleclip_jax.app import layout
from styleclip_jax.app.actions import Actions
from styleclip_jax.app.api import add_api
from styleclip_jax.app.engine import Engine
from styleclip_jax.app.recipes import InstantMethod
from styleclip_jax.app.running import RunningEdits
from styleclip_jax.app.session import Session, first_session
from styleclip_jax.app.strings import EXAMPLES, preferred_language, say

_GALLERY_SEEDS = range(1, 9)
# Number of seconds after which an idle session is deleted.
_SESSION_SECONDS = 3600
_MAX_SESSIONS = 200

_SET_LANGUAGE = "(language) => { document.documentElement.lang = language; }"
_CLICK_LINK = "() => document.querySelector('#link a').click()"

# The page's events are not part of the HTTP API, which is in api.py.
_HIDDEN: dict[str, Any] = {"api_visibility": "private"}
# Number of slow edits that run on a device at a time; the others wait in a queue.
_SLOW_PER_DEVICE = 2
# Quick events do not wait for slow ones and show no progress.
_QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 16}
_QUICK_EVENT: dict[str, Any] = _HIDDEN | _QUICK | {"show_progress": "hidden"}


def build_page(engine: Engine, running: RunningEdits) -> gr.Blocks:
    """Builds the page.

    Args:
        engine: An engine, for its settings and for images without an edit.
        running: Runs the edits.
    """
    actions = Actions(engine, running, [engine.random_face(seed) for seed in _GALLERY_SEEDS])
    available = {"instant": engine.instant_methods, "mapper": engine.mappers, "optimize": True}
    methods = tuple(method for method in layout.METHODS if available[method])
    localized = layout.Localizer()
    with gr.Blocks(title=say("en", "title"), analytics_enabled=False) as page:
        page.state_session_capacity = _MAX_SESSIONS
        language = gr.State("en")
        session = gr.State(first_session(actions.gallery[0]), time_to_live=_SESSION_SECONDS)
        heading = layout.heading()
        with gr.Row(equal_height=False):
            view = layout.view(localized)
            with gr.Column(scale=4, min_width=300):
                choice = layout.image_choice(localized, engine, _GALLERY_SEEDS[0])
                form = layout.form(localized, engine, methods)
        state = [language, session]
        _connect_language(page, actions, localized, state, heading, view, choice, form)
        limit = _SLOW_PER_DEVICE * running.devices
        slow: dict[str, Any] = {"concurrency_id": "edits", "concurrency_limit": limit}
        _connect_actions(actions, slow, state, view, choice, form)
        _connect_sliders(engine, actions, state, view, form.controls)
        add_api(engine, running, slow, _QUICK)
    return page


def _connect_language(
    page: gr.Blocks,
    actions: Actions,
    localized: layout.Localizer,
    state: list[gr.State],
    heading: layout.Heading,
    view: layout.View,
    choice: layout.ImageChoice,
    form: layout.Form,
) -> None:
    """Shows the page in the browser's language or in the chosen one."""
    language, session = state

    def translate(chosen: str, session: Session) -> list[Any]:
        headings = ("image_heading", "text_heading", "method_heading")
        return [
            chosen,
            chosen,
            f"<h1>{say(chosen, 'title')}</h1><p>{say(chosen, 'subtitle')}</p>",
            *(f"<h2>{say(chosen, key)}</h2>" for key in headings),
            *(example[chosen == "uk"] for example in EXAMPLES),
            *actions.shown(chosen, session)[1:],
            actions.gallery_picker(chosen),
            *localized.translate(chosen),
        ]

    def load(session: Session, request: gr.Request) -> list[Any]:
        accepted = request.headers.get("accept-language", "")
        return translate(preferred_language(accepted), session)

    translated = [
        language,
        heading.language,
        heading.title,
        choice.heading,
        *form.headings,
        *form.examples,
        view.image,
        view.history,
        view.photo,
        choice.gallery,
        *localized.components,
    ]
    for event in (
        page.load(load, session, translated, **_QUICK_EVENT),
        heading.language.input(translate, [heading.language, session], translated, **_QUICK_EVENT),
    ):
        event.then(None, heading.language, None, js=_SET_LANGUAGE, **_HIDDEN)


def _connect_actions(
    actions: Actions,
    slow: dict[str, Any],
    state: list[gr.State],
    view: layout.View,
    choice: layout.ImageChoice,
    form: layout.Form,
) -> None:
    """Connects the components with the actions."""
    session = state[1]
    changed = [session, view.image, view.history, view.photo]
    controls = form.controls
    edits = _connect_edits(actions, slow, state, view, form)

    # Another image cancels the running edit.
    fast: dict[str, Any] = _QUICK_EVENT | {"cancels": edits}
    choice.new_face.click(lambda: random.randrange(2**16), None, choice.seed, **_QUICK_EVENT).then(
        actions.new_face, [*state, choice.seed], changed, **fast
    )
    choice.seed.submit(actions.new_face, [*state, choice.seed], changed, **fast)
    choice.gallery.select(actions.from_gallery, state, changed, **fast)
    choice.upload.upload(
        actions.upload,
        [*state, choice.upload, choice.align],
        changed,
        cancels=edits,
        show_progress="minimal",
        show_progress_on=view.status,
        **_HIDDEN,
        **slow,
    )
    view.history.select(actions.from_history, state, changed, **fast)
    view.keep.click(actions.keep, state, changed, **fast)
    view.undo.click(actions.undo, state, changed, **fast)
    # In two steps, because the last update of the edit must not arrive after the message.
    form.cancel.click(lambda: None, **fast).then(
        actions.cancelled, state, [view.image, view.status], **_QUICK_EVENT
    )

    def show_settings(method: str) -> list[Any]:
        shown = [gr.update(visible=method == name) for name in layout.METHODS]
        return [*shown, gr.update(visible=method != "mapper")]

    controls.method.change(
        show_settings, controls.method, [*form.groups, form.text_group], **_QUICK_EVENT
    )

    view.show_filmstrip.click(actions.filmstrip, state, view.filmstrip, **_QUICK_EVENT)
    for button, save in (
        (view.save_image, actions.save_image),
        (view.save_all, actions.save_all),
        (view.save_animation, actions.save_animation),
    ):
        button.click(save, state, view.link, **_QUICK_EVENT).success(
            None, None, None, js=_CLICK_LINK, **_HIDDEN
        )


def _connect_sliders(
    engine: Engine,
    actions: Actions,
    state: list[gr.State],
    view: layout.View,
    controls: layout.Controls,
) -> None:
    """Adapts the sliders to the chosen method or mapper, and edits again."""

    def instant_sliders(using: InstantMethod) -> list[Any]:
        ranges = layout.instant_ranges(engine, using)
        return [*(gr.update(**values._asdict()) for values in ranges), True]

    def mapper_slider(name: str) -> Any:
        return gr.update(**layout.mapper_range(engine, name)._asdict())

    inputs = [*state, *controls]
    results = [state[1], view.image, view.status, controls.strength]
    sliders = [controls.strength, controls.threshold, controls.automatic]
    for event in (
        controls.using.input(instant_sliders, controls.using, sliders, **_QUICK_EVENT),
        controls.mapper.input(
            mapper_slider, controls.mapper, controls.mapper_strength, **_QUICK_EVENT
        ),
    ):
        event.then(actions.drag, inputs, results, **_QUICK_EVENT)


def _connect_edits(
    actions: Actions,
    slow: dict[str, Any],
    state: list[gr.State],
    view: layout.View,
    form: layout.Form,
) -> list[Any]:
    """Connects the controls that start an edit; returns the events that can be cancelled."""
    controls = form.controls
    inputs = [*state, *controls]
    slow = _HIDDEN | slow | {"show_progress": "minimal", "show_progress_on": view.status}
    results = [state[1], view.image, view.status, controls.strength]
    edits = [
        trigger(actions.edit, inputs, results, **slow)
        for trigger in (form.go.click, controls.text.submit)
    ]
    for example in form.examples:
        # The value of a button is its label in the language of the page.
        filled = example.click(lambda text: text, example, controls.text, **_QUICK_EVENT)
        edits.append(filled.then(actions.edit, inputs, results, **slow))
    dragged: dict[str, Any] = _QUICK_EVENT | {"trigger_mode": "always_last"}
    drag_results = [*results[:3], controls.automatic]
    controls.strength.input(actions.drag_strength, inputs, drag_results, **dragged)
    for trigger in (
        controls.threshold.input,
        controls.automatic.input,
        controls.mapper_strength.input,
    ):
        trigger(actions.drag, inputs, results, **dragged)
    return edits
