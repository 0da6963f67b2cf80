"""Write the page of a notebook, with its outputs: ``python docs/notebook.py docs/tutorial.ipynb`` writes tutorial.md.

Pictures go into a folder of the notebook's name. The site is built from the page, which a test compares.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path


def make_page(notebook: Path) -> dict[Path, bytes]:
    """The files of the page, by their path beside the notebook."""
    parts: list[str] = []
    files: dict[Path, bytes] = {}
    for cell in json.loads(notebook.read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
            continue
        parts.append(f'```python\n{source}\n```')
        for output in cell['outputs']:
            data = output.get('data', {})
            if 'image/jpeg' in data:
                path = Path(notebook.stem, f'{len(files)}.jpg')
                files[path] = base64.b64decode(''.join(data['image/jpeg']))
                parts.append(f'![Output of the cell above]({path.as_posix()})')
            elif 'text' in output:
                text = '\n'.join(line.rstrip() for line in ''.join(output['text']).strip('\n').splitlines())
                parts.append(f'```text\n{text}\n```')
    files[Path(f'{notebook.stem}.md')] = ('\n\n'.join(parts) + '\n').encode()
    return files


def main() -> None:
    """Write the page beside the notebook."""
    notebook = Path(sys.argv[1])
    for path, content in make_page(notebook).items():
        (notebook.parent / path).parent.mkdir(exist_ok=True)
        (notebook.parent / path).write_bytes(content)


if __name__ == '__main__':
    main()
