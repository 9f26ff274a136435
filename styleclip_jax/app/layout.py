"""Layout of the page."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gradio as gr
from gradio.themes import Default

from styleclip_jax.app import fragments
from styleclip_jax.app.engine import Engine
from styleclip_jax.app.recipes import InstantMethod
from styleclip_jax.app.strings import EXAMPLES, LANGUAGES, say
from styleclip_jax.methods.directions import STRENGTH, THRESHOLD

METHODS = ("instant", "mapper", "optimize")

# Colors with sufficient contrast, and no fonts from other hosts.
THEME = Default(
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_text_color_subdued="*neutral_600",
    block_info_text_color="*neutral_600",
    block_label_text_color="*neutral_700",
    block_title_text_color="*neutral_700",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_hover_dark="*primary_700",
)

CSS = (
    fragments.CSS
    + """
/* Gradio's "hidden" would disable position: sticky. */
.gradio-container { max-width: 75rem !important; margin: 0 auto !important;
  overflow: clip !important; }
.html-container { padding: 0 !important; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.15rem; margin: .5rem 0 .25rem; }
.picker-title { font-size: .9rem; font-weight: 600; margin: .25rem 0; }
footer { display: none !important; }
.examples { gap: .4rem !important; flex-wrap: wrap; }
.examples button { flex: 0 1 auto; min-width: 0 !important; }
.bottom { align-items: end; }
.hidden-link { display: none; }
/* On a phone the image stays visible while a slider is dragged. */
@media (max-width: 767px) {
  .gradio-container .main { padding: 1rem !important; }
  #view { display: contents; }
  #view > * { flex: 1 0 100%; }
  #image { position: sticky; top: 0; z-index: 100; background: var(--body-background-fill); }
  #image .compare { width: min(100%, 42vh); }
}
@media (min-width: 768px) { #view { position: sticky; top: .5rem; } }
"""
)


# The keys of a component's texts by argument, such as ``label``; a tuple of keys for choices.
TextKeys = Mapping[str, str | tuple[str, ...]]


class Localizer:
    """Creates components with texts from the table of strings and translates them."""

    def __init__(self) -> None:
        self._components: list[tuple[Any, TextKeys]] = []

    def __call__(self, component: Callable, keys: TextKeys, *args: Any, **others: Any) -> Any:
        """Creates a component.

        Args:
            component: Its class.
            keys: The keys of its texts.
            args: Further arguments.
            others: Further arguments.
        """
        created = component(*args, **_look_up("en", keys), **others)
        self._components.append((created, keys))
        return created

    @property
    def components(self) -> list[Any]:
        """All components, in the order of :meth:`translate`."""
        return [component for component, _ in self._components]

    def translate(self, language: str) -> list[Any]:
        """Returns an update for every component."""
        return [gr.update(**_look_up(language, keys)) for _, keys in self._components]


def _look_up(language: str, keys: TextKeys) -> dict[str, Any]:
    def text(key: str | tuple[str, ...]) -> Any:
        if isinstance(key, tuple):
            return [(say(language, choice), choice) for choice in key]
        return say(language, key)

    return {argument: text(key) for argument, key in keys.items()}


class Heading(NamedTuple):
    """The top of the page."""

    title: gr.HTML
    language: gr.Radio


class View(NamedTuple):
    """The image and the buttons below it."""

    image: gr.HTML
    status: gr.HTML
    photo: gr.HTML
    keep: gr.Button
    undo: gr.Button
    save_image: gr.Button
    save_all: gr.Button
    link: gr.HTML
    history: gr.HTML
    filmstrip: gr.HTML
    show_filmstrip: gr.Button
    save_animation: gr.Button


class ImageChoice(NamedTuple):
    """The components that choose an image."""

    heading: gr.HTML
    seed: gr.Number
    new_face: gr.Button
    upload: gr.UploadButton
    align: gr.Checkbox
    gallery: gr.HTML


class Controls(NamedTuple):
    """The components with the settings of an edit, in the order of ``actions.ControlValues``."""

    method: gr.Radio
    text: gr.Textbox
    neutral: gr.Textbox
    using: gr.Radio
    strength: gr.Slider
    automatic: gr.Checkbox
    threshold: gr.Slider
    mapper: gr.Radio
    mapper_strength: gr.Slider
    steps: gr.Slider
    hold: gr.Slider
    keep_texts: gr.Textbox
    stop_early: gr.Checkbox


class Form(NamedTuple):
    """The text, the method and the buttons.

    Attributes:
        controls: The settings.
        headings: The headings of the text and of the method.
        examples: Buttons that fill in an example text.
        groups: The settings of each method in ``METHODS``.
        text_group: The settings of methods that need a text.
        go: Starts the edit.
        cancel: Stops the edit.
    """

    controls: Controls
    headings: tuple[gr.HTML, gr.HTML]
    examples: list[gr.Button]
    groups: list[gr.Group]
    text_group: gr.Column
    go: gr.Button
    cancel: gr.Button


def heading() -> Heading:
    """Builds the title and the language switch."""
    with gr.Row():
        with gr.Column(min_width=290):
            title = gr.HTML()
        switch = gr.Radio(
            list(LANGUAGES.items()),
            # In both languages, because a user may know only one.
            label="Language / Мова",
            value="en",
            min_width=290,
            scale=0,
            elem_id="language",
        )
    return Heading(title, switch)


def view(localized: Localizer) -> View:
    """Builds the column with the image."""

    def button(key: str) -> gr.Button:
        return localized(gr.Button, {"value": key}, size="sm", min_width=120, elem_id=key)

    with gr.Column(scale=5, min_width=320, elem_id="view"):
        image = gr.HTML(elem_id="image")
        status = gr.HTML(elem_id="status", min_height=24)
        photo = gr.HTML(elem_id="photo")
        with gr.Row():
            keep, undo = button("keep"), button("undo")
        with gr.Row():
            save_image, save_all = button("download_image"), button("download_all")
        link = gr.HTML(elem_id="link", elem_classes="hidden-link")
        history = gr.HTML(elem_id="history", js_on_load=fragments.SELECT_SCRIPT)
        with localized(gr.Accordion, {"label": "filmstrip"}, open=False):
            filmstrip = gr.HTML(elem_id="filmstrip")
            with gr.Row():
                show_filmstrip, save_animation = button("show_filmstrip"), button("animation")
    return View(
        image,
        status,
        photo,
        keep,
        undo,
        save_image,
        save_all,
        link,
        history,
        filmstrip,
        show_filmstrip,
        save_animation,
    )


def image_choice(localized: Localizer, engine: Engine, first_seed: int) -> ImageChoice:
    """Builds step one: the choice of an image."""
    title = gr.HTML()
    with gr.Row(elem_classes="bottom"):
        seed = localized(
            gr.Number,
            {"label": "seed"},
            value=first_seed,
            precision=0,
            minimum=0,
            maximum=2**32 - 1,
            min_width=120,
            elem_id="seed",
        )
        new_face = localized(gr.Button, {"value": "new_face"}, min_width=120, elem_id="new-face")
    gallery = gr.HTML(elem_id="gallery", js_on_load=fragments.SELECT_SCRIPT)
    with gr.Row(visible=engine.encoder_path is not None, elem_classes="bottom"):
        upload = localized(
            gr.UploadButton,
            {"label": "upload"},
            file_types=["image"],
            type="filepath",
            min_width=120,
            elem_id="upload",
        )
        align = localized(
            gr.Checkbox,
            {"label": "align", "info": "align_info"},
            # Avatars are already aligned.
            value=engine.paths["generator"] is not None,
            min_width=200,
            elem_id="align",
        )
    return ImageChoice(title, seed, new_face, upload, align, gallery)


def form(localized: Localizer, engine: Engine, methods: tuple[str, ...]) -> Form:
    """Builds steps two and three: the text and the method."""
    with gr.Column(visible=methods[0] != "mapper") as text_group:
        text_heading, text, neutral, examples = _text(localized, engine)
    method_heading = gr.HTML()
    method = localized(
        gr.Radio,
        {"label": "method", "choices": methods},
        value=methods[0],
        elem_id="method",
    )
    with gr.Group(visible=methods[0] == "instant") as instant_group:
        instant = _instant_settings(localized, engine)
    with gr.Group(visible=methods[0] == "mapper") as mapper_group:
        mapper = _mapper_settings(localized, engine)
    with gr.Group(visible=methods[0] == "optimize") as optimize_group:
        optimize = _optimize_settings(localized, engine)
    with gr.Row():
        go = localized(gr.Button, {"value": "go"}, variant="primary", size="lg", elem_id="go")
        cancel = localized(gr.Button, {"value": "cancel"}, size="lg", elem_id="cancel")
    controls = Controls(method, text, neutral, *instant, *mapper, *optimize)
    groups = [instant_group, mapper_group, optimize_group]
    headings = (text_heading, method_heading)
    return Form(controls, headings, examples, groups, text_group, go, cancel)


def _instant_settings(
    localized: Localizer, engine: Engine
) -> tuple[gr.Radio, gr.Slider, gr.Checkbox, gr.Slider]:
    choices = engine.instant_methods or ("any_text",)
    using = localized(
        gr.Radio,
        {"label": "using", "choices": choices},
        value=choices[0],
        visible=len(choices) > 1,
        elem_id="using",
    )
    strength_range, threshold_range = instant_ranges(engine, choices[0])
    strength = _slider(localized, "strength", strength_range)
    automatic = localized(gr.Checkbox, {"label": "automatic"}, value=True, elem_id="automatic")
    threshold = _slider(localized, "threshold", threshold_range)
    return using, strength, automatic, threshold


def _mapper_settings(localized: Localizer, engine: Engine) -> tuple[gr.Radio, gr.Slider]:
    names = [(name.replace("_", " "), name) for name in engine.mappers]
    mapper = localized(
        gr.Radio,
        {"label": "mapper_name"},
        names,
        value=names[0][1] if names else None,
        elem_id="mapper",
    )
    # Without mappers, the slider is never shown.
    strengths = mapper_range(engine, names[0][1]) if names else SliderRange(-0.2, 0.2, 0.1, 0.005)
    return mapper, _slider(localized, "strength", strengths, "mapper-strength")


def _optimize_settings(
    localized: Localizer, engine: Engine
) -> tuple[gr.Slider, gr.Slider, gr.Textbox, gr.Checkbox]:
    limit = engine.limits.steps
    default = min(engine.config.steps, limit)
    steps = _slider(localized, "steps", SliderRange(5, limit, default, 1))
    hold = _slider(localized, "hold", SliderRange(0, 2, engine.config.orthogonal_lambda, 0.05))
    keep_texts = localized(
        gr.Textbox,
        {"label": "keep_texts", "info": "keep_texts_info"},
        value="",
        lines=2,
        elem_id="keep-texts",
    )
    stop_early = localized(gr.Checkbox, {"label": "stop_early"}, elem_id="stop-early")
    return steps, hold, keep_texts, stop_early


def _text(
    localized: Localizer, engine: Engine
) -> tuple[gr.HTML, gr.Textbox, gr.Textbox, list[gr.Button]]:
    heading = gr.HTML()
    text = localized(
        gr.Textbox,
        {"label": "text", "placeholder": "text_placeholder"},
        value="",
        # A text slightly above the limit gets an error message instead of being truncated.
        max_length=10 * engine.limits.text_length,
        elem_id="text",
    )
    with gr.Row(elem_classes="examples"):
        examples = [gr.Button(english, size="sm", min_width=0) for english, _ in EXAMPLES]
    with localized(gr.Accordion, {"label": "more"}, open=False):
        neutral = localized(
            gr.Textbox,
            {"label": "neutral", "info": "neutral_info"},
            value=engine.neutral,
            elem_id="neutral",
        )
    return heading, text, neutral, examples


class SliderRange(NamedTuple):
    """The range of a slider, its initial value and its step."""

    minimum: float
    maximum: float
    value: Any
    step: float


def instant_ranges(engine: Engine, using: InstantMethod) -> tuple[SliderRange, SliderRange]:
    """Returns the ranges of the strength and the threshold of instant edits."""
    if using == "any_text":
        return SliderRange(-3, 3, 1, 0.05), SliderRange(0, 2, 0, 0.05)
    threshold = engine.direction_defaults.threshold or THRESHOLD
    return SliderRange(-10, 10, STRENGTH, 0.1), SliderRange(0.05, 0.6, threshold, 0.01)


def mapper_range(engine: Engine, name: str) -> SliderRange:
    """Returns the range of a mapper's strength: up to twice that of its training, either way."""
    strength = engine.mappers[name].config.card.strength
    return SliderRange(-2 * strength, 2 * strength, strength, strength / 20)


def _slider(localized: Localizer, key: str, values: SliderRange, elem_id: str = "") -> gr.Slider:
    keys = {"label": key, "info": f"{key}_info"}
    return localized(gr.Slider, keys, elem_id=elem_id or key, **values._asdict())
