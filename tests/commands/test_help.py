"""What a terminal shows: help of 80 columns with an example, messages between words, completion, exit statuses."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import fake_infer
import pytest
from images import pictures

from volo_seg import __version__
from volo_seg.commands import COMMANDS, conclude, infer, main, run
from volo_seg.errors import Interrupted, UserError, print_message


@pytest.mark.parametrize('name', COMMANDS)
def test_help_fits_a_terminal_and_ends_with_an_example(name, monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit, match='0'):
        run(name, ['--help'])
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines[-2:] == ['example:', f'  volo-seg {name} {COMMANDS[name].example}'.rstrip()]


def test_the_list_of_commands_fits_a_terminal(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert main(['--version']) == 0
    assert capsys.readouterr().out == f'volo-seg {__version__}\n'


@pytest.mark.parametrize('columns', [80, 40])
def test_messages_are_broken_between_words_in_a_terminal_only(columns, monkeypatch, capfd):
    path = '/data/' + 'x' * 100
    text = (
        f'error: {path} is not a folder, and a sentence about it goes on and on, which is more than a line; rename it'
    )
    monkeypatch.setenv('COLUMNS', str(columns))
    print_message(text)
    assert capfd.readouterr().err == text + '\n'
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, 'w') as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, 'stderr', terminal)
        print_message(text)
    lines = os.read(ours, 4096).decode().split('\r\n')
    os.close(ours)
    assert ' '.join(lines).rstrip() == text
    assert [line for line in lines if len(line) > columns] == [path]
    assert len(lines) > 3


def statuses(tmp_path, monkeypatch):
    """What ends with which status."""
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr(infer, 'load_model', lambda *args: fake_infer.Brightness())
    images = pictures(tmp_path / 'images', 'a.png')
    words = [str(word) for word in ('x.pth', images, '--out-dir', tmp_path / 'out')]
    yield 0, lambda: run('infer', words)
    (images / 'broken.png').write_bytes(b'x')
    yield 1, lambda: run('infer', [*words, '--overwrite'])
    yield 2, lambda: run('infer', words)
    yield 2, lambda: main(['trian'])
    yield 2, lambda: conclude(UserError('x'))
    yield 2, lambda: exits(['infer', '--no-such-flag'])
    yield 130, lambda: conclude(KeyboardInterrupt())
    yield 130, lambda: conclude(Interrupted('', 2))
    yield 143, lambda: conclude(Interrupted('', 15))


def exits(words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code


def test_the_documented_exit_statuses(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / 'docs' / 'faq.md').read_text(encoding='utf-8')
    table = text.split('## Exit status\n')[1].split('\n## ')[0]
    documented = [int(number) for number in re.findall(r'^\| (\d+) \|', table, re.MULTILINE)]
    found = []
    for status, ends in statuses(tmp_path, monkeypatch):
        assert ends() == status
        found.append(status)
    assert documented == sorted(set(found))


def completed(script, *words):
    """What bash offers for the last of ``words``."""
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; '
    code += 'function=$(complete -p volo-seg | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); '
    code += '$function volo-seg "${@: -1}" "${@: -2:1}"; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(['bash', '-c', code, 'bash', script, *words], capture_output=True, text=True, timeout=60)
    assert done.stderr == ''
    return done.stdout.split()


def test_completion(tmp_path, monkeypatch, capsys):
    for shell in ('bash', 'zsh', 'fish'):
        assert run('completion', [shell]) == 0
        text = capsys.readouterr().out
        for word in (*COMMANDS, 'label-studio', 'out-dir'):
            assert word in text
        (tmp_path / shell).write_text(text)
    script = str(tmp_path / 'bash')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.png').touch()
    assert completed(script, 'volo-seg', 'tra') == ['train']
    assert completed(script, 'volo-seg', '--v') == ['--version']
    assert sorted(completed(script, 'volo-seg', 'infer', '--out')) == ['--out', '--out-dir', '--outputs']
    assert completed(script, 'volo-seg', 'infer', 'a.') == ['a.png']
    assert 'bf16' in completed(script, 'volo-seg', 'train', 'x.py', '--amp', '')


def test_completion_without_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert run('completion', ['bash']) == 2
    assert 'pip install "volo-seg[completion]"' in capsys.readouterr().err
