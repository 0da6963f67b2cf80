"""Archives given to ``volo-seg submit --validate`` and lists of class names, of any content: one sentence each."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from volo_seg.commands import run
from volo_seg.datasets.class_lists import read_class_list, read_classes
from volo_seg.errors import UserError
from volo_seg.inference.batch.sources import read_list

NAME = 'ADE_test_00000001.png'


def png(labels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(labels, np.uint8)).save(buffer, 'png')
    return buffer.getvalue()


GOOD = png([[1, 2], [3, 150]])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def raw_png(width: int, height: int, pixels: bytes, *chunks: bytes) -> bytes:
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def zipped(members, **packing) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', **packing) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def tampered(signature: bytes, offset: int, content: bytes, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    whole = zipped([(NAME, GOOD)], compression=packing)
    start = whole.rfind(signature) + offset
    return whole[:start] + content + whole[start + len(content) :]


def linked() -> bytes:
    info = zipfile.ZipInfo(NAME)
    info.external_attr = 0o120777 << 16
    return zipped([(info, '/etc/passwd')])


LOCAL, CENTRAL, END = b'PK\x03\x04', b'PK\x01\x02', b'PK\x05\x06'
PIXELS = zlib.compress(b'\0\1\1' * 2)
ARCHIVES = {
    'no text in a name': tampered(CENTRAL, 9, b'\x08').replace(b'ADE_', b'ADE\xff'),
    'escapes in a name': zipped([('\x1b[2J\n' + NAME, GOOD)]),
    'long name': zipped([('x' * 60_000, GOOD)]),
    'link': linked(),
    'checksum': tampered(CENTRAL, 16, b'\0\0\0\0'),
    'deflate': tampered(LOCAL, 55, b'\xff' * 12),
    'bzip2': tampered(LOCAL, 55, b'\xff' * 24, zipfile.ZIP_BZIP2),
    'lzma': tampered(LOCAL, 56, b'\xff' * 24, zipfile.ZIP_LZMA),
    'lzma options': tampered(LOCAL, 52, b'\0' * 8, zipfile.ZIP_LZMA),
    'encrypted': tampered(CENTRAL, 8, b'\x01'),
    'strongly encrypted': tampered(CENTRAL, 8, b'\x41'),
    'method': tampered(CENTRAL, 10, b'\x63'),
    'other method': tampered(CENTRAL, 10, b'\x0e'),
    'size': tampered(CENTRAL, 24, b'\x05\0\0\0'),
    'offset': tampered(CENTRAL, 42, b'\xff\xff\xff\x00'),
    'local header': tampered(LOCAL, 0, b'A'),
    'version': tampered(CENTRAL, 6, b'\xff'),
    'zero in a name': tampered(CENTRAL, 50, b'\0'),
    'size of the list': tampered(END, 12, b'\xff\xff\xff\x7f'),
    'half': zipped([(NAME, GOOD)])[:80],
    'bomb': zipped([(NAME, bytes(300 * 10**6))], compression=zipfile.ZIP_DEFLATED),
    'twice': zipped([(NAME, GOOD), (NAME, GOOD)]),
    'two answers': zipped([(NAME, GOOD), (f'sub/{NAME}', GOOD)]),
    'image bomb': zipped([(NAME, raw_png(60_000, 60_000, zlib.compress(bytes(10**6))))]),
    'image of no size': zipped([(NAME, raw_png(0, 0, b''))]),
    'image of any size': zipped([(NAME, raw_png(2**31 - 1, 1, b''))]),
    'half an image': zipped([(NAME, GOOD[:40])]),
    'pixels': zipped([(NAME, raw_png(4, 4, b'junkjunk'))]),
    'header': zipped([(NAME, b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', b'\0'))]),
    'resolution': zipped([(NAME, raw_png(2, 2, PIXELS, chunk(b'pHYs', b'\0')))]),
    'animation': zipped([(NAME, raw_png(2, 2, PIXELS, chunk(b'acTL', b'\0')))]),
    'text bomb': zipped([(NAME, raw_png(2, 2, PIXELS, chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**8)))))]),
    'profile bomb': zipped([(NAME, raw_png(2, 2, PIXELS, chunk(b'iCCP', b'a\0\0' + zlib.compress(bytes(10**8)))))]),
    'PostScript': zipped([(NAME, b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')]),
    'animated GIF': zipped([(NAME, b'GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02')]),
}  # fmt: skip
ACCEPTED = {
    'path outside': zipped([(f'../../{NAME}', GOOD)]),
    'absolute path': zipped([(f'/tmp/volo-seg-escaped/{NAME}', GOOD)]),
}


@pytest.mark.parametrize('name', [*ARCHIVES, *ACCEPTED])
def test_archives_of_any_content(tmp_path, monkeypatch, capsys, name):
    (tmp_path / 'sub').mkdir()
    monkeypatch.chdir(tmp_path / 'sub')
    (tmp_path / 'sub' / 'a.zip').write_bytes({**ARCHIVES, **ACCEPTED}[name])
    assert run('submit', ['--validate', 'a.zip', '--dataset', 'ade20k']) == (name in ARCHIVES)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith('warnings for the server of ADE20K')
    assert all(line.isprintable() and len(line) < 700 for line in lines)
    assert all(line.startswith(('error: ', 'warning: ')) for line in lines[:-1])
    assert [file.name for file in tmp_path.rglob('*')] == ['sub', 'a.zip']
    assert not os.path.exists('/tmp/volo-seg-escaped')


@pytest.mark.parametrize('kind', ['fifo', 'device', 'folder', 'large', 'bytes', 'line'])
def test_lists_of_any_kind(tmp_path, kind):
    path = tmp_path / 'classes.txt'
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    elif kind == 'folder':
        path.mkdir()
    else:
        path.write_bytes({'large': b'name\n' * 2**20, 'bytes': b'\xff\xfe\x00', 'line': b'a 1 ' * 10**5}[kind])
    reads = [lambda: read_classes(None, str(tmp_path)), lambda: read_classes(str(path), '.')]
    if kind != 'line':
        reads.append(lambda: read_class_list(path))
    if kind not in ('line', 'large'):
        reads.append(lambda: list(read_list(path)))
    for read in reads:
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
