"""The page: one component of our own HTML, CSS and JavaScript, and one event that segments what it sends."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from volo_seg.app.answers import answer_image, decode_limited, file_name, make_example, read_upload
from volo_seg.app.models import Model
from volo_seg.errors import UserError

WAITING = 8
"""Images that may wait for the network; who comes after is told to try again."""
SESSIONS = 16
"""Visitors whose last answer Gradio keeps; beyond, the oldest is dropped."""
FAILURE = "() => { window.dispatchEvent(new Event('volo-seg-failure')); }"


def build_page(models: Sequence[Model], *, examples: Sequence[Path] = (), max_pixels: int, max_bytes: int) -> gr.Blocks:
    """The page for ``models``; one network runs at a time, whoever asks.

    Args:
        models: What segments each image, side by side.
        examples: Images that the page offers.
        max_pixels: Largest image that is taken.
        max_bytes: Largest file that is taken.

    Raises:
        UserError: An example is no image, or has more pixels than the page takes.
    """

    def submit(event: gr.EventData) -> dict[str, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        answer = answer_request(asked, models, examples=examples, max_pixels=max_pixels, max_bytes=max_bytes)
        return {'sequence': asked.get('sequence'), **answer}

    most = f'{round(max_bytes / 2**20, 2):g} MB, {max_pixels / 1e6:.1f} megapixels'
    with gr.Blocks(title=f'volo-seg: {", ".join(m.name for m in models)}', analytics_enabled=False) as page:
        viewer = gr.HTML(
            None,
            html_template=read_asset('viewer.html'),
            js_on_load=read_asset('viewer.js'),
            apply_default_css=False,
            models=[model.name for model in models],
            examples=[make_example(path, max_pixels=max_pixels) for path in examples],
            max_bytes=max_bytes,
            limits=f'JPEG, PNG, WebP, TIFF or BMP, up to {most}',
        )
        viewer.submit(
            submit,
            outputs=viewer,
            show_progress='hidden',
            trigger_mode='always_last',
            concurrency_limit=1,
            api_visibility='private',
        ).failure(None, js=FAILURE)
    page.queue(max_size=WAITING, api_open=False)
    page.state_session_capacity = SESSIONS
    return page


def answer_request(
    asked: dict[str, Any], models: Sequence[Model], *, examples: Sequence[Path] = (), max_pixels: int, max_bytes: int
) -> dict[str, Any]:
    """What the page shows for what it sent: a result (:func:`answer_image`), or ``{'error': sentence}``.

    ``asked`` holds ``image`` (a file's bytes in base64) and ``name``, or ``example``, an index into ``examples``.
    """
    name = file_name(asked.get('name'))
    try:
        if 'example' in asked:
            path = pick_example(asked['example'], examples)
            name = path.name
            image = decode_limited(path.read_bytes(), name=name, max_pixels=max_pixels)
        else:
            image = read_upload(asked.get('image'), name=name, max_pixels=max_pixels, max_bytes=max_bytes)
        return answer_image(image, models, name=name)
    except UserError as error:
        return {'error': str(error)}
    except MemoryError:
        return {'error': f'{name} needs more memory than this machine has; make it smaller'}
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return {'error': f'{name} could not be segmented; the reason is in the log of the server'}


def pick_example(index: Any, examples: Sequence[Path]) -> Path:
    """The example number ``index``.

    Raises:
        UserError: There is none.
    """
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(examples):
        raise UserError('there is no such example; choose another')
    return examples[index]


def read_asset(name: str) -> str:
    """A file that lies beside this one."""
    return Path(__file__).with_name(name).read_text(encoding='utf-8')
