"""Handlers of the page's events."""

import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from styleclip_jax.app import fragments
from styleclip_jax.app.background import TooSlowError
from styleclip_jax.app.edits import Edit, Face
from styleclip_jax.app.engine import Engine
from styleclip_jax.app.files import animation, png
from styleclip_jax.app.photos import Pixels
from styleclip_jax.app.recipes import Instant, InstantMethod, Mapped, Optimized, Recipe
from styleclip_jax.app.running import ClosingError, RunningEdits
from styleclip_jax.app.session import Session
from styleclip_jax.app.strings import say
from styleclip_jax.errors import InputError
from styleclip_jax.faces import NoFaceError
from styleclip_jax.methods.directions import NoChannelError

# Strengths of a filmstrip, relative to the edit's.
_FILMSTRIP_STRENGTHS = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0)
# Number of steps without improvement after which ``stop_early`` stops.
_PATIENCE = 15


class ControlValues(NamedTuple):
    """The values of ``layout.Controls``."""

    method: str
    text: str
    neutral: str
    using: InstantMethod
    strength: float
    automatic: bool
    threshold: float
    mapper: str | None
    mapper_strength: float
    steps: float
    hold: float
    keep_texts: str
    stop_early: bool


class Actions:
    """Computes the next session and the page's contents from a session and the controls' values.

    Args:
        engine: An engine, for its settings and for images without an edit.
        running: Runs the edits.
        gallery: Images to start from.
    """

    def __init__(self, engine: Engine, running: RunningEdits, gallery: Sequence[Face]):
        self._engine = engine
        self._running = running
        self.gallery = gallery

    def shown(self, language: str, session: Session) -> tuple[Session, str, str, str]:
        """Returns a session, its image, its history and its photo."""
        return (
            session,
            self.image(language, session),
            self.history(language, session),
            self.photo(language, session),
        )

    def image(self, language: str, session: Session) -> str:
        """Returns the image before and after the edit."""
        edit = session.edit
        return fragments.comparison(
            session.start.pixels,
            edit.face.pixels if edit else None,
            (say(language, "before"), say(language, "after")),
            (
                say(language, "alt_start"),
                say(language, "alt_edit", text=edit.recipe.text if edit else ""),
            ),
            say(language, "divider"),
        )

    def history(self, language: str, session: Session) -> str:
        """Returns the images of the session."""
        current = [i for i, face in enumerate(session.history) if face is session.start]
        return fragments.picker(
            [face.pixels for face in session.history],
            say(language, "history_image"),
            say(language, "history"),
            current[0] if current else None,
        )

    def gallery_picker(self, language: str) -> str:
        """Returns the images to start from."""
        return fragments.picker(
            [face.pixels for face in self.gallery],
            say(language, "gallery_image"),
            say(language, "gallery"),
        )

    def new_face(self, language: str, session: Session, seed: float | None) -> tuple:
        """Starts from a random image."""
        try:
            return self.shown(language, session.begin(self._engine.random_face(int(seed or 0))))
        except Exception as error:
            raise self._failure(language, error) from error

    def upload(self, language: str, session: Session, path: str, align: bool) -> tuple:
        """Starts from the reconstruction of a photo; removes the photo's file."""
        try:
            with self._running.track() as engine:
                session = session.begin(engine.upload(path, align))
            return self.shown(language, session)
        except Exception as error:
            raise self._failure(language, error) from error
        finally:
            Path(path).unlink(missing_ok=True)

    def photo(self, language: str, session: Session) -> str:
        """Returns the photo, its face and the reconstruction, or nothing if there is no photo."""
        photo = session.start.photo
        if photo is None or photo.reconstructed is None:
            return ""
        captions = [say(language, key) for key in ("original", "aligned", "reconstructed")]
        frames = [photo.preview, photo.aligned, photo.reconstructed]
        return fragments.filmstrip(frames, captions, say(language, "uploaded"))

    def from_gallery(self, language: str, session: Session, event: gr.SelectData) -> tuple:
        """Starts from an image of the gallery."""
        return self.shown(language, session.begin(self.gallery[event.index]))

    def from_history(self, language: str, session: Session, event: gr.SelectData) -> tuple:
        """Starts from an earlier image of the session."""
        return self.shown(language, session.begin(session.history[event.index]))

    def keep(self, language: str, session: Session) -> tuple:
        """Starts from the edited image."""
        return self.shown(language, session.keep())

    def undo(self, language: str, session: Session) -> tuple:
        """Removes the edit, or returns to the previous start image."""
        return self.shown(language, session.undo())

    def edit(self, language: str, session: Session, *values: Any) -> Iterator[tuple]:
        """Edits the image by any method; optimizations report their progress.

        Yields:
            The session, its image, a message and the strength of instant edits.
        """
        yield from self._edit(language, session, ControlValues(*values))

    def _edit(self, language: str, session: Session, values: ControlValues) -> Iterator[tuple]:
        try:
            self._check(language, values)
            recipe = self._recipe(values)
            with self._running.track() as engine:
                if isinstance(recipe, Instant):
                    edit = engine.instant(session.start, recipe)
                elif isinstance(recipe, Mapped):
                    edit = engine.mapped(session.start, recipe)
                else:
                    edit = yield from self._optimize(engine, language, session, recipe)
            session = session.with_edit(edit)
            strength = edit.recipe.strength if isinstance(edit.recipe, Instant) else gr.skip()
            done = fragments.message(self._done(language, edit))
            yield session, self.image(language, session), done, strength
        except NoChannelError as error:
            message = say(language, "no_channel", largest=math.floor(100 * error.largest) / 100)
            yield gr.skip(), gr.skip(), fragments.message(message), gr.skip()
        except Exception as error:
            raise self._failure(language, error) from error

    def _optimize(
        self, engine: Engine, language: str, session: Session, recipe: Optimized
    ) -> Generator[tuple, None, Edit]:
        """Yields the progress of an optimization and returns its edit."""
        # Its program may have to be compiled first, which takes seconds.
        yield gr.skip(), gr.skip(), fragments.message(say(language, "preparing")), gr.skip()
        for update in engine.optimize(session.start, recipe):
            message = say(
                language,
                "progress",
                step=update.step,
                steps=recipe.steps,
                loss=update.losses[-1],
                seconds=update.seconds_left,
            )
            bar = fragments.progress(update.step, recipe.steps, update.losses, message)
            edit = update.edit or Edit(session.start, recipe, update.face)
            yield gr.skip(), self.image(language, session.with_edit(edit)), bar, gr.skip()
            if update.edit:
                return update.edit
        raise AssertionError("the optimization ended without a result")

    def drag(self, language: str, session: Session, *values: Any) -> tuple:
        """Edits the image while a slider is dragged; does nothing without a text."""
        return self._drag(language, session, ControlValues(*values))

    def drag_strength(self, language: str, session: Session, *values: Any) -> tuple:
        """Edits the image with the slider's strength; disables the automatic strength."""
        dragged = ControlValues(*values)._replace(automatic=False)
        *shown, _ = self._drag(language, session, dragged)
        return (*shown, False)

    def _drag(self, language: str, session: Session, values: ControlValues) -> tuple:
        if values.method == "optimize" or (values.method == "instant" and not values.text.strip()):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        *_, last = self._edit(language, session, values)
        return last

    def _done(self, language: str, edit: Edit) -> str:
        recipe = edit.recipe
        if not isinstance(recipe, Instant):
            return say(language, "done", text=recipe.text)
        if recipe.strength == 0:
            return say(language, "unchanged", text=recipe.text)
        return say(
            language,
            "done_instant",
            text=recipe.text,
            strength=recipe.strength,
            changed=edit.changed,
            channels=self._engine.channels(recipe.using),
        )

    def cancelled(self, language: str, session: Session) -> tuple[str, str]:
        """Returns the image and a message after an edit was cancelled."""
        return self.image(language, session), fragments.message(say(language, "cancelled"))

    def filmstrip(self, language: str, session: Session) -> str:
        """Returns the edit at several strengths."""
        captions = [f"{100 * strength:.0f}%" for strength in _FILMSTRIP_STRENGTHS]
        frames = self._filmstrip_frames(language, session)
        return fragments.filmstrip(frames, captions, say(language, "filmstrip"))

    def save_image(self, language: str, session: Session) -> str:
        """Returns a link to the image."""
        face = self._engine.exact(session.edit).face if session.edit else session.start
        return fragments.download_link(png(face), "image/png", "face.png")

    def save_all(self, language: str, session: Session) -> str:
        """Returns a link to an archive with everything needed to reproduce the image."""
        archive = self._engine.archive(self._existing_edit(language, session))
        return fragments.download_link(archive, "application/zip", "styleclip-edit.zip")

    def save_animation(self, language: str, session: Session) -> str:
        """Returns a link to an animation of the filmstrip."""
        frames = self._filmstrip_frames(language, session)
        return fragments.download_link(animation(frames), "image/gif", "face.gif")

    def _filmstrip_frames(self, language: str, session: Session) -> list[Pixels]:
        edit = self._existing_edit(language, session)
        return [self._engine.with_strength(edit, x).pixels for x in _FILMSTRIP_STRENGTHS]

    def _existing_edit(self, language: str, session: Session) -> Edit:
        if not session.edit:
            raise gr.Error(say(language, "no_edit"), print_exception=False)
        return session.edit

    def _check(self, language: str, values: ControlValues) -> None:
        if values.method == "mapper":
            return
        if not values.text.strip():
            raise gr.Error(say(language, "no_text"), print_exception=False)
        limit = self._engine.limits.text_length
        length = max(map(len, (values.text, values.neutral, *values.keep_texts.splitlines())))
        if length > limit:
            message = say(language, "long_text", length=length, limit=limit)
            raise gr.Error(message, print_exception=False)

    def _recipe(self, values: ControlValues) -> Recipe:
        neutral = values.neutral.strip() or self._engine.neutral
        if values.method == "instant":
            strength = None if values.automatic else float(values.strength)
            threshold = float(values.threshold)
            return Instant(values.text.strip(), neutral, strength, threshold, values.using)
        if values.method == "mapper":
            return Mapped(values.mapper or "", float(values.mapper_strength))
        return Optimized(
            values.text.strip(),
            neutral,
            tuple(filter(None, map(str.strip, values.keep_texts.splitlines()))),
            int(values.steps),
            float(values.hold),
            _PATIENCE if values.stop_early else 0,
        )

    def _failure(self, language: str, error: Exception) -> gr.Error:
        """Returns the message for the user; Gradio logs only unexpected errors."""
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, TooSlowError):
            message = say(language, "too_slow", seconds=self._engine.limits.seconds)
        elif isinstance(error, NoFaceError):
            message = say(language, "no_face")
        elif isinstance(error, ClosingError):
            message = say(language, "closing")
        elif isinstance(error, InputError | FloatingPointError):
            message = say(language, "wrong_input", reason=error)
        else:
            return gr.Error(say(language, "failed"))
        return gr.Error(message, print_exception=False)
