"""What one visitor of the page has done: the picture, the edit, what was kept."""

import dataclasses

from styleclip_jax.app.engine import Edit, Face

# Pictures of a visit that the history shows.
_HISTORY = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A visit. Every action makes a new one.

    Attributes:
        start: The picture that edits start from.
        edit: What is shown beside it; None: nothing yet.
        past: Earlier starts, for undo.
        history: All starts and all edits that were kept, the latest last.
    """

    start: Face
    edit: Edit | None = None
    past: tuple[Face, ...] = ()
    history: tuple[Face, ...] = ()

    @property
    def shown(self) -> Face:
        """The latest picture."""
        return self.edit.face if self.edit else self.start

    def begin(self, face: Face) -> "Session":
        """Starts from another picture."""
        if face is self.start:
            return dataclasses.replace(self, edit=None)
        past = (*self.past, self.start)[-_HISTORY:]
        return dataclasses.replace(
            self, start=face, edit=None, past=past, history=_add(self.history, face)
        )

    def with_edit(self, edit: Edit) -> "Session":
        """Shows another edit of the start.

        An edit of an earlier start, which came too late, is dropped.
        """
        return dataclasses.replace(self, edit=edit) if edit.start is self.start else self

    def keep(self) -> "Session":
        """Makes the edited picture the new start, so that edits chain."""
        return self.begin(self.edit.face) if self.edit else self

    def undo(self) -> "Session":
        """Takes back the edit; without one, goes back to the start before."""
        if self.edit:
            return dataclasses.replace(self, edit=None)
        if not self.past:
            return self
        return dataclasses.replace(self, start=self.past[-1], past=self.past[:-1])


def first_session(face: Face) -> Session:
    """A visit that begins with a picture."""
    return Session(face, history=(face,))


def _add(history: tuple[Face, ...], face: Face) -> tuple[Face, ...]:
    return history if any(f is face for f in history) else (*history, face)[-_HISTORY:]
