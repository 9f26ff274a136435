"""HTML of images and of progress; images are embedded, so that there are no files to remove."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from styleclip_jax.app.photos import Pixels

# Width and height of the loss curve.
_CURVE = (240, 40)

# Makes the buttons of a `picker` trigger Gradio's select event.
SELECT_SCRIPT = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", { index: Number(button.dataset.index), value: null });
});
"""

# The position of the divider is stored in the document, so that it survives new images.
HEAD = """
<script>
document.addEventListener("input", (event) => {
  if (event.target.matches(".compare input"))
    document.documentElement.style.setProperty("--divider", event.target.value + "%");
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches(".compare input")) {
    const divider = getComputedStyle(document.documentElement).getPropertyValue("--divider");
    event.target.value = parseFloat(divider) || 50;
  }
});
</script>
"""

CSS = """
:root { --divider: 50%; }
.compare { position: relative; width: min(100%, 32rem); aspect-ratio: 1; margin: 0 auto;
  border-radius: 12px; overflow: hidden; background: var(--background-fill-secondary); }
.compare img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.compare img.before { clip-path: inset(0 calc(100% - var(--divider)) 0 0); }
.compare .divider { position: absolute; top: 0; bottom: 0; left: var(--divider); width: 3px;
  margin-left: -1.5px; background: #fff; box-shadow: 0 0 4px #000a; pointer-events: none; }
.compare .divider::after { content: "\\2194"; position: absolute; top: 50%; left: 50%;
  translate: -50% -50%; width: 2rem; line-height: 2rem; border-radius: 50%; text-align: center;
  background: #fff; color: #222; box-shadow: 0 0 4px #000a; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.compare:focus-within { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.compare .tag { position: absolute; bottom: .5rem; padding: .1rem .5rem; border-radius: 6px;
  background: #000b; color: #fff; font-size: .85rem; pointer-events: none; }
.compare .tag.left { left: .5rem; } .compare .tag.right { right: .5rem; }
.picker { display: flex; gap: .35rem; flex-wrap: wrap; padding: .25rem; }
.picker button { padding: 0; border: 0; border-radius: 8px; overflow: hidden; line-height: 0;
  width: 3.1rem; height: 3.1rem; cursor: pointer; background: none; }
.picker button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.picker button[aria-current] { outline: 3px solid var(--color-accent); }
.picker img { width: 100%; height: 100%; object-fit: cover; }
.filmstrip { display: flex; gap: .5rem; overflow-x: auto; padding: .25rem; }
.filmstrip figure { margin: 0; text-align: center; font-size: .85rem; flex: 1 0 5rem;
  max-width: 10rem; }
.filmstrip img { width: 100%; border-radius: 8px; }
.progress progress { width: 100%; height: .6rem; accent-color: var(--color-accent); }
.progress svg { width: 100%; height: 40px; color: var(--color-accent); }
"""


def data_uri(content: bytes, kind: str) -> str:
    """Returns the content of a file as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_uri(pixels: Pixels) -> str:
    """Returns an image as a data: URI of a high-quality WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=92, method=2)
    return data_uri(buffer.getvalue(), "image/webp")


def comparison(
    before: Pixels, after: Pixels | None, tags: tuple[str, str], alts: tuple[str, str], label: str
) -> str:
    """Returns an image before and after an edit, overlaid, with a movable divider.

    Args:
        before: The image before the edit.
        after: The image after the edit. None: there is no edit.
        tags: Visible names of the two images.
        alts: Alternative texts of the two images.
        label: Name of the divider for screen readers.
    """
    left, right, alt_before, alt_after = map(html.escape, (*tags, *alts))
    if after is None:
        return f'<div class="compare"><img src="{image_uri(before)}" alt="{alt_before}"></div>'
    return f"""<div class="compare">
<img class="after" src="{image_uri(after)}" alt="{alt_after}">
<img class="before" src="{image_uri(before)}" alt="{alt_before}">
<span class="tag left">{left}</span><span class="tag right">{right}</span>
<div class="divider"></div>
<input type="range" min="0" max="100" value="50" aria-label="{html.escape(label)}"></div>"""


def picker(images: Sequence[Pixels], name: str, title: str, current: int | None = None) -> str:
    """Returns selectable images in rows.

    Args:
        images: The images.
        name: Alternative text of an image, which its number follows.
        title: Title above the images.
        current: Index of the selected image.
    """
    buttons = []
    for i, image in enumerate(images):
        mark = ' aria-current="true"' if i == current else ""
        alt = html.escape(f"{name} {i + 1}")
        buttons.append(
            f'<button type="button" data-index="{i}"{mark}>'
            f'<img src="{image_uri(image)}" alt="{alt}"></button>'
        )
    title = html.escape(title)
    return (
        f'<p class="picker-title">{title}</p><div class="picker" role="group" aria-label="{title}">'
        f"{''.join(buttons)}</div>"
    )


def filmstrip(frames: Sequence[Pixels], captions: Sequence[str], title: str) -> str:
    """Returns images in a row, with captions."""
    figures = "".join(
        f'<figure><img src="{image_uri(frame)}" alt=""><figcaption>{html.escape(caption)}'
        "</figcaption></figure>"
        for frame, caption in zip(frames, captions, strict=True)
    )
    # tabindex makes the scrollable row reachable by keyboard.
    title = html.escape(title)
    return f'<div class="filmstrip" tabindex="0" role="group" aria-label="{title}">{figures}</div>'


def progress(step: int, steps: int, losses: Sequence[float], message: str) -> str:
    """Returns the progress of an optimization and its loss curve."""
    width, height = _CURVE
    low, high = min(losses), max(losses)
    points = " ".join(
        f"{width * i / max(steps - 1, 1):.1f},"
        f"{height - 2 - (height - 4) * (loss - low) / max(high - low, 1e-9):.1f}"
        for i, loss in enumerate(losses)
    )
    return f"""<div class="progress" role="status"><div>{html.escape(message)}</div>
<progress max="{steps}" value="{step}" aria-label="{html.escape(message)}"></progress>
<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">
<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="2"
 vector-effect="non-scaling-stroke"/></svg></div>"""


def download_link(content: bytes, kind: str, name: str) -> str:
    """Returns a link that downloads a file; a script clicks it."""
    return f'<a download="{html.escape(name)}" href="{data_uri(content, kind)}"></a>'


def message(text: str) -> str:
    """Returns a message that screen readers announce."""
    return f'<div class="progress" role="status">{html.escape(text)}</div>'
