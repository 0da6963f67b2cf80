"""Weights files that someone sent: each is refused in one sentence, whatever it holds, and runs and writes nothing."""

import io
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from volo_seg.checkpoints import load_file, load_segmentor_weights, read_volo
from volo_seg.errors import UserError


class Segmentor(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.decode_head = nn.Conv2d(2, 3, 1)


GOOD = Segmentor().state_dict()


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


WHOLE = saved(GOOD)


def repacked(change=lambda name, content: content, *, more=(), **packing) -> bytes:
    """The good file with ``change`` done to each member (None leaves it out), and ``more`` members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as source, zipfile.ZipFile(buffer, 'w', **packing) as target:
        for name in source.namelist():
            content = change(name.partition('/')[2], source.read(name))
            if content is not None:
                target.writestr(name, content)
        for name, content in more:
            target.writestr(name, content)
    return buffer.getvalue()


def pickled(code: bytes) -> bytes:
    return repacked(lambda name, content: code if name == 'data.pkl' else content)


def tampered(signature: bytes, offset: int, content: bytes, *, last: bool = False) -> bytes:
    """The good file with ``content`` at ``offset`` behind the first (or last) ``signature`` of a zip."""
    start = (WHOLE.rfind if last else WHOLE.find)(signature) + offset
    return WHOLE[:start] + content + WHOLE[start + len(content) :]


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def made(marker: str, *arguments):
    """What must never run: it makes the folder ``marker`` in the working directory."""
    return {'x': Call(os.mkdir, marker, *arguments)}


def storage(key: bytes, *, size: bytes = b'K\x01\x85', count: bytes = b'K\x01', place: bytes = b'cpu') -> bytes:
    """A pickle of one tensor in the storage ``key``."""
    text = b'X' + len(key).to_bytes(4, 'little') + key
    where = b'X' + len(place).to_bytes(4, 'little') + place
    return (
        b'\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n'
        + text + where + count + b'tQK\x00' + size + b'K\x01\x85\x89}tRs.'
    )  # fmt: skip


def safetensors(header: bytes, tail: bytes = b'\0' * 4) -> bytes:
    return struct.pack('<Q', len(header)) + header + tail


def tensor(**entry) -> bytes:
    given = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4], **entry}
    return ('{"a":' + str(given).replace("'", '"') + '}').encode()


def swapped(value):
    return saved({**GOOD, 'backbone.weight': value})


MIB = 2**20
FILES = {
    # programs
    'os.mkdir': saved(made('ran')),
    'eval': saved({'x': Call(eval, "__import__('os').mkdir('ran')")}),
    'getattr': pickled(b'\x80\x02cbuiltins\ngetattr\n.'),
    'state of a namespace': pickled(
        b'\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__cposix\nmkdir\nsb.'
    ),
    'protocol 4': pickled(b'\x80\x04\x8c\x05posix\x8c\x05mkdir\x93\x8c\x03ran\x85R.'),
    'inst': pickled(b"(S'ran'\niposix\nmkdir\n."),
    'extension registry': pickled(b'\x80\x02\x82\x01.'),
    'bare pickle': pickle.dumps(made('ran')),
    'old format': (lambda b: (torch.save(made('ran'), b, _use_new_zipfile_serialization=False), b.getvalue())[1])(
        io.BytesIO()
    ),
    'torch.load inside': saved({'x': Call(torch.load, 'other.pth')}),
    'numpy.load inside': saved({'x': Call(np.load, 'other.npy')}),
    # pickles that are no pickles
    'empty pickle': pickled(b''),
    'no end': pickled(b'\x80\x02}'),
    'unknown code': pickled(b'\x80\x02\xff.'),
    'deep tuples': pickled(b'\x80\x02' + b'(' * 100_000 + b't' * 100_000 + b'.'),
    'doubling': pickled(b'\x80\x02X\x01\x00\x00\x00aq\x00' + b'h\x00h\x00\x86q\x00' * 100 + b'.'),
    'long string': pickled(b'\x80\x02X\xff\xff\xff\x7fa.'),
    'long number': pickled(b'\x80\x02\x8b\xff\xff\xff\x7f.'),
    'huge array': pickled(
        b'\x80\x02}X\x01\x00\x00\x00acnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n'
        b'\x8a\x06' + (10**13).to_bytes(6, 'little') + b'\x85C\x01b\x87Rs.'
    ),
    'pops too much': pickled(b'\x80\x02000000.'),
    # storages
    'no such storage': pickled(storage(b'9')),
    'storage elsewhere': pickled(storage(b'../../../etc/passwd')),
    'absolute storage': pickled(storage(b'/etc/passwd')),
    'tensor past its storage': pickled(storage(b'0', size=b'J\x00\x00\x00\x7f\x85')),
    'negative size': pickled(storage(b'0', size=b'J\xff\xff\xff\xff\x85')),
    'wrong count': pickled(storage(b'0', count=b'J\x00\x00\x00\x7f')),
    'unknown device': pickled(storage(b'0', place=b'moon:1')),
    # no weights
    'list': saved([GOOD]),
    'tensor': saved(torch.ones(1)),
    'module': saved(nn.Linear(1, 1)),
    'nothing': saved({}),
    'arrays': saved({key: value.numpy() for key, value in GOOD.items()}),
    # tensors that are no values
    'meta': swapped(torch.zeros(2, 2, device='meta')),
    'sparse': swapped(torch.eye(2).to_sparse()),
    'compressed rows': swapped(torch.eye(2).to_sparse_csr()),
    'string': swapped('weights'),
    'None': swapped(None),
    'huge by a stride of 0': swapped(torch.ones(1).expand(10**6, 10**6)),
    'nested': saved({'state_dict': {'state_dict': GOOD}}),
    'long name': saved({**GOOD, 'x' * MIB: torch.ones(1)}),
    'name with escapes': saved({**GOOD, 'a\n\x1b[2J': torch.ones(1)}),
    # safetensors
    'length': struct.pack('<Q', 2**60) + b'{}',
    'deep header': safetensors(b'{"a":' + b'[' * 100_000),
    'past the end': safetensors(tensor(shape=[10**9], data_offsets=[0, 4 * 10**9])),
    'negative shape': safetensors(tensor(shape=[-1])),
    'unknown type': safetensors(tensor(dtype='X9')),
    'overflow': safetensors(tensor(shape=[2**32] * 3)),
    'no text': safetensors(b'{"\xff":1}'),
    'overlap': safetensors(tensor()[:-1] + b',"b":' + tensor()[5:]),
    'metadata of objects': safetensors(b'{"__metadata__":{"a":{}},' + tensor()[1:]),
}  # fmt: skip

ZERO = b'\xff\xff\xff\x7e'
CENTRAL, END = b'PK\x01\x02', b'PK\x05\x06'
ZIPS = {
    'no pickle': repacked(lambda name, content: None if name == 'data.pkl' else content),
    'no data': repacked(lambda name, content: None if name == 'data/0' else content),
    'no members': b'PK\x05\x06' + b'\0' * 18,
    'short data': repacked(lambda name, content: content[:1] if name == 'data/0' else content),
    'long data': repacked(lambda name, content: content * 9 if name == 'data/0' else content),
    'byte order': repacked(lambda name, content: b'sideways' if name == 'byteorder' else content),
    'version': repacked(lambda name, content: b'99999\n' if name == 'version' else content),
    'lzma': repacked(compression=zipfile.ZIP_LZMA),
    'bzip2': repacked(compression=zipfile.ZIP_BZIP2),
    'bomb of data': repacked(
        lambda name, content: bytes(300 * MIB) if name == 'data/0' else content, compression=zipfile.ZIP_DEFLATED
    ),
    'bomb of a pickle': repacked(
        lambda name, content: bytes(300 * MIB) if name == 'data.pkl' else content, compression=zipfile.ZIP_DEFLATED
    ),
    'bomb beside': repacked(more=[('archive/more', bytes(300 * MIB))], compression=zipfile.ZIP_DEFLATED),
    'two pickles': repacked(more=[('archive/data.pkl', b'\x80\x02cposix\nmkdir\nX\x03\x00\x00\x00ran\x85R.')]),
    'TorchScript': repacked(more=[('archive/constants.pkl', b'\x80\x02).'), ('archive/code/a.py', b'')]),
    'encrypted': tampered(CENTRAL, 8, b'\x01\x00', last=True),
    'size': tampered(CENTRAL, 24, ZERO),
    'packed size': tampered(CENTRAL, 20, ZERO),
    'offset': tampered(CENTRAL, 42, ZERO),
    'method': tampered(CENTRAL, 10, b'\x63\x00'),
    'name': tampered(CENTRAL, 46, b'\0\0\0\0'),
    'name length': tampered(CENTRAL, 28, b'\xff\xff'),
    'path outside': repacked(more=[('../../escaped', b'x'), ('/tmp/volo-seg-escaped', b'x')]),
    'half': WHOLE[: len(WHOLE) // 2],
    'without its end': WHOLE[:-22],
    'start missing': WHOLE[64:],
    'junk': b'PK\x03\x04' + b'junk' * 100,
    'other zip': (lambda b: (zipfile.ZipFile(b, 'w').writestr('readme.txt', 'hello'), b.getvalue())[1])(io.BytesIO()),
}
HARMLESS = {
    'start of the list': tampered(END, 16, ZERO, last=True),
    'deflated': repacked(compression=zipfile.ZIP_DEFLATED),
    'comment length': tampered(END, 20, b'\xff\xff', last=True),
}


def test_the_tables_are_long():
    assert len(FILES) >= 45
    assert len(ZIPS) + len(HARMLESS) >= 26


def refused(path):
    """Read the file in each way that commands do; all that refuse it do so in one sentence, and one of them must."""
    refusals = []
    for read in (load_file, read_volo, lambda source: load_segmentor_weights(Segmentor(), source)):
        start = time.perf_counter()
        try:
            read(path)
        except UserError as error:
            told = str(error)
            assert told.isprintable() and len(told) < 700
            refusals.append(read)
        assert time.perf_counter() - start < 60
    return len(refusals)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('name', [*FILES, *ZIPS])
def test_refused_in_one_sentence(tmp_path, monkeypatch, name, suffix):
    (tmp_path / 'sub' / 'work').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'sub' / 'work')
    path = tmp_path / 'sub' / 'work' / f'w{suffix}'
    path.write_bytes({**FILES, **ZIPS}[name])
    assert refused(path) >= 2
    assert [file.name for file in tmp_path.rglob('*')] == ['sub', 'work', path.name]
    assert not os.path.exists('/tmp/volo-seg-escaped')


@pytest.mark.parametrize('name', HARMLESS)
def test_odd_but_harmless_archives(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'w.pth').write_bytes(HARMLESS[name])
    load_segmentor_weights(Segmentor(), tmp_path / 'w.pth')
    assert [file.name for file in tmp_path.rglob('*')] == ['w.pth']


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / 'w.pth')
    (tmp_path / 'zero.pth').symlink_to('/dev/zero')
    (tmp_path / 'loop.pth').symlink_to('loop.pth')
    for name in ('w.pth', 'zero.pth', 'loop.pth'):
        assert refused(tmp_path / name) == 3
