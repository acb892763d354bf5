"""`python -m envs [PATTERN] [--backend B]` lists the tasks that `envs.make` can make."""

import argparse
import signal
import sys
from fnmatch import fnmatchcase

import envs


def main(arguments: list[str] | None = None) -> int:
    """Print the tasks of each backend. Return 0, or 1 if none matches."""
    parser = argparse.ArgumentParser(prog="python -m envs", description="List the tasks of all installed backends.")
    parser.add_argument("pattern", nargs="?", default="", help="part of a name, * stands for anything; case is ignored")
    parser.add_argument("--backend", choices=envs.BACKENDS, help="only this one")
    args = parser.parse_args(arguments)

    found = False
    installed = envs.backends()
    for name in [args.backend] if args.backend else envs.BACKENDS:
        if name not in installed:
            print(f"{name}: not installed ({envs.BACKENDS[name].install})")
            continue
        tasks = envs.tasks(name)
        matches = [task for task in tasks if fnmatchcase(task.lower(), f"*{args.pattern.lower()}*")]
        if matches or args.backend:
            print(f"{name}: {len(matches)} of {len(tasks)} tasks")
            print("".join(f"  {task}\n" for task in matches))
        found |= bool(matches)
    if not found:
        print(f"no task matches {args.pattern!r}")
    return 0 if found else 1


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends without a traceback
    sys.exit(main())
