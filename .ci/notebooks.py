"""Execute the notebooks of docs/, two at a time, into the cache that Sphinx reads: ``python .ci/notebooks.py CACHE``.

Ends with 1 if one failed, with its name and where.
"""

import os
import sys
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

ROOT = Path(__file__).resolve().parents[1]
READER = {"type": "plugin", "name": "myst_nb_md"}

if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    cache = get_cache(sys.argv[1])
    for path in sorted(ROOT.glob("docs/notebooks/*.md")):
        if path.read_text(encoding="utf-8").startswith("---"):
            cache.add_nb_to_project(str(path), read_data=READER)
    result = load_executor("temp-parallel", cache).run_and_cache(timeout=120)
    failed = [*result.excepted, *result.errored]
    for name in failed:
        print(f"{name} failed:\n{cache.get_project_record(name).traceback or 'it could not be executed'}")
    print(f"{len(result.succeeded)} notebooks executed, {len(failed)} failed")
    sys.exit(1 if failed else 0)
