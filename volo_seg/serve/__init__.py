"""An HTTP API that segments images, and a page that uses it. Needs the extra ``serve``, imported by :mod:`.server`."""

from .models import Model, open_models

__all__ = ['Model', 'open_models']
