"""Try Python versions, each with the newest releases of all dependencies, in an environment of its own.

    python tests/versions.py [--keep] [3.12 ...] [-- PYTEST ARGUMENTS]

Prints a table: outcome of the tests and versions per Python, or the reason why there is none, then the packages of
which a release newer than the installed one exists. Exit status 1 if none passed, an installation or a test failed.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'build' / 'versions'
VERSIONS = ('3.10', '3.11', '3.12', '3.13')
SHOWN = ('torch', 'numpy', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'opencv-python', 'pillow')
TESTS = (  # operator, network, config, training to the bit, checkpoints, prediction, GeoTIFF, ONNX, HTTP
    'tests/ops/test_ops.py',
    'tests/models/test_volo.py',
    'tests/config/test_config_checks.py',
    'tests/engine/test_resume.py',
    'tests/checkpoints/test_checkpoints.py',
    'tests/inference/test_predictor.py',
    'tests/inference/test_rasters.py',
    'tests/inference/test_onnx_predictor.py',
    'tests/serve/test_answers.py',
)


def find_python(version: str) -> str | None:
    """A working interpreter of ``version``: on PATH, of pyenv, or of uv; None if there is none."""
    pyenv = os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))
    uv = os.environ.get('UV_PYTHON_INSTALL_DIR', os.path.expanduser('~/.local/share/uv/python'))
    places = [f'{pyenv}/versions/{version}.*/bin/python{version}', f'{uv}/cpython-{version}.*/bin/python{version}']
    names = [shutil.which(f'python{version}'), *(name for place in places for name in sorted(glob.glob(place))[::-1])]
    code = 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'
    for name in filter(None, names):  # a shim of pyenv is on PATH also when it starts nothing
        done = subprocess.run([name, '-c', code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return name
    return None


def run(words: list[str], log: Path) -> int:
    """The exit status of a command, whose output is appended to ``log``."""
    threads = {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'PYTHONPATH': str(ROOT)}
    with log.open('a') as file:
        return subprocess.run(words, cwd=ROOT, env={**os.environ, **threads}, stdout=file, stderr=file).returncode


def try_version(version: str, tests: list[str], *, keep: bool) -> dict[str, str]:
    """The row of the table for a version of Python."""
    python = find_python(version)
    if python is None:
        return {'outcome': 'not tried: no interpreter on PATH, of pyenv or of uv'}
    folder, log = FOLDER / version, FOLDER / f'{version}.log'
    FOLDER.mkdir(parents=True, exist_ok=True)
    log.write_text('')
    own = str(folder / 'bin' / 'python')
    pip = [own, '-m', 'pip', 'install', '--disable-pip-version-check', '-q', '--upgrade']
    try:
        # torch first, as in the Makefile; the newest release whatever constraints.txt says
        steps = [[python, '-m', 'venv', '--clear', str(folder)], [*pip, 'pip', 'torch'], [*pip, '-e', f'{ROOT}[test]']]
        for step in steps:
            if run(step, log):
                errors = [line for line in log.read_text(errors='replace').splitlines() if line.startswith('ERROR')]
                reason = errors[-1][:200] if errors else ' '.join(step)
                return {'outcome': f'not installed: {reason} (see {log.relative_to(ROOT)})'}
        row = installed(own)
        failed = run([own, '-m', 'pytest', '-p', 'no:cacheprovider', *tests], log)
        summary = log.read_text(errors='replace').rstrip().rpartition('\n')[2].strip('= ')
        return {'outcome': f'{"FAILED" if failed else "passed"}: {summary}', **row}
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def installed(python: str) -> dict[str, str]:
    """Versions of the dependencies in :data:`SHOWN`, and which dependencies have a newer release."""
    words = [python, '-m', 'pip', 'list', '--disable-pip-version-check', '--format', 'json']
    found, old = (
        json.loads(subprocess.run([*words, *more], capture_output=True, text=True).stdout or '[]')
        for more in ([], ['--outdated'])
    )
    versions = {package['name'].lower(): package['version'] for package in found}
    newer = [f'{item["name"]} {item["version"]} (newest {item["latest_version"]})' for item in old]
    return {**{name: versions.get(name, '-') for name in SHOWN}, 'newer': ', '.join(newer)}


def main() -> int:
    """Try the versions and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('versions', nargs='*', default=VERSIONS)
    parser.add_argument('--keep', action='store_true', help='keep the environments (about 6 GB each with CUDA)')
    ours = sys.argv[1 : sys.argv.index('--')] if '--' in sys.argv else sys.argv[1:]
    args = parser.parse_args(ours)
    tests = sys.argv[len(ours) + 2 :] or list(TESTS)
    rows = {}
    for version in args.versions:
        rows[version] = try_version(version, tests, keep=args.keep)
        print(f'Python {version}: {rows[version]["outcome"]}', flush=True)
    print('\n| Python | outcome | ' + ' | '.join(SHOWN) + ' |\n' + '|---' * (len(SHOWN) + 2) + '|')
    for version, row in rows.items():
        print(f'| {version} | {row["outcome"]} | ' + ' | '.join(row.get(name, '-') for name in SHOWN) + ' |')
    for version, row in rows.items():
        if row.get('newer'):
            print(f'\nPython {version} does not get the newest release of: {row["newer"]}')
    tried = [row['outcome'] for row in rows.values() if not row['outcome'].startswith('not tried')]
    return 0 if tried and all(outcome.startswith('passed') for outcome in tried) else 1


if __name__ == '__main__':
    sys.exit(main())
