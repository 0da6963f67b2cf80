"""The tutorial: its cells run with tiny settings, and its page is that of the notebook."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / 'docs'
NOTEBOOK = DOCS / 'tutorial.ipynb'
CHECKS = """
assert len(pictures) == 4 and all(picture.startswith(b'\\xff\\xd8') for picture in pictures)
"""


def test_cells_run(tmp_path):
    """Import, check, browse, train, look, publish."""
    cells = json.loads(NOTEBOOK.read_text())['cells']
    settings, *rest = (''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
    # tests/export exports and compares; here it would take most of the time
    assert 'OnnxPredictor' in rest.pop() and "\nvolo_seg(f'export" in rest[-1]
    rest[-1] = rest[-1].partition("\nvolo_seg(f'export")[0]
    small = 'IMAGES, HEIGHT, WIDTH, ITERS, BATCH = 8, 64, 96, 2, 2\npictures = []'
    text = '\n'.join([settings, small, *rest, CHECKS])
    # IPython is not installed for the tests
    text = text.replace('from IPython.display import Image\n', 'def Image(data):\n    pictures.append(data)\n')
    (tmp_path / 'cells.py').write_text(text)
    done = subprocess.run([sys.executable, 'cells.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob('tutorial/results/labels/*.png'))) == 2
    assert (tmp_path / 'tutorial' / 'model.safetensors').is_file()


def test_outputs_are_those_of_a_whole_run():
    cells = json.loads(NOTEBOOK.read_text())['cells']
    assert not [o for cell in cells for o in cell.get('outputs', []) if o['output_type'] == 'error']
    assert NOTEBOOK.stat().st_size < 400_000
    content = NOTEBOOK.read_text()
    assert '/tmp' not in content and '/home' not in content and '/root' not in content


def test_page_is_that_of_the_notebook():
    files = runpy.run_path(str(DOCS / 'notebook.py'))['make_page'](NOTEBOOK)
    assert {str(path) for path in files} >= {'tutorial.md', 'tutorial/0.jpg'}
    for path, content in files.items():
        assert (DOCS / path).read_bytes() == content, f'{path}: run python docs/notebook.py docs/tutorial.ipynb'
