"""Dockerfile and compose.yaml: what they install, run and expose. No image is built here."""

import re
import shlex
from pathlib import Path

import yaml

from volo_seg.commands.serve import build_parser

ROOT = Path(__file__).resolve().parents[1]


def steps():
    """The instructions of the Dockerfile: (name, text) with continued lines joined."""
    lines = [line for line in (ROOT / 'Dockerfile').read_text().splitlines() if not line.startswith('#')]
    joined = '\n'.join(lines).replace('\\\n', ' ')
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def last(name):
    return [text for step, text in steps() if step == name][-1]


def test_the_image_serves_as_a_user_without_privileges():
    found = steps()
    assert last('USER') == '10001'
    after = [name for name, _ in found[[i for i, (name, _) in enumerate(found) if name == 'USER'][-1] :]]
    assert 'RUN' not in after and 'COPY' not in after
    command = yaml.safe_load(last('CMD'))
    assert yaml.safe_load(last('ENTRYPOINT')) == ['volo-seg'] and command[0] == 'serve'
    args = build_parser().parse_args(command[1:])
    assert args.host == '0.0.0.0' and last('EXPOSE') == str(args.port)
    assert f'http://127.0.0.1:{args.port}/healthz' in last('HEALTHCHECK')


def test_versions_are_pinned():
    installs = [text for name, text in steps() if name == 'RUN' and 'pip install' in text]
    assert installs and all('-c constraints.txt' in text for text in installs)
    images = [text for name, text in steps() if name == 'FROM']
    assert all(re.fullmatch(r'python:\$\{PYTHON\}-slim-bookworm( AS build)?', text) for text in images)
    assert re.search(r'(?m)^ARG PYTHON=3\.\d+$', (ROOT / 'Dockerfile').read_text())


def test_the_build_gets_what_the_package_needs_and_nothing_else():
    lines = (ROOT / '.dockerignore').read_text().split()
    assert lines[0] == '*'
    kept = {line.removeprefix('!') for line in lines[1:]}
    assert all((ROOT / name).exists() for name in kept)
    assert {'setup.py', 'volo_seg', 'configs', 'README.md', 'constraints.txt', 'model-index.yml'} <= kept
    assert not {'.git', 'tests', 'work_dirs', 'data', '.venv'} & kept


def test_compose():
    (service,) = yaml.safe_load((ROOT / 'compose.yaml').read_text())['services'].values()
    args = build_parser().parse_args(service['command'][1:])
    assert service['ports'] == [f'127.0.0.1:{args.port}:{args.port}'] and args.host == '0.0.0.0'
    assert service['read_only'] and service['cap_drop'] == ['ALL']
    assert service['volumes'] == ['${MODELS:-./models}:/data:ro']
    assert shlex.split('no-new-privileges:true') == service['security_opt']
