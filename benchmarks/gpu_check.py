"""Run everything that needs a GPU and write one report that can be sent: tests, kernel check, benchmarks.

The report is gpu-check.txt in the working folder. The exit status is 1 without a GPU, or if a part fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from _measure import write_whole

HERE = Path(__file__).parent
REPORT = Path('gpu-check.txt')
PARTS = {
    'doctor': ['-m', 'volo_seg', 'doctor'],
    'tests': ['-m', 'pytest', '-m', 'gpu', str(HERE.parent / 'tests')],
    'outlook attention': [str(HERE / 'outlook_attention.py'), '--device', 'cuda'],
    'backbone': [str(HERE / 'backbone.py'), '--device', 'cuda'],
    'training step': [str(HERE / 'training_step.py'), '--device', 'cuda'],
}
"""Arguments of Python by name of the part."""


def run_parts(parts: Mapping[str, Sequence[str]], report: Path) -> list[str]:
    """Run each part, write its output to ``report`` when it ends, and return the names of those that failed."""
    text, failed = '', []
    for number, (name, arguments) in enumerate(parts.items(), 1):
        print(f'{number}/{len(parts)} {name} ...', end=' ', flush=True)
        start = time.perf_counter()
        run = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seconds = time.perf_counter() - start
        if run.returncode:
            failed.append(name)
        outcome = f'exit status {run.returncode}, {seconds:.0f} s'
        print(outcome, flush=True)
        text += f'## {name}: {outcome}\n\n{run.stdout.strip()}\n\n'
        write_whole(report, text)
    return failed


def main() -> int:
    """Run all parts on this machine."""
    if not torch.cuda.is_available():
        print('error: this torch finds no GPU; run it on a machine with one and a CUDA build of torch', file=sys.stderr)
        return 1
    failed = run_parts(PARTS, REPORT)
    print(f'{REPORT} holds the outputs of {len(PARTS)} parts; failed: {", ".join(failed) or "none"}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
