"""Builds the page and connects its components with the actions."""

import random
from typing import Any

import gradio as gr

from styleclip_jax.app import layout
from styleclip_jax.app.actions import Actions
from styleclip_jax.app.api import add_api
from styleclip_jax.app.engine import Engine
from styleclip_jax.app.recipes import Using
from styleclip_jax.app.session import Session, first_session
from styleclip_jax.app.strings import EXAMPLES, preferred_language, say

_GALLERY_SEEDS = range(1, 9)
# Seconds until an idle session is deleted.
_REMEMBERED = 3600
# Maximum number of sessions.
_VISITS = 200

_SET_LANGUAGE = "(language) => { document.documentElement.lang = language; }"
_CLICK_LINK = "() => document.querySelector('#link a').click()"


def build_page(engine: Engine, admit: Any) -> gr.Blocks:
    """Builds the page.

    Args:
        engine: Computes the edits.
        admit: A context manager around every edit, see :class:`Actions`.
    """
    actions = Actions(engine, admit, [engine.random_face(seed) for seed in _GALLERY_SEEDS])
    possible = {"instant": engine.instant_choices, "mapper": engine.mappers, "optimize": True}
    methods = tuple(method for method in layout.METHODS if possible[method])
    words = layout.Words()
    with gr.Blocks(title=say("en", "title"), analytics_enabled=False) as page:
        page.state_session_capacity = _VISITS
        language = gr.State("en")
        session = gr.State(first_session(actions.gallery[0]), time_to_live=_REMEMBERED)
        heading = layout.heading(words)
        with gr.Row(equal_height=False):
            view = layout.view(words)
            with gr.Column(scale=4, min_width=300):
                choice = layout.choice(words, engine, _GALLERY_SEEDS[0])
                form = layout.form(words, engine, methods)
        _connect_language(page, actions, words, language, session, heading, view, choice, form)
        _connect(actions, language, session, view, choice, form)
        _connect_spans(engine, actions, [language, session], view, form.controls)
        add_api(engine, admit, _EDITS, _QUICK)
    return page


# Programs use the functions of api.py instead. Quick events show no progress and do not wait
# behind slow ones.
_HIDDEN: dict[str, Any] = {"api_visibility": "private"}
_QUICK = {"concurrency_id": "quick", "concurrency_limit": 16}
# Slow edits; further ones wait in a queue.
_EDITS = {"concurrency_id": "edits", "concurrency_limit": 2}
_FAST: dict[str, Any] = _HIDDEN | _QUICK | {"show_progress": "hidden"}


def _connect_language(
    page: gr.Blocks,
    actions: Actions,
    words: layout.Words,
    language: gr.State,
    session: gr.State,
    heading: layout.Heading,
    view: layout.View,
    choice: layout.Choice,
    form: layout.Form,
) -> None:
    """Shows the page in the browser's language or in the chosen one."""

    def speak(chosen: str, state: Session) -> list[Any]:
        return [
            chosen,
            chosen,
            f"<h1>{say(chosen, 'title')}</h1><p>{say(chosen, 'subtitle')}</p>",
            *(f"<h2>{say(chosen, key)}</h2>" for key in ("picture", "words", "way")),
            *(example[chosen == "uk"] for example in EXAMPLES),
            *actions.shown(chosen, state)[1:],
            actions.gallery_picker(chosen),
            *words.translate(chosen),
        ]

    def greet(state: Session, request: gr.Request) -> list[Any]:
        return speak(preferred_language(request.headers.get("accept-language", "")), state)

    spoken = [
        language,
        heading.language,
        heading.title,
        choice.heading,
        *form.headings,
        *form.examples,
        view.picture,
        view.history,
        view.photo,
        choice.gallery,
        *words.components,
    ]
    for event in (
        page.load(greet, session, spoken, **_FAST),
        heading.language.input(speak, [heading.language, session], spoken, **_FAST),
    ):
        event.then(None, heading.language, None, js=_SET_LANGUAGE, **_HIDDEN)


def _connect(
    actions: Actions,
    language: gr.State,
    session: gr.State,
    view: layout.View,
    choice: layout.Choice,
    form: layout.Form,
) -> None:
    """Connects the components with the actions."""
    visit = [language, session]
    changed = [session, view.picture, view.history, view.photo]
    controls = form.controls
    edits = _connect_edits(actions, visit, view, form)

    # Another image cancels the running edit.
    fast: dict[str, Any] = _FAST | {"cancels": edits}
    choice.new_face.click(lambda: random.randrange(2**16), None, choice.seed, **_FAST).then(
        actions.new_face, [*visit, choice.seed], changed, **fast
    )
    choice.seed.submit(actions.new_face, [*visit, choice.seed], changed, **fast)
    choice.gallery.select(actions.from_gallery, visit, changed, **fast)
    choice.upload.upload(
        actions.upload,
        [*visit, choice.upload, choice.align],
        changed,
        cancels=edits,
        show_progress="minimal",
        show_progress_on=view.status,
        **_HIDDEN,
        **_EDITS,
    )
    view.history.select(actions.from_history, visit, changed, **fast)
    view.keep.click(actions.keep, visit, changed, **fast)
    view.undo.click(actions.undo, visit, changed, **fast)
    # In two steps: what the edit sent last must not arrive after the message.
    form.cancel.click(lambda: None, **fast).then(
        actions.cancelled, visit, [view.picture, view.status], **_FAST
    )

    def of_method(method: str) -> list[Any]:
        shown = [gr.update(visible=method == name) for name in layout.METHODS]
        return [*shown, gr.update(visible=method != "mapper")]

    controls.method.change(of_method, controls.method, [*form.groups, form.text_group], **_FAST)

    view.show_film.click(actions.film, visit, view.film, **_FAST)
    for button, save in (
        (view.save_image, actions.save_image),
        (view.save_all, actions.save_all),
        (view.save_film, actions.save_film),
    ):
        button.click(save, visit, view.link, **_FAST).success(
            None, None, None, js=_CLICK_LINK, **_HIDDEN
        )


def _connect_spans(
    engine: Engine,
    actions: Actions,
    visit: list[gr.State],
    view: layout.View,
    controls: layout.Controls,
) -> None:
    """Sets the sliders to what suits the chosen mapper or directions, and edits again."""

    def sliders(using: Using) -> list[Any]:
        spans = layout.instant_spans(engine, using)
        return [*(gr.update(**span._asdict()) for span in spans), True]

    def mapper_slider(name: str) -> Any:
        return gr.update(**layout.mapper_span(engine, name)._asdict())

    inputs = [*visit, *controls]
    results = [visit[1], view.picture, view.status, controls.strength]
    moved = [controls.strength, controls.threshold, controls.automatic]
    for chosen in (
        controls.using.input(sliders, controls.using, moved, **_FAST),
        controls.mapper.input(mapper_slider, controls.mapper, controls.mapper_strength, **_FAST),
    ):
        chosen.then(actions.drag, inputs, results, **_FAST)


def _connect_edits(
    actions: Actions, visit: list[gr.State], view: layout.View, form: layout.Form
) -> list[Any]:
    """Connects the controls that start an edit; returns the events that can be cancelled."""
    controls = form.controls
    inputs = [*visit, *controls]
    working: dict[str, Any] = _HIDDEN | _EDITS
    working |= {"show_progress": "minimal", "show_progress_on": view.status}
    results = [visit[1], view.picture, view.status, controls.strength]
    edits = [
        trigger(actions.edit, inputs, results, **working)
        for trigger in (form.go.click, controls.text.submit)
    ]
    for example in form.examples:
        # A button's value is its label, in the language of the page.
        written = example.click(lambda words: words, example, controls.text, **_FAST)
        edits.append(written.then(actions.edit, inputs, results, **working))
    dragged: dict[str, Any] = _FAST | {"trigger_mode": "always_last"}
    chosen = [*results[:3], controls.automatic]
    controls.strength.input(actions.drag_strength, inputs, chosen, **dragged)
    for moved in (
        controls.threshold.input,
        controls.automatic.input,
        controls.mapper_strength.input,
    ):
        moved(actions.drag, inputs, results, **dragged)
    return edits
