"""The tests of the fused kernels that need a GPU or Triton's interpreter pass in the interpreter, in one process."""

import os
from pathlib import Path

import pytest
from interpreter import run_in_interpreter
from test_self_check import MUTANTS

HERE = Path(__file__).parent


@pytest.mark.skipif(os.environ.get('TRITON_INTERPRET') == '1', reason='this is the interpreter')
def test_the_kernels_in_the_interpreter() -> None:
    pytest.importorskip('triton')
    files = HERE / 'test_ops_fused.py', HERE / 'test_self_check.py'
    assert run_in_interpreter(*files) == 19 + 25 + len(MUTANTS)
