"""The page: what is where, and what happens when."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from styleclip_jax.app import pictures
from styleclip_jax.app.engine import (
    FILM,
    Edit,
    Engine,
    Face,
    TooSlowError,
    animation,
    png,
)
from styleclip_jax.app.recipes import Instant, Mapped, Optimized
from styleclip_jax.app.session import Session, first_session
from styleclip_jax.app.strings import EXAMPLES, LANGUAGES, preferred_language, say
from styleclip_jax.errors import InputError

METHODS = ("instant", "mapper", "optimize")
GALLERY_SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
# Steps without an improvement after which "stop when nothing improves" stops.
PATIENCE = 15
# Seconds that a visit is remembered after its last action.
_REMEMBERED = 3600

CSS = """
.gradio-container { max-width: 75rem !important; margin: 0 auto !important; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: .25rem 0; }
footer { display: none !important; }
.examples { gap: .4rem !important; flex-wrap: wrap; }
.examples button { flex: 0 1 auto; min-width: 0 !important; }
.hidden-link { display: none; }
#view { order: 2; }
@media (max-width: 767px) { #view { order: -1; } }
"""


class _Say:
    """Makes components with texts of the table, and translates them later."""

    def __init__(self) -> None:
        self._texts: list[tuple[gr.Component, dict[str, str]]] = []

    def __call__(
        self, component: Callable, texts: dict[str, str], *args: Any, **others: Any
    ) -> Any:
        """Makes a component.

        Args:
            component: Its class.
            texts: Keys of the table by argument, such as ``label``.
            args: Further arguments.
            others: Further arguments.
        """
        made = component(*args, **{n: say("en", key) for n, key in texts.items()}, **others)
        self._texts.append((made, texts))
        return made

    @property
    def components(self) -> list[gr.Component]:
        """All components, in the order of ``translate``."""
        return [component for component, _ in self._texts]

    def translate(self, language: str) -> list[Any]:
        """Updates of all components."""
        return [
            gr.update(**{name: say(language, key) for name, key in texts.items()})
            for _, texts in self._texts
        ]


class Controls(NamedTuple):
    """The components that say how to edit, in the order in which a function gets their values."""

    method: gr.Radio
    text: gr.Textbox
    neutral: gr.Textbox
    strength: gr.Slider
    mapper: gr.Radio
    mapper_strength: gr.Slider
    steps: gr.Slider
    hold: gr.Slider
    keep_texts: gr.Textbox
    stop_early: gr.Checkbox


class Asked(NamedTuple):
    """The values of the controls."""

    method: str
    text: str
    neutral: str
    strength: float
    mapper: str
    mapper_strength: float
    steps: int
    hold: float
    keep_texts: str
    stop_early: bool


def recipe(asked: Asked, engine: Engine) -> Instant | Mapped | Optimized:
    """The edit that the controls ask for."""
    neutral = asked.neutral.strip() or engine.neutral
    if asked.method == "instant":
        return Instant(asked.text.strip(), neutral, float(asked.strength))
    if asked.method == "mapper":
        return Mapped(asked.mapper, float(asked.mapper_strength))
    return Optimized(
        asked.text.strip(),
        neutral,
        tuple(filter(None, map(str.strip, asked.keep_texts.splitlines()))),
        int(asked.steps),
        float(asked.hold),
        PATIENCE if asked.stop_early else 0,
    )


def build_page(engine: Engine, admit: Callable[[], Any]) -> gr.Blocks:
    """Builds the page.

    Args:
        engine: Computes.
        admit: A context manager around every edit; raises ``RuntimeError`` where the service is
            about to stop.
    """
    methods = [method for method in METHODS if method != "mapper" or engine.mappers]
    first = engine.random_face(GALLERY_SEEDS[0])
    gallery_faces = [engine.random_face(seed) for seed in GALLERY_SEEDS]

    def view(language: str, session: Session) -> str:
        return pictures.compare(
            session.start.pixels,
            session.edit.face.pixels if session.edit else None,
            (say(language, "before"), say(language, "after")),
            (
                say(language, "alt_start"),
                say(language, "alt_edit", text=session.edit.recipe.text if session.edit else ""),
            ),
            say(language, "divider"),
        )

    def history(session: Session) -> list[Any]:
        return [face.pixels for face in session.history]

    def shown(language: str, session: Session) -> tuple:
        """The outputs of an action that changes the session."""
        return session, view(language, session), history(session)

    def fail(language: str, error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, TooSlowError):
            message = say(language, "too_slow", seconds=engine.limits.seconds)
        elif isinstance(error, InputError):
            message = say(language, "wrong_input", reason=error)
        else:
            message = say(language, "failed")
        return gr.Error(message, duration=10, print_exception=not isinstance(error, InputError))

    def check(language: str, asked: Asked) -> None:
        if asked.method == "mapper":
            return
        if not asked.text.strip():
            raise gr.Error(say(language, "no_text"), print_exception=False)
        limit = engine.limits.text_length
        if (length := max(len(asked.text), len(asked.neutral))) > limit:
            raise gr.Error(
                say(language, "long_text", length=length, limit=limit), print_exception=False
            )

    def edit(language: str, session: Session, *values: Any) -> Iterator[tuple]:
        """One edit by any method; one that takes time shows how far it is."""
        asked = Asked(*values)
        try:
            check(language, asked)
            with admit():
                wanted = recipe(asked, engine)
                if isinstance(wanted, Instant):
                    new = session.with_edit(engine.instant(session.start, wanted))
                elif isinstance(wanted, Mapped):
                    new = session.with_edit(engine.mapped(session.start, wanted))
                else:
                    new = session
                    for update in engine.optimize(session.start, wanted):
                        message = say(
                            language,
                            "progress",
                            step=update.step,
                            steps=wanted.steps,
                            loss=update.losses[-1],
                            seconds=update.seconds_left,
                        )
                        new = session.with_edit(
                            update.edit or Edit(session.start, wanted, update.face)
                        )
                        yield (
                            gr.skip() if not update.edit else new,
                            view(language, new),
                            pictures.progress(update.step, wanted.steps, update.losses, message),
                        )
            done = say(language, "done", text=new.edit.recipe.text if new.edit else "")
            yield new, view(language, new), f'<div class="progress" role="status">{done}</div>'
        except Exception as error:
            raise fail(language, error) from error

    def drag(language: str, session: Session, *values: Any) -> tuple:
        """An edit while a slider is dragged; without a text there is nothing to show yet."""
        asked = Asked(*values)
        if asked.method != "mapper" and not asked.text.strip():
            return gr.skip(), gr.skip()
        *_, (session, picture, _) = edit(language, session, *values)
        return session, picture

    def new_face(language: str, session: Session, seed: float | None) -> tuple:
        try:
            return shown(language, session.begin(engine.random_face(int(seed or 0))))
        except Exception as error:
            raise fail(language, error) from error

    def download(language: str, session: Session, kind: str) -> str:
        """A link to a file of the current picture."""
        if kind == "image":
            face = engine.exact(session.edit).face if session.edit else session.start
            return pictures.download_link(png(face.pixels), "image/png", "face.png")
        if not session.edit:
            raise gr.Error(say(language, "no_edit"), print_exception=False)
        if kind == "animation":
            frames = [f.pixels for f in film_faces(session.edit)]
            return pictures.download_link(animation(frames), "image/gif", "face.gif")
        return pictures.download_link(
            engine.archive(session.edit), "application/zip", "styleclip-edit.zip"
        )

    def film_faces(edited: Edit) -> list[Face]:
        return [engine.with_strength(edited, strength) for strength in FILM]

    def film(language: str, session: Session) -> str:
        if not session.edit:
            raise gr.Error(say(language, "no_edit"), print_exception=False)
        captions = [f"{100 * strength:.0f} %".replace("-", "−") for strength in FILM]
        return pictures.film([f.pixels for f in film_faces(session.edit)], captions)

    def method_visibility(method: str) -> list[Any]:
        return [gr.update(visible=method == name) for name in METHODS] + [
            gr.update(visible=method != "mapper")
        ]

    words = _Say()
    with gr.Blocks(title=say("en", "title"), analytics_enabled=False) as page:
        language = gr.State("en")
        session = gr.State(first_session(first), time_to_live=_REMEMBERED)
        with gr.Row():
            heading = gr.HTML()
            switch = words(
                gr.Radio,
                {"label": "language"},
                list(LANGUAGES.items()),
                value="en",
                min_width=160,
                scale=0,
                elem_id="language",
            )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320, elem_id="view"):
                picture = gr.HTML(view("en", first_session(first)), elem_id="picture")
                status = gr.HTML(elem_id="status")
                with gr.Row():
                    keep = words(gr.Button, {"value": "keep"}, size="sm", elem_id="keep")
                    undo = words(gr.Button, {"value": "undo"}, size="sm", elem_id="undo")
                with gr.Row():
                    save = words(
                        gr.Button, {"value": "download_image"}, size="sm", elem_id="save-image"
                    )
                    save_all = words(
                        gr.Button, {"value": "download_all"}, size="sm", elem_id="save-all"
                    )
                link = gr.HTML(elem_id="link", elem_classes="hidden-link")
                strip = words(
                    gr.Gallery,
                    {"label": "history"},
                    history(first_session(first)),
                    columns=6,
                    rows=1,
                    height=120,
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_id="history",
                )
                with words(gr.Accordion, {"label": "film"}, open=False, elem_id="film"):
                    film_strip = gr.HTML(elem_id="film-strip")
                    with gr.Row():
                        show_film = words(
                            gr.Button, {"value": "film"}, size="sm", elem_id="show-film"
                        )
                        save_film = words(
                            gr.Button, {"value": "animation"}, size="sm", elem_id="save-film"
                        )
            with gr.Column(scale=4, min_width=300):
                picture_heading = gr.HTML()
                with gr.Row():
                    seed = words(
                        gr.Number,
                        {"label": "seed"},
                        value=GALLERY_SEEDS[0],
                        precision=0,
                        minimum=0,
                        maximum=2**32 - 1,
                        min_width=120,
                        elem_id="seed",
                    )
                    another = words(
                        gr.Button, {"value": "new_face"}, min_width=120, elem_id="new-face"
                    )
                gallery = words(
                    gr.Gallery,
                    {"label": "gallery"},
                    [face.pixels for face in gallery_faces],
                    columns=8,
                    rows=1,
                    height=110,
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_id="gallery",
                )
                text_heading = gr.HTML()
                text = words(
                    gr.Textbox,
                    {"label": "text", "placeholder": "text_placeholder"},
                    max_length=4 * engine.limits.text_length,
                    elem_id="text",
                )
                with gr.Row(elem_classes="examples"):
                    examples = [
                        gr.Button(english, size="sm", variant="secondary", elem_classes="example")
                        for english, _ in EXAMPLES
                    ]
                with words(gr.Accordion, {"label": "more"}, open=False, elem_id="more") as more:
                    neutral = words(
                        gr.Textbox,
                        {"label": "neutral", "info": "neutral_info"},
                        value=engine.neutral,
                        elem_id="neutral",
                    )
                method_heading = gr.HTML()
                method = words(
                    gr.Radio,
                    {"label": "method"},
                    [(say("en", name), name) for name in methods],
                    value="instant",
                    elem_id="method",
                )
                with gr.Group(visible=True) as instant_group:
                    strength = words(
                        gr.Slider,
                        {"label": "strength", "info": "strength_info"},
                        minimum=-8,
                        maximum=8,
                        value=4,
                        step=0.1,
                        elem_id="strength",
                    )
                with gr.Group(visible=False) as mapper_group:
                    names = [(name.replace("_", " "), name) for name in engine.mappers]
                    mapper = words(
                        gr.Radio,
                        {"label": "mapper_name"},
                        names,
                        value=names[0][1] if names else None,
                        elem_id="mapper",
                    )
                    mapper_strength = words(
                        gr.Slider,
                        {"label": "strength", "info": "strength_info"},
                        minimum=-0.2,
                        maximum=0.2,
                        value=0.1,
                        step=0.005,
                        elem_id="mapper-strength",
                    )
                with gr.Group(visible=False) as optimize_group:
                    steps = words(
                        gr.Slider,
                        {"label": "steps", "info": "steps_info"},
                        minimum=5,
                        maximum=engine.limits.steps,
                        value=min(engine.config.steps, engine.limits.steps),
                        step=1,
                        elem_id="steps",
                    )
                    hold = words(
                        gr.Slider,
                        {"label": "hold", "info": "hold_info"},
                        minimum=0,
                        maximum=2,
                        value=float(engine.config.orthogonal_lambda),
                        step=0.05,
                        elem_id="hold",
                    )
                    keep_texts = words(
                        gr.Textbox,
                        {"label": "keep_texts", "info": "keep_texts_info"},
                        lines=2,
                        elem_id="keep-texts",
                    )
                    stop_early = words(
                        gr.Checkbox, {"label": "stop_early"}, value=False, elem_id="stop-early"
                    )
                with gr.Row():
                    go = words(
                        gr.Button, {"value": "go"}, variant="primary", size="lg", elem_id="go"
                    )
                    cancel = words(
                        gr.Button, {"value": "cancel"}, variant="stop", size="lg", elem_id="cancel"
                    )

        headings = {
            picture_heading: "picture",
            text_heading: "text_heading",
            method_heading: "method_heading",
        }
        controls = Controls(
            method,
            text,
            neutral,
            strength,
            mapper,
            mapper_strength,
            steps,
            hold,
            keep_texts,
            stop_early,
        )

        def speak(chosen: str, state: Session) -> list[Any]:
            """All that the page says, in a language."""
            return [
                chosen,
                chosen,
                f"<h1>{say(chosen, 'title')}</h1><p>{say(chosen, 'subtitle')}</p>",
                *(f"<h2>{say(chosen, key)}</h2>" for key in headings.values()),
                *(gr.update(value=example[chosen == "uk"]) for example in EXAMPLES),
                gr.update(choices=[(say(chosen, name), name) for name in methods]),
                view(chosen, state),
                *words.translate(chosen),
            ]

        spoken = [language, switch, heading, *headings, *examples, method, picture]
        spoken += words.components
        hidden: dict[str, Any] = {"api_visibility": "private"}
        quick = hidden | {"show_progress": "hidden", "concurrency_limit": 16}

        def greet(state: Session, request: gr.Request) -> list[Any]:
            return speak(preferred_language(request.headers.get("accept-language", "")), state)

        def set_page_language() -> str:
            return "(l) => { document.documentElement.lang = l; }"

        page.load(greet, session, spoken, **quick).then(
            None, language, None, js=set_page_language(), **hidden
        )
        switch.input(speak, [switch, session], spoken, **quick).then(
            None, language, None, js=set_page_language(), **hidden
        )

        changed = [session, picture, strip]
        another.click(lambda: random.randrange(2**16), None, seed, **quick).then(
            new_face, [language, session, seed], changed, **quick
        )
        seed.submit(new_face, [language, session, seed], changed, **quick)

        def choose(chosen: str, state: Session, event: gr.SelectData) -> tuple:
            return shown(chosen, state.begin(gallery_faces[event.index]))

        gallery.select(choose, [language, session], changed, **quick)

        def return_to(chosen: str, state: Session, event: gr.SelectData) -> tuple:
            return shown(chosen, state.begin(state.history[event.index]))

        strip.select(return_to, [language, session], changed, **quick)
        keep.click(lambda l, s: shown(l, s.keep()), [language, session], changed, **quick)
        undo.click(lambda l, s: shown(l, s.undo()), [language, session], changed, **quick)

        groups = [instant_group, mapper_group, optimize_group, more]
        method.change(method_visibility, method, groups, **quick)

        inputs = [language, session, *controls]
        results = [session, picture, status]
        working: dict[str, Any] = hidden | {"show_progress": "minimal", "show_progress_on": status}
        events = [
            trigger(edit, inputs, results, concurrency_id="edit", concurrency_limit=2, **working)
            for trigger in (go.click, text.submit)
        ]
        for button in examples:
            events.append(
                button.click(lambda example: example, button, text, **quick).then(
                    edit, inputs, results, concurrency_id="edit", concurrency_limit=2, **working
                )
            )
        for slider in (strength, mapper_strength):
            slider.input(drag, inputs, [session, picture], trigger_mode="always_last", **quick)
        mapper.change(drag, inputs, [session, picture], trigger_mode="always_last", **quick)

        def stopped(chosen: str, state: Session) -> tuple:
            return view(chosen, state), f'<div role="status">{say(chosen, "cancelled")}</div>'

        cancel.click(stopped, [language, session], [picture, status], cancels=events, **quick)

        click_link = "() => document.querySelector('#link a').click()"
        for button, kind in ((save, "image"), (save_all, "all"), (save_film, "animation")):
            button.click(
                lambda l, s, kind=kind: download(l, s, kind), [language, session], link, **quick
            ).success(None, None, None, js=click_link, **hidden)
        show_film.click(film, [language, session], film_strip, **quick)
    return page
