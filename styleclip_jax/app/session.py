"""The session of one user: the image, its edit and the history."""

import dataclasses

from styleclip_jax.app.edits import Edit, Face

_MAX_HISTORY = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """An immutable session; every action returns a new one.

    Attributes:
        start: The image to edit.
        edit: The current edit, if any.
        past: Earlier start images, for undo.
        history: All start images, the latest last.
    """

    start: Face
    edit: Edit | None = None
    past: tuple[Face, ...] = ()
    history: tuple[Face, ...] = ()

    def begin(self, face: Face) -> "Session":
        """Starts from another image; drops the edit."""
        if face is self.start:
            return dataclasses.replace(self, edit=None)
        past = (*self.past, self.start)[-_MAX_HISTORY:]
        return dataclasses.replace(
            self, start=face, edit=None, past=past, history=_add(self.history, face)
        )

    def with_edit(self, edit: Edit) -> "Session":
        """Replaces the current edit.

        Returns the same session if the edit belongs to an earlier start image.
        """
        return dataclasses.replace(self, edit=edit) if edit.start is self.start else self

    def keep(self) -> "Session":
        """Starts from the edited image, so that edits can be chained."""
        return self.begin(self.edit.face) if self.edit else self

    def undo(self) -> "Session":
        """Removes the edit; if there is none, returns to the previous start image."""
        if self.edit:
            return dataclasses.replace(self, edit=None)
        if not self.past:
            return self
        return dataclasses.replace(self, start=self.past[-1], past=self.past[:-1])


def first_session(face: Face) -> Session:
    """Returns a session that starts from an image."""
    return Session(face, history=(face,))


def _add(history: tuple[Face, ...], face: Face) -> tuple[Face, ...]:
    return history if any(f is face for f in history) else (*history, face)[-_MAX_HISTORY:]
