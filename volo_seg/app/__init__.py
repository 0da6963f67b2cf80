"""A page in the browser to try checkpoints on images; Gradio, an extra, is loaded when the page is served."""

from volo_seg.app.models import Model, open_models

__all__ = ['Model', 'open_models', 'serve']


def __getattr__(name: str) -> object:
    """``serve`` is loaded on use, because it needs Gradio.

    Raises:
        UserError: Gradio is not installed.
    """
    if name != 'serve':
        raise AttributeError(name)
    from volo_seg.app.server import serve

    return serve
