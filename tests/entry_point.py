"""`python -m tests.entry_point MODULE ARGUMENTS`: an entry point as `python -m` runs it, of which JAX keeps all it compiles.

Of several processes JAX has only the first write to the cache of programs, and looks for those of the others there in vain:
every run of two processes would compile half of its programs again.
"""

import gc
import runpy
import sys
import warnings
from typing import Any

from jax._src import compiler, distributed

from tests import forks

_write = compiler._cache_write


def _write_as_first(*arguments: Any, **options: Any) -> None:
    state = distributed.global_state
    own, state.process_id = state.process_id, 0
    try:
        _write(*arguments, **options)
    finally:
        state.process_id = own


compiler._cache_write = _write_as_first
gc.set_threshold(100_000, 20, 100)  # tracing makes objects by the million, nearly all of which live on
warnings.filterwarnings(
    "ignore", "Error (reading|writing) persistent compilation cache"
)  # another process is writing it
sys.argv = forks.serve(int(sys.argv[2])) if sys.argv[1] == "--serve" else sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
