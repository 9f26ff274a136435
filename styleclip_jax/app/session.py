"""The session of one user of the page: the image, the edit and the history."""

import dataclasses

from styleclip_jax.app.engine import Edit, Face

# Maximum number of images in the history.
_HISTORY = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """An immutable session; every action returns a new one.

    Attributes:
        start: The image that edits start from.
        edit: The current edit, if any.
        past: Earlier starts, for undo.
        history: All starts and kept edits, the latest last.
    """

    start: Face
    edit: Edit | None = None
    past: tuple[Face, ...] = ()
    history: tuple[Face, ...] = ()

    @property
    def shown(self) -> Face:
        """The latest image."""
        return self.edit.face if self.edit else self.start

    def begin(self, face: Face) -> "Session":
        """Starts from another image."""
        if face is self.start:
            return dataclasses.replace(self, edit=None)
        past = (*self.past, self.start)[-_HISTORY:]
        return dataclasses.replace(
            self, start=face, edit=None, past=past, history=_add(self.history, face)
        )

    def with_edit(self, edit: Edit) -> "Session":
        """Shows another edit of the start.

        A late edit of an earlier start is dropped.
        """
        return dataclasses.replace(self, edit=edit) if edit.start is self.start else self

    def keep(self) -> "Session":
        """Makes the edited image the new start, so that edits chain."""
        return self.begin(self.edit.face) if self.edit else self

    def undo(self) -> "Session":
        """Undoes the edit; without one, returns to the previous start."""
        if self.edit:
            return dataclasses.replace(self, edit=None)
        if not self.past:
            return self
        return dataclasses.replace(self, start=self.past[-1], past=self.past[:-1])


def first_session(face: Face) -> Session:
    """A session that starts from an image."""
    return Session(face, history=(face,))


def _add(history: tuple[Face, ...], face: Face) -> tuple[Face, ...]:
    return history if any(f is face for f in history) else (*history, face)[-_HISTORY:]
