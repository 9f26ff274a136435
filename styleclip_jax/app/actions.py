"""Handlers of the page's events."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from styleclip_jax.app import pictures
from styleclip_jax.app.engine import FILM, Edit, Engine, Face, TooSlowError, animation, png
from styleclip_jax.app.recipes import Instant, Mapped, Optimized, Recipe, Using
from styleclip_jax.app.session import Session
from styleclip_jax.app.strings import say
from styleclip_jax.errors import InputError
from styleclip_jax.faces import NoFaceError
from styleclip_jax.methods.directions import NoChannelError

# Steps without an improvement after which "stop when nothing improves" stops.
_PATIENCE = 15


class ClosingError(Exception):
    """The service is about to stop and takes no new work."""


class Asked(NamedTuple):
    """The values of ``layout.Controls``."""

    method: str
    text: str
    neutral: str
    using: Using
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
    """Maps a session and the values of controls to the next session and the page's contents.

    Args:
        engine: Computes the edits.
        admit: A context manager around every edit; raises :class:`ClosingError`.
        gallery: Faces to start from.
    """

    def __init__(
        self,
        engine: Engine,
        admit: Callable[[], AbstractContextManager],
        gallery: Sequence[Face],
    ):
        self._engine = engine
        self._admit = admit
        self.gallery = gallery

    def shown(self, language: str, session: Session) -> tuple[Session, str, str, str]:
        """The contents of the page after the session has changed."""
        return (
            session,
            self.picture(language, session),
            self.history(language, session),
            self.photo(language, session),
        )

    def picture(self, language: str, session: Session) -> str:
        """The image before and after the edit."""
        edit = session.edit
        return pictures.compare(
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
        """The images of the session."""
        current = [i for i, face in enumerate(session.history) if face is session.start]
        return pictures.picker(
            [face.pixels for face in session.history],
            say(language, "history_picture"),
            say(language, "history"),
            current[0] if current else None,
        )

    def gallery_picker(self, language: str) -> str:
        """The faces to start from."""
        return pictures.picker(
            [face.pixels for face in self.gallery], say(language, "face"), say(language, "gallery")
        )

    def new_face(self, language: str, session: Session, seed: float | None) -> tuple:
        """Starts from a random face."""
        try:
            return self.shown(language, session.begin(self._engine.random_face(int(seed or 0))))
        except Exception as error:
            raise self._failure(language, error) from error

    def upload(self, language: str, session: Session, path: str, align: bool) -> tuple:
        """Starts from a photo, shows its reconstruction, and removes the file."""
        try:
            with self._admit():
                session = session.begin(self._engine.upload(path, align))
            return self.shown(language, session)
        except Exception as error:
            raise self._failure(language, error) from error
        finally:
            Path(path).unlink(missing_ok=True)

    def photo(self, language: str, session: Session) -> str:
        """The photo of the start, the face in it and its reconstruction; empty without one."""
        photo = session.start.photo
        if photo is None or photo.reconstructed is None:
            return ""
        captions = [say(language, key) for key in ("original", "aligned", "reconstructed")]
        frames = [photo.shown, photo.aligned, photo.reconstructed]
        return pictures.film(frames, captions, say(language, "uploaded"))

    def from_gallery(self, language: str, session: Session, event: gr.SelectData) -> tuple:
        """Starts from a face of the gallery."""
        return self.shown(language, session.begin(self.gallery[event.index]))

    def from_history(self, language: str, session: Session, event: gr.SelectData) -> tuple:
        """Starts from an earlier image of the session."""
        return self.shown(language, session.begin(session.history[event.index]))

    def keep(self, language: str, session: Session) -> tuple:
        """Makes the result the new start."""
        return self.shown(language, session.keep())

    def undo(self, language: str, session: Session) -> tuple:
        """Undoes the edit, or returns to the previous start."""
        return self.shown(language, session.undo())

    def edit(self, language: str, session: Session, *values: Any) -> Iterator[tuple]:
        """Edits by any method; optimizations report their progress.

        Yields:
            The session, its image, a message and the strength of instant edits.
        """
        yield from self._edit(language, session, Asked(*values))

    def _edit(self, language: str, session: Session, asked: Asked) -> Iterator[tuple]:
        try:
            self._check(language, asked)
            with self._admit():
                recipe = self._recipe(asked)
                if isinstance(recipe, Optimized):
                    # A new number of steps is compiled first, which takes seconds.
                    preparing = pictures.message(say(language, "preparing"))
                    yield gr.skip(), gr.skip(), preparing, gr.skip()
                    for update in self._engine.optimize(session.start, recipe):
                        edit = update.edit or Edit(session.start, recipe, update.face)
                        shown = session.with_edit(edit)
                        message = say(
                            language,
                            "progress",
                            step=update.step,
                            steps=recipe.steps,
                            loss=update.losses[-1],
                            seconds=update.seconds_left,
                        )
                        bar = pictures.progress(update.step, recipe.steps, update.losses, message)
                        yield gr.skip(), self.picture(language, shown), bar, gr.skip()
                else:
                    edit = self._quick_edit(session.start, recipe)
            session = session.with_edit(edit)
            strength = edit.recipe.strength if isinstance(edit.recipe, Instant) else gr.skip()
            done = pictures.message(self._done(language, edit))
            yield session, self.picture(language, session), done, strength
        except NoChannelError as error:
            message = say(language, "no_channel", largest=math.floor(100 * error.largest) / 100)
            yield gr.skip(), gr.skip(), pictures.message(message), gr.skip()
        except Exception as error:
            raise self._failure(language, error) from error

    def drag(self, language: str, session: Session, *values: Any) -> tuple:
        """Edits while a slider is dragged; does nothing without a text."""
        return self._drag(language, session, Asked(*values))

    def drag_strength(self, language: str, session: Session, *values: Any) -> tuple:
        """Edits with the strength of its slider, which disables the automatic strength."""
        *shown, _ = self._drag(language, session, Asked(*values)._replace(automatic=False))
        return (*shown, False)

    def _drag(self, language: str, session: Session, asked: Asked) -> tuple:
        if asked.method == "optimize" or (asked.method == "instant" and not asked.text.strip()):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        *_, last = self._edit(language, session, asked)
        return last

    def _done(self, language: str, edit: Edit) -> str:
        recipe = edit.recipe
        if not isinstance(recipe, Instant):
            return say(language, "done", text=recipe.text)
        if recipe.strength == 0:
            return say(language, "unchanged", text=recipe.text)
        return say(
            language,
            "channels",
            text=recipe.text,
            strength=recipe.strength,
            changed=edit.changed,
            channels=self._engine.channels(recipe.using),
        )

    def cancelled(self, language: str, session: Session) -> tuple[str, str]:
        """The image and a message after an edit was cancelled."""
        return self.picture(language, session), pictures.message(say(language, "cancelled"))

    def film(self, language: str, session: Session) -> str:
        """The edit at several strengths."""
        captions = [f"{100 * strength:.0f} %" for strength in FILM]
        frames = [face.pixels for face in self._film_faces(language, session)]
        return pictures.film(frames, captions, say(language, "film"))

    def save_image(self, language: str, session: Session) -> str:
        """A link to the image."""
        face = self._engine.exact(session.edit).face if session.edit else session.start
        return pictures.download_link(png(face), "image/png", "face.png")

    def save_all(self, language: str, session: Session) -> str:
        """A link to an archive with everything needed to reproduce the image."""
        archive = self._engine.archive(self._existing_edit(language, session))
        return pictures.download_link(archive, "application/zip", "styleclip-edit.zip")

    def save_film(self, language: str, session: Session) -> str:
        """A link to an animation of the filmstrip."""
        frames = [face.pixels for face in self._film_faces(language, session)]
        return pictures.download_link(animation(frames), "image/gif", "face.gif")

    def _film_faces(self, language: str, session: Session) -> list[Face]:
        edit = self._existing_edit(language, session)
        return [self._engine.with_strength(edit, strength) for strength in FILM]

    def _existing_edit(self, language: str, session: Session) -> Edit:
        if not session.edit:
            raise gr.Error(say(language, "no_edit"), print_exception=False)
        return session.edit

    def _check(self, language: str, asked: Asked) -> None:
        if asked.method == "mapper":
            return
        if not asked.text.strip():
            raise gr.Error(say(language, "no_text"), print_exception=False)
        limit = self._engine.limits.text_length
        length = max(map(len, (asked.text, asked.neutral, *asked.keep_texts.splitlines())))
        if length > limit:
            message = say(language, "long_text", length=length, limit=limit)
            raise gr.Error(message, print_exception=False)

    def _recipe(self, asked: Asked) -> Recipe:
        neutral = asked.neutral.strip() or self._engine.neutral
        if asked.method == "instant":
            strength = None if asked.automatic else float(asked.strength)
            threshold = float(asked.threshold)
            return Instant(asked.text.strip(), neutral, strength, threshold, asked.using)
        if asked.method == "mapper":
            return Mapped(asked.mapper or "", float(asked.mapper_strength))
        return Optimized(
            asked.text.strip(),
            neutral,
            tuple(filter(None, map(str.strip, asked.keep_texts.splitlines()))),
            int(asked.steps),
            float(asked.hold),
            _PATIENCE if asked.stop_early else 0,
        )

    def _quick_edit(self, start: Face, recipe: Instant | Mapped) -> Edit:
        if isinstance(recipe, Instant):
            return self._engine.instant(start, recipe)
        return self._engine.mapped(start, recipe)

    def _failure(self, language: str, error: Exception) -> gr.Error:
        """The message for the user; unexpected errors are logged too."""
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
