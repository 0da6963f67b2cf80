"""Lists of classes as people and annotation tools write them: never a class more, less or at another value."""

import pytest

from volo_seg.datasets.class_lists import check_class_names, read_class_list, read_classes
from volo_seg.errors import UserError

NAMES = ['background', 'car', 'road']
RGB = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
CVAT = '# label:color_rgb:parts:actions\n'
FORMATS = {
    'names': ('background\ncar\n\nroad\n', None),
    'CRLF and white space': ('background\r\n car \r\nroad', None),
    'colours': ('background 0 0 0\ncar 255 0 0\nroad 0 255 0\n', RGB),
    'colours by commas': ('background, 0, 0, 0\ncar,255,0,0\nroad,0,255,0\n', RGB),
    'table with a header': ('name,r,g,b\nbackground,0,0,0\ncar,255,0,0\nroad,0,255,0\n', RGB),
    'numbered table': ('id;name;r;g;b\n0;background;0;0;0\n1;car;255;0;0\n2;road;0;255;0\n', RGB),
    'CVAT': (f'{CVAT}background:0,0,0::\ncar:255,0,0::\nroad:0,255,0:wheel,door:drive\n', RGB),
    'CVAT without its header': ('background:0,0,0::\ncar:255,0,0::\nroad:0,255,0::\n', RGB),
    'VOC without colours': (f'{CVAT}background:::\ncar:::\nroad:::\n', None),
    'Roboflow': ('Pixel Value, Class\n0, background\n1, car\n2, road\n', None),
    'Roboflow in another order': ('Pixel Value, Class\n2, road\n0, background\n1, car\n', None),
    'numbers and colons': ('0: background\n1: car\n2: road\n', None),
    'numbers and tabs': ('0\tbackground\n1\tcar\n2\troad\n', None),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'classes.txt'


def read(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding))
    return read_class_list(path)


@pytest.mark.parametrize('name', FORMATS)
def test_formats_of_tools(path, name):
    text, colours = FORMATS[name]
    assert read(path, text) == (NAMES, colours)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_encodings(path, encoding):
    assert read(path, 'forêt\nchaussée\n道路\n', encoding)[0] == ['forêt', 'chaussée', '道路']
    assert read(path, f'{CVAT}forêt:1,2,3::\n', encoding) == (['forêt'], [(1, 2, 3)])
    path.write_bytes('\ufeffname'.encode('utf-16-be'))
    assert read_class_list(path)[0] == ['name']


def test_names_that_look_like_another_format(path):
    for names in (['traffic light', 'person: rider', '3 wheeler'], ['4 wheeler'], ['class', 'car'][1:], ['a,b', 'c']):
        assert read(path, '\n'.join(names)) == (names, None)
    assert read(path, '0 10 20 30\n1 10 20 31\n') == (['0', '1'], [(10, 20, 30), (10, 20, 31)])


@pytest.mark.parametrize(
    ('text', 'encoding', 'words'),
    [
        ('route\nforêt\n', 'latin-1', 'line 2 is not UTF-8 text: byte 0xea); save it in the encoding UTF-8'),
        ('forêt\n', 'utf-16-le', 'line 1 is not UTF-8 text: byte 0xea'),
        ('car\nroad\n', 'utf-16-le', 'save the names in the encoding UTF-8'),
        ('', 'utf-8', 'is empty; write one class name per label value'),
        (CVAT, 'utf-8', "line '# label:color_rgb:parts:actions' is a comment and not a class; remove it"),
        ('# mine\ncar\n', 'utf-8', "line '# mine' is a comment and not a class; remove it"),
        ('car\n#road\n', 'utf-8', "line '#road' is a comment"),
        ('Class\ncar\nroad\n', 'utf-8', "line 'Class' is a header and not a class; remove it"),
        ('Pixel Value, Class\n1, car\n2, road\n', 'utf-8', 'numbers its classes 1, 2, but label values count 0, 1, 2'),
        ('0, a\n2, b\n', 'utf-8', 'numbers its classes 0, 2, but label values count'),
        ('0, a\n0, b\n', 'utf-8', 'numbers its classes 0, 0, but'),
        ('1 car\n2 road\n', 'utf-8', 'number from 0 and set reduce_zero_label=True'),
        ('car\nroad\ncar\n', 'utf-8', "names 'car' twice; give each class one name"),
        (f'{CVAT}car:1,2,3::\ncar:1,2,4::\n', 'utf-8', "names 'car' twice"),
        (f'{CVAT}car:1,2,3::\n:1,2,4::\n', 'utf-8', 'has no name for class 1; give each class a name'),
        (f'{CVAT}car:1,2,3::\nroad:::\n', 'utf-8', "line 'road:::' has no colour; write `name R G B`"),
        (f'{CVAT}car:1,2,3::\nroad\n', 'utf-8', "line 'road' has no colour"),
        ('name,r,g,b\ncar,1,2,3\nroad\n', 'utf-8', "line 'road' has no colour"),
    ],
)
def test_refused(path, text, encoding, words):
    with pytest.raises(UserError) as caught:
        read(path, text, encoding)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_names_from_a_config_or_a_flag():
    assert check_class_names(['a', 'b']) == ['a', 'b']
    assert read_classes(['a', 'b'], 'nowhere') == (['a', 'b'], None)
    for names, words in ((['a', ' '], 'has no name for class 1'), (['a', 'a'], "names 'a' twice"), ([], 'is empty')):
        with pytest.raises(UserError, match=words):
            check_class_names(names)
