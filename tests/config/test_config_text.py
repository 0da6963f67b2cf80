"""Configs out of checkpoints: what MMEngine writes comes back as values, and nothing else is taken."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from volo_seg.config.load import load_config, shipped_configs
from volo_seg.config.text import MAX_CHARACTERS, config_text_of, parse_config_text
from volo_seg.errors import UserError

NAMES = st.from_regex(r'[a-z_][a-z0-9_]{0,6}', fullmatch=True).filter(str.isidentifier)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False), st.text(max_size=8)
)
# the keys that are no identifiers are written as {'key': ...}
KEYS = st.one_of(NAMES, st.sampled_from(['backbone.norm', '3', 'a b']))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, database=None)
@given(st.dictionaries(NAMES.filter(lambda name: name not in ('dict', 'float', 'inf', 'nan')), VALUES, max_size=4))
def test_what_mmengine_writes_comes_back(content):
    import keyword

    content = {key: value for key, value in content.items() if not keyword.iskeyword(key)}
    config = Config(content, format_python_code=False)
    try:
        compile(config.pretty_text, 'x', 'exec')
    except SyntaxError:  # MMEngine itself writes keyword=..., or a text that does not end its line
        with pytest.raises(UserError):
            parse_config_text(config.pretty_text, name='x')
        return
    assert parse_config_text(config.pretty_text, name='x') == config.to_dict()


def test_every_shipped_config_comes_back():
    names = list(shipped_configs())
    assert len(names) > 10
    for name in names:
        config = Config(load_config(name).to_dict(), format_python_code=False)
        assert parse_config_text(config.pretty_text, name='x') == config.to_dict()


def test_as_formatted_by_default():
    config = load_config('volo-nano_upernet_1xb4-1200_toyscapes-256x256')
    assert parse_config_text(config.pretty_text, name='x') == config.to_dict()


def test_values():
    text = "a = {'x': -1, 2: (+3.5,)}\nb = float('-inf')\nc = [inf, -inf]\nd = dict({'p.q': None})\ne = {1, 2}\nf = nan"
    found = parse_config_text(text, name='x')
    assert math.isnan(found.pop('f')) and math.isnan(parse_config_text('a = float("NaN")', name='x')['a'])
    assert found == {
        'a': {'x': -1, 2: (3.5,)},
        'b': -math.inf,
        'c': [math.inf, -math.inf],
        'd': {'p.q': None},
        'e': {1, 2},
    }


@pytest.mark.parametrize(
    'text',
    [
        '__import__("os").system("touch {mark}")',
        'a = __import__("os").system("touch {mark}")',
        'a = open("{mark}", "w")',
        'a = [open("{mark}", "w") for _ in range(1)]',
        'a = (lambda: open("{mark}", "w"))()',
        'a = dict(b=open("{mark}", "w"))',
        'import os',
        'from os import system',
        'def f():\n    pass',
        'class A:\n    pass',
        'a = b = 1',
        'a, b = 1, 2',
        'a: int = 1',
        'a += 1',
        'a.b = 1',
        'a[0] = 1',
        'a = b',
        'a = torch.nn.ReLU',
        'a = 1 + 1',
        'a = -"x"',
        'a = -True',
        'a = not True',
        'a = ~5',
        'a = f"{1}"',
        'a = 1 if True else 2',
        'a = [*[1]]',
        'a = {**{}}',
        'a = dict(**{})',
        'a = dict([])',
        'a = dict({}, b=1)',
        'a = list()',
        'a = float("1e400x")',
        'a = float("5")',
        'a = float(inf=1)',
        'a = float(7)',
        'a = {[]: 1}',
        'a = {dict(): 1}',
        'a = {{1}: 1}',
        'a = {(1, []): 2}',
        'a = {[]}',
        'if True:\n    a = 1',
        'a = 1; print(a)',
        'a = (b := 1)',
        'assert False',
        '1',
        '...',
    ],
)
def test_anything_else_is_refused(text, tmp_path):
    mark = tmp_path / 'mark'
    with pytest.raises(UserError, match=r'the config in weights\.pth .*: give the config file as well') as caught:
        parse_config_text(text.replace('{mark}', str(mark)), name='weights.pth')
    assert not mark.exists() and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    'text',
    [
        'a = (',
        'a = "',
        'a = \0',
        '(' * 5000,
        'a = ' + '[' * 90 + ']' * 90 + '(',
        'a = ' + '-' * 50000 + '1',
        'a = 1' * 2,
    ]
    + ['a = ' + 'dict(a=' * 300 + '1' + ')' * 300 + '+', 'a = ' + '9' * 5000, '\t a = 1'],
)
def test_what_does_not_parse(text):
    with pytest.raises(UserError, match='the config in x'):
        parse_config_text(text, name='x')


def test_too_long():
    with pytest.raises(UserError, match=f'has {MAX_CHARACTERS + 1} characters, more than any config'):
        parse_config_text(' ' * (MAX_CHARACTERS + 1), name='x')


@pytest.mark.parametrize('content', [{}, {'meta': None}, {'meta': {}}, {'meta': {'cfg': ''}}, {'meta': {'cfg': 7}}])
def test_no_text(content):
    with pytest.raises(UserError, match='x contains no config: also give the config with which it was trained'):
        config_text_of(content, name='x')


def test_the_text_is_found():
    assert config_text_of({'meta': {'cfg': 'a = 1'}}, name='x') == 'a = 1'
    assert config_text_of({'meta': {'config': 'a = 2'}}, name='x') == 'a = 2'
