"""A Griffe extension that turns the Sphinx roles of the docstrings into links."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|data|func|meth|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites ``:func:`name``` to a reference, which stays plain text if there is no target."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_link, obj.docstring.value)


def _link(role: re.Match[str]) -> str:
    name = role[1].rpartition(".")[2]
    target = role[1] if role[1].startswith("styleclip_jax.") else f"styleclip_jax.{role[1]}"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'
