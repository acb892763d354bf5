"""`python -m envs` is short for `python -m envs.list`."""

import runpy

runpy.run_module("envs.list", run_name="__main__", alter_sys=True)
