import numpy as np

from styleclip_jax.app.edits import Edit, Face
from styleclip_jax.app.recipes import Mapped
from styleclip_jax.app.session import first_session


def make_face(number):
    return Face(np.full((1, 2, 3), number, np.float32), np.full((4, 4, 3), number, np.uint8))


def make_edit(start, number):
    return Edit(start, Mapped("beard"), make_face(number))


def test_the_next_edit_starts_from_a_kept_result():
    session = first_session(make_face(0))
    edit = make_edit(session.start, 1)
    session = session.with_edit(edit).keep()
    assert session.start is edit.face
    assert session.edit is None
    assert list(session.history)[-1] is edit.face


def test_undo_removes_the_edit_and_then_the_kept_result():
    first = make_face(0)
    session = first_session(first)
    session = session.with_edit(make_edit(first, 1)).keep()
    session = session.with_edit(make_edit(session.start, 2))
    session = session.undo()
    assert session.edit is None and session.start is not first
    session = session.undo()
    assert session.start is first
    assert session.undo() is session


def test_a_late_edit_of_an_earlier_image_is_ignored():
    session = first_session(make_face(0))
    late = make_edit(session.start, 1)
    session = session.begin(make_face(2))
    assert session.with_edit(late).edit is None


def test_the_history_lists_an_image_only_once():
    first, second = make_face(0), make_face(1)
    session = first_session(first)
    for face in (second, first, second):
        session = session.begin(face)
    assert [f is g for f, g in zip(session.history, (first, second), strict=True)] == [True, True]


def test_the_history_of_a_long_session_is_limited():
    session = first_session(make_face(0))
    for i in range(100):
        session = session.begin(make_face(i % 256))
    assert len(session.history) < 50 and len(session.past) < 50
