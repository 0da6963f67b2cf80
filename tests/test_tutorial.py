"""The tutorial: its cells run with tiny settings, and its page is that of the notebook."""

import json
import runpy
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[1] / 'docs'
NOTEBOOK = DOCS / 'tutorial.ipynb'


def test_cells_run(tmp_path, monkeypatch):
    """Import, check, browse, train, look, export; the exported file gives the labels of the checkpoint."""
    pictures = []
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text())['cells']
    settings, *rest = (''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
    place = {'Image': pictures.append}  # of IPython, which is not installed for the tests
    for text in (settings, 'IMAGES, HEIGHT, WIDTH, ITERS, BATCH = 8, 64, 96, 2, 2', *rest):
        exec(text.replace('from IPython.display import Image\n', ''), place)
    plt.close('all')
    assert len(pictures) == 4 and all(picture.startswith(b'\xff\xd8') for picture in pictures)
    assert (place['exported'].labels == place['result'].labels).mean() > 0.99
    assert len(list(Path('tutorial/results/labels').glob('*.png'))) == 2
    assert Path('tutorial/model.safetensors').is_file()


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
