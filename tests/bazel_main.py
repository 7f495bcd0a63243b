"""What Bazel's py_test targets run: `layer` imports all modules a target can see; else pytest."""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]


def import_all() -> int:
    """Import every module among the target's files; a missing edge in BUILD is an ImportError."""
    files = sorted(f for name in ("moegen", "vmoe", "bench") for f in (HERE / name).rglob("*.py"))
    for file in files:
        parts = file.relative_to(HERE).with_suffix("").parts
        if parts[-1] != "__main__":  # importing it would run it
            importlib.import_module(".".join(parts).removesuffix(".__init__"))
    print(f"imported {len(files)} files")
    return 0 if files else 1


def run_pytest(arguments: list[str]) -> int:
    """Run pytest from the target's own tree, without writing a cache beside the sources."""
    import pytest

    return pytest.main(["-p", "no:cacheprovider", f"--rootdir={HERE}", *arguments])


if __name__ == "__main__":
    # Python puts the folder behind Bazel's link first: without this the real tree would be found.
    sys.path[0] = str(HERE)
    sys.exit(import_all() if sys.argv[1:] == ["layer"] else run_pytest(sys.argv[1:]))
